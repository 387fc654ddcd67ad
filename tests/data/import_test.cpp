#include "data/import.h"

#include <fstream>
#include <map>
#include <set>

#include "data_fixture.h"

namespace farspan::data_test {
namespace {

namespace fs = std::filesystem;
using farspan::testing::count_files;
using farspan::testing::write_all;

constexpr std::int32_t kEos = 257;

// Each document of a store as text; specials as <id>.
std::vector<std::string> texts(const fs::path& path) {
  const TokenStore store(path);
  std::vector<std::string> out;
  const auto offsets = store.doc_offsets();
  for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
    std::vector<std::int32_t> ids(offsets[d + 1] - offsets[d]);
    store.read_tokens(static_cast<std::int64_t>(offsets[d]), ids);
    std::string text;
    for (std::int32_t id : ids)
      if (id < 256)
        text += static_cast<char>(id);
      else
        text += fmt::format("<{}>", id);
    out.push_back(text);
  }
  return out;
}

class Import : public ::testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& content) {
    write_all(folder_.path() / name, content);
    return (folder_.path() / name).string();
  }
  // Imports `content` and returns the documents.
  std::vector<std::string> import(const std::string& content, ImportOptions options) {
    options.out = out_;
    options.overwrite = true;
    import_files({file("in", content)}, options);
    return texts(out_);
  }
  Error import_error(const std::string& content, ImportOptions options) {
    options.out = out_;
    const std::string input = file("in", content);
    const int before = count_files(folder_.path());
    const Error error = error_of([&] { import_files({input}, options); });
    EXPECT_EQ(count_files(folder_.path()), before) << "partial output stayed: " << error.what();
    return error;
  }
  void expect_error(const std::string& content, const ImportOptions& options,
                    const std::string& where, const std::string& what) {
    const Error error = import_error(content, options);
    EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
    EXPECT_NE(error.text().where.find(where), std::string::npos) << error.what();
    EXPECT_NE(error.text().what.find(what), std::string::npos) << error.what();
  }

  TemporaryFolder folder_;
  fs::path out_ = folder_.path() / "out.h5";
};

using Texts = std::vector<std::string>;

TEST_F(Import, TextByParagraphLineAndFile) {
  const std::string text = "one\ntwo\n\n \t\nthree\r\nfour\r\n\r\n\nfive";
  EXPECT_EQ(import(text, {}), (Texts{"one\ntwo<257>", "three\nfour<257>", "five<257>"}));
  EXPECT_EQ(import(text, {.document = DocumentUnit::kLine}),
            (Texts{"one<257>", "two<257>", "three<257>", "four<257>", "five<257>"}));
  EXPECT_EQ(import(text, {.document = DocumentUnit::kFile}), (Texts{text + "<257>"}));
}

TEST_F(Import, TextOfAnyBytes) {
  std::string bytes;
  for (int i = 0; i < 256; ++i) bytes += static_cast<char>(i);
  EXPECT_EQ(import(bytes, {.document = DocumentUnit::kFile}), (Texts{bytes + "<257>"}));
  EXPECT_EQ(import("\xef\xbb\xbfmarked", {}), (Texts{"marked<257>"})) << "byte order mark";
  EXPECT_EQ(import("a", {}), (Texts{"a<257>"}));
  EXPECT_EQ(import("a\n", {}), (Texts{"a<257>"}));
  EXPECT_EQ(import("\na", {.document = DocumentUnit::kLine}), (Texts{"a<257>"}));
}

// Lines and documents longer than every buffer, and borders at every place of a buffer.
TEST_F(Import, LongText) {
  std::string text;
  std::vector<std::string> documents;
  const CounterRng rng(2, 2);
  for (std::uint64_t d = 0; d < 12; ++d) {
    std::string document;
    for (std::uint64_t i = 0, n = rng.below(d, 900'000); i < n; ++i)
      document += static_cast<char>('a' + (i * 7 + d) % 26);
    document += 'z';
    documents.push_back(document + "<257>");
    text += document + "\n\n";
  }
  EXPECT_TRUE(import(text, {}) == documents);
  EXPECT_TRUE(import(text, {.document = DocumentUnit::kLine}) == documents);
  EXPECT_TRUE(import(text, {.document = DocumentUnit::kFile}) == (Texts{text + "<257>"}));
}

TEST_F(Import, SeveralInputsAreSourcesInOrder) {
  const std::string a = file("a.txt", "a1\n\na2"), b = file("b.txt", "b1");
  std::vector<ImportProgress> seen;
  const ImportReport report =
      import_files({a, b}, {.out = out_}, [&](const ImportProgress& p) { seen.push_back(p); });
  EXPECT_EQ(texts(out_), (Texts{"a1<257>", "a2<257>", "b1<257>"}));
  const TokenStore store(out_);
  EXPECT_EQ(store.info().sources, (Texts{"a.txt", "b.txt"}));
  EXPECT_EQ(store.source_of_document(1), 0);
  EXPECT_EQ(store.source_of_document(2), 1);
  EXPECT_EQ(store.info().tokenizer.eos, kEos);
  EXPECT_EQ(report.bytes, 8);
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(seen.back().documents, 3);
  EXPECT_EQ(seen.back().total_bytes, 8);
}

TEST_F(Import, TextErrors) {
  expect_error("", {}, "in", "empty");
  expect_error(" \n\n\t\n", {}, "in", "no text");
  EXPECT_ERROR(import_files({(folder_.path() / "absent").string()}, {.out = out_}),
               ExitCode::kBadData, "absent");
  EXPECT_ERROR(import_files({folder_.path().string()}, {.out = out_}), ExitCode::kBadData,
               "name the files inside");
  const std::string in = file("in", "text");
  EXPECT_ERROR(import_files({in}, {.out = in, .overwrite = true}), ExitCode::kUsage,
               "one of the inputs");
  EXPECT_ERROR(import_files({in}, {.tokenizer = "tokenizer.json", .out = out_}), ExitCode::kUsage,
               "only `bytes`");
  import_files({in}, {.out = out_});
  EXPECT_ERROR(import_files({in}, {.out = out_}), ExitCode::kUsage, "exists already");
  EXPECT_NO_THROW(import_files({in}, {.out = out_, .overwrite = true}));
  EXPECT_ERROR(parse_import_format("megatron"), ExitCode::kUsage, "yet");
  EXPECT_ERROR(parse_import_format("csv"), ExitCode::kUsage, "not known");
}

// What was there before is intact when a replacement fails.
TEST_F(Import, FailedReplacementKeepsTheOldStore) {
  import("old text", {});
  ImportOptions options{.format = ImportFormat::kJsonl, .out = out_, .overwrite = true};
  const std::string bad = file("bad", "{\"text\": \"new\"}\nnot json\n");
  EXPECT_ERROR(import_files({bad}, options), ExitCode::kBadData, "bad:2");
  EXPECT_EQ(texts(out_), (Texts{"old text<257>"}));
}

TEST_F(Import, Jsonl) {
  const ImportOptions options{.format = ImportFormat::kJsonl};
  EXPECT_EQ(
      import("{\"text\": \"one\\ntwo \\u00e9\", \"n\": 1}\n\n{\"text\":\"\"}\r\n{\"text\": \"x\"}",
             options),
      (Texts{"one\ntwo \xc3\xa9<257>", "x<257>"}));
  EXPECT_EQ(
      import("{\"body\": \"b\", \"text\": 1}", {.format = ImportFormat::kJsonl, .field = "body"}),
      (Texts{"b<257>"}));
}

TEST_F(Import, JsonlErrorsNameLineAndByte) {
  const ImportOptions options{.format = ImportFormat::kJsonl};
  expect_error("{\"text\": \"a\"}\n{\"text\": \"b\"", options, "in:2:", "not valid JSON");
  expect_error("{\"text\": \"a\"}\n\n{\"text\": \"\xff\"}\n", options, "in:3:11", "UTF-8");
  expect_error("{\"text\": \"\\ud800\"}", options, "in:1:", "not valid JSON");
  expect_error("[\"a\"]", options, "in:1", "not an object");
  expect_error("{\"texts\": \"a\"}", options, "in:1", "`text` is missing");
  expect_error("{\"text\": 5}", options, "in:1", "not a string");
  expect_error("{\"text\": \"\"}", options, "in", "no text");
}

TEST_F(Import, Tokens) {
  const ImportOptions options{.format = ImportFormat::kTokens, .out = out_};
  const std::string in =
      file("in",
           "{\"input_ids\": [1, 2, 3], \"labels\": [-100, 2, 3], \"position_ids\": [0, 5, 9], "
           "\"segment_ids\": [0, 0, 1], \"attention_mask\": [1, 1, 1]}\n"
           "{\"input_ids\": []}\n"
           "{\"input_ids\": [70000], \"labels\": null}\n");
  const ImportReport report = import_files({in}, options);
  EXPECT_EQ(report.empty_documents, 1);
  const TokenStore store(out_);
  EXPECT_EQ(store.info().tokenizer.vocab_size, 70'001);
  EXPECT_EQ(store.info().tokenizer.name, "none");
  EXPECT_EQ(store.info().num_documents, 2);
  std::vector<std::int32_t> column(4);
  store.read_tokens(0, column);
  EXPECT_EQ(column, (std::vector<std::int32_t>{1, 2, 3, 70'000}));
  store.read_labels(0, column);
  EXPECT_EQ(column, (std::vector<std::int32_t>{-100, 2, 3, 70'000}));
  store.read_position_ids(0, column);
  EXPECT_EQ(column, (std::vector<std::int32_t>{0, 5, 9, 0}));
  store.read_segment_ids(0, column);
  EXPECT_EQ(column, (std::vector<std::int32_t>{0, 0, 1, 0}));
}

TEST_F(Import, TokensVocabulary) {
  auto vocab = [&](const ImportOptions& options) {
    import("{\"input_ids\": [5]}", options);
    return TokenStore(out_).info().tokenizer.vocab_size;
  };
  EXPECT_EQ(vocab({.format = ImportFormat::kTokens}), 6);
  EXPECT_EQ(vocab({.format = ImportFormat::kTokens, .vocab_size = 32'000}), 32'000);
  EXPECT_EQ(vocab({.format = ImportFormat::kTokens, .tokenizer = "bytes"}), 260);
  EXPECT_EQ(vocab({.format = ImportFormat::kTokens, .tokenizer = "bytes", .vocab_size = 320}), 320);
  EXPECT_EQ(import_error("{\"input_ids\": [5]}",
                         {.format = ImportFormat::kTokens, .tokenizer = "bytes", .vocab_size = 100})
                .code(),
            ExitCode::kUsage);
}

TEST_F(Import, TokensErrorsNameLineAndPlace) {
  const ImportOptions options{.format = ImportFormat::kTokens, .vocab_size = 10};
  const std::string good = "{\"input_ids\": [1]}\n";
  expect_error(good + "{\"input_ids\": [1, 10]}", options, "in:2, input_ids[1]", "10 is not");
  expect_error("{\"input_ids\": [1, -1]}", options, "input_ids[1]", "-1 is not");
  expect_error("{\"input_ids\": [1.5]}", options, "input_ids[0]", "1.5 is not");
  expect_error("{\"input_ids\": [18446744073709551615]}", options, "input_ids[0]", "is not");
  expect_error("{\"input_ids\": [true]}", options, "input_ids[0]", "true is not");
  expect_error("{\"input_ids\": [[1]]}", options, "input_ids[0]", "[1] is not");
  expect_error("{\"input_ids\": 3}", options, "in:1", "not a list");
  expect_error("{\"ids\": [3]}", options, "in:1", "`input_ids` is missing");
  expect_error("{\"input_ids\": [1, 2], \"labels\": [1]}", options, "in:1", "1 values for 2");
  expect_error("{\"input_ids\": [1], \"labels\": [-5]}", options, "labels[0]", "-100 or");
  expect_error("{\"input_ids\": [1], \"labels\": [10]}", options, "labels[0]", "-100 or");
  expect_error("{\"input_ids\": [1], \"position_ids\": [-1]}", options, "position_ids[0]", "-1");
  expect_error("{\"input_ids\": [1, 2], \"segment_ids\": [1, 0]}", options, "in:1", "go down");
}

// --- splitting ---

TEST(Split, NamesAndPaths) {
  EXPECT_EQ(parse_split("val=0.25").share, 0.25);
  for (const char* wrong : {"val", "val=", "=0.1", "val=0", "val=1", "val=x", "val=0.1x",
                            "train=0.1", "a/b=0.1", "val=nan"})
    EXPECT_ERROR(parse_split(wrong), ExitCode::kUsage, "NAME=SHARE");
  EXPECT_EQ(split_path("data/a.h5", "val"), "data/a.val.h5");
  EXPECT_EQ(split_path("data/a.train.h5", "val"), "data/a.val.h5");
  EXPECT_EQ(split_path("a", "val"), "a.val");
}

TEST_F(Import, SplitKeepsEveryDocumentAndEqualOnesTogether) {
  std::string text;
  std::multiset<std::string> expected;
  for (int i = 0; i < 2000; ++i) {
    const std::string line = fmt::format("line {}", i % 1500);
    text += line + "\n";
    expected.insert(line + "<257>");
  }
  const std::string in = file("in", text);
  ImportOptions options{.document = DocumentUnit::kLine,
                        .out = folder_.path() / "a.train.h5",
                        .split = Split{"val", 0.1}};
  const ImportReport report = import_files({in}, options);
  ASSERT_EQ(report.stores.parts.size(), 2u);
  EXPECT_EQ(report.stores.parts[1].path, folder_.path() / "a.val.h5");
  const Texts train = texts(folder_.path() / "a.train.h5"),
              val = texts(folder_.path() / "a.val.h5");
  EXPECT_NEAR(static_cast<double>(val.size()), 200, 60);
  std::multiset<std::string> all(train.begin(), train.end());
  all.insert(val.begin(), val.end());
  EXPECT_EQ(all, expected);
  const std::set<std::string> in_train(train.begin(), train.end());
  for (const std::string& t : val) EXPECT_FALSE(in_train.contains(t)) << t;
}

TEST_F(Import, SplitNeverLeavesAPartEmpty) {
  for (const double share : {1e-9, 1 - 1e-9}) {
    ImportOptions options{.out = out_, .split = Split{"val", share}, .overwrite = true};
    import_files({file("in", "one\n\ntwo\n\nthree")}, options);
    const Texts a = texts(out_), b = texts(folder_.path() / "out.val.h5");
    EXPECT_EQ(a.size() + b.size(), 3u);
    EXPECT_EQ(std::min(a.size(), b.size()), 1u) << share;
  }
  fs::remove(out_);
  const Error error = import_error("only one", {.split = Split{"test", 0.5}});
  EXPECT_EQ(error.code(), ExitCode::kBadData);
  EXPECT_NE(std::string(error.what()).find("only one document"), std::string::npos);
}

// A document longer than what is hashed goes to one part whole.
TEST_F(Import, SplitOfLongDocuments) {
  std::string text;
  for (int d = 0; d < 6; ++d) text += std::string(200'000, static_cast<char>('a' + d)) + "\n\n";
  ImportOptions options{.out = out_, .split = Split{"val", 0.5}};
  import_files({file("in", text)}, options);
  Texts all = texts(out_);
  const Texts val = texts(folder_.path() / "out.val.h5");
  all.insert(all.end(), val.begin(), val.end());
  ASSERT_EQ(all.size(), 6u);
  for (const std::string& t : all) {
    EXPECT_EQ(t.size(), 200'005u);
    EXPECT_EQ(t.find_first_not_of(t[0]), 200'000u) << "mixed with another";
  }
}

}  // namespace
}  // namespace farspan::data_test
