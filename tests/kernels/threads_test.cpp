// Memory-bound operations give the same bits for any number of threads, and everything gives the
// same bits twice.
#include <gtest/gtest.h>

#include <functional>

#include "support/parity_row.h"

namespace farspan::testing {
namespace {

// A test's work: puts inputs, runs, and returns its outputs' bytes.
using Work = std::function<std::vector<std::byte>(Backend&, DeviceValues&)>;

std::vector<std::byte> run(const Work& work, int threads) {
  const auto backend = make_backend({.num_threads = threads});
  DeviceValues on(*backend);
  return work(*backend, on);
}

void append(std::vector<std::byte>& all, const std::vector<std::byte>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

class AnyThreads : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (kThreadSanitizer) GTEST_SKIP() << "one OpenMP thread under ThreadSanitizer";
  }
  static void expect_same_bits(const Work& work) {
    const auto one = run(work, 1);
    for (const int threads : {1, 2, 3, 7}) EXPECT_TRUE(run(work, threads) == one) << threads;
  }
  Tensor put(DeviceValues& on, std::uint64_t seed, Shape shape) const {
    return on.put(random_values(shape.numel(), seed), GetParam(), shape);
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, AnyThreads, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& row) { return std::string(name_of(row.param)); });

TEST_P(AnyThreads, RmsNormBackward) {
  expect_same_bits([&](Backend& b, DeviceValues& on) {
    const std::int64_t t = 2111, c = 100;
    const Tensor dx = on.poisoned(GetParam(), {t, c});
    const Tensor dweight = on.put(std::vector<double>(c, 0), DType::kF32, {c});
    b.kernels().rmsnorm_backward({.x = put(on, 1, {t, c}),
                                  .weight = put(on, 2, {c}),
                                  .rstd = on.put(std::vector<double>(t, 0.7), DType::kF32, {t}),
                                  .dy = put(on, 3, {t, c}),
                                  .dx = dx,
                                  .dweight = dweight},
                                 b.stream());
    auto all = on.bytes(dx);
    append(all, on.bytes(dweight));
    return all;
  });
}

TEST_P(AnyThreads, EmbeddingBackward) {
  for (const std::int64_t c : {16, 70, 512})  // fewer columns than threads want, and more
    expect_same_bits([&](Backend& b, DeviceValues& on) {
      const std::int64_t t = 2000, v = 50;
      const Tensor dtable = on.put(std::vector<double>(v * c, 0), DType::kF32, {v, c});
      b.kernels().embedding_backward({.ids = on.put(random_integers(t, v, 4), DType::kI32, {t}),
                                      .dout = put(on, 5, {t, c}),
                                      .dtable = dtable},
                                     b.stream());
      return on.bytes(dtable);
    });
}

TEST_P(AnyThreads, ExactSumsOfRows) {
  for (const std::int64_t c : {16, 70, 512})
    expect_same_bits([&](Backend& b, DeviceValues& on) {
      const std::int64_t t = 2000, v = 50;
      const std::vector<double> zeros(static_cast<std::size_t>(v * c), 0);
      const ExactSum sum{on.put(zeros, DType::kI64, {v, c}), on.put(zeros, DType::kI64, {v, c}),
                         on.put({0}, DType::kI64, {1})};
      b.kernels().exact_add({.src = put(on, 5, {t, c}),
                             .ids = on.put(random_integers(t, v, 4), DType::kI32, {t}),
                             .sum = sum},
                            b.stream());
      b.kernels().exact_add({.src = put(on, 6, {v, c}), .sum = sum}, b.stream());
      auto all = on.bytes(sum.high);
      append(all, on.bytes(sum.low));
      return all;
    });
}

TEST_P(AnyThreads, ExactMatmul) {
  expect_same_bits([&](Backend& b, DeviceValues& on) {
    const std::int64_t t = 300, m = 200, n = 700;
    const std::int64_t blocks[] = {0, 128, 256, t};
    const std::vector<double> zeros(static_cast<std::size_t>(m * n), 0);
    const ExactSum sum{on.put(zeros, DType::kI64, {m, n}), on.put(zeros, DType::kI64, {m, n}),
                       on.put({0}, DType::kI64, {1})};
    b.kernels().exact_matmul(
        {.a = put(on, 5, {t, m}), .b = put(on, 6, {t, n}), .row_blocks = blocks, .sum = sum},
        b.stream());
    auto all = on.bytes(sum.high);
    append(all, on.bytes(sum.low));
    return all;
  });
}

TEST_P(AnyThreads, CrossEntropy) {
  expect_same_bits([&](Backend& b, DeviceValues& on) {
    const std::int64_t n = 700, v = 259;
    const Tensor dlogits = on.poisoned(GetParam(), {n, v});
    const Tensor loss = on.put({0}, DType::kF64, {1});
    b.kernels().cross_entropy({.logits = on.put(random_values(n * v, 6), DType::kF32, {n, v}),
                               .labels = on.put(random_integers(n, v, 7), DType::kI32, {n}),
                               .dlogits = dlogits,
                               .loss_sum = loss,
                               .valid_count = on.put({0}, DType::kF64, {1})},
                              b.stream());
    auto all = on.bytes(dlogits);
    append(all, on.bytes(loss));
    return all;
  });
}

TEST_P(AnyThreads, SquaredNormAndElementwise) {
  expect_same_bits([&](Backend& b, DeviceValues& on) {
    const std::int64_t n = 500007;
    const Tensor sum = on.put({0}, DType::kF64, {1});
    b.kernels().squared_norm({.x = on.put(random_values(n, 8), DType::kF32, {n}), .sum = sum},
                             b.stream());
    const Tensor out = on.poisoned(GetParam(), {1, n});
    b.kernels().swiglu_forward({.gate = put(on, 9, {1, n}), .up = put(on, 10, {1, n}), .out = out},
                               b.stream());
    auto all = on.bytes(out);
    append(all, on.bytes(sum));
    return all;
  });
}

TEST_P(AnyThreads, RopeTable) {
  expect_same_bits([&](Backend& b, DeviceValues& on) {
    const std::int64_t t = 3000, half = 40;
    std::vector<double> positions;
    for (std::int64_t i = 0; i < t; ++i) positions.push_back(static_cast<double>(i * 37 % 9999));
    const Tensor cos = on.poisoned(DType::kF32, {t, half});
    b.kernels().rope_table({.positions = on.put(positions, DType::kI32, {t}),
                            .inv_freq = on.put(random_values(half, 11), DType::kF64, {half}),
                            .cos = cos,
                            .sin = on.poisoned(DType::kF32, {t, half})},
                           b.stream());
    return on.bytes(cos);
  });
}

// Matmul is promised for one number of threads only: oneDNN splits a long K over threads.
TEST_P(AnyThreads, MatmulRepeats) {
  const Work work = [&](Backend& b, DeviceValues& on) {
    const Tensor out = on.put(std::vector<double>(64 * 64, 0), DType::kF32, {64, 64});
    for (int i = 0; i < 3; ++i)
      b.kernels().matmul({.a = put(on, 12, {4096, 64}),
                          .b = put(on, 13, {4096, 64}),
                          .out = out,
                          .trans_a = true,
                          .mode = GradMode::kAccumulate},
                         b.stream());
    return on.bytes(out);
  };
  for (const int threads : {1, 2, 3}) EXPECT_TRUE(run(work, threads) == run(work, threads));
}

}  // namespace
}  // namespace farspan::testing
