// What is the CPU engine's alone: what it allocates and what it refuses.
#include <gtest/gtest.h>

#include "kernels/attention/allocations.h"
#include "kernels/attention/variants.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/isa.h"

namespace farspan::testing {
namespace {

class AttentionEngineTest : public AttentionTest {};

TEST_P(AttentionEngineTest, ASecondCallOfAShapeAllocatesNothing) {
  const DType dtype = GetParam().dtype;
  const Shape shape{300, 2, 32}, stats{2, 300};
  Values x(dtype, shape), out(dtype, shape), f32(DType::kF32, shape), f32_too(DType::kF32, shape);
  Values acc(DType::kF32, shape), a(DType::kF32, stats), b(DType::kF32, stats),
      lse(DType::kF32, stats);
  const std::vector<AttentionSlice> slices = documents(300, 60, 4);
  AttentionUnderTest e = engine(kTestThreads);
  const auto step = [&] {
    const Tensor t = x.tensor();
    e.forward({.q = t,
               .k = t,
               .v = t,
               .acc = acc.tensor(),
               .row_max = a.tensor(),
               .row_sum = b.tensor(),
               .slices = slices,
               .first = true,
               .last = true,
               .out = out.tensor(),
               .lse = lse.tensor()});
    e.backward({.q = t,
                .k = t,
                .v = t,
                .dout = t,
                .lse = lse.tensor(),
                .delta = a.tensor(),
                .dq = acc.tensor(),
                .dk = f32.tensor(),
                .dv = f32_too.tensor(),
                .slices = slices});
  };
  step();
  const std::int64_t before = num_allocations();
  step();
  EXPECT_EQ(num_allocations() - before, 0);
}

INSTANTIATE_TEST_SUITE_P(All, AttentionEngineTest, ::testing::ValuesIn(all_variants()),
                         [](const auto& test) { return test.param.name; });

TEST(AttentionEngine, RefusesAnInstructionSetThatIsMissing) {
  if (cpu_supports(CpuIsa::kAmx)) GTEST_SKIP() << "this processor has every instruction set";
  EXPECT_THROW(cpu::AttentionEngine({.isa = CpuIsa::kAmx, .num_threads = 1}), Error);
}

}  // namespace
}  // namespace farspan::testing
