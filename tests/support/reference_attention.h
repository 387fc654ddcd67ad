// Softmax attention over slices in double, forward and backward, written as the formulas stand
// (kernels/args.h): for each row, every visible (row, key) pair one by one. The oracle of all
// attention kernels.
//
//   AttentionProblem p{.num_q = 8, .num_k = 8, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 4};
//   p.slices = {...}; p.q = ...; p.k = ...; p.v = ...; p.dout = ...;
//   AttentionResult r = reference_attention(p);
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/args.h"

namespace farspan::testing {

struct AttentionProblem {
  std::int64_t num_q = 0, num_k = 0, num_q_heads = 1, num_kv_heads = 1, head_dim = 1;
  double scale = 1.0;
  std::vector<AttentionSlice> slices;
  std::vector<double> q, dout;  // (Tq, Hq, D)
  std::vector<double> k, v;     // (Tk, Hkv, D)
  // args.h, PositionBias; empty: none.
  std::vector<double> slopes;  // (Hq)
  std::vector<double> decay;   // (D / 2)
  std::int64_t position_stride = 1;
};

struct AttentionResult {
  std::vector<double> out;         // (Tq, Hq, D)
  std::vector<double> lse, delta;  // (Hq, Tq)
  std::vector<double> dq;          // (Tq, Hq, D)
  std::vector<double> dk, dv;      // (Tk, Hkv, D)
};

// Element (i, j) of a slice, counted from its corner.
inline bool is_visible(const AttentionSlice& s, std::int64_t i, std::int64_t j) {
  const std::int64_t distance = i - j + s.diagonal;
  switch (s.kind) {
    case MaskKind::kFull:
      return true;
    case MaskKind::kCausal:
      return distance >= 0;
    case MaskKind::kInverseCausal:
      return distance < s.window;
    case MaskKind::kBand:
      return distance >= 0 && distance < s.window;
  }
  return false;
}

struct VisibleKey {
  std::int64_t key;
  double distance;  // position of the query minus position of the key
};

// Keys that row t of a KV head's queries sees, in order of slices; a key in two slices counts
// twice.
inline std::vector<VisibleKey> visible_keys(const AttentionProblem& p, std::int64_t t,
                                            std::int64_t kv_head) {
  std::vector<VisibleKey> keys;
  for (const AttentionSlice& s : p.slices) {
    if (t < s.q_begin || t >= s.q_begin + s.q_len) continue;
    if (kv_head < s.kv_heads.begin || kv_head >= s.kv_heads.end) continue;
    const std::int64_t i = t - s.q_begin;
    for (std::int64_t j = 0; j < s.k_len; ++j)
      if (is_visible(s, i, j))
        keys.push_back({s.k_begin + j,
                        static_cast<double>((i - j) * p.position_stride + s.position_diagonal)});
  }
  return keys;
}

namespace detail {

inline double dot_rows(const double* a, const double* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t d = 0; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

inline void add_row(double factor, const double* x, double* y, std::int64_t n) {
  for (std::int64_t d = 0; d < n; ++d) y[d] += factor * x[d];
}

// Sets what xPos multiplies the products of each dim by; without xPos the factors stay as they are.
inline void set_factors(const AttentionProblem& p, double distance, std::vector<double>& factors) {
  for (std::size_t c = 0; c < p.decay.size(); ++c)
    factors[c] = factors[c + p.decay.size()] = std::exp2(p.decay[c] * distance);
}

inline double weighted_dot(const std::vector<double>& weights, const double* a, const double* b) {
  double sum = 0;
  for (std::size_t d = 0; d < weights.size(); ++d) sum += weights[d] * a[d] * b[d];
  return sum;
}

// y += factor * weights * x, elementwise.
inline void add_weighted(double factor, const std::vector<double>& weights, const double* x,
                         double* y) {
  for (std::size_t d = 0; d < weights.size(); ++d) y[d] += factor * weights[d] * x[d];
}

// One row of one head, forward then backward.
inline void attend(const AttentionProblem& p, std::int64_t t, std::int64_t head,
                   AttentionResult& r) {
  const std::int64_t kv_head = head / (p.num_q_heads / p.num_kv_heads), n = p.head_dim;
  const std::vector<VisibleKey> keys = visible_keys(p, t, kv_head);
  const std::int64_t at_q = (t * p.num_q_heads + head) * n;
  const auto at_k = [&](std::int64_t key) { return (key * p.num_kv_heads + kv_head) * n; };
  const auto stat = static_cast<std::size_t>(head * p.num_q + t);
  if (keys.empty()) {
    r.lse[stat] = -std::numeric_limits<double>::infinity();
    return;
  }
  const double slope = p.slopes.empty() ? 0.0 : p.slopes[static_cast<std::size_t>(head)];
  std::vector<double> score, factors(static_cast<std::size_t>(n), 1.0);
  double highest = -std::numeric_limits<double>::infinity();
  for (const auto& [key, distance] : keys) {
    set_factors(p, distance, factors);
    const double product = weighted_dot(factors, p.q.data() + at_q, p.k.data() + at_k(key));
    score.push_back(p.scale * product - slope * distance);
    highest = std::max(highest, score.back());
  }
  double sum = 0;
  for (double s : score) sum += std::exp(s - highest);
  r.lse[stat] = highest + std::log(sum);
  for (std::size_t i = 0; i < keys.size(); ++i)
    add_row(std::exp(score[i] - r.lse[stat]), p.v.data() + at_k(keys[i].key), r.out.data() + at_q,
            n);
  if (p.dout.empty()) return;
  const double* dout = p.dout.data() + at_q;
  r.delta[stat] = dot_rows(dout, r.out.data() + at_q, n);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const std::int64_t key = at_k(keys[i].key);
    set_factors(p, keys[i].distance, factors);
    const double probability = std::exp(score[i] - r.lse[stat]);
    const double dscore = probability * (dot_rows(dout, p.v.data() + key, n) - r.delta[stat]);
    add_row(probability, dout, r.dv.data() + key, n);
    add_weighted(p.scale * dscore, factors, p.k.data() + key, r.dq.data() + at_q);
    add_weighted(p.scale * dscore, factors, p.q.data() + at_q, r.dk.data() + key);
  }
}

}  // namespace detail

// With an empty dout only out and lse are computed.
inline AttentionResult reference_attention(const AttentionProblem& p) {
  AttentionResult r;
  r.out.assign(p.q.size(), 0.0);
  r.dq.assign(p.q.size(), 0.0);
  r.dk.assign(p.k.size(), 0.0);
  r.dv.assign(p.v.size(), 0.0);
  r.lse.assign(static_cast<std::size_t>(p.num_q_heads * p.num_q), 0.0);
  r.delta.assign(r.lse.size(), 0.0);
  for (std::int64_t t = 0; t < p.num_q; ++t)
    for (std::int64_t head = 0; head < p.num_q_heads; ++head) detail::attend(p, t, head, r);
  return r;
}

}  // namespace farspan::testing
