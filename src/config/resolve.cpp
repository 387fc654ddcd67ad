// Implied values: one function per rule's group, in the order of validate.h.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "config/stages.h"

namespace farspan {
namespace {

class Resolver {
 public:
  Resolver(LoadedConfig& loaded, std::int64_t ranks)
      : config_(loaded.config), origins_(loaded.origins), ranks_(ranks) {}

  void run() {
    resolve_names();
    resolve_model();
    resolve_rotary();
    resolve_mesh();
    resolve_parallel();
    resolve_batch();
    resolve_steps();
    resolve_schedule();
    resolve_positions();
    resolve_window();
    resolve_position_table();
  }

 private:
  template <typename... Args>
  void implied(const char* key, fmt::format_string<Args...> format, Args&&... args) {
    origins_[key] = "implied: " + fmt::format(format, std::forward<Args>(args)...);
  }

  // Where attention crosses document borders, positions that restarted there would repeat within
  // one context.
  void resolve_positions() {
    config::Positions& positions = *config_.mutable_positions();
    resolve_sampler(positions);
    if (positions.has_reset_per_document() || config_.data().documents() != "joined") return;
    positions.set_reset_per_document(false);
    implied("positions.reset_per_document", "data.documents: joined");
  }

  void resolve_position_table() {
    config::Model& model = *config_.mutable_model();
    if (model.position() != "learned" || model.has_max_position_embeddings()) return;
    model.set_max_position_embeddings(end_of_positions(config_));
    implied("model.max_position_embeddings", "the farthest position of training + 1");
  }

  void resolve_sampler(config::Positions& positions) {
    if (positions.sampler() == "sequential") return;
    if (!positions.has_original_context()) {
      positions.set_original_context(config_.train().sequence_length());
      implied("positions.original_context", "train.sequence_length");
    }
    const config::RopeScaling& scaling = config_.model().rope().scaling();
    if (!positions.has_target_context() && scaling.has_target_context()) {
      positions.set_target_context(scaling.target_context());
      implied("positions.target_context", "model.rope.scaling.target_context");
    }
  }

  void resolve_names() {
    if (config_.has_output_dir()) return;
    config_.set_output_dir("runs/" + config_.name());
    implied("output_dir", "runs/<name>");
  }

  void resolve_model() {
    config::Model& model = *config_.mutable_model();
    const std::int64_t heads = model.num_attention_heads();
    if (!model.has_num_key_value_heads() && heads > 0) {
      model.set_num_key_value_heads(heads);
      implied("model.num_key_value_heads", "num_attention_heads");
    }
    if (!model.has_head_dim() && heads > 0 && model.hidden_size() > 0 &&
        model.hidden_size() % heads == 0) {
      model.set_head_dim(model.hidden_size() / heads);
      implied("model.head_dim", "hidden_size / num_attention_heads");
    }
    config::Optimizer& optimizer = *config_.mutable_optimizer();
    if (optimizer.betas().empty()) {
      optimizer.add_betas(0.9);
      optimizer.add_betas(0.95);
      implied("optimizer.betas", "the usual pair");
    }
  }

  // factor, original_context and target_context: of two the third follows, but for llama3, whose
  // factor is not the ratio of the two.
  void resolve_rotary() {
    config::RopeScaling& scaling = *config_.mutable_model()->mutable_rope()->mutable_scaling();
    if (scaling.type() == "none" || scaling.type() == "llama3" || !scaling.has_original_context())
      return;
    const auto original = static_cast<double>(scaling.original_context());
    if (!scaling.has_factor() && scaling.target_context() >= scaling.original_context()) {
      scaling.set_factor(static_cast<double>(scaling.target_context()) / original);
      implied("model.rope.scaling.factor", "target_context / original_context");
    } else if (scaling.has_factor() && !scaling.has_target_context()) {
      scaling.set_target_context(
          static_cast<std::int64_t>(std::llround(original * scaling.factor())));
      implied("model.rope.scaling.target_context", "original_context x factor");
    }
  }

  void resolve_mesh() {
    config::Parallel& parallel = *config_.mutable_parallel();
    if (parallel.data() == 0 && parallel.context() == 0) {
      parallel.set_context(ranks_);
      implied("parallel.context", "all {} ranks share each sequence", ranks_);
    } else if (parallel.context() == 0 && ranks_ % parallel.data() == 0) {
      parallel.set_context(ranks_ / parallel.data());
      implied("parallel.context", "{} ranks / parallel.data", ranks_);
    }
    if (parallel.data() == 0 && parallel.context() > 0 && ranks_ % parallel.context() == 0) {
      parallel.set_data(ranks_ / parallel.context());
      implied("parallel.data", "{} ranks / parallel.context", ranks_);
    }
  }

  // The one strategy whose order does not depend on the ranks. What was typed for this run counts
  // more than what a file says; two wishes of equal weight are left for validate() to report.
  void resolve_invariant() {
    config::Parallel& parallel = *config_.mutable_parallel();
    const std::string given = parallel.attention();
    if (!parallel.invariant() || given == "allgather") return;
    const std::string origin = origins_["parallel.attention"];
    if (given == "auto" || !parallel.has_attention()) {
      parallel.set_attention("allgather");
      implied("parallel.attention", "parallel.invariant");
    } else if (origin != "command line" && origins_["parallel.invariant"] == "command line") {
      parallel.set_attention("allgather");
      implied("parallel.attention", "{}{} of {}", kReplacedByInvariant, given, origin);
    }
  }

  void resolve_parallel() {
    resolve_invariant();
    config::Parallel& parallel = *config_.mutable_parallel();
    const bool alone = parallel.context() == 1;
    constexpr const char* kLater = "chosen from the first batch when the run starts";
    if (parallel.attention() == "auto") {
      if (alone) parallel.set_attention("ring");
      implied("parallel.attention", "{}", alone ? "nothing to exchange on one rank" : kLater);
    }
    if (parallel.layout() == "auto") {
      if (alone) parallel.set_layout("contiguous");
      implied("parallel.layout", "{}", alone ? "one rank holds everything" : kLater);
    }
    resolve_ulysses();
    if (parallel.attention_kernel() == "auto" && config_.device() == "cpu") {
      parallel.set_attention_kernel("own");
      implied("parallel.attention_kernel", "device: cpu has no other");
    }
  }

  void resolve_ulysses() {
    config::Parallel& parallel = *config_.mutable_parallel();
    const std::string& strategy = parallel.attention();
    const std::int64_t context = parallel.context();
    if (parallel.ulysses() != 0) return;
    if (strategy == "ring" || strategy == "allgather") {
      parallel.set_ulysses(1);
      implied("parallel.ulysses", "{} has no all-to-all ranks", strategy);
    } else if (strategy == "ulysses" && context > 0) {
      parallel.set_ulysses(context);
      implied("parallel.ulysses", "all context ranks");
    } else if (strategy == "hybrid" && context > 0) {
      const std::int64_t size =
          context == 1 ? 1 : hybrid_ulysses(context, config_.model().num_attention_heads());
      if (size == 0) return;  // for validate() to report
      parallel.set_ulysses(size);
      implied("parallel.ulysses", "the largest divisor of context and heads within a machine's 8");
    }
  }

  // 0 where no number between 1 and `context` divides both.
  static std::int64_t hybrid_ulysses(std::int64_t context, std::int64_t heads) {
    constexpr std::int64_t kMostOnOneMachine = 8;
    for (std::int64_t u = std::min(kMostOnOneMachine, context - 1); u > 1; --u)
      if (context % u == 0 && heads % u == 0) return u;
    return 0;
  }

  void resolve_batch() {
    config::Train& train = *config_.mutable_train();
    const config::Parallel& parallel = config_.parallel();
    const std::int64_t length = train.sequence_length();
    if (length < 1 || parallel.data() < 1 || parallel.context() < 1) return;
    const std::int64_t unit = length * parallel.data();  // both below 2^31: ranges of the schema
    if (!train.has_batch_tokens()) {
      train.set_batch_tokens(unit);
      implied("train.batch_tokens", "one sequence per data rank");
    }
    if (train.micro_batch() != 0 || train.batch_tokens() < unit || train.batch_tokens() % unit != 0)
      return;
    const std::int64_t sequences = train.batch_tokens() / unit;
    const std::int64_t tokens = std::max(length, kTokensPerRank * parallel.context());
    train.set_micro_batch(largest_divisor(sequences, tokens / length));
    implied("train.micro_batch", "largest divisor of {} sequences within {} tokens", sequences,
            tokens);
  }

  void resolve_steps() {
    config::Train& train = *config_.mutable_train();
    if (train.has_steps() || !train.has_tokens() || train.batch_tokens() < 1) return;
    const std::int64_t tokens = train.tokens(), batch = train.batch_tokens();
    train.set_steps(tokens / batch + (tokens % batch != 0 ? 1 : 0));
    train.clear_tokens();
    implied("train.steps", "train.tokens {} / {} per step, rounded up", tokens, batch);
    implied("train.tokens", "became train.steps");
  }

  void resolve_schedule() {
    const std::int64_t steps = config_.train().steps();
    config::Schedule& schedule = *config_.mutable_schedule();
    const auto whole = [&](double share) {
      return std::max(1.0, std::round(share * static_cast<double>(steps)));
    };
    const auto is_share = [&](double value) { return value > 0 && value < 1 && steps > 0; };
    if (is_share(schedule.warmup())) {
      implied("schedule.warmup", "{:g}% of {} steps", schedule.warmup() * 100, steps);
      schedule.set_warmup(whole(schedule.warmup()));
    }
    if (schedule.type() == "wsd" && is_share(schedule.decay())) {
      implied("schedule.decay", "{:g}% of {} steps", schedule.decay() * 100, steps);
      schedule.set_decay(whole(schedule.decay()));
    }
  }

  void resolve_window() {
    config::Curriculum& curriculum = *config_.mutable_curriculum();
    const auto steps = static_cast<double>(config_.train().steps());
    if (curriculum.type() != "window" || steps < 1) return;
    const bool given = curriculum.has_window_steps();
    const double share = given ? curriculum.window_steps() : 0.6;
    if (share >= 1 || share == 0) return;
    curriculum.set_window_steps(std::max(1.0, std::round(share * steps)));
    implied("curriculum.window_steps", "{:g}% of {} steps", share * 100, steps);
  }

  // Tokens a rank takes in one pass without being asked for more: enough to keep matmuls busy.
  static constexpr std::int64_t kTokensPerRank = 8192;

  RunConfig& config_;
  std::map<std::string, std::string>& origins_;
  std::int64_t ranks_;
};

}  // namespace

void resolve_single(LoadedConfig& loaded, std::int64_t ranks) { Resolver(loaded, ranks).run(); }

void resolve(LoadedConfig& loaded, const ValidateOptions& options) {
  FARSPAN_CHECK(options.num_ranks >= 1, "{} ranks", options.num_ranks);
  if (has_stages(loaded.config))
    resolve_stages(loaded, options.num_ranks);
  else
    resolve_single(loaded, options.num_ranks);
}

int natural_ranks(const RunConfig& config) {
  constexpr std::int64_t kMost = 1 << 20;
  const auto ranks = [&](const config::Parallel& parallel) {
    const std::int64_t data = std::max<std::int64_t>(parallel.data(), 1);
    const std::int64_t context = std::max<std::int64_t>(parallel.context(), 1);
    return std::min(std::min(data, kMost) * std::min(context, kMost), kMost);
  };
  std::int64_t most = ranks(config.parallel());
  if (has_stages(config))
    for (const config::Stage& stage : config.curriculum().stages())
      most = std::max(most, ranks(stage.parallel()));
  return static_cast<int>(most);
}

}  // namespace farspan
