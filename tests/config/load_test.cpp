#include "config/load.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "config/schema.h"
#include "config/suggest.h"

namespace farspan {
namespace {

LoadedConfig parse(const std::string& yaml, std::vector<std::string> overrides = {}) {
  return parse_config(yaml, "a.yaml", overrides);
}

std::vector<Issue> issues_of(const std::string& yaml, std::vector<std::string> overrides = {}) {
  return read_config(yaml, "a.yaml", overrides).issues;
}

std::string all_text(const std::vector<Issue>& issues) {
  std::string out;
  for (const Issue& issue : issues) out += to_text(issue) + "\n";
  return out;
}

// Bad inputs: exactly one issue, at this place, with these words.
struct BadCase {
  const char* name;
  std::string yaml;
  const char* where;
  std::vector<const char*> words;
};

const BadCase kBadCases[] = {
    {"unknown_top", "nmae: a\n", "a.yaml:1:1", {"nmae", "unknown key", "did you mean name?"}},
    {"unknown_inner", "train:\n  stpes: 5\n", "a.yaml:2:3", {"train.stpes", "did you mean steps?"}},
    {"unknown_flow", "optimizer: {lr: 1, bates: [0, 0]}\n", "a.yaml:1:20", {"did you mean betas?"}},
    {"other_section", "train: {lr: 1}\n", "a.yaml:1:9", {"did you mean optimizer.lr?"}},
    {"other_name", "train: {learning_rate: 1}\n", "a.yaml:1:9", {"optimizer.lr"}},
    {"hf_name", "model: {rope_theta: 1}\n", "a.yaml:1:9", {"model.rope.theta"}},
    {"dash_and_case", "train: {Batch-Tokens: 1}\n", "a.yaml:1:9", {"did you mean batch_tokens?"}},
    {"own_section", "data: {data: x}\n", "a.yaml:1:8", {"did you mean parallel.data"}},
    {"nothing_near", "train: {zzzzzz: 1}\n", "a.yaml:1:9", {"known keys of train", "micro_batch"}},
    {"unknown_section", "trian: {steps: 4}\n", "a.yaml:1:1", {"did you mean train?"}},
    {"unknown_in_list",
     "data: {train: [{paht: x}]}\n",
     "a.yaml:1:17",
     {"data.train[0].paht", "path"}},
    {"duplicate", "seed: 1\nname: a\nseed: 2\n", "a.yaml:3:1", {"duplicate", "first given at 1:1"}},
    {"duplicate_inner", "train:\n  steps: 1\n  steps: 1\n", "a.yaml:3:3", {"2:3"}},
    {"duplicate_section", "train: {steps: 1}\ndata: {}\ntrain: {}\n", "a.yaml:3:1", {"1:1"}},
    {"octal", "train:\n  steps: 010\n", "a.yaml:2:10", {"octal", "write 10 without"}},
    {"octal_zeroes", "seed: 00\n", "a.yaml:1:7", {"octal", "write 0 without"}},
    {"octal_double", "optimizer: {lr: 01}\n", "a.yaml:1:17", {"octal"}},
    {"octal_yaml12", "seed: 0o17\n", "a.yaml:1:7", {"not decimal"}},
    {"hex", "seed: 0x10\n", "a.yaml:1:7", {"not decimal"}},
    {"separators", "seed: 1_000\n", "a.yaml:1:7", {"separators"}},
    {"comma", "optimizer: {lr: \n  1,5}\n", "a.yaml:2:5", {"unknown key"}},
    {"text_for_number", "train: {steps: many}\n", "a.yaml:1:16", {"'many'", "whole number"}},
    {"quoted_number", "train: {steps: '5'}\n", "a.yaml:1:16", {"quoted", "remove the quotes"}},
    {"fraction", "train: {steps: 2.5}\n", "a.yaml:1:16", {"not a whole number"}},
    {"suffix_on_plain", "train: {steps: 1k}\n", "a.yaml:1:16", {"plain"}},
    {"bad_suffix", "train: {sequence_length: 4m}\n", "a.yaml:1:26", {"suffix 'm'", "4k"}},
    {"not_whole_suffix", "train: {sequence_length: 1.0001k}\n", "a.yaml:1:26", {"whole"}},
    {"negative", "train: {steps: -5}\n", "a.yaml:1:16", {"out of range", "between 1 and"}},
    {"zero", "model: {hidden_size: 0}\n", "a.yaml:1:22", {"out of range"}},
    {"huge", "train: {steps: 99999999999999999999999999}\n", "a.yaml:1:16", {"too large"}},
    {"huge_exponent", "train: {steps: 1e999999999}\n", "a.yaml:1:16", {"too large"}},
    {"overflow", "device_memory: 99999999999GB\n", "a.yaml:1:16", {"out of range"}},
    {"negative_seed", "seed: -1\n", "a.yaml:1:7", {"out of range"}},
    {"nan", "optimizer: {lr: nan}\n", "a.yaml:1:17", {"not a number"}},
    {"yaml_nan", "optimizer: {lr: .nan}\n", "a.yaml:1:17", {"not a number"}},
    {"inf", "optimizer: {lr: .inf}\n", "a.yaml:1:17", {"not a number"}},
    {"double_overflow", "optimizer: {lr: 1e999}\n", "a.yaml:1:17", {"too large"}},
    {"double_range", "optimizer: {betas: [0.9, 1.0]}\n", "a.yaml:1:26", {"betas[1]", "below 1"}},
    {"double_text", "optimizer: {lr: fast}\n", "a.yaml:1:17", {"'fast' is not a number"}},
    {"share_100", "schedule: {warmup: 100%}\n", "a.yaml:1:20", {"not below 100%"}},
    {"share_negative", "schedule: {warmup: -2%}\n", "a.yaml:1:20", {"negative"}},
    {"share_fraction", "schedule: {warmup: 2.5}\n", "a.yaml:1:20", {"whole number of steps"}},
    {"auto_where_not", "train: {steps: auto}\n", "a.yaml:1:16", {"'auto' is not possible"}},
    {"bool_yes", "logging: {tensorboard: yes}\n", "a.yaml:1:24", {"true or false"}},
    {"bool_quoted", "logging: {tensorboard: 'true'}\n", "a.yaml:1:24", {"without quotes"}},
    {"bool_number", "logging: {tensorboard: 1}\n", "a.yaml:1:24", {"true or false"}},
    {"one_of", "schedule: {type: cosin}\n", "a.yaml:1:18", {"did you mean cosine?", "wsd"}},
    {"one_of_far", "schedule: {type: qqqqqqq}\n", "a.yaml:1:18", {"one of: cosine, wsd"}},
    {"list_for_scalar", "train: {steps: [1]}\n", "a.yaml:1:16", {"expects a number", "a list"}},
    {"map_for_scalar", "name: {a: 1}\n", "a.yaml:1:7", {"expects text", "a mapping"}},
    {"scalar_for_list", "optimizer: {betas: 0.9}\n", "a.yaml:1:20", {"expects a list"}},
    {"scalar_for_section", "train: 5\n", "a.yaml:1:8", {"expects a mapping", "keys here"}},
    {"list_for_section", "train: [a]\n", "a.yaml:1:8", {"expects a mapping", "a list"}},
    {"null_in_list", "optimizer: {betas: [0.9, null]}\n", "a.yaml:1:26", {"found nothing"}},
    {"key_is_list", "[a]: 1\n", "a.yaml:1:1", {"a key must be a word"}},
    {"root_list", "- a\n", "a.yaml:1:1", {"expects a mapping", "a list"}},
    {"root_scalar", "just text\n", "a.yaml:1:1", {"expects a mapping"}},
    {"empty", "", "a.yaml:1:1", {"empty"}},
    {"only_comment", "# nothing\n", "a.yaml:1:1", {"empty"}},
    {"tab", "train:\n\tsteps: 1\n", "a.yaml:2:1", {"tab", "spaces"}},
    {"syntax", "train: [1, 2\nname: b\n", "a.yaml:2:5", {"not valid YAML"}},
    {"indentation", "name: a\n seed: 2\n", "a.yaml:2:6", {"not valid YAML"}},
    {"open_quote", "seed: 1\nname: \"abc\nx: 3\n", "a.yaml:2:7", {"never closed"}},
    {"two_documents", "seed: 1\n---\nseed: 2\n", "a.yaml:3:1", {"second document"}},
    {"tag", "seed: !!python/object 1\n", "a.yaml:1:7", {"tag"}},
    {"unknown_anchor", "name: *gone\n", "a.yaml:1:7", {"anchor"}},
    {"merge_scalar", "train: {<<: 5}\n", "a.yaml:1:13", {"expects a mapping to merge"}},
    {"control", std::string("name: a\x04\nseed: x\n"), "a.yaml:1:8", {"0x04", "control"}},
    {"nul", std::string("name: a\0b\n", 10), "a.yaml:1:8", {"0x00"}},
    {"latin1", "name: caf\xe9\n", "a.yaml:1:10", {"not UTF-8"}},
    {"utf16", std::string("\xff\xfen\0a\0", 6), "a.yaml:1:1", {"not UTF-8"}},
};

class BadInput : public testing::TestWithParam<BadCase> {};

TEST_P(BadInput, OneIssueWithPositionAndWords) {
  const BadCase& c = GetParam();
  const std::vector<Issue> issues = issues_of(c.yaml);
  ASSERT_EQ(issues.size(), 1u) << all_text(issues);
  EXPECT_EQ(issues[0].where, c.where) << all_text(issues);
  for (const char* word : c.words)
    EXPECT_NE(to_text(issues[0]).find(word), std::string::npos)
        << word << " in " << all_text(issues);
  EXPECT_THROW(parse(c.yaml), ConfigError);
}

INSTANTIATE_TEST_SUITE_P(Table, BadInput, testing::ValuesIn(kBadCases),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Load, ReportsEveryIssueAtOnce) {
  const auto issues = issues_of(
      "nmae: x\nseed: 010\nmodel: {hidden_size: big, rope: {thta: 1}}\ntrain: {steps: [1]}\n",
      {"optimizer.lr=fast", "bogus"});
  ASSERT_EQ(issues.size(), 7u) << all_text(issues);
  try {
    parse("nmae: x\nseed: 010\n");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("2 problems"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("a.yaml:2:7: seed"), std::string::npos);
  }
}

TEST(Load, ReadsQuantities) {
  const RunConfig c = parse(R"(
train: {sequence_length: 4k, batch_tokens: 1M, tokens: 2.5B, micro_batch: auto}
evaluation: {tokens: 1.5k}
device_memory: 141GB
schedule: {warmup: 2%, decay: 30}
optimizer: {lr: 1e-3, grad_clip: 1, betas: [.9, 0.95]}
seed: 18446744073709551615
)")
                          .config;
  EXPECT_EQ(c.train().sequence_length(), 4096);
  EXPECT_EQ(c.train().batch_tokens(), 1 << 20);
  EXPECT_EQ(c.train().tokens(), 2'500'000'000);
  EXPECT_EQ(c.train().micro_batch(), 0);
  EXPECT_EQ(c.evaluation().tokens(), 1536);
  EXPECT_EQ(c.device_memory(), 141'000'000'000);
  EXPECT_DOUBLE_EQ(c.schedule().warmup(), 0.02);
  EXPECT_EQ(c.schedule().decay(), 30);
  EXPECT_EQ(c.optimizer().lr(), 1e-3);
  EXPECT_EQ(c.optimizer().betas(0), 0.9);
  EXPECT_EQ(c.seed(), 18446744073709551615u);
  EXPECT_EQ(parse("device_memory: 80 GiB\n").config.device_memory(), std::int64_t{80} << 30);
  EXPECT_EQ(parse("train: {steps: 1e3}\n").config.train().steps(), 1000);
  EXPECT_DOUBLE_EQ(parse("schedule: {warmup: 0.05}\n").config.schedule().warmup(), 0.05);
}

TEST(Load, NullAnchorsAndShorthand) {
  const RunConfig c = parse(R"(
train: &t {steps: 5, sequence_length: 1k}
model: {layer_types: null, vocab_size: ~, hidden_size:}
data: {train: [a.h5, {path: b.h5, weight: 2}], validation: "c d.h5"}
name: null
)")
                          .config;
  EXPECT_FALSE(c.has_name());
  EXPECT_FALSE(c.model().has_vocab_size());
  ASSERT_EQ(c.data().train_size(), 2);
  EXPECT_EQ(c.data().train(0).path(), "a.h5");
  EXPECT_EQ(c.data().train(1).weight(), 2);
  EXPECT_EQ(c.data().validation(), "c d.h5");
  EXPECT_EQ(parse("data: {train: a.h5}\n").config.data().train(0).path(), "a.h5");

  const RunConfig merged =
      parse("checkpoint: &c {every: 5}\nlogging: {<<: *c, tensorboard: false}\n").config;
  EXPECT_EQ(merged.logging().every(), 5);
  const RunConfig own_wins =
      parse("checkpoint: &c {every: 5}\nlogging: {every: 2, <<: *c}\n").config;
  EXPECT_EQ(own_wins.logging().every(), 2);
}

TEST(Load, Origins) {
  const LoadedConfig c = parse("name: a\ntrain:\n  steps: 5\n", {"seed=4"});
  EXPECT_EQ(c.origins.at("train.steps"), "a.yaml:3:10");
  EXPECT_EQ(c.origins.at("seed"), "command line");
  EXPECT_EQ(c.origins.at("optimizer.lr"), "default");
}

TEST(Load, MissingFileIsAUsageError) {
  try {
    load_config("/nonexistent/x.yaml", {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_EQ(error.text().where, "/nonexistent/x.yaml");
  }
  EXPECT_THROW(load_config("/tmp", {}), Error);
}

TEST(Overrides, ApplyInOrderOverTheFile) {
  const RunConfig c =
      parse("train: {steps: 100, tokens: null}\ndata: {train: [a.h5]}\n",
            {"train.steps=5", "train.steps=7", "name=x: y # z", "output_dir=runs/a b",
             "data.train[0].weight=3", "optimizer={lr: 2, eps: 1}", "optimizer.betas=[0.5, 0.6]",
             "schedule.warmup=2%", "seed=1e3"})
          .config;
  EXPECT_EQ(c.train().steps(), 7);
  EXPECT_EQ(c.name(), "x: y # z");
  EXPECT_EQ(c.output_dir(), "runs/a b");
  EXPECT_EQ(c.data().train(0).path(), "a.h5");
  EXPECT_EQ(c.data().train(0).weight(), 3);
  EXPECT_EQ(c.optimizer().lr(), 2);
  EXPECT_EQ(c.optimizer().betas(1), 0.6);
  EXPECT_DOUBLE_EQ(c.schedule().warmup(), 0.02);

  EXPECT_FALSE(parse("train: {steps: 5}\n", {"train.steps=null"}).config.train().has_steps());
  EXPECT_EQ(parse("seed: 1\n", {"data.train=[{path: x}, y]"}).config.data().train(1).path(), "y");
  EXPECT_EQ(parse("seed: 1\n", {"data.train=x"}).config.data().train(0).path(), "x");
  EXPECT_EQ(parse("data: {train: [a, b]}\n", {"data.train=x"}).config.data().train_size(), 1);
}

TEST(Overrides, BadOnes) {
  struct Case {
    const char* override_text;
    const char* words;
  };
  for (const Case& c :
       {Case{"train.stepz=5", "did you mean train.steps?"},
        Case{"lr=5", "did you mean optimizer.lr?"},
        Case{"optimiser.lr=5", "did you mean optimizer.lr?"},
        Case{"train.steps", "section.key=value"}, Case{"=5", "section.key=value"},
        Case{"train.steps=", "no value"}, Case{"train.steps=[", "not YAML"},
        Case{"train.steps.more=1", "holds a value"}, Case{"train=5", "expects a mapping"},
        Case{"data.train[3].path=x", "no"}, Case{"data.train[x].path=x", "section.key=value"},
        Case{"optimizer.betas[0]=1", "whole list"}, Case{"data.train.path=x", "holds a value"},
        Case{"name=\x01", "control character"}, Case{"train..steps=1", "unknown key"},
        Case{"schedule.type=linaer", "did you mean linear?"}}) {
    const auto issues = issues_of("seed: 1\n", {c.override_text});
    ASSERT_EQ(issues.size(), 1u) << c.override_text << "\n" << all_text(issues);
    EXPECT_NE(to_text(issues[0]).find(c.words), std::string::npos) << to_text(issues[0]);
    EXPECT_NE(issues[0].where.find("command line"), std::string::npos) << to_text(issues[0]);
  }
}

// Nothing a file holds may crash or hang the loader.
TEST(Load, SurvivesHostileText) {
  std::vector<std::string> texts = {std::string(100'000, '['),
                                    std::string(100'000, '{'),
                                    "a: &a [*a, *a]\n",
                                    "train: &t {<<: *t}\n",
                                    "train: &t {<<: [*t, *t]}\nmodel: {<<: [*t, *t]}\n",
                                    "data: &d {train: [*d]}\n",
                                    "? ? ? ?\n",
                                    "&a &b c\n",
                                    "*\n",
                                    "%\n",
                                    "--- --- ---\n",
                                    "\"",
                                    "'",
                                    "|",
                                    ">",
                                    "@",
                                    "`",
                                    "- - - -",
                                    ": :"};
  std::string nested, list = "optimizer: {betas: [", bomb = "x0: &x0 [a]\n";
  for (int i = 0; i < 5000; ++i)
    nested += std::string(static_cast<std::size_t>(i % 400), ' ') + "a:\n";
  for (int i = 0; i < 50'000; ++i) list += "x, ";
  for (int i = 1; i < 40; ++i) bomb += fmt::format("x{0}: &x{0} [*x{1}, *x{1}]\n", i, i - 1);
  bomb += "data: {train: *x39}\noptimizer: {betas: *x39}\nmodel: {<<: *x39}\n";
  texts.insert(texts.end(), {nested, list + "0]}", bomb});
  for (const std::string& text : texts) EXPECT_FALSE(issues_of(text).empty()) << text.substr(0, 60);
}

TEST(Load, SurvivesRandomEdits) {
  const std::string good = to_yaml(parse("name: a\ndata: {train: [a.h5]}\n").config);
  std::mt19937 random(7);
  const std::string alphabet = "[]{}:,-?*&!|>'\"%@`#\n\t  \\0123abc<\x04\xff";
  for (int round = 0; round < 1500; ++round) {
    std::string text = good;
    for (int edits = 1 + static_cast<int>(random() % 6); edits > 0; --edits) {
      const std::size_t at = random() % text.size();
      if (random() % 3 == 0)
        text.erase(at, random() % 20);
      else
        text.insert(at, 1, alphabet[random() % alphabet.size()]);
      if (text.empty()) text = "a";
    }
    const LoadResult result = read_config(text, "a.yaml", {});
    for (const Issue& issue : result.issues) ASSERT_FALSE(issue.what.empty());
  }
}

// Each one-letter typo of every key is answered with that key among three.
TEST(Suggest, EveryOneLetterTypoOfEveryKey) {
  int checked = 0;
  for (const Key& key : all_keys()) {
    const auto& level = *key.field->containing_type();
    const std::string& name = key.field->name();
    const std::string prefix =
        key.path.size() > name.size() ? key.path.substr(0, key.path.size() - name.size() - 1) : "";
    std::vector<std::string> typos;
    for (std::size_t i = 0; i <= name.size(); ++i) {
      for (char c : std::string("aeqx_0")) {
        typos.push_back(name.substr(0, i) + c + name.substr(i));
        if (i < name.size()) typos.push_back(name.substr(0, i) + c + name.substr(i + 1));
      }
      if (i < name.size() && name.size() > 1)
        typos.push_back(name.substr(0, i) + name.substr(i + 1));
      if (i + 1 < name.size()) {
        typos.push_back(name);
        std::swap(typos.back()[i], typos.back()[i + 1]);
      }
    }
    for (const std::string& typo : typos) {
      if (level.FindFieldByName(typo) != nullptr) continue;
      const auto meant = suggest_keys(level, prefix, typo);
      ASSERT_LE(meant.size(), 3u);
      EXPECT_NE(std::find(meant.begin(), meant.end(), key.path), meant.end())
          << typo << " for " << key.path << ": " << did_you_mean(meant);
      ++checked;
    }
  }
  EXPECT_GT(checked, 5000);
}

TEST(Suggest, Distance) {
  EXPECT_EQ(edit_distance("steps", "setps"), 1);  // a swap is one mistake
  EXPECT_EQ(edit_distance("Batch-Tokens", "batch_tokens"), 0);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
}

}  // namespace
}  // namespace farspan
