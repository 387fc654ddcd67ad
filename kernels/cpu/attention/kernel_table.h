// The seam between the engine (plain x86-64: checks, tasks, threads) and the kernels (one
// translation unit per instruction set). Only plain data crosses it: a translation unit built for a
// higher instruction set must not emit inline functions that others could be linked against, so the
// kernels include this header and the -inl.h files, whose contents have internal linkage.
//
// Legend: Tq, Tk rows of this call's Q and of its KV block   Hq, Hkv heads   D head dim
#pragma once

#include <cstddef>
#include <cstdint>

namespace farspan::cpu {

using Index = std::int64_t;

// A slice in canonical form: element (i, j), counted from the corner (q_begin, k_begin), is visible
// iff min_distance <= i - j <= max_distance.
struct Piece {
  Index q_begin, q_len, k_begin, k_len;
  Index min_distance, max_distance;
  Index head_begin, head_end;  // KV heads
  Index position;              // what the position of row 0 has on that of key 0
};

// What depends on p(i, j) = (i - j) * stride + piece.position (args.h: PositionBias).
struct Bias {
  const float* slopes;  // (Hq), or null
  const float* decay;   // (D, both halves alike, and zeros up to a multiple of 16), or null
  Index decay_rows;     // rows that may share a reference: see decay-inl.h
  Index stride;
};

// How much of a problem one thread holds at a time; chosen by shape, never by thread count.
struct TileSizes {
  Index forward_rows;   // Q rows of a forward task, all its heads together
  Index forward_keys;   // keys of a tile: multiple of 32
  Index backward_rows;  // Q rows of a tile: multiple of 64
  Index backward_keys;  // keys of a tile: multiple of 32
};

struct ForwardCall {
  const void *q, *k, *v;            // (Tq, Hq, D), (Tk, Hkv, D): the table's element type
  float *acc, *row_max, *row_sum;   // (Tq, Hq, D), (Hq, Tq)
  void* out;                        // (Tq, Hq, D), with last
  float* lse;                       // (Hq, Tq), with last
  Index num_q;                      // Tq
  Index num_q_heads, num_kv_heads;  // Hq, Hkv
  Index head_dim;                   // D
  float scale;
  bool first, last;
  Bias bias;
  const Piece* pieces;
  TileSizes tiles;
};

// Rows [row_begin, row_begin + num_rows) of query heads [head_begin, head_begin + num_heads), which
// all read one KV head, against `num_pieces` pieces in the order given. Pieces for other heads are
// passed over, here and in backward.
struct ForwardTask {
  const std::int32_t* piece_ids;
  Index num_pieces;
  Index row_begin, num_rows;
  Index head_begin, num_heads;
};

struct BackwardCall {
  const void *q, *k, *v, *dout;  // (Tq, Hq, D), (Tk, Hkv, D)
  const float *lse, *delta;      // (Hq, Tq)
  float *dq, *dk, *dv;           // accumulated
  Index num_q;
  Index num_q_heads, num_kv_heads, head_dim;
  float scale;
  Bias bias;
  const Piece* pieces;
  TileSizes tiles;
};

// The rectangle rows x keys of one query head; writes dq of these rows, dk and dv of these keys.
struct BackwardTask {
  const std::int32_t* piece_ids;
  Index num_pieces;
  Index row_begin, row_end;
  Index key_begin, key_end;
  Index head;
};

struct DeltaCall {
  const void *out, *dout;  // (Tq, Hq, D)
  float* delta;            // (Hq, Tq)
  Index num_q, num_q_heads, head_dim;
};

// The kernels of one instruction set for one element type. `workspace` is 64-byte aligned and holds
// workspace_bytes; its contents are scratch.
struct KernelTable {
  std::size_t (*workspace_bytes)(Index head_dim, const TileSizes& tiles, bool decay);
  void (*forward)(const ForwardCall& call, const ForwardTask& task, std::byte* workspace);
  void (*backward)(const BackwardCall& call, const BackwardTask& task, std::byte* workspace);
  void (*delta)(const DeltaCall& call, Index row_begin, Index row_end);
  void (*exp2)(const float* x, float* y, Index n);  // y = 2^x, x <= 0: for tests
};

const KernelTable& portable_f32();
const KernelTable& portable_bf16();  // widened to f32 when tiles are packed
const KernelTable& avx2_f32();
const KernelTable& avx2_bf16();  // widened
const KernelTable& avx512_f32();
const KernelTable& avx512_bf16_widened();
const KernelTable& avx512_bf16_native();  // vdpbf16ps
const KernelTable& amx_bf16();            // tdpbf16ps
// The AMX kernel with its tile registers emulated in plain code (needs AVX-512 BF16): lets machines
// without AMX test everything of that kernel but the tile instructions themselves.
const KernelTable& amx_bf16_emulated();

}  // namespace farspan::cpu
