// parallel.attention_kernel and parallel.deterministic: what can be known before a run about who
// may compute attention. What depends on shapes is in kernels/cudnn_support.h.
#include <fmt/format.h>

#include "config/rules.h"

namespace farspan {
namespace {

// attention_kernel: cudnn asks for cuDNN in every call: refused where some call cannot have it.
void check_cudnn(Rules& rules) {
  const config::RunConfig& config = rules.config();
  const config::Model& model = config.model();
  const config::Parallel& parallel = config.parallel();
  const auto refuse = [&](std::string what, const std::string& fix, const char* also) {
    rules.add("parallel.attention_kernel", "cudnn " + std::move(what),
              fix + (fix.empty() ? "" : ", or ") +
                  "use attention_kernel: auto (cuDNN where it can) or own",
              {also});
  };
  if (config.device() != "cuda") {
    refuse(fmt::format("runs on GPUs, and device is {}", config.device()), "", "device");
    return;
  }
  if (config.train().precision() != "bf16")
    refuse(fmt::format("computes in bf16, and train.precision is {}", config.train().precision()),
           "set train.precision: bf16", "train.precision");
  if (parallel.invariant())
    refuse("sums in an order that depends on the shape, and parallel.invariant is true",
           "set parallel.invariant: false", "parallel.invariant");
  else if (parallel.deterministic())
    refuse(
        "has no bitwise repeatable gradients at training lengths, and parallel.deterministic is "
        "true",
        "set parallel.deterministic: false", "parallel.deterministic");
  if (model.position() == "alibi" || model.position() == "xpos")
    refuse(fmt::format("knows no {}", model.position()), "use model.position: rope or none",
           "model.position");
  if (model.attention_sinks() > 0)
    refuse("has no mask of a window with sinks", "set model.attention_sinks: 0",
           "model.attention_sinks");
  if (model.sparse_attention().type() != "none")
    refuse(fmt::format("has no mask of {}", model.sparse_attention().type()),
           "set model.sparse_attention.type: none", "model.sparse_attention.type");
  if (model.head_dim() % 8 != 0 || model.head_dim() > 256)
    refuse(
        fmt::format("takes head dims that are multiples of 8 up to 256, and model.head_dim is {}",
                    model.head_dim()),
        "", "model.head_dim");
  if ((parallel.attention() == "ulysses" || parallel.attention() == "hybrid") &&
      parallel.ulysses() > 1)
    refuse(fmt::format("reads the output again for gradients, which {} leaves on other ranks",
                       parallel.attention()),
           "use parallel.attention: ring or allgather", "parallel.attention");
}

}  // namespace

void check_attention_kernel(Rules& rules) {
  const config::RunConfig& config = rules.config();
  const config::Parallel& parallel = config.parallel();
  if (parallel.attention_kernel() == "cudnn") check_cudnn(rules);
  if (parallel.deterministic()) return;
  if (parallel.invariant())
    rules.add("parallel.deterministic", "is false, and parallel.invariant: true promises more",
              "leave parallel.deterministic out, or set parallel.invariant: false",
              {"parallel.invariant"});
  else if (config.device() == "cpu")
    rules
        .add("parallel.deterministic",
             "false allows faster gradients on a GPU; device: cpu has none, and repeats every bit",
             "leave it out", {"device"})
        .note = true;
}

}  // namespace farspan
