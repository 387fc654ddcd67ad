// Every kind of damage to a store or its manifest is refused, or changes nothing that is read.
#include <array>
#include <set>

#include "data/store_manifest.h"
#include "data_fixture.h"

namespace farspan::data_test {
namespace {

using farspan::testing::read_all;
using farspan::testing::write_all;

struct Content {
  std::array<std::vector<std::int32_t>, 4> columns;
  std::vector<std::uint64_t> offsets;
  std::int64_t vocab = 0;
  std::int32_t eos = 0;
  bool operator==(const Content&) const = default;
};

Content read_content(const std::filesystem::path& path, TokenStore::Verify verify) {
  const TokenStore store(path, verify);
  store.verify_content();
  Content out;
  const auto size = static_cast<std::size_t>(store.info().num_tokens);
  for (auto& column : out.columns) column.resize(size);
  store.read_tokens(0, out.columns[0]);
  if (store.info().has_labels) store.read_labels(0, out.columns[1]);
  if (store.info().has_position_ids) store.read_position_ids(0, out.columns[2]);
  if (store.info().has_segment_ids) store.read_segment_ids(0, out.columns[3]);
  out.offsets.assign(store.doc_offsets().begin(), store.doc_offsets().end());
  out.vocab = store.info().tokenizer.vocab_size;
  out.eos = store.info().tokenizer.eos;
  return out;
}

enum class Outcome { kRefused, kSame, kSilent };

class Corruption : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = folder_ / "a.h5";
    write_store(path_, make_documents({.count = 40,
                                       .longest = 200,
                                       .labels = true,
                                       .position_ids = true,
                                       .segment_ids = true}));
    bytes_ = read_all(path_);
    manifest_ = read_all(manifest_path(path_));
    good_ = read_content(path_, TokenStore::Verify::kHash);
  }

  Outcome outcome(TokenStore::Verify verify) {
    try {
      return read_content(path_, verify) == good_ ? Outcome::kSame : Outcome::kSilent;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
      EXPECT_NE(error.text().where.find("a.h5"), std::string::npos) << error.what();
      EXPECT_FALSE(error.text().fix.empty()) << error.what();
      return Outcome::kRefused;
    }
  }

  // 1 to 4 bytes changed.
  static std::string damaged(std::string bytes, std::uint64_t seed) {
    const CounterRng rng(seed, stream_id("test.damage"));
    const auto count = 1 + rng.below(0, 4);
    for (std::uint64_t i = 0; i < count; ++i)
      bytes[rng.below(2 * i + 1, bytes.size())] ^= static_cast<char>(1 + rng.below(2 * i + 2, 255));
    return bytes;
  }

  IgnoreLeaks ignore_leaks_;
  TemporaryFolder folder_;
  std::filesystem::path path_;
  std::string bytes_, manifest_;
  Content good_;
};

TEST_F(Corruption, ChangedBytesWithHash) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    write_all(path_, damaged(bytes_, seed));
    ASSERT_EQ(outcome(TokenStore::Verify::kHash), Outcome::kRefused) << "seed " << seed;
  }
}

TEST_F(Corruption, EveryRegionWithHash) {
  for (std::size_t at = 0; at < bytes_.size(); at += bytes_.size() / 300 + 1) {
    std::string bytes = bytes_;
    bytes[at] ^= 1;
    write_all(path_, bytes);
    ASSERT_EQ(outcome(TokenStore::Verify::kHash), Outcome::kRefused) << "byte " << at;
  }
}

// HDF5 alone, its checksums and our checks: nothing wrong is read either; bytes that nobody reads
// (unused space of the file) may change.
TEST_F(Corruption, ChangedBytesWithoutHash) {
  int refused = 0, same = 0;
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    write_all(path_, damaged(bytes_, seed));
    const Outcome result = outcome(TokenStore::Verify::kSize);
    ASSERT_NE(result, Outcome::kSilent) << "seed " << seed;
    ++(result == Outcome::kRefused ? refused : same);
  }
  EXPECT_GT(refused, 300) << same << " without effect";
}

TEST_F(Corruption, Truncation) {
  const CounterRng rng(11, 1);
  for (std::uint64_t i = 0; i < 100; ++i) {
    const auto size = i < 20 ? bytes_.size() - 1 - i : rng.below(i, bytes_.size());
    write_all(path_, bytes_.substr(0, size));
    ASSERT_EQ(outcome(TokenStore::Verify::kHash), Outcome::kRefused) << size;
    ASSERT_EQ(outcome(TokenStore::Verify::kSize), Outcome::kRefused) << size;
  }
}

TEST_F(Corruption, Manifest) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    write_all(manifest_path(path_), damaged(manifest_, seed));
    ASSERT_EQ(outcome(TokenStore::Verify::kSize), Outcome::kRefused) << "seed " << seed;
  }
  for (std::size_t size = 0; size < manifest_.size(); size += 7) {
    write_all(manifest_path(path_), manifest_.substr(0, size));
    ASSERT_EQ(outcome(TokenStore::Verify::kSize), Outcome::kRefused) << size;
  }
}

TEST_F(Corruption, AnotherStoresManifest) {
  write_store(folder_ / "b.h5", make_documents({.seed = 5, .count = 41}));
  write_all(manifest_path(path_), read_all(manifest_path(folder_ / "b.h5")));
  EXPECT_EQ(outcome(TokenStore::Verify::kSize), Outcome::kRefused);
}

}  // namespace
}  // namespace farspan::data_test
