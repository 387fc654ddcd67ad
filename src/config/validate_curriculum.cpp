// Curricula: what each kind reads, and whether its stages make up the run.
#include <fmt/format.h>

#include <algorithm>

#include "config/stages.h"

namespace farspan {
namespace {

class CurriculumRules {
 public:
  explicit CurriculumRules(Rules& rules)
      : rules_(rules), config_(rules.config()), curriculum_(config_.curriculum()) {}

  void run() {
    check_unread();
    if (type() == "window") check_window();
    if (!has_stages(config_)) return;
    check_lengths();
    if (type() == "gated") check_gate();
    if (curriculum_.stages_size() == 0) return;  // said by check_lengths
    if (type() == "cyclic")
      check_cycles();
    else
      check_budget();
  }

 private:
  const std::string& type() const { return curriculum_.type(); }
  static std::string key(const char* name) { return std::string("curriculum.") + name; }

  void check_unread();
  void check_window();
  void check_gate();
  void check_lengths();
  void check_doubling();
  void check_cycles();
  void check_budget();

  Rules& rules_;
  const RunConfig& config_;
  const config::Curriculum& curriculum_;
};

void CurriculumRules::check_unread() {
  const config::Curriculum defaults;
  const bool window = type() == "window", cyclic = type() == "cyclic";
  const bool doubles = cyclic || type() == "growlength";
  struct Read {
    const char* name;
    bool given;
    bool read;
    const char* readers;
  };
  const config::Gate& gate = curriculum_.gate();
  const config::Gate no_gate;
  const bool gated = type() == "gated";
  const Read reads[] = {
      {"stages", curriculum_.stages_size() > 0, has_stages(config_),
       "growlength, cyclic and gated"},
      {"min_length", curriculum_.has_min_length(), doubles, "growlength and cyclic"},
      {"max_length", curriculum_.has_max_length(), doubles, "growlength and cyclic"},
      {"cycles", curriculum_.cycles() != defaults.cycles(), cyclic, "cyclic"},
      {"initial_window", curriculum_.initial_window() != defaults.initial_window(), window,
       "window"},
      {"window_steps", curriculum_.has_window_steps(), window, "window"},
      {"growth", curriculum_.growth() != defaults.growth(), window, "window"},
      {"gate.retrieval", gate.retrieval() != no_gate.retrieval(), gated, "gated"},
      {"gate.recovery", gate.recovery() != no_gate.recovery(), gated, "gated"},
      {"gate.every", gate.every() != no_gate.every(), gated, "gated"}};
  for (const Read& r : reads)
    if (r.given && !r.read) rules_.add_unread(key(r.name), r.readers, key("type"), type());
}

void CurriculumRules::check_window() {
  const config::Model& model = config_.model();
  const std::int64_t first = curriculum_.initial_window(), last = config_.train().sequence_length();
  const std::int64_t steps = config_.train().steps();
  const std::vector<std::string> patterns = {"model.sliding_window", "model.layer_types",
                                             "model.sparse_attention.type"};
  if (first > last)
    rules_.add(key("initial_window"),
               fmt::format("{} is above train.sequence_length {}: there is nothing to grow to",
                           first, last),
               "use a smaller one, such as 32, or type: fixed", {"train.sequence_length"});
  if (model.sliding_window() > 0 || model.sparse_attention().type() != "none")
    rules_.add(
        key("type"),
        fmt::format("window cuts documents into pieces as long as the window, and {} shows a "
                    "part of each only: of two windows the shorter one would act",
                    model.sliding_window() > 0
                        ? fmt::format("model.sliding_window {}", model.sliding_window())
                        : "sparse_attention " + model.sparse_attention().type()),
        "use model.sliding_window: 0 and no sparse_attention, or growlength, whose stages "
        "may have a sliding_window each",
        patterns);
  if (config_.positions().sampler() != "sequential")
    rules_.add(key("type"),
               fmt::format("window keeps tokens apart that {} gives far positions: those would "
                           "never meet",
                           config_.positions().sampler()),
               "use positions.sampler: sequential, or another curriculum", {"positions.sampler"});
  if (curriculum_.has_window_steps() && curriculum_.window_steps() == 0)
    rules_.add(key("window_steps"), "0 steps leave the window nothing to grow in",
               "give steps, or a share such as 60%, or use type: fixed", {key("type")});
  if (steps > 0 && curriculum_.window_steps() > static_cast<double>(steps))
    rules_
        .add(key("window_steps"),
             fmt::format("{:.0f} steps are more than train.steps {}: the window never reaches "
                         "train.sequence_length",
                         curriculum_.window_steps(), steps),
             "for a real run use fewer, or a share such as 60%", {"train.steps"})
        .note = true;
}

void CurriculumRules::check_gate() {
  if (!config_.data().has_validation())
    rules_.add("data.validation", "is missing, and gated looks at the loss of short held-out text",
               "name a held-out token store", {key("type")});
}

void CurriculumRules::check_lengths() {
  const bool bounds = curriculum_.has_min_length() || curriculum_.has_max_length();
  if (curriculum_.stages_size() == 0) return check_doubling();
  if (bounds && type() != "gated")
    rules_.add(curriculum_.has_min_length() ? key("min_length") : key("max_length"),
               "is given beside curriculum.stages, which say every length",
               "keep one: curriculum.stages, or min_length and max_length", {key("stages")});
  std::int64_t longest = 0;
  for (const config::Stage& stage : curriculum_.stages())
    longest = std::max(longest, stage.sequence_length());
  if (config_.train().sequence_length() != longest)
    rules_.add("train.sequence_length",
               fmt::format("{} is not the longest stage's, which has {}",
                           config_.train().sequence_length(), longest),
               "leave it out: it then is the longest stage's", {key("stages")});
}

void CurriculumRules::check_doubling() {
  if (type() == "gated")
    rules_.add(key("stages"), "is missing, and gated needs it",
               "list the stages: [{sequence_length: 8k, tokens: 1B}, {sequence_length: 16k, ...}]",
               {key("type")});
  else if (!curriculum_.has_min_length())
    rules_.add(
        key("min_length"), fmt::format("is missing, and {} without stages starts with it", type()),
        "give the first length, such as min_length: 256, or list the stages in curriculum.stages",
        {key("type"), key("stages")});
  else {
    const bool given = curriculum_.has_max_length();
    const std::int64_t first = curriculum_.min_length();
    const std::int64_t last = given ? curriculum_.max_length() : config_.train().sequence_length();
    std::int64_t below = first;
    while (below * 2 <= last) below *= 2;
    rules_.add(given ? key("max_length") : "train.sequence_length",
               first > last ? fmt::format("{} is below curriculum.min_length {}", last, first)
                            : fmt::format("{} is not curriculum.min_length {} doubled some times",
                                          last, first),
               first > last ? "exchange the two" : fmt::format("use {} or {}", below, below * 2),
               {key("min_length")});
  }
}

void CurriculumRules::check_cycles() {
  constexpr std::int64_t kMostStages = 4096;
  const std::int64_t stages = curriculum_.cycles() * curriculum_.stages_size();
  for (int i = 0; i < curriculum_.stages_size(); ++i)
    for (const char* budget : {"steps", "tokens"}) {
      const config::Stage& stage = curriculum_.stages(i);
      if (budget == std::string_view("steps") ? stage.has_steps() : stage.has_tokens())
        rules_.add(fmt::format("curriculum.stages[{}].{}", i, budget),
                   "is given, and the stages of cyclic have equal shares of train.steps",
                   "leave it out", {key("type")});
    }
  if (stages > kMostStages)
    rules_.add(key("cycles"),
               fmt::format("{} cycles of {} lengths are {} stages", curriculum_.cycles(),
                           curriculum_.stages_size(), stages),
               fmt::format("keep them below {}", kMostStages), {key("stages")});
  else if (config_.train().has_steps() && config_.train().steps() < stages)
    rules_.add(key("cycles"),
               fmt::format("{} cycles of {} lengths are {} stages, and train.steps is {}: some "
                           "would have none",
                           curriculum_.cycles(), curriculum_.stages_size(), stages,
                           config_.train().steps()),
               "use fewer cycles, a larger min_length, or more steps", {"train.steps"});
}

void CurriculumRules::check_budget() {
  const config::Train& train = config_.train();
  std::int64_t sum = 0, open = 0;  // open: stages that share what the others leave
  for (int i = 0; i < curriculum_.stages_size(); ++i) {
    const config::Stage& stage = curriculum_.stages(i);
    const std::string prefix = fmt::format("curriculum.stages[{}].", i);
    if (stage.has_steps() && stage.has_tokens())
      rules_.add(prefix + "tokens", fmt::format("steps {} is given too", stage.steps()),
                 "keep one of the two", {prefix + "steps"});
    sum += stage.steps();
    open += stage.has_steps() ? 0 : 1;
  }
  if (open > 0 && !train.has_steps())
    rules_.add("train.steps",
               "is missing, and a stage without steps or tokens takes what the others leave of it",
               "give every stage a budget, or say how long to train: steps: 1000, or tokens: 2B",
               {key("stages"), "train.tokens"});
  else if (train.has_steps() && (open > 0 ? train.steps() - sum < open : sum != train.steps()))
    rules_.add("train.steps",
               fmt::format("{} steps, and the stages add up to {}{}", train.steps(), sum,
                           open > 0 ? ", which leaves too little for those without a budget" : ""),
               open > 0 ? "raise train.steps, or shorten a stage"
                        : "leave train.steps out (it then is their sum), or change the stages",
               {key("stages"), "train.tokens"});
}

}  // namespace

void check_curriculum(Rules& rules) { CurriculumRules(rules).run(); }

}  // namespace farspan
