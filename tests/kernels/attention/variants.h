// The variants under test, and the fixture that runs a case on one of them.
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/attention/harness.h"
#include "support/sanitizers.h"

namespace farspan::testing {

// An implementation and a dtype.
struct Variant {
  std::string name;
  DType dtype;
  int implementation = 0;     // as the program that lists it numbers them
  bool repeatable = true;     // every run gives the same bits
  bool uses_threads = false;  // the number of threads means something to it
};

// Failures name the variant.
inline void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

// The variants of a program, why one of them cannot run here (empty: it can), and what runs it.
// Each program links one file that defines them: cpu_variants.cpp, or
// tests/kernels/cuda/attention_variants.cpp.
std::vector<Variant> all_variants();
std::string why_not(const Variant& variant);
AttentionUnderTest make_attention(const Variant& variant, int num_threads);

class AttentionTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    const std::string reason = why_not(GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  AttentionUnderTest engine(int num_threads) const {
    return make_attention(GetParam(), num_threads);
  }
  // Numbers of threads that are to make no difference.
  std::vector<int> thread_counts(std::vector<int> counts) const {
    return GetParam().uses_threads ? counts : std::vector<int>{1};
  }
  // One engine for all cases of a test: its workspace and lists serve one shape after the other.
  void check(const TestCase& c) {
    SCOPED_TRACE(c.name);
    if (!engine_) engine_.emplace(engine(kTestThreads));
    const AttentionProblem p = make_problem(c, GetParam().dtype);
    expect_matches(run_engine(*engine_, c, p, GetParam().dtype), reference_attention(p),
                   GetParam().dtype, c);
  }

 private:
  std::optional<AttentionUnderTest> engine_;
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
