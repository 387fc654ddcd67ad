// farspan generate as a user meets it, with a model of random weights.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "support/saved_run.h"
#include "train/inference_config.h"
#include "train/temporary_folder.h"

namespace farspan {
namespace {

using testing::read_all;

struct Outcome {
  int code = -1;
  std::string out, err;
};

class GenerateCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    config::RunConfig config = testing::saved_config();
    config.mutable_model()->set_vocab_size(260);
    testing::save_run(folder_.path(), config);
  }

  // `model`: of this run where it is empty.
  Outcome run(const std::string& arguments, const std::string& model = "") const {
    const std::string out = folder_ / "out", err = folder_ / "err";
    const std::string command = fmt::format(
        "OMP_NUM_THREADS=1 '{}' generate --model '{}' {} >{} 2>{} </dev/null", FARSPAN_PROGRAM,
        model.empty() ? folder_.path().string() : model, arguments, out, err);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_all(out), read_all(err)};
  }
  nlohmann::json json(const std::string& arguments) const {
    const Outcome outcome = run(arguments + " --json --quiet");
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    return nlohmann::json::parse(outcome.out, nullptr, false);
  }

  testing::TemporaryFolder folder_;
};

TEST_F(GenerateCommand, WritesTheSameOnAnyNumberOfRanks) {
  const std::string arguments = "--prompt 'In the beginning' --max-new-tokens 40 --seed 5";
  const nlohmann::json one = json(arguments);
  EXPECT_EQ(one["prompt"], "In the beginning");
  EXPECT_EQ(one["prompt_tokens"], 16);
  EXPECT_EQ(one["seed"], 5);
  EXPECT_TRUE(one["ended"] == "length" ? one["tokens"].size() == 40 : one["ended"] == "eos");
  EXPECT_EQ(json(arguments)["tokens"], one["tokens"]);
  EXPECT_EQ(json(arguments + " --local-ranks 3")["tokens"], one["tokens"]);
  EXPECT_NE(json("--prompt 'In the beginning' --max-new-tokens 40 --seed 6")["tokens"],
            one["tokens"]);
  const Outcome text = run(arguments);
  EXPECT_EQ(text.out, one["text"].get<std::string>() + "\n");
  EXPECT_NE(text.err.find("step 1"), std::string::npos) << text.err;
}

TEST_F(GenerateCommand, EndsAtAText) {
  const nlohmann::json all = json("--prompt x --max-new-tokens 60 --temperature 1");
  const auto text = all["text"].get<std::string>();
  std::size_t at = 0;  // some printable character after the first
  for (std::size_t i = 1; i < text.size() && at == 0; ++i)
    if (std::isalnum(static_cast<unsigned char>(text[i])) != 0 && text.find(text[i]) == i) at = i;
  ASSERT_GT(at, 0u) << text;
  const nlohmann::json cut = json(
      fmt::format("--prompt x --max-new-tokens 60 --temperature 1 --stop {}", text.substr(at, 1)));
  EXPECT_EQ(cut["text"], text.substr(0, at));
  EXPECT_EQ(cut["ended"], "stop");
}

TEST_F(GenerateCommand, SaysWhenATextIsLongerThanTheTraining) {
  const std::string arguments = "--prompt x --max-new-tokens 60 ";
  EXPECT_NE(run(arguments).err.find("trained for 48"), std::string::npos);
  EXPECT_EQ(run("--prompt x --max-new-tokens 40").err.find("trained for"), std::string::npos);
  for (const char* longer : {"--attention lm_infinite", "--attention dca",
                             "model.rope.scaling='{type: ntk, original_context: 48, factor: 4}'"}) {
    const Outcome outcome = run(arguments + longer);
    EXPECT_EQ(outcome.code, 0) << longer << outcome.err;
    EXPECT_EQ(outcome.err.find("trained for"), std::string::npos) << longer << outcome.err;
  }
}

// Only what the model takes is advised.
TEST_F(GenerateCommand, AdviceBeyondTheTrainingGoesWithTheModel) {
  const std::string arguments = "--prompt x --max-new-tokens 60 ";
  EXPECT_NE(run(arguments).err.find("lm_infinite or dca, or model.rope.scaling"),
            std::string::npos);
  const auto other = [&](const auto& change) {
    config::RunConfig config = testing::saved_config();
    config.mutable_model()->set_vocab_size(260);
    change(*config.mutable_model());
    const testing::TemporaryFolder folder;
    testing::save_run(folder.path(), config);
    const Outcome outcome = run(arguments, folder.path().string());
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("trained for 48"), std::string::npos) << outcome.err;
    return outcome.err;
  };
  for (const char* position : {"none", "sinusoidal"}) {
    const std::string notes = other([&](config::Model& m) { m.set_position(position); });
    EXPECT_EQ(notes.find("--attention"), std::string::npos) << notes;
    EXPECT_EQ(notes.find("scaling"), std::string::npos) << notes;
    EXPECT_NE(notes.find("only training goes further"), std::string::npos) << notes;
  }
  const std::string slides = other([](config::Model& m) { m.set_sliding_window(16); });
  EXPECT_EQ(slides.find("--attention"), std::string::npos) << slides;
  EXPECT_NE(slides.find("model.rope.scaling"), std::string::npos) << slides;
}

TEST_F(GenerateCommand, NotesAnAttentionContextBeyondTheTraining) {
  for (const char* attention : {"dca", "lm_infinite"}) {
    const std::string arguments =
        fmt::format("--prompt x --max-new-tokens 5 --attention {} --attention-context ", attention);
    const Outcome far = run(arguments + "64");
    EXPECT_EQ(far.code, 0) << far.err;
    EXPECT_NE(far.err.find("--attention-context 64 is more than the 48"), std::string::npos)
        << far.err;
    EXPECT_EQ(run(arguments + "64 --quiet").err, "");
    for (const char* known :
         {"48", "64 model.rope.scaling='{type: ntk, original_context: 48, factor: 2}'"})
      EXPECT_EQ(run(arguments + known).err.find("--attention-context"), std::string::npos) << known;
  }
}

TEST_F(GenerateCommand, WhatDoesNotFitNamesWhatCanChange) {
  const std::string much = "--prompt x --max-new-tokens 64k device_memory=4MB --quiet ";
  const Outcome one = run(much), two = run(much + "--local-ranks 2"),
                far = run(much + "--attention dca");
  const Outcome load = run("--prompt x device_memory=10kB");
  for (const Outcome* outcome : {&one, &two, &far, &load})
    EXPECT_EQ(outcome->code, 7) << outcome->err;
  EXPECT_NE(one.err.find("MiB on a rank, and device_memory is 3.815 MiB"), std::string::npos)
      << one.err;
  EXPECT_NE(one.err.find("use a shorter prompt, a lower --max-new-tokens, a lower --chunk, more "
                         "ranks, train.precision=bf16 or a higher device_memory"),
            std::string::npos)
      << one.err;
  EXPECT_EQ(two.err.find("--chunk"), std::string::npos) << two.err;
  EXPECT_NE(far.err.find("--attention lm_infinite"), std::string::npos) << far.err;
  EXPECT_EQ(far.err.find("more ranks"), std::string::npos) << far.err;
  EXPECT_NE(load.err.find("the weights need"), std::string::npos) << load.err;
  EXPECT_NE(load.err.find("use train.precision=bf16 or a higher device_memory"), std::string::npos)
      << load.err;
}

TEST_F(GenerateCommand, HelpNamesEveryKeyThatMayChange) {
  EXPECT_NE(run("--help").out.find(inference_keys()), std::string::npos);
  std::ifstream guide(FARSPAN_SOURCE_DIR "/docs/generation.md");
  const std::string text((std::istreambuf_iterator<char>(guide)), std::istreambuf_iterator<char>());
  std::istringstream keys(inference_keys());
  for (std::string key; std::getline(keys >> std::ws, key, ',');)
    EXPECT_NE(text.find("`" + key + "`"), std::string::npos) << key << " in docs/generation.md";
}

TEST_F(GenerateCommand, SaysWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "no text to go on from"},
      {"--prompt ''", "no text to go on from"},
      {"--prompt x --prompt-file y", "give one of the two"},
      {"--prompt x --max-new-tokens 0", "--max-new-tokens"},
      {"--prompt x --max-new-tokens -3", "--max-new-tokens"},
      {"--prompt x --temperature -1", "-1 is not a temperature"},
      {"--prompt x --temperature nan", "nan is not a temperature"},
      {"--prompt x --top-p 0", "--top-p"},
      {"--prompt x --top-p 1.5", "--top-p"},
      {"--prompt x --stop ''", "--stop"},
      {"--prompt x --chunk 0", "--chunk"},
      {"--prompt x --chunk 5 --local-ranks 2", "--chunk"},
      {"--prompt x --attention-context 5", "--attention-context"},
      {"--prompt x --attention dca --local-ranks 2", "one rank"},
      {"--prompt x model.hidden_size=64", "model.hidden_size"},
      {"--prompt x schedule.warmup=3", "training only"}};
  for (const auto& [arguments, words] : cases) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.err;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << arguments << "\n" << outcome.err;
    EXPECT_EQ(outcome.out, "") << arguments;
  }
  EXPECT_EQ(run("--prompt-file absent").code, 3);
  EXPECT_EQ(run("--prompt x", "absent").code, 2);
}

}  // namespace
}  // namespace farspan
