// What a module's forward and backward are given besides their tensors.
#pragma once

#include "comm/communicator.h"
#include "core/arena.h"
#include "core/trace.h"
#include "kernels/backend.h"
#include "parallel/attention_plan.h"

namespace farspan {

struct StepContext {
  Backend& backend;
  Arena& saved;               // lives from a micro-batch's forward to the end of its backward
  Arena& scratch;             // LIFO temporaries
  Communicator& context;      // the ranks that share the sequences
  const AttentionPlan& plan;  // of the micro-batch at hand, for this rank
  Trace& trace;

  Kernels& kernels() const { return backend.kernels(); }
  Stream& stream() const { return backend.stream(); }
};

}  // namespace farspan
