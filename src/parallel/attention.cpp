#include "parallel/attention.h"

#include "parallel/ring_attention.h"

namespace farspan {

std::unique_ptr<Attention> make_attention(std::string_view strategy, bool invariant) {
  if (strategy == "ring" && !invariant) return std::make_unique<RingAttention>();
  throw Error(ExitCode::kUsage, {.what = fmt::format("attention '{}' is not built yet", strategy),
                                 .where = "parallel.attention",
                                 .fix = "use ring"});
}

AttentionBytes attention_bytes(std::string_view strategy, const AttentionPlan& plan,
                               const ContextPlace&, const HeadShape& heads, bool) {
  FARSPAN_CHECK(strategy == "ring");
  const std::int64_t values = 2 * heads.num_kv_heads * heads.head_dim;
  const std::int64_t kv =
      plan.rows_sent() * values * static_cast<std::int64_t>(size_of(heads.compute));
  return {.forward = kv, .backward = kv + plan.gradient_rows_sent() * values * 4};
}

}  // namespace farspan
