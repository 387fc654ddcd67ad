// The instruction sets and dtypes under test, and the fixture that runs a case on one of them.
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/attention/harness.h"
#include "support/sanitizers.h"

namespace farspan::testing {

struct Variant {
  std::string name;
  CpuIsa isa;
  DType dtype;
  bool emulate_amx_tiles = false;
};

// Failures name the variant.
inline void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

inline std::vector<Variant> all_variants() {
  std::vector<Variant> variants;
  for (const CpuIsa isa :
       {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx})
    for (const DType dtype : {DType::kF32, DType::kBF16})
      variants.push_back({fmt::format("{}_{}", name_of(isa), name_of(dtype)), isa, dtype});
  variants.push_back({"amx_emulated_bf16", CpuIsa::kAvx512Bf16, DType::kBF16, true});
  return variants;
}

class AttentionTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (!cpu_supports(GetParam().isa))
      GTEST_SKIP() << "this processor does not run " << name_of(GetParam().isa);
  }
  cpu::AttentionEngine engine(int num_threads) const {
    return cpu::AttentionEngine({.isa = GetParam().isa,
                                 .num_threads = num_threads,
                                 .emulate_amx_tiles = GetParam().emulate_amx_tiles});
  }
  // One engine for all cases of a test: its workspace and lists serve one shape after the other.
  void check(const TestCase& c) {
    SCOPED_TRACE(c.name);
    if (!engine_) engine_.emplace(engine(kTestThreads));
    cpu::AttentionEngine& e = *engine_;
    const AttentionProblem p = make_problem(c, GetParam().dtype);
    expect_matches(run_engine(e, c, p, GetParam().dtype), reference_attention(p), GetParam().dtype,
                   c);
  }

 private:
  std::optional<cpu::AttentionEngine> engine_;
};

inline AttentionSlice whole(std::int64_t num_q, std::int64_t num_k, MaskKind kind,
                            std::int64_t diagonal = 0, std::int64_t window = 0) {
  return {.q_len = num_q, .k_len = num_k, .kind = kind, .diagonal = diagonal, .window = window};
}

// Documents of 1 to longest tokens, packed one after the other.
inline std::vector<AttentionSlice> documents(std::int64_t tokens, std::int64_t longest,
                                             std::uint64_t seed) {
  const CounterRng rng(seed, stream_id("documents"));
  std::vector<AttentionSlice> slices;
  for (std::int64_t begin = 0, i = 0; begin < tokens; ++i) {
    const auto drawn = 1 + static_cast<std::int64_t>(rng.below(
                               static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(longest)));
    const std::int64_t length = std::min(drawn, tokens - begin);
    slices.push_back({.q_begin = begin,
                      .q_len = length,
                      .k_begin = begin,
                      .k_len = length,
                      .kind = MaskKind::kCausal});
    begin += length;
  }
  return slices;
}

}  // namespace farspan::testing
