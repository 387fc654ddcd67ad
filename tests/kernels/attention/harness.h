// Runs an implementation on an AttentionProblem, in one call or hop by hop, and compares the
// results with the double-precision reference.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/rng.h"
#include "support/compare.h"
#include "support/reference_attention.h"

namespace farspan::testing {

// Bytes of a tensor of either compute dtype, with conversions from and to double.
class Values {
 public:
  Values(DType dtype, Shape shape) : dtype_(dtype), shape_(shape) {
    bytes_.resize(static_cast<std::size_t>(shape.numel()) * size_of(dtype));
  }
  Values(DType dtype, Shape shape, const std::vector<double>& from) : Values(dtype, shape) {
    for (std::size_t i = 0; i < from.size(); ++i) {
      const auto x = static_cast<float>(from[i]);
      if (dtype == DType::kF32)
        reinterpret_cast<float*>(bytes_.data())[i] = x;
      else
        reinterpret_cast<BFloat16*>(bytes_.data())[i] = BFloat16(x);
    }
  }
  void fill(float x) {
    *this =
        Values(dtype_, shape_, std::vector<double>(static_cast<std::size_t>(shape_.numel()), x));
  }
  std::vector<double> doubles() const {
    std::vector<double> to(static_cast<std::size_t>(shape_.numel()));
    for (std::size_t i = 0; i < to.size(); ++i)
      to[i] = static_cast<double>(
          dtype_ == DType::kF32
              ? reinterpret_cast<const float*>(bytes_.data())[i]
              : static_cast<float>(reinterpret_cast<const BFloat16*>(bytes_.data())[i]));
    return to;
  }
  Tensor tensor() {
    return {.data = bytes_.data(), .dtype = dtype_, .shape = shape_, .device = {}};
  }
  const Shape& shape() const { return shape_; }
  friend bool operator==(const Values& a, const Values& b) { return a.bytes_ == b.bytes_; }

 private:
  DType dtype_;
  Shape shape_;
  std::vector<std::byte> bytes_;
};

struct TestCase {
  std::string name;
  std::int64_t num_q, num_k, num_q_heads, num_kv_heads, head_dim;
  std::vector<AttentionSlice> slices;
  std::vector<std::int64_t> hops{};  // lengths of the KV blocks, in order; empty: one block
  double magnitude = 1.0;            // of q and k
  std::uint64_t seed = 1;
  std::vector<double> slopes{}, decay{};  // of a PositionBias; empty: none
  std::int64_t position_stride = 1;
  bool invariant = false;
};

// The slopes of Press et al. 2021 (section 3) for a number of heads that is a power of two.
inline std::vector<double> alibi_slopes(std::int64_t num_heads) {
  std::vector<double> slopes;
  for (std::int64_t h = 1; h <= num_heads; ++h)
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(num_heads)));
  return slopes;
}

// The decay of Sun et al. 2022 (section 2.1: gamma 0.4, base 512), of which larger `steepness`
// makes more.
inline std::vector<double> xpos_decay(std::int64_t head_dim, double steepness = 1.0) {
  std::vector<double> decay;
  const double half = static_cast<double>(head_dim) / 2;
  for (double c = 0; c < half; ++c)
    decay.push_back(steepness * std::log2((c / half + 0.4) / 1.4) / 512);
  return decay;
}

// As the kernels see it.
inline std::vector<double> rounded(std::vector<double> x) {
  for (double& value : x) value = static_cast<double>(static_cast<float>(value));
  return x;
}

// The problem of a case, its inputs rounded to dtype.
inline AttentionProblem make_problem(const TestCase& c, DType dtype) {
  AttentionProblem p{.num_q = c.num_q,
                     .num_k = c.num_k,
                     .num_q_heads = c.num_q_heads,
                     .num_kv_heads = c.num_kv_heads,
                     .head_dim = c.head_dim,
                     .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim))),
                     .slices = c.slices,
                     .slopes = rounded(c.slopes),
                     .decay = rounded(c.decay),
                     .position_stride = c.position_stride};
  const auto draw = [&](const char* name, std::int64_t rows, std::int64_t heads, double magnitude) {
    const CounterRng rng(c.seed, stream_id(name));
    std::vector<double> x(static_cast<std::size_t>(rows * heads * c.head_dim));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = magnitude * rng.normal(i);
    return Values(dtype, Shape{rows, heads, c.head_dim}, x).doubles();
  };
  p.q = draw("q", c.num_q, c.num_q_heads, c.magnitude);
  p.k = draw("k", c.num_k, c.num_kv_heads, c.magnitude);
  p.v = draw("v", c.num_k, c.num_kv_heads, 1.0);
  p.dout = draw("dout", c.num_q, c.num_q_heads, 1.0);
  return p;
}

struct EngineResult {
  Values out, lse, dq, dk, dv;
  bool operator==(const EngineResult&) const = default;
};

// The part of the slices that lies on keys [begin, begin + count), moved to that block.
inline std::vector<AttentionSlice> slices_of_hop(const TestCase& c, std::int64_t begin,
                                                 std::int64_t count) {
  std::vector<AttentionSlice> hop;
  for (AttentionSlice s : c.slices) {
    const std::int64_t first = std::max(s.k_begin, begin);
    const std::int64_t end = std::min(s.k_begin + s.k_len, begin + count);
    if (first >= end) continue;
    s.diagonal -= first - s.k_begin;  // the corner moved to a later key
    s.position_diagonal -= (first - s.k_begin) * c.position_stride;
    s.k_begin = first - begin;
    s.k_len = end - first;
    hop.push_back(s);
  }
  return hop;
}

// An implementation of attention over tensors in host memory.
class AttentionUnderTest {
 public:
  class Calls {
   public:
    virtual ~Calls() = default;
    virtual void forward(const AttentionForwardArgs& args) = 0;
    virtual void delta(const AttentionDeltaArgs& args) = 0;
    virtual void backward(const AttentionBackwardArgs& args) = 0;
  };
  explicit AttentionUnderTest(std::unique_ptr<Calls> calls) : calls_(std::move(calls)) {}

  void forward(const AttentionForwardArgs& args) { calls_->forward(args); }
  void delta(const AttentionDeltaArgs& args) { calls_->delta(args); }
  void backward(const AttentionBackwardArgs& args) { calls_->backward(args); }

 private:
  std::unique_ptr<Calls> calls_;
};

// Forward over all hops, delta, backward over all hops. Gradients start at 0, state uninitialised.
inline EngineResult run_engine(AttentionUnderTest& engine, const TestCase& c,
                               const AttentionProblem& p, DType dtype) {
  const Shape q_shape{c.num_q, c.num_q_heads, c.head_dim};
  const Shape k_shape{c.num_k, c.num_kv_heads, c.head_dim};
  const Shape stats{c.num_q_heads, c.num_q};
  Values q(dtype, q_shape, p.q), k(dtype, k_shape, p.k), v(dtype, k_shape, p.v);
  Values dout(dtype, q_shape, p.dout), acc(DType::kF32, q_shape);
  Values row_max(DType::kF32, stats), row_sum(DType::kF32, stats), delta(DType::kF32, stats);
  const float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (Values* x : {&acc, &row_max, &row_sum, &delta}) x->fill(kNaN);
  EngineResult r{.out = Values(dtype, q_shape),
                 .lse = Values(DType::kF32, stats),
                 .dq = Values(DType::kF32, q_shape),
                 .dk = Values(DType::kF32, k_shape),
                 .dv = Values(DType::kF32, k_shape)};
  r.out.fill(kNaN);
  r.lse.fill(kNaN);
  const auto hops = c.hops.empty() ? std::vector<std::int64_t>{c.num_k} : c.hops;
  const auto scale = static_cast<float>(p.scale);
  const auto length = [](const std::vector<double>& x) {
    return Shape{static_cast<std::int64_t>(x.size())};
  };
  Values slopes(DType::kF32, length(p.slopes), p.slopes);
  Values decay(DType::kF32, length(p.decay), p.decay);
  const PositionBias bias = {.slopes = p.slopes.empty() ? Tensor{} : slopes.tensor(),
                             .decay = p.decay.empty() ? Tensor{} : decay.tensor(),
                             .position_stride = p.position_stride};
  std::int64_t begin = 0;
  for (std::size_t hop = 0; hop < hops.size(); ++hop) {
    const auto slices = slices_of_hop(c, begin, hops[hop]);
    engine.forward({.q = q.tensor(),
                    .k = k.tensor().rows(begin, hops[hop]),
                    .v = v.tensor().rows(begin, hops[hop]),
                    .acc = acc.tensor(),
                    .row_max = row_max.tensor(),
                    .row_sum = row_sum.tensor(),
                    .slices = slices,
                    .scale = scale,
                    .bias = bias,
                    .invariant = c.invariant,
                    .first = hop == 0,
                    .last = hop + 1 == hops.size(),
                    .out = r.out.tensor(),
                    .lse = r.lse.tensor()});
    begin += hops[hop];
  }
  engine.delta({.out = r.out.tensor(), .dout = dout.tensor(), .delta = delta.tensor()});
  begin = 0;
  for (const std::int64_t count : hops) {
    const auto slices = slices_of_hop(c, begin, count);
    engine.backward({.q = q.tensor(),
                     .k = k.tensor().rows(begin, count),
                     .v = v.tensor().rows(begin, count),
                     .dout = dout.tensor(),
                     .lse = r.lse.tensor(),
                     .delta = delta.tensor(),
                     .dq = r.dq.tensor(),
                     .dk = r.dk.tensor().rows(begin, count),
                     .dv = r.dv.tensor().rows(begin, count),
                     .slices = slices,
                     .scale = scale,
                     .bias = bias,
                     .invariant = c.invariant});
    begin += count;
  }
  return r;
}

inline double relative_l2(const std::vector<double>& x, const std::vector<double>& reference) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += (x[i] - reference[i]) * (x[i] - reference[i]);
    size += reference[i] * reference[i];
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

// Fails, naming the worst element, when the relative L2 error exceeds `limit` or anything is NaN.
inline void expect_l2(const Values& actual, const std::vector<double>& reference, double limit,
                      const char* name, const TestCase& c) {
  const std::vector<double> x = actual.doubles();
  ASSERT_EQ(x.size(), reference.size());
  const double error = relative_l2(x, reference);
  if (error <= limit) return;  // false for NaN
  std::size_t worst = 0;
  double most = -1;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double miss = std::isnan(x[i]) ? INFINITY : std::abs(x[i] - reference[i]);
    if (miss > most) most = miss, worst = i;
  }
  ADD_FAILURE() << name << ": relative L2 error " << error << " above " << limit << "; worst at "
                << coordinate(actual.shape(), static_cast<std::int64_t>(worst)) << ": " << x[worst]
                << " expected " << reference[worst] << "; shape " << actual.shape().to_string()
                << ", case " << c.name << ", seed " << c.seed;
}

inline void expect_lse(const Values& actual, const std::vector<double>& reference, double limit,
                       const TestCase& c) {
  const std::vector<double> x = actual.doubles();
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] == reference[i]) continue;  // both -inf
    ASSERT_LE(std::abs(x[i] - reference[i]), limit * std::max(1.0, std::abs(reference[i])))
        << "lse at " << coordinate(actual.shape(), static_cast<std::int64_t>(i)) << ": " << x[i]
        << " expected " << reference[i] << ", case " << c.name << ", seed " << c.seed;
  }
}

inline void expect_matches(const EngineResult& r, const AttentionResult& reference, DType dtype,
                           const TestCase& c) {
  const bool f32 = dtype == DType::kF32;
  // bf16: out is rounded once (2^-9 at worst, 1.7e-3 rms); gradients carry the rounding of P, dS
  // and, through delta, of out. Under xPos q and k are rounded once more, after their factors, and
  // a score of one key by about 1.6e-3 rms.
  const bool rescored = !f32 && !c.decay.empty();
  expect_lse(r.lse, reference.lse, rescored ? 1.5e-2 : 1e-5, c);
  const double more = rescored ? 2 : 1;
  expect_l2(r.out, reference.out, f32 ? 1e-5 : 3e-3 * more, "out", c);
  expect_l2(r.dq, reference.dq, f32 ? 1e-5 : 6e-3 * more, "dq", c);
  expect_l2(r.dk, reference.dk, f32 ? 1e-5 : 6e-3 * more, "dk", c);
  expect_l2(r.dv, reference.dv, f32 ? 1e-5 : 3e-3 * more, "dv", c);
}

}  // namespace farspan::testing
