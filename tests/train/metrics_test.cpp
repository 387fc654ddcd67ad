#include "train/metrics.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/temporary_folder.h"

namespace farspan {
namespace {

using testing::count_files;
using testing::read_all;
using testing::TemporaryFolder;
using testing::write_all;

TrainRow row_of_step(std::int64_t step) {
  return {.step = step,
          .tokens = step * 16384,
          .loss = 5.0 / static_cast<double>(step),
          .grad_norm = 0.5,
          .lr = 1e-3,
          .seconds = 0.25,
          .tokens_per_second = 65536,
          .tflops_per_rank = 0.1,
          .mfu = 0.2,
          .sequence_length = 2048,
          .stage = 0,
          .valid_tokens = 16376,
          .skipped = 0};
}

TEST(Metrics, TrainLineHasTheKeysOfTheContractInOrder) {
  TrainRow row = row_of_step(2);
  row.extras = {{"exposed_comm_seconds", 0.125}};
  EXPECT_EQ(to_json_line(row),
            R"({"kind":"train","step":2,"tokens":32768,"loss":2.5,"grad_norm":0.5,"lr":0.001,)"
            R"("seconds":0.25,"tokens_per_second":65536.0,"tflops_per_rank":0.1,"mfu":0.2,)"
            R"("sequence_length":2048,"stage":0,"valid_tokens":16376,"skipped":0,)"
            R"("exposed_comm_seconds":0.125})");
}

TEST(Metrics, EvalLine) {
  EXPECT_EQ(to_json_line(EvalRow{
                .step = 50, .name = "lo\"ss\n", .value = 1.5, .extras = {{"tokens", 65536}}}),
            R"({"kind":"eval","step":50,"name":"lo\"ss\n","value":1.5,"tokens":65536.0})");
}

TEST(Metrics, NumbersThatAreNotFiniteAreNull) {
  TrainRow row = row_of_step(1);
  row.loss = std::nan("");
  row.grad_norm = std::numeric_limits<double>::infinity();
  row.mfu = kUnknown;
  const auto json = nlohmann::json::parse(to_json_line(row));
  EXPECT_TRUE(json.at("loss").is_null());
  EXPECT_TRUE(json.at("grad_norm").is_null());
  EXPECT_TRUE(json.at("mfu").is_null());
  EXPECT_EQ(json.at("lr"), 1e-3);
}

TEST(Metrics, DoublesSurviveTheFileExactly) {
  const TemporaryFolder folder;
  MetricsFile file(folder / "metrics.jsonl");
  TrainRow row = row_of_step(1);
  row.loss = 0.1 + 0.2;
  row.grad_norm = 1e-310;
  row.mfu = kUnknown;
  row.extras = {{"a", 1.0 / 3.0}};
  file.write(row);
  file.write(EvalRow{.step = 1, .name = "loss", .value = std::exp(1.0)});
  const MetricsContent content = read_metrics(file.path());
  ASSERT_EQ(content.train.size(), 1u);
  EXPECT_EQ(content.train[0].loss, 0.1 + 0.2);
  EXPECT_EQ(content.train[0].grad_norm, 1e-310);
  EXPECT_TRUE(std::isnan(content.train[0].mfu));
  EXPECT_EQ(content.train[0].tokens, 16384);
  EXPECT_EQ(content.train[0].valid_tokens, 16376);
  EXPECT_EQ(content.train[0].extras, row.extras);
  ASSERT_EQ(content.eval.size(), 1u);
  EXPECT_EQ(content.eval[0].name, "loss");
  EXPECT_EQ(content.eval[0].value, std::exp(1.0));
}

TEST(Metrics, CutDropsLaterStepsAndGoesOn) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  {
    MetricsFile file(path);
    for (int step = 1; step <= 7; ++step) file.write(row_of_step(step));
    file.write(EvalRow{.step = 5, .name = "loss", .value = 1});
    file.write(EvalRow{.step = 7, .name = "loss", .value = 1});
  }
  MetricsFile file(path);
  const auto cut = file.cut_after(5);
  EXPECT_EQ(cut.kept, 6);
  EXPECT_EQ(cut.dropped, 3);
  EXPECT_EQ(cut.malformed, 0);
  file.write(row_of_step(6));  // must go to the new file, not to the one that was replaced
  const MetricsContent content = read_metrics(path);
  ASSERT_EQ(content.train.size(), 6u);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(content.train[static_cast<std::size_t>(i)].step, i + 1);
  ASSERT_EQ(content.eval.size(), 1u);
  EXPECT_EQ(content.eval[0].step, 5);
  EXPECT_EQ(count_files(folder.path()), 1) << "a temporary file was left behind";
}

TEST(Metrics, CutToleratesATornLastLine) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  const std::string good = to_json_line(row_of_step(1)) + "\n";
  for (const std::string& tail :
       {to_json_line(row_of_step(2)).substr(0, 40), std::string("{"), std::string(3, '\0'),
        to_json_line(row_of_step(2))}) {  // whole, but its newline is missing
    write_all(path, good + tail);
    MetricsFile file(path);
    const auto cut = file.cut_after(10);
    EXPECT_EQ(cut.kept, 1) << tail;
    EXPECT_EQ(cut.malformed, 1) << tail;
    EXPECT_EQ(read_all(path), good) << tail;
  }
}

TEST(Metrics, CutDropsLinesThatAreNotOurs) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  const std::string good = to_json_line(row_of_step(1)) + "\n";
  write_all(path, "hello\n[1]\n{\"step\":\"one\"}\n\n" + good);
  EXPECT_THROW(read_metrics(path), Error);
  MetricsFile file(path);
  EXPECT_EQ(file.cut_after(10).malformed, 4);
  EXPECT_EQ(read_all(path), good);
}

TEST(Metrics, ANewRunCutsEverything) {
  const TemporaryFolder folder;
  MetricsFile file(folder / "metrics.jsonl");
  EXPECT_EQ(file.cut_after(-1).kept, 0) << "an empty file is fine";
  file.write(EvalRow{.step = 0, .name = "loss", .value = 1});
  file.write(row_of_step(1));
  EXPECT_EQ(file.cut_after(-1).dropped, 2);
  EXPECT_EQ(read_all(file.path()), "");
}

TEST(Metrics, ReadNamesTheBadLine) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  write_all(path, to_json_line(row_of_step(1)) + "\n{\"kind\":5,\"step\":1}\n");
  try {
    read_metrics(path);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(e.what()).find("metrics.jsonl, line 2"), std::string::npos) << e.what();
  }
}

// The writer is killed at some moment; every step is then there at most once, in order, and a
// resume from an earlier step leaves each step once.
TEST(Metrics, SigkillLeavesWholeLines) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  std::int64_t resumed = 0;
  for (int round = 0; round < 5; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      MetricsFile file(path);
      file.cut_after(resumed);
      for (std::int64_t step = resumed + 1;; ++step) file.write(row_of_step(step));
    }
    ::usleep(5000 + 3000 * static_cast<useconds_t>(round));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    const auto rows = read_metrics(path).train;
    for (std::size_t i = 0; i < rows.size(); ++i)
      ASSERT_EQ(rows[i].step, static_cast<std::int64_t>(i) + 1) << "round " << round;
    resumed = static_cast<std::int64_t>(rows.size()) * 3 / 4;
  }
  EXPECT_GT(resumed, 0) << "the writer never got going";
}

TEST(Metrics, FullDiskIsExhausted) {
  MetricsFile file("/dev/full");
  try {
    file.write(row_of_step(1));
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kExhausted);
    EXPECT_NE(std::string(e.what()).find("/dev/full"), std::string::npos) << e.what();
  }
}

TEST(Metrics, UnwritableFolderIsUsage) {
  try {
    MetricsFile file("/nonexistent/folder/metrics.jsonl");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
  }
}

// A disk that fills up within a line: what was written of it is taken back. Stands in for it: a
// limit on the file's size, at which write(2) is cut short as well.
TEST(DurableFile, HalfARecordIsTakenBack) {
  const TemporaryFolder folder;
  const auto path = folder / "lines";
  AppendFile file(path);
  file.append(std::string(100, 'a'));
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  auto* const old_handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{150, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  ExitCode code = ExitCode::kOk;
  try {
    file.append(std::string(100, 'b'));
  } catch (const Error& e) {
    code = e.code();
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  ::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(code, ExitCode::kExhausted);
  EXPECT_EQ(read_all(path), std::string(100, 'a'));
  file.append("c");
  EXPECT_EQ(read_all(path), std::string(100, 'a') + "c");
}

TEST(DurableFile, ReplacementAppearsOnCommitOnly) {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  replace_file(path, "old");
  {
    ReplacementFile file(path);
    file.append("new");
    EXPECT_EQ(read_all(path), "old");
  }
  EXPECT_EQ(read_all(path), "old");
  EXPECT_EQ(count_files(folder.path()), 1);
  replace_file(path, "new");
  EXPECT_EQ(read_all(path), "new");
  EXPECT_EQ(count_files(folder.path()), 1);
}

}  // namespace
}  // namespace farspan
