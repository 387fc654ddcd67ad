// What is evaluated during training: whether it can be.
#include <fmt/format.h>

#include "config/rules.h"

namespace farspan {
namespace {

class EvaluationRules {
 public:
  explicit EvaluationRules(Rules& rules)
      : rules_(rules), config_(rules.config()), evaluation_(config_.evaluation()) {}

  void run() {
    check_validation();
    check_read();
    for (const std::int64_t length : evaluation_.passkey().lengths()) check_passkey(length);
    for (const std::int64_t length : evaluation_.perplexity().lengths())
      check_table("evaluation.perplexity.lengths", length);
  }

 private:
  // Passkeys alone need no held-out text.
  void check_validation() {
    const bool scores_text =
        evaluation_.perplexity().lengths_size() > 0 || evaluation_.passkey().lengths_size() == 0;
    if (evaluation_.every() == 0 || !scores_text || config_.data().has_validation()) return;
    rules_.add("data.validation",
               fmt::format("is missing, and evaluation.every is {}", evaluation_.every()),
               "name a held-out token store, or set evaluation.every to 0", {"evaluation.every"});
  }

  void check_read() {
    const auto unread = [&](const std::string& key, std::string what, std::string fix) {
      rules_.add(key, std::move(what), std::move(fix), {"evaluation.every"}).note = true;
    };
    for (const auto& [key, given] :
         {std::pair{"evaluation.passkey.lengths", evaluation_.passkey().lengths_size() > 0},
          std::pair{"evaluation.perplexity.lengths", evaluation_.perplexity().lengths_size() > 0}})
      if (given && evaluation_.every() == 0)
        unread(key, "is not read, and evaluation.every is 0",
               "say how often: evaluation.every: 50");
    const config::EvalPasskey& passkey = evaluation_.passkey();
    const config::EvalPasskey defaults;
    const bool given =
        passkey.depths() != defaults.depths() || passkey.samples() != defaults.samples();
    if (passkey.lengths_size() == 0 && given && config_.curriculum().type() != "gated")
      unread("evaluation.passkey.lengths", "is missing, and depths or samples are given",
             "list context lengths, such as [1k, 2k]");
  }

  void check_passkey(std::int64_t length) {
    check_table("evaluation.passkey.lengths", length);
    const std::int64_t least =
        config_.model().vocab_size() == kByteVocabulary ? kLeastPasskeyBytes : kLeastPasskeyTokens;
    if (length < least)
      rules_.add("evaluation.passkey.lengths",
                 fmt::format("{} tokens do not hold a passkey and its question", length),
                 fmt::format("use at least {}", least), {"model.vocab_size"});
  }

  void check_table(const char* key, std::int64_t length) {
    const config::Model& model = config_.model();
    if (model.position() != "learned" || !model.has_max_position_embeddings() ||
        length <= model.max_position_embeddings())
      return;
    rules_.add(key,
               fmt::format("{} tokens are more than the {} positions of the model's table", length,
                           model.max_position_embeddings()),
               "use shorter lengths, or raise model.max_position_embeddings",
               {"model.position", "model.max_position_embeddings"});
  }

  Rules& rules_;
  const RunConfig& config_;
  const config::Evaluation& evaluation_;
};

}  // namespace

void check_evaluation(Rules& rules) { EvaluationRules(rules).run(); }

}  // namespace farspan
