// What every operation of the kernels interface reads and writes. One struct per operation, passed
// by name: k.matmul({.a = x, .b = w, .out = y, .trans_b = true}, stream).
//
// Legend: T tokens of this rank's micro-batch   C hidden size   V vocabulary
//         Hq query heads   Hkv key/value heads (Hkv divides Hq)   D head dim   n elements
// "compute dtype" is f32 or bf16, the same for all tensors of one call that say so. Sums are always
// accumulated in f32 or wider and rounded once. Tensors are dense row-major (core/tensor.h).
// Extents of 0 are legal everywhere and compute nothing.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "core/tensor.h"

namespace farspan {

// What happens to an output that may already hold a gradient.
enum class GradMode : std::uint8_t { kOverwrite, kAccumulate };

// dst = src, elementwise; dtypes f32 and bf16 may differ (rounded to nearest even). Equal dtypes of
// any kind are copied bit for bit.
struct CopyArgs {
  Tensor src;  // any shape
  Tensor dst;  // same number of elements
};

// dst = value (f32, bf16, f64, i32, i64).
struct FillArgs {
  Tensor dst;
  double value = 0;
};

// out = a + b. out may be a or b. Compute dtype, or all f32.
struct AddArgs {
  Tensor a, b, out;
};

// out (M, N) = op(a) @ op(b), or += with kAccumulate.
//   a: (M, K), or (K, M) with trans_a.   b: (K, N), or (N, K) with trans_b.
// a and b: compute dtype. out: compute dtype or f32 (kAccumulate needs f32 out).
struct MatmulArgs {
  Tensor a, b, out;
  bool trans_a = false;
  bool trans_b = false;
  GradMode mode = GradMode::kOverwrite;
  // Borders of blocks of out's rows, 0 first and M last; with trans_a one block. The bits of a
  // block then depend on its rows of a, on b and on the block's extents alone: not on the other
  // blocks, nor on the number of threads. Empty: as is fastest.
  std::span<const std::int64_t> row_blocks = {};
};

// y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps). (Zhang & Sennrich 2019, eq. 4.)
// With a residual, sum = x + residual is written, as `add` writes it, and takes the place of x: the
// bits are those of the two operations one after the other.
struct RmsNormForwardArgs {
  Tensor x;       // (T, C) compute
  Tensor weight;  // (C) compute
  Tensor y;       // (T, C) compute
  Tensor rstd;    // (T) f32, written
  float eps = 1e-5f;
  Tensor residual = {};  // (T, C) compute, or undefined
  Tensor sum = {};       // (T, C) compute, defined where residual is; may be x or residual
};

// dx = rstd * (dy * weight - x * rstd^2 * mean(dy * weight * x)); dweight += sum_t dy * x * rstd.
struct RmsNormBackwardArgs {
  Tensor x, weight, rstd, dy;
  Tensor dx;       // (T, C) compute; may be dy
  Tensor dweight;  // (C) f32, always accumulated, in an order that does not depend on threads
  GradMode dx_mode = GradMode::kOverwrite;
};

// cos/sin of position * inv_freq, times attention_scale. Angles are formed in double: exact to f32
// at position 1,048,575. Computed once per micro-batch and used by every layer. With table_ids,
// token t reads row table_ids[t] of inv_freq: frequencies may differ between documents.
struct RopeTableArgs {
  Tensor positions;  // (T) i32, any integers >= 0
  Tensor inv_freq;   // (D / 2) f64, or (K, D / 2) with table_ids
  Tensor cos, sin;   // (T, D / 2) f32
  double attention_scale = 1.0;
  Tensor table_ids = {};  // (T) i32, in [0, K); undefined: one table for all tokens
};

// Rotates pairs (x[j], x[j + D/2]) in place ("rotate_half", as transformers does). `inverse`
// rotates back (the gradient).
struct RopeApplyArgs {
  Tensor x;         // (T, H, D) compute, in place
  Tensor cos, sin;  // (T, D / 2) f32
  bool inverse = false;
};

// out = silu(gate) * up.
struct SwiGluForwardArgs {
  Tensor gate, up, out;  // (T, F) compute
};

struct SwiGluBackwardArgs {
  Tensor gate, up, dout;  // (T, F) compute
  Tensor dgate, dup;      // (T, F) compute; may be gate, up or dout
};

// out[t] = table[ids[t]]. ids outside [0, V) are refused before they get here (data loader).
struct EmbeddingForwardArgs {
  Tensor ids;    // (T) i32
  Tensor table;  // (V, C) compute
  Tensor out;    // (T, C) compute
};

// dtable[ids[t]] += dout[t], tokens in ascending t for each row: deterministic.
struct EmbeddingBackwardArgs {
  Tensor ids;     // (T) i32
  Tensor dout;    // (T, C) compute
  Tensor dtable;  // (V, C) f32, accumulated
};

// Softmax cross-entropy over one chunk of rows. For rows with label >= 0:
//   nll = logsumexp(logits) - logits[label];  loss_sum += nll;  valid_count += 1;
//   dlogits = softmax(logits) - onehot(label)          (gradient of the SUM over tokens)
// Rows with label < 0 (-100: not scored) give dlogits 0 and nll NaN. The mean is taken once, at the
// end of the step, by the global count of valid tokens.
struct CrossEntropyArgs {
  Tensor logits;       // (N, V) f32
  Tensor labels;       // (N) i32
  Tensor dlogits;      // (N, V) compute dtype, or undefined for evaluation; may alias logits if f32
  Tensor nll;          // (N) f32, or undefined
  Tensor loss_sum;     // (1) f64, accumulated
  Tensor valid_count;  // (1) f64, accumulated
};

// sum (1) f64 = (or +=) sum of squares, in blocks of fixed size and order.
struct SquaredNormArgs {
  Tensor x;    // (n) f32
  Tensor sum;  // (1) f64
  GradMode mode = GradMode::kAccumulate;
};

// The optimizer's gate, decided on the device from global (already reduced) sums, the same on every
// rank. Gradients hold the gradient of the summed loss:
//   norm = sqrt(sum_squares) / valid_count;  clip = max_norm > 0 ? min(1, max_norm / norm) : 1
//   grad_scale = clip / valid_count
// skip = 1, and grad_scale = 0, when loss_sum or sum_squares is not finite or valid_count is 0:
// then skipped_steps += 1, else applied_steps += 1.
struct ClipArgs {
  Tensor sum_squares, loss_sum, valid_count;  // (1) f64
  double max_norm = 1.0;                      // 0: no clipping
  Tensor grad_scale;                          // (1) f32, written
  Tensor grad_norm;                           // (1) f64, written: the norm of the mean's gradient
  Tensor skip;                                // (1) i32, written
  Tensor applied_steps, skipped_steps;        // (1) i64, updated
};

// AdamW with decoupled weight decay (Loshchilov & Hutter 2019), f32 master weights; g = grad *
// grad_scale; bias correction by applied_steps (already counting this step). Nothing is touched
// when skip is set. All of master, m, v, grad: (n) f32.
struct AdamWArgs {
  Tensor master, m, v, grad;
  Tensor working;        // (n) bf16 copy for compute, written; undefined when compute is f32
  Tensor grad_scale;     // (1) f32
  Tensor skip;           // (1) i32
  Tensor applied_steps;  // (1) i64
  float lr = 0, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, weight_decay = 0;
};

// ---- attention ------------------------------------------------------------------------------

// One rectangle of the score matrix: queries [q_begin, q_begin + q_len) of the local Q against keys
// [k_begin, k_begin + k_len) of the KV block at hand. Within the rectangle both run over global
// indices with one step (1, unless the layout is strided). Element (i, j), counted from the
// rectangle's corner, has the distance, in rows,
//   delta = i - j + diagonal
// and is visible iff   kFull: always;   kCausal: delta >= 0;
//                      kInverseCausal: delta < window;   kBand: 0 <= delta < window.
enum class MaskKind : std::uint8_t { kFull, kCausal, kInverseCausal, kBand };

// KV heads [begin, end), each with the query heads of its group. Beyond the last head: all of them.
struct HeadRange {
  std::int32_t begin = 0;
  std::int32_t end = std::numeric_limits<std::int32_t>::max();
  friend bool operator==(const HeadRange&, const HeadRange&) = default;
};

struct AttentionSlice {
  std::int64_t q_begin = 0, q_len = 0;
  std::int64_t k_begin = 0, k_len = 0;
  MaskKind kind = MaskKind::kFull;
  std::int64_t diagonal = 0;
  std::int64_t window = 0;  // rows; used by kInverseCausal and kBand
  // Position of query q_begin minus position of key k_begin; read with a PositionBias only.
  std::int64_t position_diagonal = 0;
  HeadRange kv_heads;  // the heads that this slice is for
  friend bool operator==(const AttentionSlice&, const AttentionSlice&) = default;
};

// One hop of softmax attention, carrying unnormalised f32 state across calls (Milakov & Gimelshein
// 2018; Dao 2022): for the rows touched by `slices`, in the order given,
//   m' = max(m, max s);  l' = l e^(m-m') + sum e^(s-m');  acc' = acc e^(m-m') + sum e^(s-m') v
// with s = scale * q.k over visible keys. GQA: query head h reads KV head h / (Hq / Hkv).
// The result does not depend on the number of threads.

// What depends on the distance of two positions, p(i, j) = position(q) - position(k) =
// (i - j) * position_stride + slice.position_diagonal, formed exactly (never from two large numbers
// in f32). Undefined tensors: none.
struct PositionBias {
  Tensor slopes;  // (Hq) f32. ALiBi (Press et al. 2021): s -= slopes[h] * p
  Tensor decay;  // (D / 2) f32, <= 0. xPos (Sun et al. 2022): the products of dims c and c + D/2 of
                 // q and k are multiplied by 2^(decay[c] * p), decay[c] = log2(zeta_c) / base
  std::int64_t position_stride = 1;
  bool any() const { return slopes.defined() || decay.defined(); }
};

struct AttentionForwardArgs {
  Tensor q;                 // (Tq, Hq, D) compute
  Tensor k, v;              // (Tk, Hkv, D) compute
  Tensor acc;               // (Tq, Hq, D) f32: unnormalised O
  Tensor row_max, row_sum;  // (Hq, Tq) f32: m and l
  std::span<const AttentionSlice> slices;
  float scale = 1.0f;
  PositionBias bias;
  // The result depends on the rows of Q, on what the slices show of K and V and on the slices'
  // order, bitwise; never on the size of the KV block, on where in it a slice's keys lie, or on
  // threads.
  bool invariant = false;
  bool first = false;  // state starts empty: acc, row_max, row_sum need not be initialised
  bool last = false;   // also write out and lse; the state is then undefined
  Tensor out;          // (Tq, Hq, D) compute; acc / l, or 0 where no key was visible
  Tensor lse;          // (Hq, Tq) f32; m + ln l, or -inf where no key was visible
};

// delta = rowsum(dout * out), once per layer.
struct AttentionDeltaArgs {
  Tensor out, dout;  // (Tq, Hq, D) compute
  Tensor delta;      // (Hq, Tq) f32
};

// One hop of the backward pass from the GLOBAL lse and delta:
//   P = exp(scale q.k - lse);  dv += P^T dout;  dS = P * (dout v^T - delta);
//   dq += scale dS k;  dk += scale dS^T q        (dk, dv summed over the query heads of a group)
// A row with lse = -inf has P = 0. Accumulates in f32 in a fixed order: bitwise repeatable,
// whatever the number of threads.
struct AttentionBackwardArgs {
  Tensor q;           // (Tq, Hq, D) compute
  Tensor k, v;        // (Tk, Hkv, D) compute
  Tensor dout;        // (Tq, Hq, D) compute
  Tensor lse, delta;  // (Hq, Tq) f32
  Tensor dq;          // (Tq, Hq, D) f32, accumulated
  Tensor dk, dv;      // (Tk, Hkv, D) f32, accumulated
  std::span<const AttentionSlice> slices;
  float scale = 1.0f;
  PositionBias bias;
  bool invariant =
      false;  // as in AttentionForwardArgs, for dq, dk and dv: sums grow in slice order
  // false: a backend may add to dq in any order, where that is faster.
  bool deterministic = true;
  // (Tq, Hq, D) compute: what forward wrote. Undefined where the caller has it elsewhere; read by
  // libraries that form delta themselves.
  Tensor out = {};
};

// ---- copies between layouts, exact sums -----------------------------------------------------

// dst[dst_begin + r dst_stride + c] = (or +=) src[src_begin + r src_stride + c], r < rows, c <
// cols: offsets and strides in elements of the flat tensors. Takes heads out of (T, H, D), or
// columns of (H, T). dtypes f32 and bf16 may differ (rounded); i32 and i64 are copied; kAccumulate:
// dst f32, or both i64.
struct Copy2dArgs {
  Tensor src, dst;
  std::int64_t rows = 0, cols = 0;
  std::int64_t src_begin = 0, src_stride = 0;
  std::int64_t dst_begin = 0, dst_stride = 0;
  GradMode mode = GradMode::kOverwrite;
};

// Sums that do not depend on the order of their terms: n fixed-point numbers, each
//   high * 2^-20 + low * 2^-60
// in two i64. A term x becomes high = rint(x 2^20), low = rint((x - high 2^-20) 2^60), exactly, so
// integer additions (on one rank, or all_reduce over ranks) give the same sum in any order. Terms
// that are not finite or reach 2^20 in size are counted in `invalid` instead.
struct ExactSum {
  Tensor high, low;  // (n) i64
  Tensor invalid;    // (1) i64
};

// sum[i] += src[i]; with ids, sum[ids[t] * C + c] += src[t * C + c] for src (T, C).
struct ExactAddArgs {
  Tensor src;  // (n) or (T, C); f32, bf16 or f64
  Tensor ids;  // (T) i32, or undefined
  ExactSum sum;
};

// For each block of rows, [row_blocks[i], row_blocks[i + 1]): sum += a_block^T @ b_block, each term
// of the sum a product in f32 whose bits depend on the block alone, never on threads.
struct ExactMatmulArgs {
  Tensor a;                                  // (T, M) compute
  Tensor b;                                  // (T, N) compute
  std::span<const std::int64_t> row_blocks;  // 0 first, T last
  ExactSum sum;                              // of M x N numbers
};

// dst[i] = (or +=) sum[i], rounded to f64 and from there to dst's dtype; all NaN when invalid > 0.
struct ExactReadArgs {
  ExactSum sum;
  Tensor dst;  // (n) f32 or f64
  GradMode mode = GradMode::kOverwrite;
};

}  // namespace farspan
