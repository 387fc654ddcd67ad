// Damage of every kind to every file of a checkpoint: always an Error(kBadData) that names a file,
// never a crash, never wrong content.
#include <fstream>
#include <random>

#include "tests/io/checkpoint_fixture.h"

namespace farspan::io_test {
namespace {

const std::vector<TensorSpec> kTensors = model_tensors(3);

std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void spill(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

class Corruption : public ::testing::Test {
 protected:
  void SetUp() override {
    save_steps(2, {.folder = folder_.path()}, {1, 2}, kTensors);
    step_ = folder_.path() / "step_00000002";
    for (const char* name : {"shard_00000.h5", "shard_00001.h5", "manifest.pb"})
      pristine_[name] = slurp(step_ / name);
    ASSERT_TRUE(holds_step(step_, 2, kTensors));
  }

  // `file` now holds `bytes`. Checks every way in, then restores the file.
  void expect_refused(const std::string& file, const std::string& bytes, const std::string& how) {
    if (bytes == pristine_.at(file)) return;
    ++cases_;
    spill(step_ / file, bytes);
    const Error e = error_of([&] { CheckpointReader reader(step_); });
    EXPECT_EQ(e.code(), ExitCode::kBadData) << how;
    EXPECT_THAT(e.text().where, ::testing::HasSubstr(step_.filename().string())) << how;
    Log log = quiet_log();
    EXPECT_EQ(find_latest_checkpoint(folder_.path(), log), folder_.path() / "step_00000001") << how;
    spill(step_ / file, pristine_.at(file));
  }

  TempFolder folder_;
  std::filesystem::path step_;
  std::map<std::string, std::string> pristine_;
  int cases_ = 0;
};

TEST_F(Corruption, FlippedBits) {
  std::mt19937 random(1);
  for (const auto& [file, bytes] : pristine_)
    for (int i = 0; i < 120; ++i) {
      std::string bad = bytes;
      const std::size_t at = random() % bytes.size();
      bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
      expect_refused(file, bad, fmt::format("{}: bit flipped at {}", file, at));
    }
  EXPECT_GE(cases_, 360);
}

TEST_F(Corruption, TruncatedOverwrittenAndOverlong) {
  std::mt19937 random(2);
  for (const auto& [file, bytes] : pristine_) {
    for (int i = 0; i < 40; ++i)
      expect_refused(file, bytes.substr(0, random() % bytes.size()), file + " truncated");
    for (int i = 0; i < 20; ++i) {
      std::string bad = bytes;
      const std::size_t at = random() % bytes.size();
      for (std::size_t j = at; j < std::min(bad.size(), at + 512); ++j)
        bad[j] = i % 2 == 0 ? '\0' : static_cast<char>(random());
      expect_refused(file, bad, fmt::format("{}: 512 bytes overwritten at {}", file, at));
    }
    for (int i = 0; i < 20; ++i) {  // two blocks of 64 bytes change places
      std::string bad = bytes;
      const std::size_t a = random() % (bytes.size() - 64), b = random() % (bytes.size() - 64);
      bad.replace(a, 64, bytes, b, 64);
      bad.replace(b, 64, bytes, a, 64);
      expect_refused(file, bad, fmt::format("{}: blocks at {} and {} swapped", file, a, b));
    }
    expect_refused(file, "", file + " empty");
    expect_refused(file, bytes + std::string(1, '\0'), file + " one byte longer");
    expect_refused(file, bytes + bytes, file + " doubled");
    expect_refused(file, std::string(bytes.size(), '\0'), file + " all zeros");
    expect_refused(file, slurp(folder_.path() / "step_00000001" / file), file + " of another step");
  }
  EXPECT_GE(cases_, 240);
}

TEST_F(Corruption, SwappedMissingAndStrangeFiles) {
  expect_refused("shard_00000.h5", pristine_.at("shard_00001.h5"), "another shard");
  expect_refused("manifest.pb", pristine_.at("shard_00001.h5"), "a shard as manifest");
  for (const auto& [file, bytes] : pristine_) {
    std::filesystem::remove(step_ / file);
    EXPECT_EQ(error_of([&] { CheckpointReader reader(step_); }).code(), ExitCode::kBadData);
    std::filesystem::create_directory(step_ / file);
    EXPECT_EQ(error_of([&] { CheckpointReader reader(step_); }).code(), ExitCode::kBadData);
    std::filesystem::remove(step_ / file);
    std::filesystem::create_symlink("nowhere", step_ / file);
    EXPECT_EQ(error_of([&] { CheckpointReader reader(step_); }).code(), ExitCode::kBadData);
    std::filesystem::remove(step_ / file);
    spill(step_ / file, bytes);
  }
  // The JSON is for people: its damage changes nothing.
  spill(step_ / "manifest.json", "{");
  EXPECT_TRUE(holds_step(step_, 2, kTensors));
}

// A reader that was told not to hash (the checkpoint verified a moment ago) still has Fletcher32.
TEST_F(Corruption, DamagedValuesAreFoundWithoutHashes) {
  std::mt19937 random(3);
  const TensorSpec& t = kTensors[0];
  const std::string& shard = pristine_.at("shard_00000.h5");
  const std::vector<float> data = values(t.name, 2, 0, t.shape.numel() / 2);
  const std::string raw(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float));
  const std::size_t at = shard.find(raw);
  ASSERT_NE(at, std::string::npos);
  for (int i = 0; i < 100; ++i) {
    std::string bad = shard;
    const std::size_t byte = at + random() % raw.size();
    bad[byte] = static_cast<char>(bad[byte] ^ (1 << (random() % 8)));
    spill(step_ / "shard_00000.h5", bad);
    const CheckpointReader reader(step_, false);
    const Error e = error_of([&] { (void)holds(reader, t, 2, 0, t.shape.numel()); });
    EXPECT_EQ(e.code(), ExitCode::kBadData);
    EXPECT_THAT(e.text().where, ::testing::HasSubstr("shard_00000.h5"));
  }
}

TEST_F(Corruption, ErrorsNameTheFileAndTheSizes) {
  spill(step_ / "shard_00001.h5", pristine_.at("shard_00001.h5").substr(0, 1000));
  const Error e = error_of([&] { CheckpointReader reader(step_); });
  EXPECT_THAT(e.text().where, ::testing::HasSubstr("shard_00001.h5"));
  EXPECT_THAT(e.text().what, ::testing::HasSubstr("1000 bytes"));
  EXPECT_FALSE(e.text().fix.empty());
}

}  // namespace
}  // namespace farspan::io_test
