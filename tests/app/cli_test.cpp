// The program as a user meets it: exit codes, standard output and standard error of
// build/<preset>/farspan.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

namespace {

namespace fs = std::filesystem;

struct Outcome {
  int code = -1;
  std::string out, err;
};

class Cli : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::path(testing::TempDir()) / "farspan_cli_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Runs in the repository's root; `environment` goes before the program.
  Outcome run(const std::string& arguments, const std::string& environment = "") const {
    const std::string out = folder_ / "out", err = folder_ / "err";
    const std::string command = "cd '" FARSPAN_SOURCE_DIR "' && " + environment +
                                " '" FARSPAN_PROGRAM "' " + arguments + " >" + out + " 2>" + err +
                                " </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text_of(out), text_of(err)};
  }

  static std::string text_of(const fs::path& path) {
    std::ostringstream out;
    out << std::ifstream(path).rdbuf();
    return out.str();
  }

  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return (folder_ / name).string();
  }

  fs::path folder_;
};

bool has(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

TEST_F(Cli, HelpAndVersion) {
  const Outcome help = run("--help");
  EXPECT_EQ(help.code, 0);
  EXPECT_TRUE(has(help.out, "config")) << help.out;
  EXPECT_TRUE(has(help.out, "Exit codes")) << help.out;
  const Outcome version = run("--version");
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out.rfind("farspan 0.", 0), 0u) << version.out;
  const Outcome inner = run("config --help");
  EXPECT_EQ(inner.code, 0);
  EXPECT_TRUE(has(inner.out, "--show-origin")) << inner.out;
}

TEST_F(Cli, UsageErrorsGiveTwoAndWhatToDo) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "subcommand is required"},
      {"conifg", "did you mean config?"},
      {"config configs/tiny.yaml --resolvd", "did you mean --resolved?"},
      {"config", "no configuration was named"},
      {"config /nonexistent.yaml", "does not exist"},
      {"config configs", "is a folder"},
      {"config configs/tiny.yaml --ranks 0", "--ranks"},
      {"config configs/tiny.yaml train.stepz=3", "did you mean train.steps?"},
      {"trian configs/tiny.yaml", "did you mean train?"},
      {"extend find", "unknown command 'extend find'"},
      {"extend find --model x", "commands: extend search"},
      {"eval perplexty", "did you mean perplexity?"},
      {"extend", "subcommand is required"},
      {"train", "config is required"},
      {"train configs/tiny.yaml --local-ranks 0", "'0' is not a whole number of at least 1"},
      {"train configs/tiny.yaml --local-ranks two", "'two' is not a whole number"},
      {"generate --seed -1", "'-1' is not a whole number of at least 0"},
      {"eval passkey --seed -1", "'-1' is not a whole number of at least 0"},
      {"data synth --seed 1.5", "'1.5' is not a whole number of at least 0"},
      {"train configs/tiny.yaml --local-rank 2", "did you mean --local-ranks?"},
      {"config configs/quickstart.yaml --ranks 3", "3 ranks do not fit"},
  };
  for (const auto& [arguments, words] : cases) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.err;
    EXPECT_TRUE(has(outcome.err, words)) << arguments << "\n" << outcome.err;
    EXPECT_TRUE(has(outcome.err, "farspan: error: ")) << outcome.err;
    EXPECT_TRUE(has(outcome.err, "fix:")) << outcome.err;
    EXPECT_EQ(outcome.out, "") << arguments;
  }
}

TEST_F(Cli, OnlyTheFirstMpiProcessReportsAWrongCommandLine) {
  EXPECT_TRUE(has(run("conifg", "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0").err, "conifg"));
  const Outcome second = run("conifg", "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1");
  EXPECT_EQ(second.err, "");
  EXPECT_EQ(second.code, 2);
}

TEST_F(Cli, EveryShippedConfigurationIsValid) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(FARSPAN_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    const Outcome outcome = run("config '" + entry.path().string() + "' --resolved");
    EXPECT_EQ(outcome.code, 0) << entry.path() << "\n" << outcome.err;
    ++count;
  }
  EXPECT_GE(count, 2);
}

TEST_F(Cli, ConfigResolvedWithOrigins) {
  const Outcome outcome =
      run("config configs/quickstart.yaml --resolved --show-origin train.steps=20");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(has(outcome.out, "  sequence_length: 2048")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, "# configs/quickstart.yaml:")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, "# command line")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, "# implied: 2 ranks / parallel.context")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, "# default")) << outcome.out;
  // What it prints is a configuration that resolves to itself.
  const Outcome again = run("config --resolved --ranks 2 " + write("resolved.yaml", outcome.out));
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(again.out, run("config configs/quickstart.yaml --resolved train.steps=20").out);
}

TEST_F(Cli, ConfigUnresolvedKeepsAuto) {
  const Outcome outcome = run("config configs/quickstart.yaml");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(has(outcome.out, "  micro_batch: auto")) << outcome.out;
  EXPECT_FALSE(has(run("config configs/quickstart.yaml --resolved").out, "micro_batch: auto"));
}

TEST_F(Cli, ConfigJson) {
  const Outcome good =
      run("config configs/quickstart.yaml --resolved --json --ranks 4 --show-origin");
  ASSERT_EQ(good.code, 0) << good.err;
  const auto json = nlohmann::json::parse(good.out);
  EXPECT_EQ(json["ok"], true);
  EXPECT_EQ(json["config"]["parallel"]["data"], 2);
  EXPECT_EQ(json["origins"]["seed"].get<std::string>().rfind("configs/quickstart.yaml:", 0), 0u);
  const Outcome bad = run("config configs/quickstart.yaml --json seed=x model.head_dim=31");
  EXPECT_EQ(bad.code, 2);
  const auto issues = nlohmann::json::parse(bad.out);
  EXPECT_EQ(issues["ok"], false);
  int errors = 0;
  for (const auto& issue : issues["issues"]) errors += issue["note"].get<bool>() ? 0 : 1;
  EXPECT_EQ(errors, 2) << bad.out;
}

TEST_F(Cli, ConfigReportsEveryProblemOnce) {
  const std::string path = write("bad.yaml", "nmae: x\nseed: 010\ntrain: {steps: [1]}\n");
  const Outcome outcome = run("config " + path);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_TRUE(has(outcome.err, path + ":1:1: nmae: unknown key")) << outcome.err;
  EXPECT_TRUE(has(outcome.err, path + ":2:7: seed: '010' looks octal")) << outcome.err;
  EXPECT_TRUE(has(outcome.err, path + ":3:16: train.steps")) << outcome.err;
  EXPECT_EQ(outcome.err.find("farspan: error:"), outcome.err.rfind("farspan: error:"));
}

TEST_F(Cli, Doctor) {
  const Outcome text = run("doctor");
  EXPECT_EQ(text.code, 0) << text.out << text.err;
  for (const char* words :
       {"HDF5", "cores", "attention", "oneDNN", "self-check        passed", "mpirun"})
    EXPECT_TRUE(has(text.out, words)) << words << "\n" << text.out;
  const Outcome bare = run("doctor --json", "PATH=/nonexistent OMP_NUM_THREADS=1000");
  EXPECT_EQ(bare.code, 0) << bare.err;
  const auto json = nlohmann::json::parse(bare.out);
  EXPECT_EQ(json["ok"], true);
  EXPECT_EQ(json["mpi"]["mpirun"], "not found");
  std::string findings = json["findings"].dump();
  for (const char* words : {"mpirun is not on the PATH", "gnuplot", "OMP_NUM_THREADS is 1000"})
    EXPECT_TRUE(has(findings, words)) << words << "\n" << findings;
}

// Without CUDA in the build, and without a GPU.
TEST_F(Cli, CudaIsRefusedWhereItCannotTrain) {
  const std::string store = folder_ / "synth.h5";
  ASSERT_EQ(run("data synth --kind documents --tokens 20k --quiet --out " + store).code, 0);
  const std::string common = " configs/tiny.yaml device=cuda data.train=" + store +
                             " data.validation=" + store +
                             " output_dir=" + (folder_ / "run").string();
  const bool built = has(run("doctor").out, "cpu, cuda");
  for (const char* ranks : {"", " --local-ranks 2"}) {
    const Outcome outcome = run("train" + common + ranks);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_TRUE(has(outcome.err, built ? "no GPU can be used here" : "no cuda backend"))
        << outcome.err;
    EXPECT_TRUE(has(outcome.err, "device: cpu")) << outcome.err;
    EXPECT_EQ(outcome.err.find("farspan: error:"), outcome.err.rfind("farspan: error:"))
        << outcome.err;
  }
  // A configuration for a GPU can be looked at anywhere.
  EXPECT_EQ(run("config" + common).code, 0);
}

TEST_F(Cli, DoctorTellsOfCuda) {
  const auto json = nlohmann::json::parse(run("doctor --json").out);
  const bool built = has(json["build"]["backends"].get<std::string>(), "cuda");
  EXPECT_EQ(built, json["kernels"].contains("cuda driver"));
  if (!built) {
    EXPECT_TRUE(has(json["kernels"]["cuda"].get<std::string>(), "cmake --preset cuda"));
    return;
  }
  EXPECT_TRUE(has(json["kernels"]["cuda build"].get<std::string>(), "cuBLASLt"));
  EXPECT_NE(json["kernels"]["cuda devices"].get<std::string>(), "");
  EXPECT_TRUE(has(json["findings"].dump(), "device: cpu"));
}

TEST_F(Cli, ConfigKeys) {
  const Outcome outcome = run("config --keys");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_TRUE(has(outcome.out, "\ntrain.sequence_length ")) << outcome.out;
}

// Stages have samplers of their own: one is shown when it is asked for, else all are named.
TEST_F(Cli, InspectPositionsOfAStage) {
  const std::string command = "inspect positions configs/pose_small.yaml --samples 50 --json ";
  const Outcome base = run(command);
  EXPECT_EQ(base.code, 0) << base.err;
  EXPECT_EQ(nlohmann::json::parse(base.out)["sampler"], "pose");
  EXPECT_TRUE(has(base.err, "--stage N")) << base.err;
  EXPECT_TRUE(has(base.err, "stage 0: sequential, sequences of 256 tokens\n")) << base.err;
  EXPECT_TRUE(has(base.err, "stage 1: pose, sequences of 256 tokens, target 2048")) << base.err;
  const Outcome first = run(command + "--stage 0");
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(first.err, "");
  EXPECT_EQ(nlohmann::json::parse(first.out)["sampler"], "sequential");
  EXPECT_EQ(nlohmann::json::parse(first.out)["stage"], 0);
  const Outcome second = run("inspect positions configs/pose_small.yaml --samples 50 --stage 1");
  EXPECT_TRUE(has(second.out, "stage 1: pose")) << second.out;
  const Outcome none = run(command + "--stage 2");
  EXPECT_EQ(none.code, 2);
  EXPECT_TRUE(has(none.err, "stages 0 to 1")) << none.err;
  const Outcome fixed = run("inspect positions configs/quickstart.yaml --samples 5");
  EXPECT_EQ(fixed.code, 0) << fixed.err;
  EXPECT_EQ(fixed.err, "");
}

// What cannot be written is refused before the samples are drawn.
TEST_F(Cli, InspectPositionsChecksThePlotFirst) {
  const std::string command =
      "inspect positions configs/pose_small.yaml --samples 100000000 --stage 0 --plot ";
  const std::string folder = (folder_ / "none").string();
  const Outcome missing = run(command + folder + "/c.svg");
  EXPECT_EQ(missing.code, 2);
  EXPECT_EQ(missing.out, "");
  EXPECT_TRUE(has(missing.err, "there is no folder " + folder)) << missing.err;
  const Outcome kind = run(command + (folder_ / "c.pdf").string());
  EXPECT_EQ(kind.code, 2);
  EXPECT_TRUE(has(kind.err, ".svg, .png")) << kind.err;
  fs::create_directory(folder_ / "d.svg");
  EXPECT_TRUE(has(run(command + (folder_ / "d.svg").string()).err, "is a folder"));
}

}  // namespace
