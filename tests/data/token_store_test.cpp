#include "data/token_store.h"

#include <hdf5.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <numeric>
#include <thread>

#include "data/files.h"
#include "data/store_manifest.h"
#include "data_fixture.h"
#include "io/processes.h"

namespace farspan::data_test {
namespace {

namespace fs = std::filesystem;
using farspan::testing::read_all;
using farspan::testing::write_all;

std::vector<std::int32_t> all_of(const TokenStore& store,
                                 void (TokenStore::*read)(std::int64_t, std::span<std::int32_t>)
                                     const) {
  std::vector<std::int32_t> out(static_cast<std::size_t>(store.info().num_tokens));
  (store.*read)(0, out);
  return out;
}

std::vector<std::int32_t> joined(const std::vector<Document>& documents,
                                 std::vector<std::int32_t> Document::*column) {
  std::vector<std::int32_t> out;
  for (const Document& d : documents) out.insert(out.end(), (d.*column).begin(), (d.*column).end());
  return out;
}

TEST(TokenStore, RoundTripOfEveryColumn) {
  TemporaryFolder folder;
  for (const std::int64_t vocab : {std::int64_t{1000}, std::int64_t{65536}, std::int64_t{65537}}) {
    const auto path = folder / fmt::format("a{}.h5", vocab).c_str();
    const auto documents = make_documents({.seed = 7,
                                           .count = 300,
                                           .longest = 2000,
                                           .vocab = vocab,
                                           .labels = true,
                                           .position_ids = true,
                                           .segment_ids = true});
    const StoreInfo written = write_store(path, documents, vocab);
    const TokenStore store(path);
    EXPECT_EQ(store.info().token_bytes, vocab <= 65536 ? 2 : 4);
    EXPECT_EQ(store.info().file_hash, written.file_hash);
    EXPECT_EQ(store.info().num_documents, 300);
    EXPECT_EQ(store.info().tokenizer.eos, 1);
    EXPECT_EQ(all_of(store, &TokenStore::read_tokens), joined(documents, &Document::tokens));
    EXPECT_EQ(all_of(store, &TokenStore::read_labels), joined(documents, &Document::labels));
    EXPECT_EQ(all_of(store, &TokenStore::read_position_ids),
              joined(documents, &Document::position_ids));
    EXPECT_EQ(all_of(store, &TokenStore::read_segment_ids),
              joined(documents, &Document::segment_ids));
    store.verify_content();
    const auto offsets = store.doc_offsets();
    for (std::size_t d = 0; d < documents.size(); ++d)
      EXPECT_EQ(offsets[d + 1] - offsets[d], documents[d].tokens.size()) << d;
  }
}

TEST(TokenStore, RangesAcrossChunks) {
  TemporaryFolder folder;
  Document long_document;
  long_document.tokens.resize(700'000);
  for (std::size_t i = 0; i < long_document.tokens.size(); ++i)
    long_document.tokens[i] = static_cast<std::int32_t>(i % 997);
  write_store(folder / "a.h5", {long_document});
  const TokenStore store(folder / "a.h5");
  const CounterRng rng(3, 1);
  for (std::uint64_t i = 0; i < 200; ++i) {
    const auto begin = static_cast<std::int64_t>(rng.below(2 * i, 700'000));
    std::vector<std::int32_t> out(
        rng.below(2 * i + 1, 700'000 - static_cast<std::uint64_t>(begin)));
    store.read_tokens(begin, out);
    for (std::size_t t = 0; t < out.size(); t += 101)
      ASSERT_EQ(out[t], (begin + static_cast<std::int64_t>(t)) % 997) << begin << " + " << t;
  }
}

TEST(TokenStore, ReadsFromSeveralThreads) {
  TemporaryFolder folder;
  const auto documents = make_documents({.count = 100, .longest = 3000});
  write_store(folder / "a.h5", documents);
  const TokenStore store(folder / "a.h5");
  const auto expected = joined(documents, &Document::tokens);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int r = 0; r < 20; ++r) EXPECT_EQ(all_of(store, &TokenStore::read_tokens), expected);
    });
  for (auto& thread : threads) thread.join();
}

// A column that only a later document brings gets what its absence meant before.
TEST(TokenStore, OptionalColumnsAreFilledBackwards) {
  TemporaryFolder folder;
  std::vector<Document> documents(3);
  documents[0].tokens.resize(300'000);  // more than the writer's buffer
  std::iota(documents[0].tokens.begin(), documents[0].tokens.end(), 0);
  documents[1] = {.tokens = {5, 6, 7},
                  .labels = {-100, 6, -100},
                  .position_ids = {9, 10, 11},
                  .segment_ids = {4, 4, 5}};
  documents[2].tokens = {8, 9};
  write_store(folder / "a.h5", documents, 1'000'000);
  const TokenStore store(folder / "a.h5");
  const auto labels = all_of(store, &TokenStore::read_labels);
  const auto positions = all_of(store, &TokenStore::read_position_ids);
  const auto segments = all_of(store, &TokenStore::read_segment_ids);
  for (std::size_t i = 0; i < 300'000; ++i) {
    ASSERT_EQ(labels[i], static_cast<std::int32_t>(i));
    ASSERT_EQ(positions[i], static_cast<std::int32_t>(i));
    ASSERT_EQ(segments[i], 0);
  }
  auto tail = [](const std::vector<std::int32_t>& v) {
    return std::vector<std::int32_t>(v.end() - 5, v.end());
  };
  EXPECT_EQ(tail(labels), (std::vector<std::int32_t>{-100, 6, -100, 8, 9}));
  EXPECT_EQ(tail(positions), (std::vector<std::int32_t>{9, 10, 11, 0, 1}));
  EXPECT_EQ(tail(segments), (std::vector<std::int32_t>{4, 4, 5, 0, 0}));
}

TEST(TokenStore, DocumentsInPieces) {
  TemporaryFolder folder;
  TokenStoreWriter writer(folder / "a.h5", {.tokenizer = byte_tokenizer_info()});
  const std::vector<std::int32_t> a{1, 2}, b{3}, positions{40};
  writer.append({.tokens = a});
  writer.append({.tokens = b, .position_ids = positions});
  writer.append({.tokens = a});
  writer.end_document();
  writer.end_document();  // an empty one is not stored
  EXPECT_EQ(writer.num_documents(), 1);
  writer.finish();
  const TokenStore store(folder / "a.h5");
  EXPECT_EQ(all_of(store, &TokenStore::read_tokens), (std::vector<std::int32_t>{1, 2, 3, 1, 2}));
  EXPECT_EQ(all_of(store, &TokenStore::read_position_ids),
            (std::vector<std::int32_t>{0, 1, 40, 3, 4}));
}

TEST(TokenStore, TakesTheLastDocumentBack) {
  TemporaryFolder folder;
  for (const std::size_t length : {std::size_t{10}, std::size_t{400'000}}) {
    std::vector<Document> documents(2);
    documents[0].tokens.assign(length, 3);
    documents[1].tokens.assign(length, 4);
    documents[1].labels.assign(length, 5);
    TokenStoreWriter writer(folder / "a.h5",
                            {.tokenizer = byte_tokenizer_info(), .overwrite = true});
    for (const Document& d : documents) {
      writer.append(d.piece());
      writer.end_document();
    }
    const Document taken = writer.take_last_document();
    EXPECT_EQ(taken.tokens, documents[1].tokens);
    EXPECT_EQ(taken.labels, documents[1].labels);
    const std::vector<std::int32_t> more{9, 8};
    writer.append({.tokens = more});
    writer.end_document();
    writer.finish();
    const TokenStore store(folder / "a.h5");
    auto expected = documents[0].tokens;
    expected.insert(expected.end(), {9, 8});
    EXPECT_EQ(all_of(store, &TokenStore::read_tokens), expected);
    EXPECT_EQ(all_of(store, &TokenStore::read_labels), expected);
  }
}

TEST(TokenStore, EqualContentGivesEqualFiles) {
  TemporaryFolder folder;
  const auto documents = make_documents({.count = 50, .labels = true});
  const StoreInfo a = write_store(folder / "a.h5", documents);
  ::sleep(1);  // a time of creation in the file would differ
  const StoreInfo b = write_store(folder / "b.h5", documents);
  EXPECT_EQ(a.file_hash, b.file_hash);
  EXPECT_TRUE(read_all(folder / "a.h5") == read_all(folder / "b.h5"));
  const TokenStore x(folder / "a.h5"), y(folder / "b.h5");
  const TokenStore* xs[] = {&x};
  const TokenStore* ys[] = {&y};
  const TokenStore* both[] = {&x, &y};
  EXPECT_EQ(data_fingerprint(xs), data_fingerprint(ys));
  EXPECT_NE(data_fingerprint(xs), data_fingerprint(both));
}

TEST(TokenStore, VocabularyIsTheLargestIdWhenNotKnown) {
  TemporaryFolder folder;
  TokenStoreWriter writer(folder / "a.h5", {});
  const std::vector<std::int32_t> ids{0, 70'000, 5};
  writer.append({.tokens = ids});
  writer.end_document();
  writer.finish();
  const TokenStore store(folder / "a.h5");
  EXPECT_EQ(store.info().tokenizer.vocab_size, 70'001);
  store.check_vocabulary(70'001);
  EXPECT_ERROR(store.check_vocabulary(70'000), ExitCode::kBadData, "vocabulary of 70000");
}

// --- errors ---

TEST(TokenStore, BadFilesAreNamed) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  const auto manifest = manifest_path(path);
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "no such token store");
  EXPECT_ERROR(TokenStore{folder.path()}, ExitCode::kBadData, "folder");
  write_all(path, "");
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "empty");
  write_all(path, "Just some text, long enough to be a file of its own.");
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "no HDF5 file");
  fs::remove(path);

  write_store(path, make_documents({}));
  const std::string good = read_all(path), good_manifest = read_all(manifest);
  fs::remove(manifest);
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "manifest a.h5.manifest.json is missing");
  write_all(manifest, good_manifest.substr(0, 100));
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "truncated");
  write_all(manifest, good_manifest);

  write_all(path, good.substr(0, good.size() - 5));
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData,
               fmt::format("truncated at byte {}", good.size() - 5));
  write_all(path, good + "x");
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "1 more than its manifest");
  std::string flipped = good;
  flipped[good.size() / 2] ^= 4;
  write_all(path, flipped);
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "bytes 0..");
  write_all(path, good);
  EXPECT_NO_THROW(TokenStore{path});
}

TEST(TokenStore, DamagedRangeIsNamed) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  write_store(path, make_documents({.count = 200, .longest = 5000}));
  std::string bytes = read_all(path);
  ASSERT_GT(bytes.size(), 300'000u);
  bytes[200'000] ^= 1;
  write_all(path, bytes);
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "bytes 196608..262143 differ");
  // Without the hash the chunk's own checksum finds it, and names the tokens.
  const TokenStore store(path, TokenStore::Verify::kSize);
  EXPECT_ERROR(store.verify_content(), ExitCode::kBadData, "the file is damaged there");
}

// Writes an HDF5 file whose manifest fits it, so that what HDF5 holds is looked at.
void with_manifest(const fs::path& path) {
  StoreInfo info{
      .tokenizer = {.name = "none", .vocab_size = 1000}, .num_tokens = 3, .num_documents = 1};
  write_file_synced(manifest_path(path), make_manifest(path, path.filename().string(), info));
}

TEST(TokenStore, WrongContentIsNamed) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  auto make = [&] {
    Document d{.tokens = {1, 2, 3}};
    write_store(path, {d}, 1000, true);
  };
  auto edit = [&](auto&& change) {
    make();
    const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    change(file);
    H5Fclose(file);
    with_manifest(path);
  };
  auto set_attribute = [](hid_t file, const char* name, std::int64_t value) {
    const hid_t attribute = H5Aopen(file, name, H5P_DEFAULT);
    H5Awrite(attribute, H5T_NATIVE_INT64, &value);
    H5Aclose(attribute);
  };
  auto write_token = [](hid_t file, const char* name, std::int64_t at, std::int64_t value) {
    const hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);
    const hid_t space = H5Dget_space(dataset);
    const hsize_t start = static_cast<hsize_t>(at), one = 1;
    const hid_t memory = H5Screate_simple(1, &one, nullptr);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, nullptr, &one, nullptr);
    EXPECT_GE(H5Dwrite(dataset, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, &value), 0);
    H5Sclose(memory);
    H5Sclose(space);
    H5Dclose(dataset);
  };
  edit([](hid_t) {});
  EXPECT_NO_THROW(TokenStore{path});
  edit([&](hid_t f) { set_attribute(f, "format_version", 2); });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "format version 2");
  edit([&](hid_t f) { set_attribute(f, "num_tokens", 4); });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "disagree");
  edit([&](hid_t f) { set_attribute(f, "eos", 1000); });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "`eos` is 1000");
  edit([&](hid_t f) { H5Adelete(f, "bos"); });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "`bos` is missing");
  edit([&](hid_t f) { H5Adelete(f, "format"); });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "not a token store");
  edit([&](hid_t f) { H5Ldelete(f, "tokens", H5P_DEFAULT); });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "`tokens` is missing");
  edit([&](hid_t f) { H5Ldelete(f, "doc_offsets", H5P_DEFAULT); });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "`doc_offsets` is missing");
  edit([&](hid_t f) { write_token(f, "doc_offsets", 0, 1); });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "doc_offsets run from 1");
  edit([&](hid_t f) {
    H5Ldelete(f, "tokens", H5P_DEFAULT);
    const hsize_t three = 3;
    const hid_t space = H5Screate_simple(1, &three, nullptr);
    H5Dclose(H5Dcreate2(f, "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Sclose(space);
  });
  EXPECT_ERROR(TokenStore{path}, ExitCode::kBadData, "no Fletcher32 checksum");
  edit([&](hid_t f) { write_token(f, "tokens", 1, 1000); });
  const TokenStore store(path);
  EXPECT_ERROR(store.verify_content(), ExitCode::kBadData, "tokens[1] is 1000, outside 0..999");
}

TEST(TokenStoreWriter, RefusesWhatItCannotStore) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  {
    TokenStoreWriter writer(path, {.tokenizer = byte_tokenizer_info()});
    EXPECT_ERROR(writer.prepare(), ExitCode::kBadData, "no tokens");
    const std::vector<std::int32_t> outside{1, 260}, negative{-1}, label{-1, 2}, two{1, 2};
    EXPECT_ERROR(writer.append({.tokens = outside}), ExitCode::kBadData, "token id 260 of token 1");
    EXPECT_ERROR(writer.append({.tokens = negative}), ExitCode::kBadData, "token id -1");
    EXPECT_ERROR(writer.append({.tokens = two, .labels = label}), ExitCode::kBadData, "label -1");
    EXPECT_EQ(farspan::testing::count_files(folder.path()), 1);
  }
  EXPECT_EQ(farspan::testing::count_files(folder.path()), 0) << "the temporary file stayed";
  write_store(path, make_documents({}));
  EXPECT_ERROR(TokenStoreWriter(path, {}), ExitCode::kUsage, "exists already");
  EXPECT_ERROR(TokenStoreWriter(folder.path(), {}), ExitCode::kUsage, "is a folder");
  EXPECT_ERROR(TokenStoreWriter(path / "b.h5", {}), ExitCode::kUsage, "Not a directory");
  EXPECT_ERROR(TokenStoreWriter("/proc/nowhere/b.h5", {}), ExitCode::kUsage, "cannot create");
}

// At each point where a crash could cut a replacement short, a store is there that verifies.
TEST(TokenStoreWriter, InterruptedReplacementLosesNothing) {
  TemporaryFolder folder;
  const auto path = folder / "a.h5";
  for (const TokenStore::Verify verify : {TokenStore::Verify::kHash, TokenStore::Verify::kSize}) {
    write_store(path, make_documents({.seed = 1, .vocab = 260}), 260, true);
    const std::string old_store = read_all(path), old_manifest = read_all(manifest_path(path));
    TokenStoreWriter writer(path, {.tokenizer = byte_tokenizer_info(), .overwrite = true});
    const std::vector<std::int32_t> ids{1, 2, 3};
    writer.append({.tokens = ids});
    writer.end_document();
    writer.prepare();
    EXPECT_EQ(TokenStore(path, verify).info().num_documents, 20) << "before commit";
    writer.commit();
    EXPECT_EQ(farspan::testing::count_files(folder.path()), 2);
    const std::string new_store = read_all(path), new_manifest = read_all(manifest_path(path));
    EXPECT_EQ(TokenStore(path, verify).info().num_documents, 1) << "after commit";
    // What commit's three renames pass through.
    write_all(next_manifest_path(path), new_manifest);
    write_all(manifest_path(path), old_manifest);
    EXPECT_EQ(TokenStore(path, verify).info().num_documents, 1) << "after the second rename";
    write_all(path, old_store);
    EXPECT_EQ(TokenStore(path, verify).info().num_documents, 20) << "after the first rename";
    // The same for a store that was not there before.
    write_all(path, new_store);
    fs::remove(manifest_path(path));
    EXPECT_EQ(TokenStore(path, verify).info().num_documents, 1) << "first store, second rename";
    write_store(path, make_documents({.seed = 2, .count = 7, .vocab = 260}), 260, true);
    EXPECT_EQ(TokenStore(path, verify).info().num_documents, 7) << "the next import tidies up";
    EXPECT_EQ(farspan::testing::count_files(folder.path()), 2);
  }
}

// A limit on the size of files stands for a full disk: the same path, without a disk to fill.
TEST(TokenStoreWriter, FullDiskLeavesNothing) {
  TemporaryFolder folder;
  for (const rlim_t limit : {rlim_t{1000}, rlim_t{4'500'000}, rlim_t{6'000'000}}) {
    const int rc = io_test::exit_code_of([&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit bound{limit, limit};
      ::setrlimit(RLIMIT_FSIZE, &bound);
      try {
        write_store(folder / "a.h5", make_documents({.count = 1000, .longest = 10'000}));
      } catch (const Error& error) {
        return error.code() == ExitCode::kExhausted ? 4 : 5;
      }
      return 0;
    });
    EXPECT_EQ(rc, 4) << limit;
    EXPECT_EQ(farspan::testing::count_files(folder.path()), 0) << limit;
  }
}

}  // namespace
}  // namespace farspan::data_test
