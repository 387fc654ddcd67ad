// train.cuda_graphs: where a pass cannot be recorded as a graph. With auto such passes run as they
// are; on asks for graphs in every pass and is refused.
#include <fmt/format.h>

#include "config/rules.h"

namespace farspan {

void check_graphs(Rules& rules) {
  const config::RunConfig& config = rules.config();
  if (config.train().cuda_graphs() != "on") return;
  const auto refuse = [&](std::string what, const std::string& fix, const char* also) {
    rules.add("train.cuda_graphs", "on " + std::move(what),
              fix + "use cuda_graphs: auto (where it can) or off", {also});
  };
  if (config.device() != "cuda")
    refuse(fmt::format("records what a GPU does, and device is {}", config.device()), "", "device");
  if (config.parallel().context() > 1)
    refuse(fmt::format("cannot record exchanges between ranks, and {} share each sequence",
                       config.parallel().context()),
           "set parallel.context: 1, or ", "parallel.context");
  if (config.parallel().invariant())
    refuse("cannot record sums in the order of the invariant mode",
           "set parallel.invariant: false, or ", "parallel.invariant");
  if (config.train().recompute() == "offload")
    refuse("cannot record activations that leave for host memory and come back",
           "use another train.recompute, or ", "train.recompute");
}

}  // namespace farspan
