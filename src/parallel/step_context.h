// What a module's forward and backward are given besides their tensors.
#pragma once

#include <span>

#include "comm/communicator.h"
#include "core/arena.h"
#include "core/host_stash.h"
#include "core/trace.h"
#include "kernels/backend.h"
#include "parallel/attention_plan.h"
#include "parallel/mesh.h"

namespace farspan {

class Attention;

struct StepContext {
  Backend& backend;
  Arena& saved;      // lives from a micro-batch's forward to the end of its backward
  Arena& scratch;    // LIFO temporaries
  const Mesh& mesh;  // the ranks that share the sequences: mesh.ring(), mesh.ulysses()
  std::span<const AttentionPlan> plans;  // of the micro-batch at hand, for this rank: one per
                                         // distinct pattern of the model's layers
  Trace& trace;
  int pattern = 0;  // which plan the layer at hand uses
  // Invariant mode: borders of this rank's blocks of tokens, 0 first and the number of local tokens
  // last. Sums over tokens are taken block by block. Empty otherwise.
  std::span<const std::int64_t> row_blocks = {};
  // Most tokens that an MLP and the projections around attention take at a time.
  std::int64_t token_tile = 8192;
  HostStash* stash = nullptr;  // with a policy that offloads
  bool deterministic = true;   // parallel.deterministic
  int layer = 0;               // the layer at hand
  // Takes the place of the model's own: generation attends to kept keys (parallel/kv_cache.h).
  const Attention* attention = nullptr;

  Kernels& kernels() const { return backend.kernels(); }
  Stream& stream() const { return backend.stream(); }
  const AttentionPlan& plan() const { return plans[static_cast<std::size_t>(pattern)]; }
  StepContext for_layer(int index, int its_pattern) const {
    StepContext other = *this;
    other.layer = index;
    other.pattern = its_pattern;
    return other;
  }
};

}  // namespace farspan
