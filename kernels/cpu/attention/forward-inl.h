// Attention forward over one task: a block of rows of one or more query heads that share a KV head.
// Per tile of keys: S = Q K^T in vector registers, row maxima, P = e^(S - m) rounded to the type
// of the products, acc = acc e^(m - m') + P V (Dao et al. 2022, algorithm 1). K and V are packed
// once per tile and used by all heads and rows of the task.
//
// Legend: R rows of this task per head   Bk keys of a tile   Dw depth of a head in dwords
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/decay-inl.h"
#include "kernels/cpu/attention/gemm_simd-inl.h"

namespace farspan::cpu {
namespace {

inline constexpr float kMinusInfinity = -__builtin_inff();

template <class M, class In>
class Forward {
  using I = typename M::Isa;
  using V = typename I::V;
  using Dword = std::uint32_t;
  static constexpr Index kLanes = I::kLanes;
  static constexpr Index kPair = I::kPair;
  static_assert(M::kUnit % kLanes == 0 && M::kUnit % (kPair * M::kDepth) == 0);

 public:
  Forward(const ForwardCall& call, const ForwardTask& task, std::byte* workspace)
      : call_(call),
        task_(task),
        layout_(call.head_dim, call.tiles, call.bias.decay, workspace),
        kv_head_(task.head_begin / (call.num_q_heads / call.num_kv_heads)),
        reference_rows_(call.bias.decay ? smaller(call.bias.decay_rows, task.num_rows)
                                        : task.num_rows) {
    for (Index i = 0; i < kLanes; ++i) steps_[i] = static_cast<float>(i * call.bias.stride);
  }

  static std::size_t workspace_bytes(Index head_dim, const TileSizes& tiles, bool decay) {
    return Layout(head_dim, tiles, decay, nullptr).bytes;
  }

  void run() {
    load_state();
    bool packed = false;
    for (Index p = 0; p < task_.num_pieces; ++p) {
      const Piece& piece = call_.pieces[task_.piece_ids[p]];
      if (kv_head_ < piece.head_begin || kv_head_ >= piece.head_end) continue;
      if (!packed) pack_queries();
      packed = true;
      add_piece(piece);
    }
    if (call_.last)
      write_output();
    else
      store_state();
  }

 private:
  struct Layout {
    Layout(Index head_dim, const TileSizes& tiles, bool decay, std::byte* base)
        : depth(round_up(ceil_div(head_dim, kPair), M::kDepth)),
          lda(round_up(depth, kLanes)),
          width(round_up(head_dim, kLanes)) {
      Cutter cut(base);
      const Index rows = tiles.forward_rows, keys = tiles.forward_keys;
      q = cut.take<Dword>((rows + M::kSpareRows) * lda);
      k = cut.take<Dword>(keys * depth);
      v = cut.take<Dword>(keys / kPair * width);
      s = cut.take<float>((M::kSubRows + M::kSpareRows) * keys);
      // f32 probabilities replace their scores in place.
      p = kPair == 1 ? reinterpret_cast<Dword*>(s)
                     : cut.take<Dword>((M::kSubRows + M::kSpareRows) * keys / kPair);
      acc = cut.take<float>(rows * width);
      row_max = cut.take<float>(rows);
      row_sum = cut.take<float>(rows);
      rescale = cut.take<float>(M::kSubRows);
      decayed = cut.take<In>(decay ? larger(rows, keys) * head_dim : 0);
      bytes = cut.used();
    }
    Index depth;  // Dw, padded
    Index lda;    // of packed Q
    Index width;  // D padded to vectors: row of acc
    Dword* q;     // (rows, lda) operand A
    Dword* k;     // (Bk / lanes, depth, lanes) operand B
    Dword* v;     // (width / lanes, Bk / pair, lanes) operand B
    float* s;     // (kSubRows, Bk)
    Dword* p;     // (kSubRows, Bk / pair) operand A
    float* acc;   // (rows, width)
    float *row_max, *row_sum, *rescale;
    In* decayed;  // rows of Q or K under xPos, not yet packed
    std::size_t bytes;
  };
  struct Range {
    Index begin, end;
    bool empty() const { return end <= begin; }
  };
  // Rows [first, first + count) of a piece against its keys [key, key + num_keys); `local` is the
  // first of these rows in the task's buffers, `slope` the head's.
  struct Block {
    const Piece& piece;
    Index first, count, local, key, num_keys;
    float slope;
  };

  Index state_row(Index head, Index r) const {
    return (task_.head_begin + head) * call_.num_q + task_.row_begin + r;
  }
  Index element_row(Index head, Index r) const {
    return ((task_.row_begin + r) * call_.num_q_heads + task_.head_begin + head) * call_.head_dim;
  }

  void load_state() {
    for (Index h = 0; h < task_.num_heads; ++h)
      for (Index r = 0; r < task_.num_rows; ++r) {
        const Index local = h * task_.num_rows + r;
        float* acc = layout_.acc + local * layout_.width;
        const float* from = call_.acc + element_row(h, r);
        for (Index d = 0; d < layout_.width; d += kLanes)
          I::store(acc + d,
                   call_.first ? I::set1(0.0f) : I::load_partial(from + d, call_.head_dim - d));
        layout_.row_max[local] = call_.first ? kMinusInfinity : call_.row_max[state_row(h, r)];
        layout_.row_sum[local] = call_.first ? 0.0f : call_.row_sum[state_row(h, r)];
      }
  }

  void store_state() {
    for (Index h = 0; h < task_.num_heads; ++h)
      for (Index r = 0; r < task_.num_rows; ++r) {
        const Index local = h * task_.num_rows + r;
        const float* acc = layout_.acc + local * layout_.width;
        for (Index d = 0; d < call_.head_dim; d += kLanes)
          I::store_row(call_.acc + element_row(h, r) + d, I::load(acc + d), call_.head_dim - d);
        call_.row_max[state_row(h, r)] = layout_.row_max[local];
        call_.row_sum[state_row(h, r)] = layout_.row_sum[local];
      }
  }

  void write_output() {
    for (Index h = 0; h < task_.num_heads; ++h)
      for (Index r = 0; r < task_.num_rows; ++r) {
        const Index local = h * task_.num_rows + r;
        const float sum = layout_.row_sum[local];
        // A row that saw no key: O = 0, L = -inf. (A NaN sum is not 0 and stays visible.)
        const V inverse = I::set1(sum == 0.0f ? 0.0f : 1.0f / sum);
        const float* acc = layout_.acc + local * layout_.width;
        In* out = static_cast<In*>(call_.out) + element_row(h, r);
        for (Index d = 0; d < call_.head_dim; d += kLanes)
          I::store_row(out + d, I::mul(I::load(acc + d), inverse), call_.head_dim - d);
        call_.lse[state_row(h, r)] =
            sum == 0.0f ? kMinusInfinity : layout_.row_max[local] + __builtin_logf(sum);
      }
  }

  // Rows of Q, each run of reference_rows_ decayed from its first one.
  void pack_queries() {
    const Index stride = call_.num_q_heads * call_.head_dim;
    for (Index h = 0; h < task_.num_heads; ++h)
      for (Index r = 0; r < task_.num_rows; r += reference_rows_) {
        const Index count = smaller(reference_rows_, task_.num_rows - r);
        const Source<In> rows{static_cast<const In*>(call_.q) + element_row(h, r), stride, count,
                              call_.head_dim};
        pack_straight<I, false>(
            decayed<I>(rows, call_.bias, 0, call_.bias.stride, layout_.decayed), count,
            layout_.depth, layout_.q + (h * task_.num_rows + r) * layout_.lda, layout_.lda, kLanes);
      }
  }

  // Keys [key, key + count) of the piece, decayed by their distance from its row `reference`.
  void pack_keys(const Piece& piece, Index key, Index count, Index reference) {
    const Index stride = call_.num_kv_heads * call_.head_dim;
    const Index offset = (piece.k_begin + key) * stride + kv_head_ * call_.head_dim;
    const Index padded = round_up(count, M::kUnit);
    const Index distance = (reference - key) * call_.bias.stride + piece.position;
    const Source<In> k{static_cast<const In*>(call_.k) + offset, stride, count, call_.head_dim};
    pack_transposed<I, false>(
        decayed<I>(k, call_.bias, distance, -call_.bias.stride, layout_.decayed), padded,
        layout_.depth, layout_.k, kLanes, layout_.depth * kLanes);
    pack_straight<I, true>(
        Source<In>{static_cast<const In*>(call_.v) + offset, stride, count, call_.head_dim},
        padded / kPair, layout_.width, layout_.v, kLanes, v_block());
  }

  Index v_block() const { return call_.tiles.forward_keys / kPair * kLanes; }

  void add_piece(const Piece& piece) {
    const Index begin = larger(piece.q_begin, task_.row_begin) - piece.q_begin;
    const Index end =
        smaller(piece.q_begin + piece.q_len, task_.row_begin + task_.num_rows) - piece.q_begin;
    // Runs of rows with one reference. Without xPos there is one, the task.
    const Index origin = task_.row_begin - piece.q_begin;
    if (begin < end)
      for (Index first = begin - (begin - origin) % reference_rows_; first < end;
           first += reference_rows_)
        add_rows(piece, larger(begin, first), smaller(end, first + reference_rows_), first);
  }

  // Rows [begin, end) of a piece.
  void add_rows(const Piece& piece, Index begin, Index end, Index reference) {
    const Index key_begin = clamp(begin - piece.max_distance, 0, piece.k_len);
    const Index key_end = clamp(end - piece.min_distance, 0, piece.k_len);
    const Index tile = call_.tiles.forward_keys;
    // Tiles start at multiples of their size from the piece's corner, whatever the rows are.
    for (Index key = key_begin / tile * tile; key < key_end; key += tile) {
      const Index num_keys = smaller(tile, piece.k_len - key);
      pack_keys(piece, key, smaller(num_keys, key_end - key), reference);
      for (Index h = 0; h < task_.num_heads; ++h)
        for (Index first = begin; first < end; first += M::kSubRows) {
          const Index local = h * task_.num_rows + piece.q_begin + first - task_.row_begin;
          add_block({piece, first, smaller(M::kSubRows, end - first), local, key, num_keys,
                     call_.bias.slopes ? call_.bias.slopes[task_.head_begin + h] : 0.0f});
        }
    }
  }

  // Keys of the block that row r of it sees, from the block's first key.
  static Range visible(const Block& b, Index r) {
    const Index i = b.first + r - b.key;
    return {clamp(i - b.piece.max_distance, 0, b.num_keys),
            clamp(i - b.piece.min_distance + 1, 0, b.num_keys)};
  }
  // Keys that any row of a strip sees, widened to units.
  static Range visible_to_strip(const Block& b, Index r, Index rows) {
    const Range seen = {visible(b, r).begin, visible(b, r + rows - 1).end};
    if (seen.empty()) return {0, 0};
    return {seen.begin / M::kUnit * M::kUnit, round_up(seen.end, M::kUnit)};
  }

  void add_block(const Block& b) {
    constexpr Index kMaxStrips = M::kSubRows / M::kRows;
    Range strips[kMaxStrips];
    const Index num_strips = ceil_div(b.count, M::kRows);
    Range all = {b.num_keys, 0};
    for (Index s = 0; s < num_strips; ++s) {
      strips[s] = visible_to_strip(b, s * M::kRows, strip_rows(b, s));
      if (strips[s].empty()) continue;
      all = {smaller(all.begin, strips[s].begin), larger(all.end, strips[s].end)};
    }
    if (all.empty()) return;
    scores(b, strips, num_strips, all);
    if (call_.bias.slopes)
      softmax_strips<true>(b, strips, num_strips);
    else
      softmax_strips<false>(b, strips, num_strips);
    weighted_values(b, strips, num_strips);
  }

  static Index strip_rows(const Block& b, Index s) {
    return smaller(M::kRows, b.count - s * M::kRows);
  }

  void scores(const Block& b, const Range* strips, Index num_strips, Range all) {
    const Index ld = call_.tiles.forward_keys;
    const Index block = layout_.depth * kLanes;
    const Index all_begin = all.begin / kLanes;
    for_panels<M>(all.end / kLanes - all_begin, [&](Index panel, Index width) {
      for (Index s = 0; s < num_strips; ++s) {
        const Index begin = larger(all_begin + panel, strips[s].begin / kLanes);
        const Index end = smaller(all_begin + panel + width, strips[s].end / kLanes);
        if (begin >= end) continue;
        const Index r = s * M::kRows;
        M::multiply(layout_.q + (b.local + r) * layout_.lda, layout_.lda, layout_.k + begin * block,
                    block, layout_.depth, layout_.s + r * ld + begin * kLanes, ld, strip_rows(b, s),
                    end - begin);
      }
    });
  }

  // A function of its own for each bias: the registers of one are no concern of the other.
  template <bool kAlibi>
  [[gnu::noinline]] void softmax_strips(const Block& b, const Range* strips, Index num_strips) {
    for (Index s = 0; s < num_strips; ++s)
      if (!strips[s].empty())
        for (Index r = s * M::kRows; r < s * M::kRows + strip_rows(b, s); ++r)
          softmax_row<kAlibi>(b, r, strips[s]);
  }

  // Scores [columns) of a row to scale * s - slope * (p - p of column `nearest`). That distance is
  // an exact integer, small where scores matter, however far the keys lie.
  void add_slope(const Block& b, float* s, Range columns, Index nearest) {
    const V scale = I::set1(call_.scale), minus_slope = I::set1(-b.slope);
    const V steps = I::load(steps_);
    for (Index c = columns.begin; c < columns.end; c += kLanes) {
      const float first = static_cast<float>((nearest - c) * call_.bias.stride);
      I::store(s + c,
               I::fma(I::sub(I::set1(first), steps), minus_slope, I::mul(I::load(s + c), scale)));
    }
  }

  // One row of scores to probabilities, and its running maximum and sum. `columns` is the strip's
  // range; what this row does not see of it becomes probability 0. With slopes, what all scores of
  // the row have in common, slope * p of its nearest key, is kept apart in double (`far`).
  template <bool kAlibi>
  void softmax_row(const Block& b, Index r, Range columns) {
    const Index ld = call_.tiles.forward_keys;
    float* s = layout_.s + r * ld;
    const Range seen = visible(b, r);
    for (Index c = columns.begin; c < smaller(seen.begin, columns.end); ++c) s[c] = kMinusInfinity;
    for (Index c = larger(seen.end, columns.begin); c < columns.end; ++c) s[c] = kMinusInfinity;
    double far = 0;
    if constexpr (kAlibi) {
      const Index nearest = larger(seen.end - 1, columns.begin);
      const Index distance = (b.first + r - b.key - nearest) * call_.bias.stride + b.piece.position;
      far = static_cast<double>(b.slope) * static_cast<double>(distance);
      add_slope(b, s, columns, nearest);
    }
    const float unit = kAlibi ? 1.0f : call_.scale;  // of what is in s

    V highest[2] = {I::set1(kMinusInfinity), I::set1(kMinusInfinity)};
    Index c = columns.begin;
    for (; c + 2 * kLanes <= columns.end; c += 2 * kLanes) {
      highest[0] = I::max(highest[0], I::load(s + c));
      highest[1] = I::max(highest[1], I::load(s + c + kLanes));
    }
    if (c < columns.end) highest[0] = I::max(highest[0], I::load(s + c));
    float& row_max = layout_.row_max[b.local + r];
    const float nearest_max = unit * I::reduce_max(I::max(highest[0], highest[1]));
    const float tile_max =
        kAlibi ? static_cast<float>(static_cast<double>(nearest_max) - far) : nearest_max;
    const float new_max = tile_max > row_max ? tile_max : row_max;
    // Where nothing has been seen yet, any finite shift gives e^-inf = 0.
    const float shift = new_max == kMinusInfinity ? 0.0f : new_max;

    const float base_2_shift =
        (kAlibi ? static_cast<float>(static_cast<double>(shift) + far) : shift) * kLog2E;
    const V scale = I::set1(unit * kLog2E), minus_shift = I::set1(-base_2_shift);
    Dword* p = layout_.p + r * (ld / kPair);
    V sum[2] = {I::set1(0.0f), I::set1(0.0f)};
    const auto probability = [&](Index column) {
      const V x = I::exp2(I::fma(I::load(s + column), scale, minus_shift));
      I::store_operand(p, column, x);
      return x;
    };
    for (c = columns.begin; c + 2 * kLanes <= columns.end; c += 2 * kLanes) {
      sum[0] = I::add(sum[0], probability(c));
      sum[1] = I::add(sum[1], probability(c + kLanes));
    }
    if (c < columns.end) sum[0] = I::add(sum[0], probability(c));

    const float rescale =
        power_of_2(kAlibi ? (row_max - shift) * kLog2E : row_max * kLog2E - base_2_shift);
    layout_.rescale[r] = rescale;
    float& row_sum = layout_.row_sum[b.local + r];
    row_sum = row_sum * rescale + I::reduce_add(I::add(sum[0], sum[1]));
    row_max = new_max;
  }

  static float power_of_2(float x) { return I::exp2(I::set1(x))[0]; }

  void weighted_values(const Block& b, const Range* strips, Index num_strips) {
    const Index ld = call_.tiles.forward_keys / kPair;
    for_panels<M>(layout_.width / kLanes, [&](Index panel, Index width) {
      for (Index s = 0; s < num_strips; ++s) {
        if (strips[s].empty()) continue;
        const Index r = s * M::kRows;
        const Index first = strips[s].begin / kPair;
        M::multiply_add(layout_.p + r * ld + first, ld,
                        layout_.v + panel * v_block() + first * kLanes, v_block(),
                        (strips[s].end - strips[s].begin) / kPair,
                        layout_.acc + (b.local + r) * layout_.width + panel * kLanes, layout_.width,
                        strip_rows(b, s), width, layout_.rescale + r);
      }
    });
  }

  const ForwardCall& call_;
  const ForwardTask& task_;
  Layout layout_;
  Index kv_head_;
  Index reference_rows_;      // rows that share a reference of xPos; without xPos all
  float steps_[kLanes] = {};  // lane * bias.stride
};

}  // namespace
}  // namespace farspan::cpu
