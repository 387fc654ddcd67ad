// Rotary scaling: what each type needs, and numbers that contradict one another.
#include <fmt/format.h>

#include <cmath>

#include "config/layer_types.h"
#include "config/rules.h"

namespace farspan {
namespace {

constexpr const char* kSection = "model.rope.scaling.";

class RotaryRules {
 public:
  explicit RotaryRules(Rules& rules)
      : rules_(rules), model_(rules.config().model()), scaling_(model_.rope().scaling()) {}

  void run() {
    check_unread();
    if (is({"none"})) return;
    check_needs();
    check_factors();
    check_layers();
    check_contexts();
    check_ramps();
    check_length();
  }

 private:
  const std::string& type() const { return scaling_.type(); }
  bool is(std::initializer_list<const char*> types) const {
    for (const char* t : types)
      if (type() == t) return true;
    return false;
  }
  static std::string key(const char* name) { return std::string(kSection) + name; }

  void check_unread();
  void check_needs();
  void check_factors();
  void check_layers();
  void check_contexts();
  void check_ramps();
  void check_length();

  Rules& rules_;
  const config::Model& model_;
  const config::RopeScaling& scaling_;
};

void RotaryRules::check_unread() {
  const bool rotates = model_.position() == "rope" || model_.position() == "xpos";
  if (!rotates && type() != "none")
    rules_.add(key("type"),
               fmt::format("{} scales rotations, and model.position {} rotates nothing", type(),
                           model_.position()),
               "use position: rope, or leave the scaling out", {"model.position"});
  const config::RopeScaling defaults;
  struct Read {
    const char* name;
    bool given;
    bool read;
    const char* readers;
  };
  const bool scaled = type() != "none";
  const Read reads[] = {
      {"factor", scaling_.has_factor(), scaled, "every type but none"},
      {"original_context", scaling_.has_original_context(), scaled, "every type but none"},
      {"target_context", scaling_.has_target_context(), scaled, "every type but none"},
      {"layers", scaling_.layers() != defaults.layers(), scaled, "every type but none"},
      {"form", scaling_.form() != defaults.form(), is({"yarn"}), "yarn"},
      {"beta_fast", scaling_.beta_fast() != defaults.beta_fast(), is({"yarn"}), "yarn"},
      {"beta_slow", scaling_.beta_slow() != defaults.beta_slow(), is({"yarn"}), "yarn"},
      {"attention_factor", scaling_.has_attention_factor(), is({"yarn", "longrope"}),
       "yarn and longrope"},
      {"short_factor", !scaling_.short_factor().empty(), is({"longrope"}), "longrope"},
      {"long_factor", !scaling_.long_factor().empty(), is({"longrope"}), "longrope"},
      {"low_freq_factor", scaling_.low_freq_factor() != defaults.low_freq_factor(), is({"llama3"}),
       "llama3"},
      {"high_freq_factor", scaling_.high_freq_factor() != defaults.high_freq_factor(),
       is({"llama3"}), "llama3"}};
  for (const Read& r : reads)
    if (r.given && !r.read) rules_.add_unread(key(r.name), r.readers, key("type"), type());
}

void RotaryRules::check_needs() {
  // A longrope that says how much cos and sin grow reads no factor.
  const bool factor_read = !(type() == "longrope" && scaling_.has_attention_factor());
  if (!scaling_.has_factor() && factor_read)
    rules_.add(key("factor"), fmt::format("is missing, and {} needs it", type()),
               type() == "llama3" ? "give factor: 8 for Llama 3.1, 32 for Llama 3.2"
                                  : "give factor: 16, or both original_context and target_context",
               {key("type"), key("original_context"), key("target_context")});
  if (is({"yarn", "llama3", "dynamic", "longrope"}) && !scaling_.has_original_context())
    rules_.add(key("original_context"), fmt::format("is missing, and {} needs it", type()),
               "give the context that the weights were trained with, such as 4k", {key("type")});
  if (is({"ntk", "dynamic"}) && model_.head_dim() == 2)
    rules_.add(key("type"),
               fmt::format("{} needs a head_dim above 2: its exponent is d / (d - 2)", type()),
               "use linear", {"model.head_dim"});
}

// LongRoPE: one factor for each pair of dimensions.
void RotaryRules::check_factors() {
  if (!is({"longrope"})) return;
  const auto check = [&](const char* name, int count) {
    if (2 * std::int64_t{count} == model_.head_dim()) return;
    rules_.add(
        key(name),
        count == 0 ? std::string("is missing, and longrope needs it")
                   : fmt::format("has {} entries, and head_dim {} has {} pairs", count,
                                 model_.head_dim(), model_.head_dim() / 2),
        fmt::format("list {} numbers, one for each pair of dimensions", model_.head_dim() / 2),
        {key("type"), "model.head_dim"});
  };
  check("short_factor", scaling_.short_factor_size());
  check("long_factor", scaling_.long_factor_size());
  if (scaling_.original_context() == 1)
    rules_.add(key("original_context"), "1 has no logarithm to divide by",
               "give the context that the weights were trained with, such as 4k", {key("type")});
}

// Which layers slide is what tells those that are scaled from those that are not.
void RotaryRules::check_layers() {
  if (scaling_.layers() == "all") return;
  const std::int64_t layers = model_.num_hidden_layers(), sliding = num_sliding_layers(model_);
  const std::vector<std::string> read = {"model.layer_types", "model.sliding_window", key("type")};
  if (layers > 0 && sliding == layers)
    rules_.add(key("layers"),
               fmt::format("full_attention, and all {} layers slide: {} scales none of them",
                           layers, type()),
               "name the layers to scale full_attention in model.layer_types, or use layers: all",
               read);
  else if (sliding == 0)
    rules_
        .add(key("layers"),
             "full_attention, and no layer slides: all of them are scaled, as with layers: all",
             "leave it out, or give a sliding_window and name the layers that have it "
             "sliding_attention in model.layer_types",
             read)
        .note = true;
}

void RotaryRules::check_contexts() {
  if (!scaling_.has_original_context() || !scaling_.has_target_context()) return;
  const std::int64_t original = scaling_.original_context(), target = scaling_.target_context();
  const std::vector<std::string> both = {key("original_context"), key("factor")};
  if (target < original) {
    rules_.add(
        key("target_context"),
        fmt::format("{} is below original_context {}: scaling only extends", target, original),
        "exchange the two, or use type: none to train at a shorter length", both);
    return;
  }
  // llama3's factor divides long wavelengths; how far the context reaches is not bound to it.
  if (!scaling_.has_factor() || type() == "llama3") return;
  const double reached = scaling_.factor() * static_cast<double>(original);
  if (std::abs(reached - static_cast<double>(target)) >= 1)
    rules_.add(key("factor"),
               fmt::format("{:g} x original_context {} is {:.0f}, and target_context is {}",
                           scaling_.factor(), original, reached, target),
               fmt::format("leave factor out (then it is {:g}), or leave target_context out",
                           static_cast<double>(target) / static_cast<double>(original)),
               {key("original_context"), key("target_context")});
}

void RotaryRules::check_ramps() {
  if (type() == "yarn" && scaling_.beta_fast() <= scaling_.beta_slow())
    rules_.add(
        key("beta_fast"),
        fmt::format("{:g} is not above beta_slow {:g}", scaling_.beta_fast(), scaling_.beta_slow()),
        "use beta_fast: 32 and beta_slow: 1, as the paper does", {key("beta_slow")});
  if (type() == "llama3" && scaling_.high_freq_factor() <= scaling_.low_freq_factor())
    rules_.add(key("high_freq_factor"),
               fmt::format("{:g} is not above low_freq_factor {:g}", scaling_.high_freq_factor(),
                           scaling_.low_freq_factor()),
               "use high_freq_factor: 4 and low_freq_factor: 1, as Llama 3 does",
               {key("low_freq_factor")});
}

// Trained beyond the target, the far positions are extrapolated after all.
void RotaryRules::check_length() {
  const std::int64_t length = rules_.config().train().sequence_length();
  if (!scaling_.has_target_context() || length <= scaling_.target_context()) return;
  if (is({"dynamic"})) return;  // grows with the document
  rules_
      .add("train.sequence_length",
           fmt::format("{} tokens reach beyond target_context {}", length,
                       scaling_.target_context()),
           "raise model.rope.scaling.target_context, or shorten the sequences",
           {key("target_context"), key("factor")})
      .note = true;
}

}  // namespace

void check_rotary(Rules& rules) { RotaryRules(rules).run(); }

}  // namespace farspan
