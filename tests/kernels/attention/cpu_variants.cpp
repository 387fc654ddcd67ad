// The CPU's instruction sets.
#include "kernels/attention/variants.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/isa.h"

namespace farspan::testing {
namespace {

struct Implementation {
  CpuIsa isa;
  bool emulate_amx_tiles = false;
};
constexpr Implementation kImplementations[] = {{CpuIsa::kPortable}, {CpuIsa::kAvx2},
                                               {CpuIsa::kAvx512},   {CpuIsa::kAvx512Bf16},
                                               {CpuIsa::kAmx},      {CpuIsa::kAvx512Bf16, true}};

const Implementation& implementation_of(const Variant& variant) {
  return kImplementations[variant.implementation];
}

class EngineCalls final : public AttentionUnderTest::Calls {
 public:
  explicit EngineCalls(const cpu::AttentionConfig& config) : engine_(config) {}
  void forward(const AttentionForwardArgs& args) override { engine_.forward(args); }
  void delta(const AttentionDeltaArgs& args) override { engine_.delta(args); }
  void backward(const AttentionBackwardArgs& args) override { engine_.backward(args); }

 private:
  cpu::AttentionEngine engine_;
};

}  // namespace

std::vector<Variant> all_variants() {
  std::vector<Variant> variants;
  for (int i = 0; i < static_cast<int>(std::size(kImplementations)); ++i) {
    const Implementation& it = kImplementations[i];
    if (it.emulate_amx_tiles) {
      variants.push_back({"amx_emulated_bf16", DType::kBF16, i, true, true});
      continue;
    }
    for (const DType dtype : {DType::kF32, DType::kBF16})
      variants.push_back(
          {fmt::format("{}_{}", name_of(it.isa), name_of(dtype)), dtype, i, true, true});
  }
  return variants;
}

std::string why_not(const Variant& variant) {
  const CpuIsa isa = implementation_of(variant).isa;
  return cpu_supports(isa) ? "" : fmt::format("this processor does not run {}", name_of(isa));
}

AttentionUnderTest make_attention(const Variant& variant, int num_threads) {
  const Implementation& it = implementation_of(variant);
  return AttentionUnderTest(std::make_unique<EngineCalls>(cpu::AttentionConfig{
      .isa = it.isa, .num_threads = num_threads, .emulate_amx_tiles = it.emulate_amx_tiles}));
}

}  // namespace farspan::testing
