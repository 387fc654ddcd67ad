// Operations on rows give a row bits that depend on that row alone: not on how many rows there are,
// on its place among them, or on where in memory it lies. What the invariant mode rests on.
#include <gtest/gtest.h>

#include <functional>

#include "support/parity_row.h"

namespace farspan::testing {
namespace {

constexpr std::int64_t kRows = 75;
constexpr std::int64_t kWidth = 83;  // no multiple of any vector

class RowIndependence : public ::testing::TestWithParam<std::pair<CpuIsa, DType>> {
 protected:
  void SetUp() override {
    if (!cpu_supports(GetParam().first)) GTEST_SKIP() << "not on this processor";
    backend_ = make_backend({.num_threads = kTestThreads, .cpu_isa = GetParam().first});
    on_ = std::make_unique<DeviceValues>(*backend_);
  }
  DType dtype() const { return GetParam().second; }
  DeviceValues& on() { return *on_; }
  Tensor values(Shape shape, std::uint64_t seed, DType type) {
    return on().put(random_values(shape.numel(), seed), type, shape);
  }
  Tensor values(Shape shape, std::uint64_t seed) { return values(shape, seed, dtype()); }

  // `run` computes rows [begin, begin + count) and returns the tensors that hold one row for each.
  using Run =
      std::function<std::vector<Tensor>(Kernels&, Stream&, std::int64_t begin, std::int64_t count)>;
  void expect_rows_alone(const char* name, const Run& run) {
    const auto all = bytes(run(backend_->kernels(), backend_->stream(), 0, kRows));
    for (const auto& [begin, count] :
         {std::pair<std::int64_t, std::int64_t>{0, 1}, {7, 1}, {3, 20}, {kRows - 1, 1}, {20, 55}}) {
      const auto part = bytes(run(backend_->kernels(), backend_->stream(), begin, count));
      for (std::size_t i = 0; i < all.size(); ++i) {
        const std::size_t row = all[i].size() / kRows;
        const auto* expected = all[i].data() + static_cast<std::size_t>(begin) * row;
        EXPECT_EQ(std::memcmp(part[i].data(), expected, part[i].size()), 0)
            << name << ", output " << i << ", rows [" << begin << ", +" << count << ")";
      }
    }
  }

 private:
  std::vector<std::vector<std::byte>> bytes(const std::vector<Tensor>& tensors) {
    std::vector<std::vector<std::byte>> all;
    for (const Tensor& t : tensors) all.push_back(on().bytes(t));
    return all;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<DeviceValues> on_;
};
INSTANTIATE_TEST_SUITE_P(Rows, RowIndependence,
                         ::testing::Values(std::pair{CpuIsa::kPortable, DType::kF32},
                                           std::pair{CpuIsa::kPortable, DType::kBF16},
                                           std::pair{CpuIsa::kAvx2, DType::kF32},
                                           std::pair{CpuIsa::kAvx2, DType::kBF16},
                                           std::pair{CpuIsa::kAvx512, DType::kF32},
                                           std::pair{CpuIsa::kAvx512, DType::kBF16}));

TEST_P(RowIndependence, Norm) {
  const Tensor x = values({kRows, kWidth}, 1), weight = values({kWidth}, 2);
  const Tensor dy = values({kRows, kWidth}, 3), rstd = values({kRows}, 4, DType::kF32);
  expect_rows_alone("rmsnorm_forward", [&](Kernels& k, Stream& s, auto begin, auto count) {
    const Tensor y = on().poisoned(dtype(), {count, kWidth});
    const Tensor out_rstd = on().poisoned(DType::kF32, {count});
    k.rmsnorm_forward({.x = x.rows(begin, count), .weight = weight, .y = y, .rstd = out_rstd}, s);
    return std::vector{y, out_rstd};
  });
  expect_rows_alone("rmsnorm_backward", [&](Kernels& k, Stream& s, auto begin, auto count) {
    const Tensor dx = on().poisoned(dtype(), {count, kWidth});
    k.rmsnorm_backward({.x = x.rows(begin, count),
                        .weight = weight,
                        .rstd = rstd.rows(begin, count),
                        .dy = dy.rows(begin, count),
                        .dx = dx,
                        .dweight = on().poisoned(DType::kF32, {kWidth})},
                       s);
    return std::vector{dx};
  });
}

TEST_P(RowIndependence, Elements) {
  const Tensor x = values({kRows, kWidth}, 5), y = values({kRows, kWidth}, 6);
  const Tensor z = values({kRows, kWidth}, 7), wide = values({kRows, kWidth}, 8, DType::kF32);
  expect_rows_alone("add, copy, swiglu", [&](Kernels& k, Stream& s, auto begin, auto count) {
    const auto out = [&] { return on().poisoned(dtype(), {count, kWidth}); };
    const auto rows = [&](const Tensor& t) { return t.rows(begin, count); };
    const std::vector<Tensor> outs{out(), out(), out(), out(), out()};
    k.add({.a = rows(x), .b = rows(y), .out = outs[0]}, s);
    k.copy({.src = rows(wide), .dst = outs[1]}, s);
    k.swiglu_forward({.gate = rows(x), .up = rows(y), .out = outs[2]}, s);
    k.swiglu_backward(
        {.gate = rows(x), .up = rows(y), .dout = rows(z), .dgate = outs[3], .dup = outs[4]}, s);
    return outs;
  });
}

TEST_P(RowIndependence, Positions) {
  const std::int64_t heads = 3, half = 11;
  const Tensor positions = on().put(random_integers(kRows, 5000, 9), DType::kI32, {kRows});
  const Tensor frequencies = on().put(random_values(half, 10), DType::kF64, {half});
  const Tensor x = values({kRows, heads, 2 * half}, 11);
  expect_rows_alone("rope", [&](Kernels& k, Stream& s, auto begin, auto count) {
    const Tensor cos = on().poisoned(DType::kF32, {count, half});
    const Tensor sin = on().poisoned(DType::kF32, {count, half});
    k.rope_table({.positions = positions.rows(begin, count),
                  .inv_freq = frequencies,
                  .cos = cos,
                  .sin = sin},
                 s);
    const Tensor turned = on().poisoned(dtype(), {count, heads, 2 * half});
    k.copy({.src = x.rows(begin, count), .dst = turned}, s);
    k.rope_apply({.x = turned, .cos = cos, .sin = sin}, s);
    return std::vector{cos, sin, turned};
  });
}

TEST_P(RowIndependence, CrossEntropy) {
  const Tensor logits = values({kRows, kWidth}, 12, DType::kF32);
  const Tensor labels = on().put(random_integers(kRows, kWidth, 13), DType::kI32, {kRows});
  expect_rows_alone("cross_entropy", [&](Kernels& k, Stream& s, auto begin, auto count) {
    const Tensor dlogits = on().poisoned(dtype(), {count, kWidth});
    const Tensor nll = on().poisoned(DType::kF32, {count});
    k.cross_entropy({.logits = logits.rows(begin, count),
                     .labels = labels.rows(begin, count),
                     .dlogits = dlogits,
                     .nll = nll,
                     .loss_sum = on().put({0}, DType::kF64, {1}),
                     .valid_count = on().put({0}, DType::kF64, {1})},
                    s);
    return std::vector{dlogits, nll};
  });
}

TEST_P(RowIndependence, AttentionDelta) {
  const std::int64_t heads = 2, dim = 41;
  const Tensor out = values({kRows, heads, dim}, 14), dout = values({kRows, heads, dim}, 15);
  expect_rows_alone("attention_delta", [&](Kernels& k, Stream& s, auto begin, auto count) {
    const Tensor delta = on().poisoned(DType::kF32, {heads, count});
    k.attention_delta(
        {.out = out.rows(begin, count), .dout = dout.rows(begin, count), .delta = delta}, s);
    const Tensor by_row = on().poisoned(DType::kF32, {count, heads});
    for (std::int64_t h = 0; h < heads; ++h)
      k.copy_2d({.src = delta,
                 .dst = by_row,
                 .rows = count,
                 .cols = 1,
                 .src_begin = h * count,
                 .src_stride = 1,
                 .dst_begin = h,
                 .dst_stride = heads},
                s);
    return std::vector{by_row};
  });
}

}  // namespace
}  // namespace farspan::testing
