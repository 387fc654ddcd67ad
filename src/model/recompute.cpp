#include "model/recompute.h"

#include "core/error.h"

namespace farspan {

RecomputePolicy RecomputePolicy::from(std::string_view name) {
  const auto bit = [](Activation a) { return 1u << static_cast<unsigned>(a); };
  const unsigned all = bit(Activation::kNorm) | bit(Activation::kQkv) |
                       bit(Activation::kAttention) | bit(Activation::kMiddle) |
                       bit(Activation::kGateUp) | bit(Activation::kSwiGlu);
  if (name == "none") return RecomputePolicy(all);
  if (name == "selective")
    return RecomputePolicy(all & ~bit(Activation::kNorm) & ~bit(Activation::kSwiGlu));
  if (name == "full") return RecomputePolicy(0);
  if (name == "full+attention") return RecomputePolicy(bit(Activation::kAttention));
  throw Error(ExitCode::kUsage, {.what = fmt::format("recompute '{}' is not built yet", name),
                                 .where = "train.recompute",
                                 .fix = "use none, selective, full or full+attention"});
}

}  // namespace farspan
