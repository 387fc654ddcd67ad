// Samplers of positions: what each needs, and what makes them meaningless.
#include <fmt/format.h>

#include <cmath>

#include "config/layer_types.h"
#include "config/rules.h"

namespace farspan {
namespace {

class PositionRules {
 public:
  explicit PositionRules(Rules& rules)
      : rules_(rules), config_(rules.config()), positions_(config_.positions()) {}

  void run() {
    check_unread();
    check_table();
    if (sampler() == "sequential") return;
    check_lengths();
    check_source();
    check_model();
  }

 private:
  const std::string& sampler() const { return positions_.sampler(); }

  void check_unread();
  void check_table();
  void check_lengths();
  void check_source();
  void check_model();
  void check_windows();

  Rules& rules_;
  const RunConfig& config_;
  const config::Positions& positions_;
};

void PositionRules::check_unread() {
  const config::Positions defaults;
  const bool draws = sampler() != "sequential", pose = sampler() == "pose";
  struct Read {
    const char* name;
    bool given;
    bool read;
    const char* readers;
  };
  const Read reads[] = {
      {"original_context", positions_.has_original_context(), draws, "pose, cream and randomized"},
      {"target_context", positions_.has_target_context(), draws, "pose, cream and randomized"},
      {"chunks", positions_.chunks() != defaults.chunks(), pose, "pose"},
      {"first_chunk", positions_.first_chunk() != defaults.first_chunk(), pose, "pose"},
      {"target_margin", positions_.target_margin(), pose, "pose"},
      {"source_window", positions_.has_source_window(), pose, "pose"},
      {"content_offset", positions_.content_offset() != defaults.content_offset(), pose, "pose"}};
  for (const Read& r : reads)
    if (r.given && !r.read)
      rules_.add_unread(std::string("positions.") + r.name, r.readers, "positions.sampler",
                        sampler());
}

void PositionRules::check_lengths() {
  const std::int64_t length = config_.train().sequence_length();
  const std::int64_t original = positions_.original_context();
  const std::int64_t target = positions_.target_context();
  if (!positions_.has_target_context())
    rules_.add("positions.target_context", fmt::format("is missing, and {} needs it", sampler()),
               "give the context to reach, such as 128k, here or as "
               "model.rope.scaling.target_context",
               {"positions.sampler", "model.rope.scaling.target_context"});
  else if (target < original)
    rules_.add("positions.target_context",
               fmt::format("{} is below original_context {}: there is nothing to skip to", target,
                           original),
               "exchange the two, or use sampler: sequential",
               {"positions.original_context", "train.sequence_length"});
  if (length > original)
    rules_.add(
        "train.sequence_length",
        fmt::format("{} tokens are more than positions.original_context {}: {} trains at the "
                    "original length",
                    length, original, sampler()),
        fmt::format("use sequence_length: {}, or raise original_context", original),
        {"positions.original_context"});
  const config::RopeScaling& scaling = config_.model().rope().scaling();
  const double ratio = static_cast<double>(target) / static_cast<double>(original);
  // Types that need no original_context reach as far as their factor says.
  if (positions_.has_target_context() && target >= original && original > 0 &&
      scaling.type() != "none" && scaling.has_factor() && !scaling.has_target_context() &&
      std::abs(scaling.factor() - ratio) * static_cast<double>(original) >= 1)
    rules_
        .add("positions.target_context",
             fmt::format("{} is {:g} x original_context, and model.rope.scaling.factor is {:g}",
                         target, ratio, scaling.factor()),
             "let the two agree, unless that is meant",
             {"positions.original_context", "model.rope.scaling.factor"})
        .note = true;
  if (positions_.has_target_context() && scaling.has_target_context() &&
      scaling.target_context() != target)
    rules_
        .add("positions.target_context",
             fmt::format("{} differs from model.rope.scaling.target_context {}", target,
                         scaling.target_context()),
             "leave one of them out, unless that is meant", {"model.rope.scaling.target_context"})
        .note = true;
}

// A learned position that training never reads stays as it was drawn; one beyond the table is none.
void PositionRules::check_table() {
  const config::Model& model = config_.model();
  if (!model.has_max_position_embeddings()) return;
  if (model.position() != "learned") {
    rules_.add_unread("model.max_position_embeddings", "learned", "model.position",
                      model.position());
    return;
  }
  const std::int64_t rows = model.max_position_embeddings(), end = end_of_positions(config_);
  if (rows < end)
    rules_.add(
        "model.max_position_embeddings",
        fmt::format("a table of {} positions, and training reaches position {}", rows, end - 1),
        fmt::format("use {}, or shorter sequences", end),
        {"train.sequence_length", "positions.target_context", "model.position"});
}

void PositionRules::check_source() {
  if (sampler() != "pose") return;
  const std::int64_t window = positions_.source_window();
  const std::int64_t length = config_.train().sequence_length();
  if (!positions_.has_source_window()) {
    if (positions_.content_offset() != config::Positions().content_offset())
      rules_.add_unread("positions.content_offset", "pose with a source_window",
                        "positions.source_window", "not given");
    return;
  }
  if (window < length)
    rules_.add("positions.source_window",
               fmt::format("{} tokens of text are less than the {} of a sequence", window, length),
               fmt::format("use a multiple of {}, or leave it out to skip no text", length),
               {"train.sequence_length"});
  else if (positions_.content_offset() == "zero" && window > length)
    rules_
        .add("positions.source_window",
             fmt::format("with content_offset: zero the last {} of {} tokens are never shown",
                         window - length, window),
             "leave source_window out, or use content_offset: uniform",
             {"positions.content_offset", "train.sequence_length"})
        .note = true;
}

void PositionRules::check_model() {
  const config::Model& model = config_.model();
  const std::string& position = model.position();
  if (position == "none")
    rules_.add("positions.sampler",
               fmt::format("{} changes positions, and model.position none reads none", sampler()),
               "use sampler: sequential, or a position encoding", {"model.position"});
  // Attention with a bias by distance is computed run by run of consecutive positions.
  if (sampler() == "randomized" && (position == "alibi" || position == "xpos"))
    rules_.add("positions.sampler",
               fmt::format("randomized jumps at every token, and {} needs runs of consecutive "
                           "positions",
                           position),
               "use sampler: pose, or model.position: rope", {"model.position"});
  check_windows();
}

// Windows count tokens of the text, so they cut off far positions wherever they cut off far tokens.
void PositionRules::check_windows() {
  const config::Model& model = config_.model();
  if (model.sliding_window() > 0 && num_sliding_layers(model) == model.num_hidden_layers())
    rules_
        .add("positions.sampler",
             fmt::format("{} shows far positions to tokens within sliding_window {} of one another "
                         "in the text: those beyond it never meet, here or at the target",
                         sampler(), model.sliding_window()),
             "use no window, or layer_types with some full_attention layers",
             {"model.sliding_window", "model.layer_types"})
        .note = true;
  const std::string& pattern = model.sparse_attention().type();
  if (pattern == "s2" || pattern == "dilated")
    rules_
        .add("positions.sampler",
             fmt::format("{} shows far positions to tokens that see one another, and "
                         "sparse_attention {} hides most far tokens",
                         sampler(), pattern),
             "use sparse_attention: {type: none}, unless that is meant",
             {"model.sparse_attention.type"})
        .note = true;
}

}  // namespace

void check_positions(Rules& rules) { PositionRules(rules).run(); }

}  // namespace farspan
