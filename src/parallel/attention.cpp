#include "parallel/attention.h"

#include "parallel/ring_attention.h"

namespace farspan {

std::unique_ptr<Attention> make_attention(std::string_view strategy) {
  if (strategy == "ring") return std::make_unique<RingAttention>();
  throw Error(ExitCode::kUsage, {.what = fmt::format("attention '{}' is not built yet", strategy),
                                 .where = "parallel.attention",
                                 .fix = "use ring"});
}

}  // namespace farspan
