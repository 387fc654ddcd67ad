// Attention backward over one task: a rectangle of rows x keys of one query head (Dao et al. 2022,
// algorithm 4), in transposed form. With keys as rows and queries as lanes,
//   S^T = K Q^T    P^T = e^(scale S^T - L)    dP^T = V dO^T    dS^T = P^T (dP^T - delta)
//   dV += P^T dO   dK += scale dS^T Q         dQ^T += scale K^T dS^T
// L and delta are plain vectors, P^T and dS^T are written once as the A operands of dV and dK, and
// dS^T also as the B operand of dQ^T (two rows interleaved): no transpose in the inner loops. dQ^T
// is kept in the workspace for a tile of rows and turned when it is added to dq.
//
// Legend: Bq rows of a tile   Bk keys of a tile   Dw depth of a head in dwords   lanes kLanes
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/decay-inl.h"
#include "kernels/cpu/attention/gemm_simd-inl.h"

namespace farspan::cpu {
namespace {

template <class M, class In>
class Backward {
  using I = typename M::Isa;
  using V = typename I::V;
  using Dw = typename I::Dw;
  using Dword = std::uint32_t;
  static constexpr Index kLanes = I::kLanes;
  static constexpr Index kPair = I::kPair;
  static constexpr Index kPanel = M::kVectors * kLanes;  // queries of a panel
  // A strip of keys is a whole number of depth steps of dQ^T.
  static_assert(M::kRows % (kPair * M::kDepth) == 0 && kPanel % M::kUnit == 0);

 public:
  Backward(const BackwardCall& call, const BackwardTask& task, std::byte* workspace)
      : call_(call),
        task_(task),
        layout_(call.head_dim, call.tiles, call.bias.decay, workspace),
        kv_head_(task.head / (call.num_q_heads / call.num_kv_heads)),
        q_stride_(call.num_q_heads * call.head_dim),
        k_stride_(call.num_kv_heads * call.head_dim),
        q_offset_(task.head * call.head_dim),
        k_offset_(kv_head_ * call.head_dim),
        slope_(call.bias.slopes ? call.bias.slopes[task.head] : 0.0f) {}

  static std::size_t workspace_bytes(Index head_dim, const TileSizes& tiles, bool decay) {
    return Layout(head_dim, tiles, decay, nullptr).bytes;
  }

  void run() {
    for (Index i = 0; i < M::kRows; ++i) layout_.ones[i] = 1.0f;
    for (Index p = 0; p < task_.num_pieces; ++p) {
      const Piece& piece = call_.pieces[task_.piece_ids[p]];
      if (kv_head_ >= piece.head_begin && kv_head_ < piece.head_end) add_piece(piece);
    }
  }

 private:
  struct Layout {
    Layout(Index head_dim, const TileSizes& tiles, bool decay, std::byte* base)
        : rows(tiles.backward_rows),
          keys(tiles.backward_keys),
          depth(round_up(ceil_div(head_dim, kPair), M::kDepth)),
          lda(round_up(depth, kLanes)),
          width(round_up(head_dim, kLanes)),
          ld_keys(round_up(ceil_div(keys, kPair), kLanes)) {
      Cutter cut(base);
      q_t = cut.take<Dword>(rows * depth);
      do_t = cut.take<Dword>(rows * depth);
      q_n = cut.take<Dword>(rows / kPair * width);
      do_n = cut.take<Dword>(rows / kPair * width);
      k = cut.take<Dword>((keys + M::kSpareRows) * lda);
      v = cut.take<Dword>((keys + M::kSpareRows) * lda);
      k_t = cut.take<Dword>((width + M::kSpareRows) * ld_keys);
      const Index p_rows = round_up(keys, M::kRows) + M::kSpareRows;
      p = cut.take<Dword>(p_rows * rows / kPair);
      ds = cut.take<Dword>(p_rows * rows / kPair);
      ds_b = cut.take<Dword>(round_up(keys, M::kRows) / kPair * rows);
      dq_t = cut.take<float>(round_up(width, M::kRows) * rows);
      minus_lse = cut.take<float>(rows);
      delta = cut.take<float>(rows);
      distance = cut.take<float>(rows);
      s = cut.take<float>(M::kRows * kPanel);
      dp = cut.take<float>(M::kRows * kPanel);
      ones = cut.take<float>(M::kRows);
      decayed = cut.take<In>(decay ? larger(rows, keys) * head_dim : 0);
      bytes = cut.used();
    }
    Index ds_block() const { return round_up(keys, M::kRows) / kPair * kLanes; }

    Index rows, keys;          // Bq, Bk
    Index depth;               // Dw, padded
    Index lda;                 // of k and v
    Index width;               // D padded to vectors
    Index ld_keys;             // of k_t
    Dword *q_t, *do_t;         // (Bq / lanes, Dw, lanes) operand B, depth along D
    Dword *q_n, *do_n;         // (width / lanes, Bq / pair, lanes) operand B, depth along rows
    Dword *k, *v;              // (Bk, lda) operand A, depth along D
    Dword* k_t;                // (D, ld_keys) operand A, depth along keys
    Dword *p, *ds;             // (Bk, Bq / pair) operand A: P^T, dS^T
    Dword* ds_b;               // (Bq / lanes, Bk / pair, lanes) operand B: dS^T
    float* dq_t;               // (D, Bq)
    float *minus_lse, *delta;  // (Bq), base 2, padded with -inf and 0
    float* distance;           // (Bq): see place_tile
    float *s, *dp, *ones;      // (kRows, kPanel) each; (kRows)
    In* decayed;               // rows of Q or K under xPos, not yet packed
    std::size_t bytes;
  };
  struct Range {
    Index begin, end;
    bool empty() const { return end <= begin; }
  };
  // Rows [row, row + num_rows) of a piece against its keys [key, key + num_keys), from its corner.
  // Under xPos, the first of the rows is the reference of all.
  struct Tile {
    const Piece& piece;
    Index row, num_rows, key, num_keys;
    Index num_strips() const { return ceil_div(num_keys, M::kRows); }
    Index num_panels() const { return ceil_div(num_rows, kPanel); }
    Index strip_rows(Index s) const { return smaller(M::kRows, num_keys - s * M::kRows); }
    Index padded_rows() const { return round_up(num_rows, M::kUnit); }
    Index panel_lanes(Index p) const { return smaller(kPanel, padded_rows() - p * kPanel); }
  };

  void add_piece(const Piece& piece) {
    const Index row_begin = larger(piece.q_begin, task_.row_begin) - piece.q_begin;
    const Index row_end = smaller(piece.q_begin + piece.q_len, task_.row_end) - piece.q_begin;
    const Index first_key = larger(piece.k_begin, task_.key_begin) - piece.k_begin;
    const Index last_key = smaller(piece.k_begin + piece.k_len, task_.key_end) - piece.k_begin;
    const Index tile =
        call_.bias.decay ? smaller(layout_.rows, call_.bias.decay_rows) : layout_.rows;
    for (Index row = row_begin; row < row_end; row += tile) {
      const Index num_rows = smaller(tile, row_end - row);
      const Index key_begin = larger(first_key, row - piece.max_distance);
      const Index key_end = smaller(last_key, row + num_rows - piece.min_distance);
      if (key_end <= key_begin) continue;
      pack_rows(piece.q_begin + row, num_rows);
      for (Index key = key_begin; key < key_end; key += layout_.keys)
        add_tile({piece, row, num_rows, key, smaller(layout_.keys, key_end - key)});
      if (call_.bias.decay)
        add_dq<true>(piece.q_begin + row, num_rows);
      else
        add_dq<false>(piece.q_begin + row, num_rows);
    }
  }

  void pack_rows(Index first, Index count) {
    const Index padded = round_up(count, M::kUnit);
    const Index offset = first * q_stride_ + q_offset_;
    const Source<In> q = decayed<I>(
        Source<In>{static_cast<const In*>(call_.q) + offset, q_stride_, count, call_.head_dim},
        call_.bias, 0, call_.bias.stride, layout_.decayed);
    const Source<In> dout{static_cast<const In*>(call_.dout) + offset, q_stride_, count,
                          call_.head_dim};
    const Index t_block = layout_.depth * kLanes, n_block = layout_.rows / kPair * kLanes;
    pack_transposed<I, false>(q, padded, layout_.depth, layout_.q_t, kLanes, t_block);
    pack_transposed<I, false>(dout, padded, layout_.depth, layout_.do_t, kLanes, t_block);
    pack_straight<I, true>(q, padded / kPair, layout_.width, layout_.q_n, kLanes, n_block);
    pack_straight<I, true>(dout, padded / kPair, layout_.width, layout_.do_n, kLanes, n_block);
    const Index state = task_.head * call_.num_q + first;
    for (Index i = 0; i < padded; ++i) {
      const float lse = i < count ? call_.lse[state + i] : kPlusInfinity;
      // 2^(s - inf) = 0: rows that saw no key, and lanes beyond the last row.
      layout_.minus_lse[i] = lse == -kPlusInfinity ? lse : -lse * kLog2E;
      layout_.delta[i] = i < count ? call_.delta[state + i] : 0.0f;
    }
    for (Index d = 0; d < call_.head_dim; ++d)
      for (Index i = 0; i < padded; i += kLanes)
        I::store(layout_.dq_t + d * layout_.rows + i, I::set1(0.0f));
  }

  void pack_keys(const Tile& t) {
    const Index count = t.num_keys;
    const Index offset = (t.piece.k_begin + t.key) * k_stride_ + k_offset_;
    const Source<In> k = decayed<I>(
        Source<In>{static_cast<const In*>(call_.k) + offset, k_stride_, count, call_.head_dim},
        call_.bias, key_distance(t, 0), -call_.bias.stride, layout_.decayed);
    const Source<In> v{static_cast<const In*>(call_.v) + offset, k_stride_, count, call_.head_dim};
    pack_straight<I, false>(k, count, layout_.depth, layout_.k, layout_.lda, kLanes);
    pack_straight<I, false>(v, count, layout_.depth, layout_.v, layout_.lda, kLanes);
    // Rounded up to a whole strip: the depth of dQ^T ends there, with zeros.
    pack_transposed<I, true>(k, smaller(round_up(count, M::kRows) / kPair, layout_.ld_keys),
                             call_.head_dim, layout_.k_t, layout_.ld_keys, kLanes);
  }

  // p of the tile's first row and its key r.
  Index key_distance(const Tile& t, Index r) const {
    return (t.row - t.key - r) * call_.bias.stride + t.piece.position;
  }

  // With slopes, s - slope p - L = s - slope (p - near) - (L + slope near), near being the smallest
  // p of the tile: `distance` holds p - near of the tile's first key, an exact integer, small where
  // P is not 0, and minus_lse the sum on the right, formed in double.
  void place_tile(const Tile& t) {
    const Index shortest = larger(t.piece.min_distance, t.row - t.key - t.num_keys + 1);
    const Index near = shortest * call_.bias.stride + t.piece.position;
    const double far = static_cast<double>(slope_) * static_cast<double>(near);
    const float* lse = call_.lse + task_.head * call_.num_q + t.piece.q_begin + t.row;
    for (Index i = 0; i < t.padded_rows(); ++i) {
      const Index p = (t.row + i - t.key) * call_.bias.stride + t.piece.position;
      layout_.distance[i] = static_cast<float>(p - near);
      if (layout_.minus_lse[i] != -kPlusInfinity)
        layout_.minus_lse[i] = -static_cast<float>(static_cast<double>(lse[i]) + far) * kLog2E;
    }
  }

  void add_tile(const Tile& t) {
    pack_keys(t);
    if (call_.bias.slopes) place_tile(t);
    for (Index p = 0; p < t.num_panels(); ++p)
      for (Index s = 0; s < t.num_strips(); ++s)
        if (sees(t, p, s)) score_gradients(t, p, s);
    add_key_gradient(t, layout_.p, layout_.do_n, call_.dv, 1.0f, false);
    add_key_gradient(t, layout_.ds, layout_.q_n, call_.dk, call_.scale, call_.bias.decay);
    add_query_gradient(t);
  }

  // Rows of the tile that see key r of it.
  static Range visible(const Tile& t, Index r) {
    const Index j = t.key + r - t.row;
    return {clamp(j + t.piece.min_distance, 0, t.num_rows),
            clamp(j + t.piece.max_distance + 1, 0, t.num_rows)};
  }
  // Whether any query of panel p sees any key of strip s. True for a run of strips of a panel, and
  // for a run of panels of a strip.
  static bool sees(const Tile& t, Index p, Index s) {
    const Index first = s * M::kRows, last = first + t.strip_rows(s) - 1;
    return visible(t, first).begin < smaller((p + 1) * kPanel, t.num_rows) &&
           visible(t, last).end > p * kPanel;
  }

  // P^T and dS^T of one strip and panel.
  void score_gradients(const Tile& t, Index p, Index s) {
    const Index block = layout_.depth * kLanes;
    const Index lane = p * kPanel, row = s * M::kRows, rows = t.strip_rows(s);
    const Index vectors = t.panel_lanes(p) / kLanes;
    M::multiply(layout_.k + row * layout_.lda, layout_.lda, layout_.q_t + lane / kLanes * block,
                block, layout_.depth, layout_.s, kPanel, rows, vectors);
    M::multiply(layout_.v + row * layout_.lda, layout_.lda, layout_.do_t + lane / kLanes * block,
                block, layout_.depth, layout_.dp, kPanel, rows, vectors);
    if (call_.bias.slopes)
      gradient_strip<true>(t, p, row, rows);
    else
      gradient_strip<false>(t, p, row, rows);
  }

  // A function of its own for each bias: the registers of one are no concern of the other.
  template <bool kAlibi>
  [[gnu::noinline]] void gradient_strip(const Tile& t, Index p, Index row, Index rows) {
    const bool partial = visible(t, row).end < t.num_rows || visible(t, row + rows - 1).begin > 0;
    for (Index r = 0; r < M::kRows; r += kPair) {
      // Rows beyond the last key are depth of dQ^T: zeros.
      if (r >= rows)
        zero_rows(t, p, row + r);
      else if (partial || r + kPair > rows)
        gradient_rows<true, kAlibi>(t, p, row, r, rows);
      else
        gradient_rows<false, kAlibi>(t, p, row, r, rows);
    }
  }

  void zero_rows(const Tile& t, Index p, Index row) {
    Dword* b = layout_.ds_b + p * M::kVectors * layout_.ds_block() + row / kPair * kLanes;
    for (Index v = 0; v < t.panel_lanes(p) / kLanes; ++v)
      I::store_dwords(b + v * layout_.ds_block(), I::broadcast(0));
  }

  // Rows r .. r + kPair of the strip that starts at key `row`.
  template <bool kMasked, bool kAlibi>
  void gradient_rows(const Tile& t, Index p, Index row, Index r, Index rows) {
    const V scale = I::set1(call_.scale * kLog2E), minus_slope = I::set1(-slope_ * kLog2E);
    const Index ld = layout_.rows / kPair;
    Range seen[kPair];
    for (Index i = 0; i < kPair; ++i)
      seen[i] = kMasked && r + i >= rows ? Range{0, 0} : visible(t, row + r + i);
    Dword* p_row = layout_.p + (row + r) * ld;
    Dword* ds_row = layout_.ds + (row + r) * ld;
    Dword* b = layout_.ds_b + p * M::kVectors * layout_.ds_block() + (row + r) / kPair * kLanes;
    for (Index c = 0; c < t.panel_lanes(p); c += kLanes) {
      const Index column = p * kPanel + c;
      const V minus_lse = I::load(layout_.minus_lse + column),
              delta = I::load(layout_.delta + column);
      V probability[kPair], gradient[kPair];
#pragma GCC unroll 2
      for (Index i = 0; i < kPair; ++i) {
        const Index at = (r + i) * kPanel + c;
        V exponent = I::fma(I::load(layout_.s + at), scale, minus_lse);
        if constexpr (kAlibi) {
          const V key = I::set1(static_cast<float>((row + r + i) * call_.bias.stride));
          const V distance = I::sub(I::load(layout_.distance + column), key);
          exponent = I::fma(distance, minus_slope, exponent);
        }
        V x = I::exp2(exponent);
        V y = I::mul(x, I::sub(I::load(layout_.dp + at), delta));
        if constexpr (kMasked) {
          x = I::zero_outside(x, seen[i].begin - column, seen[i].end - column);
          y = I::zero_outside(y, seen[i].begin - column, seen[i].end - column);
        }
        probability[i] = x;
        gradient[i] = y;
      }
      if constexpr (kPair == 1) {
        I::store_operand(p_row, column, probability[0]);
        I::store_operand(ds_row, column, gradient[0]);
        I::store_dwords(b, I::as_dwords(gradient[0]));
      } else {
        I::store_operands(p_row, p_row + ld, column, probability[0], probability[1]);
        I::store_dwords(b,
                        I::store_operands(ds_row, ds_row + ld, column, gradient[0], gradient[1]));
      }
      b += layout_.ds_block();
    }
  }

  // out (keys, D) += factor * a (keys, rows) b (rows, D), times what xPos gives each key if
  // `decay`.
  void add_key_gradient(const Tile& t, const Dword* a, const Dword* b, float* out, float factor,
                        bool decay) {
    const Index lda = layout_.rows / kPair, block = layout_.rows / kPair * kLanes;
    for_panels<M>(layout_.width / kLanes, [&](Index panel, Index width) {
      for (Index s = 0; s < t.num_strips(); ++s) {
        Index first = 0, end = t.num_panels();
        while (first < end && !sees(t, first, s)) ++first;
        while (first < end && !sees(t, end - 1, s)) --end;
        if (first == end) continue;
        const Index begin = first * kPanel / kPair;
        const Index depth = smaller(end * kPanel, t.padded_rows()) / kPair - begin;
        M::multiply(a + s * M::kRows * lda + begin, lda, b + panel * block + begin * kLanes, block,
                    depth, layout_.s, kPanel, t.strip_rows(s), width);
        for (Index r = 0; r < t.strip_rows(s); ++r) {
          const Index key = s * M::kRows + r;
          float* x = layout_.s + r * kPanel;
          if (decay)
            decay_sums<I>(call_.bias, x, panel * kLanes, width * kLanes, key_distance(t, key));
          add_row(out + (t.piece.k_begin + t.key + key) * k_stride_ + k_offset_ + panel * kLanes, x,
                  smaller(width * kLanes, call_.head_dim - panel * kLanes), factor);
        }
      }
    });
  }

  static void add_row(float* out, const float* x, Index count, float factor) {
    const V scale = I::set1(factor);
    for (Index c = 0; c < count; c += kLanes)
      I::store_row(out + c, I::fma(I::load(x + c), scale, I::load_partial(out + c, count - c)),
                   count - c);
  }

  // dQ^T (D, rows) += K^T (D, keys) dS^T (keys, rows), unscaled.
  void add_query_gradient(const Tile& t) {
    for (Index p = 0; p < t.num_panels(); ++p) {
      Index first = 0, end = t.num_strips();
      while (first < end && !sees(t, p, first)) ++first;
      while (first < end && !sees(t, p, end - 1)) --end;
      if (first == end) continue;
      const Index begin = first * M::kRows / kPair, depth = (end - first) * M::kRows / kPair;
      const Dword* b = layout_.ds_b + p * M::kVectors * layout_.ds_block() + begin * kLanes;
      for (Index d = 0; d < call_.head_dim; d += M::kRows)
        M::multiply_add(layout_.k_t + d * layout_.ld_keys + begin, layout_.ld_keys, b,
                        layout_.ds_block(), depth, layout_.dq_t + d * layout_.rows + p * kPanel,
                        layout_.rows, smaller(M::kRows, call_.head_dim - d),
                        t.panel_lanes(p) / kLanes, layout_.ones);
    }
  }

  // dq += scale * (dQ^T)^T for the rows of a tile.
  template <bool kDecay>
  void add_dq(Index first, Index count) {
    const V scale = I::set1(call_.scale);
    for (Index i = 0; i < count; i += kLanes)
      for (Index d = 0; d < call_.head_dim; d += kLanes) {
        Dw square[kLanes];
        for (Index r = 0; r < kLanes; ++r)
          square[r] = d + r < call_.head_dim
                          ? I::as_dwords(I::load(layout_.dq_t + (d + r) * layout_.rows + i))
                          : I::broadcast(0);
        I::transpose(square);
        const Index valid = call_.head_dim - d;
        for (Index r = 0; r < smaller(kLanes, count - i); ++r) {
          float* out = call_.dq + (first + i + r) * q_stride_ + q_offset_ + d;
          V x = I::as_floats(square[r]);
          if constexpr (kDecay)
            x = I::mul(x, decay_factor<I>(call_.bias, d, (i + r) * call_.bias.stride));
          I::store_row(out, I::fma(x, scale, I::load_partial(out, valid)), valid);
        }
      }
  }

  static constexpr float kPlusInfinity = __builtin_inff();
  const BackwardCall& call_;
  const BackwardTask& task_;
  Layout layout_;
  Index kv_head_, q_stride_, k_stride_, q_offset_, k_offset_;
  float slope_;
};

}  // namespace
}  // namespace farspan::cpu
