// Masks, position encodings and strategies of attention: what cannot be combined, and what could be
// meant instead. The patterns themselves are defined in parallel/attention_pattern.h.
#include <fmt/format.h>

#include <algorithm>

#include "config/rules.h"

namespace farspan {
namespace {

class AttentionRules {
 public:
  explicit AttentionRules(Rules& rules) : rules_(rules), model_(rules.config().model()) {}

  void run() {
    check_window();
    check_layer_types();
    check_sparse();
    check_position();
    check_direction();
    check_strategy();
    check_invariant();
  }

 private:
  bool sparse() const { return model_.sparse_attention().type() != "none"; }

  void check_window();
  void check_layer_types();
  void check_sparse();
  void check_dilated();
  void check_shifted();
  void check_unread_sparse();
  void check_position();
  void check_direction();
  void note_automatic(const std::string& key, const std::string& value);
  void check_strategy();
  void check_invariant();
  void check_ulysses(std::int64_t context, std::int64_t heads);
  void check_hybrid(std::int64_t context, std::int64_t heads);

  Rules& rules_;
  const config::Model& model_;
};

void AttentionRules::check_window() {
  if (model_.attention_sinks() > 0 && model_.sliding_window() == 0)
    rules_.add("model.attention_sinks",
               fmt::format("{} tokens stay visible outside a window, and sliding_window is 0: no "
                           "window, everything is visible already",
                           model_.attention_sinks()),
               "give a window such as sliding_window: 4k, or set attention_sinks: 0",
               {"model.sliding_window"});
}

void AttentionRules::check_layer_types() {
  const auto& types = model_.layer_types();
  if (types.empty()) return;
  if (model_.has_num_hidden_layers() && types.size() != model_.num_hidden_layers())
    rules_.add(
        "model.layer_types",
        fmt::format("has {} entries for {} layers", types.size(), model_.num_hidden_layers()),
        "give one entry per layer, or leave it out", {"model.num_hidden_layers"});
  const bool slides = std::find(types.begin(), types.end(), "sliding_attention") != types.end();
  if (slides && model_.sliding_window() == 0)
    rules_.add("model.layer_types",
               "has sliding_attention, and sliding_window is 0: no window to slide",
               "give a window such as sliding_window: 4k, or make all layers full_attention",
               {"model.sliding_window"});
  if (!slides && model_.sliding_window() > 0)
    rules_
        .add("model.sliding_window",
             fmt::format("{} is read by sliding_attention layers, and layer_types has none",
                         model_.sliding_window()),
             "name the layers that slide in layer_types, or leave layer_types out: then all do",
             {"model.layer_types"})
        .note = true;
  if (sparse())
    rules_.add(
        "model.layer_types",
        fmt::format("names full and sliding layers, and sparse_attention {} is every layer's",
                    model_.sparse_attention().type()),
        "leave layer_types out, or set sparse_attention.type: none",
        {"model.sparse_attention.type"});
}

void AttentionRules::check_sparse() {
  const std::string& type = model_.sparse_attention().type();
  if (sparse() && (model_.sliding_window() > 0 || model_.attention_sinks() > 0))
    rules_.add("model.sparse_attention.type",
               fmt::format("{} is a pattern of its own, and a window or sinks are given too", type),
               "keep one: sparse_attention.type: none, or sliding_window: 0 and "
               "attention_sinks: 0 (bigbird has window_blocks and global_blocks)",
               {"model.sliding_window", "model.attention_sinks"});
  if (type == "dilated") check_dilated();
  if (type == "s2") check_shifted();
  check_unread_sparse();
}

void AttentionRules::check_dilated() {
  const config::SparseAttention& sparse = model_.sparse_attention();
  const int segments = sparse.segment_lengths_size(), dilations = sparse.dilations_size();
  const std::vector<std::string> both = {"model.sparse_attention.dilations",
                                         "model.sparse_attention.type"};
  if (segments == 0 || segments != dilations) {
    rules_.add("model.sparse_attention.segment_lengths",
               fmt::format("has {} entries and dilations {}: a branch needs one of each", segments,
                           dilations),
               "write pairs, such as segment_lengths: [2k, 4k, 8k] and dilations: [1, 2, 4]", both);
    return;
  }
  for (int i = 0; i < segments; ++i) {
    const std::int64_t length = sparse.segment_lengths(i), dilation = sparse.dilations(i);
    if (dilation < 1 || length % dilation == 0) continue;
    const std::int64_t below = length / dilation * dilation;
    rules_.add("model.sparse_attention.segment_lengths",
               fmt::format("entry {}: a segment of {} tokens is not a multiple of its dilation {}",
                           i + 1, length, dilation),
               below == 0 ? fmt::format("use {}", dilation)
                          : fmt::format("use {} or {}", below, below + dilation),
               both);
  }
}

void AttentionRules::check_shifted() {
  const std::int64_t group = model_.sparse_attention().group_size();
  if (group == 0)
    rules_.add("model.sparse_attention.group_size", "is missing, and sparse_attention.type is s2",
               "give the tokens of a group, such as 2k (LongLoRA: a quarter of the sequence)",
               {"model.sparse_attention.type"});
  if (group % 2 != 0)
    rules_.add(
        "model.sparse_attention.group_size",
        fmt::format("{} is odd, and half of the heads have groups shifted by half of one", group),
        fmt::format("use {} or {}", std::max<std::int64_t>(group - 1, 2), group + 1),
        {"model.sparse_attention.type"});
  const std::int64_t kv_heads = model_.num_key_value_heads();
  if (kv_heads % 2 != 0)
    rules_.add("model.num_key_value_heads",
               fmt::format("{} is odd, and s2 shifts the groups of half of them", kv_heads),
               "use an even number, or another sparse_attention.type",
               {"model.sparse_attention.type", "model.num_attention_heads"});
}

// Sizes of a pattern that was not chosen.
void AttentionRules::check_unread_sparse() {
  const config::SparseAttention& s = model_.sparse_attention();
  const config::SparseAttention defaults;
  const std::string& type = s.type();
  struct Size {
    const char* name;
    const char* reader;
    bool given;
  };
  const Size sizes[] = {{"segment_lengths", "dilated", s.segment_lengths_size() > 0},
                        {"dilations", "dilated", s.dilations_size() > 0},
                        {"block_size", "bigbird", s.block_size() != defaults.block_size()},
                        {"window_blocks", "bigbird", s.window_blocks() != defaults.window_blocks()},
                        {"global_blocks", "bigbird", s.global_blocks() != defaults.global_blocks()},
                        {"random_blocks", "bigbird", s.random_blocks() != defaults.random_blocks()},
                        {"group_size", "s2", s.has_group_size()}};
  for (const Size& size : sizes)
    if (size.given && type != size.reader)
      rules_.add_unread(fmt::format("model.sparse_attention.{}", size.name), size.reader,
                        "model.sparse_attention.type", type);
}

void AttentionRules::check_position() {
  const std::string& position = model_.position();
  const bool rotates = position == "rope" || position == "xpos";
  if (model_.has_head_dim() && model_.head_dim() % 2 != 0 && rotates)
    rules_.add("model.head_dim",
               fmt::format("{} is odd, and {} rotates pairs", model_.head_dim(), position),
               "make head_dim even, or use position: alibi or none",
               {"model.hidden_size", "model.num_attention_heads", "model.position"});
  const config::Model defaults;
  if (position == "sinusoidal" && model_.hidden_size() % 2 != 0)
    rules_.add(
        "model.position",
        fmt::format("sinusoidal gives pairs of dimensions sin and cos, and hidden_size {} is "
                    "odd",
                    model_.hidden_size()),
        "make hidden_size even, or use another encoding", {"model.hidden_size"});
  if (position != "xpos" && model_.xpos_scale_base() != defaults.xpos_scale_base())
    rules_.add_unread("model.xpos_scale_base", "xpos", "model.position", position);
  if (!rotates && model_.rope().theta() != config::Rope().theta())
    rules_.add_unread("model.rope.theta", "rope and xpos", "model.position", position);
  if (!model_.is_causal() && (position == "alibi" || position == "xpos"))
    rules_.add(
        "model.position",
        fmt::format("{} is defined for keys before the query, and is_causal is false", position),
        "use position: rope or none, or set is_causal: true", {"model.is_causal"});
  const config::RunConfig& config = rules_.config();
  if (position == "xpos" && config.data().documents() == "joined" &&
      config.positions().reset_per_document())
    rules_.add("positions.reset_per_document",
               "true puts the keys of a document joined before at later positions than the query, "
               "where the decay of xpos grows without bound",
               "set it to false (or leave it out), or use data.documents: masked",
               {"data.documents", "model.position"});
  if (position == "alibi" && config.data().documents() == "joined" &&
      config.positions().reset_per_document())
    rules_
        .add(
            "positions.reset_per_document",
            "true puts the keys of a document joined before at later positions than the query, and "
            "alibi then favours them the more the further they are",
            "set it to false (or leave it out), or use data.documents: masked",
            {"data.documents", "model.position"})
        .note = true;
}

void AttentionRules::check_direction() {
  if (model_.is_causal()) return;
  if (model_.attention_sinks() > 0 && model_.sliding_window() > 0)
    rules_.add("model.attention_sinks", "are for later tokens, and is_causal is false",
               "set attention_sinks: 0, or is_causal: true", {"model.is_causal"});
  if (sparse())
    rules_.add("model.sparse_attention.type",
               fmt::format("{} is built causal only, and is_causal is false",
                           model_.sparse_attention().type()),
               "set sparse_attention.type: none, or is_causal: true", {"model.is_causal"});
  if (rules_.options().trains)
    rules_.add("model.is_causal",
               "false lets a token see the next one, which next-token training asks it to predict",
               "set is_causal: true (masks of both directions: farspan inspect attention)");
}

// A run says what it chose; before there is data, this is all there is to say.
void AttentionRules::note_automatic(const std::string& key, const std::string& value) {
  if (value != "auto" || rules_.options().need_files) return;
  rules_
      .add(key, "auto is chosen when the run starts, from its first batch of documents",
           "train prints the choice and why; --dry-run assumes one document per sequence")
      .note = true;
}

void AttentionRules::check_strategy() {
  const config::Parallel& parallel = rules_.config().parallel();
  note_automatic("parallel.attention", parallel.attention());
  note_automatic("parallel.layout", parallel.layout());
  const std::string& strategy = parallel.attention();
  const std::int64_t context = parallel.context(), heads = model_.num_attention_heads();
  if (strategy == "ulysses" || strategy == "hybrid") {
    if (context < 1 || heads < 1) return;
    if (strategy == "ulysses")
      check_ulysses(context, heads);
    else
      check_hybrid(context, heads);
    return;
  }
  if (parallel.ulysses() > 1)
    rules_.add("parallel.ulysses",
               fmt::format("{} is read by ulysses and hybrid only, and parallel.attention is {}",
                           parallel.ulysses(), strategy),
               "leave it out, or use parallel.attention: hybrid", {"parallel.attention"});
}

void AttentionRules::check_invariant() {
  const config::Parallel& parallel = rules_.config().parallel();
  if (!parallel.invariant()) return;
  const std::string origin = rules_.origin("parallel.attention");
  if (parallel.attention() != "allgather")
    rules_.add("parallel.attention",
               fmt::format("{} adds partial sums in an order that depends on the ranks, and "
                           "parallel.invariant is true",
                           parallel.attention()),
               "use parallel.attention: allgather (or auto), or parallel.invariant: false",
               {"parallel.invariant"});
  else if (const auto at = origin.find(kReplacedByInvariant); at != std::string::npos)
    rules_
        .add("parallel.attention", "is allgather: " + origin.substr(at),
             "leave it out, or write parallel.attention: allgather", {"parallel.invariant"})
        .note = true;
  if (model_.sparse_attention().type() == "dilated")
    rules_.add("model.sparse_attention.type",
               "dilated orders a rank's tokens by residue, and parallel.invariant: true computes "
               "whole blocks of neighbouring tokens",
               "use bigbird, s2 or none, or parallel.invariant: false", {"parallel.invariant"});
}

void AttentionRules::check_ulysses(std::int64_t context, std::int64_t heads) {
  const std::vector<std::string> read = {"parallel.attention", "parallel.context",
                                         "model.num_attention_heads"};
  const std::int64_t ulysses = rules_.config().parallel().ulysses();
  if (ulysses != context) {
    rules_.add("parallel.ulysses",
               fmt::format("{} of {} context ranks, and parallel.attention: ulysses takes them all",
                           ulysses, context),
               fmt::format("leave it out (auto: {}), or use parallel.attention: hybrid", context),
               read);
  } else if (heads % context != 0) {
    rules_.add("parallel.ulysses",
               fmt::format("{} context ranks do not divide num_attention_heads {}, and ulysses "
                           "gives each rank as many heads",
                           context, heads),
               fmt::format("use parallel.context {}, or parallel.attention: ring, allgather or "
                           "hybrid",
                           one_of(divisors_of(heads))),
               read);
  }
}

void AttentionRules::check_hybrid(std::int64_t context, std::int64_t heads) {
  const std::vector<std::string> read = {"parallel.attention", "parallel.context",
                                         "model.num_attention_heads"};
  const std::int64_t ulysses = rules_.config().parallel().ulysses();
  std::vector<std::int64_t> fit;
  for (const std::int64_t u : divisors_of(context))
    if (heads % u == 0) fit.push_back(u);
  const std::string others = "parallel.attention: ring or allgather";
  if (ulysses == 0)
    rules_.add("parallel.ulysses",
               fmt::format("auto finds no size between 1 and {} that divides parallel.context {} "
                           "and num_attention_heads {}",
                           context, context, heads),
               fmt::format("use parallel.ulysses: {}, another parallel.context, or {}", one_of(fit),
                           others),
               read);
  else if (context % ulysses != 0)
    rules_.add("parallel.ulysses",
               fmt::format("{} does not divide parallel.context {}: a hybrid is ulysses x ring",
                           ulysses, context),
               fmt::format("use {}, or {}", one_of(fit), others), read);
  else if (heads % ulysses != 0)
    rules_.add("parallel.ulysses",
               fmt::format("{} does not divide num_attention_heads {}", ulysses, heads),
               fmt::format("use {}, or {}", one_of(fit), others), read);
}

}  // namespace

void check_attention(Rules& rules) { AttentionRules(rules).run(); }

}  // namespace farspan
