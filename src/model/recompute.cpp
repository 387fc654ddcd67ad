#include "model/recompute.h"

#include <algorithm>

#include "core/error.h"

namespace farspan {

RecomputePolicy& RecomputePolicy::set(Keep keep, std::initializer_list<Activation> activations) {
  for (const Activation a : activations) keep_[static_cast<std::size_t>(a)] = keep;
  return *this;
}

bool RecomputePolicy::offloads() const {
  return std::find(keep_.begin(), keep_.end(), Keep::kOffload) != keep_.end();
}

RecomputePolicy RecomputePolicy::from(std::string_view name) {
  using enum Activation;
  RecomputePolicy policy;
  if (name == "none")
    return policy.set(Keep::kSave, {kInput, kNorm, kQkv, kAttention, kMiddle, kGateUp, kSwiGlu});
  if (name == "selective")
    return policy.set(Keep::kSave, {kInput, kQkv, kAttention, kMiddle, kGateUp});
  if (name == "full") return policy.set(Keep::kSave, {kInput});
  if (name == "full+attention") return policy.set(Keep::kSave, {kInput, kAttention});
  if (name == "offload") return policy.set(Keep::kOffload, {kInput, kAttention});
  throw Error(ExitCode::kUsage, {.what = fmt::format("there is no recompute policy '{}'", name),
                                 .where = "train.recompute",
                                 .fix = "use none, selective, full, full+attention or offload"});
}

}  // namespace farspan
