// farspan inspect attention: the program's lines and errors, the JSON's keys and numbers, the
// drawings.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "app/attention_report.h"
#include "app/attention_svg.h"
#include "app/score_map.h"

namespace farspan::app {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

bool has(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

class InspectAttention : public testing::Test {
 protected:
  struct Outcome {
    int code = -1;
    std::string out, err;
  };

  void SetUp() override {
    std::string pattern = (fs::path(testing::TempDir()) / "farspan_inspect_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // `farspan inspect ...`, in the repository's root.
  Outcome inspect(const std::string& arguments) const {
    const std::string out = folder_ / "out", err = folder_ / "err";
    const std::string command = "cd '" FARSPAN_SOURCE_DIR "' && '" FARSPAN_PROGRAM "' inspect " +
                                arguments + " >" + out + " 2>" + err + " </dev/null";
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

  static AttentionOptions options(const std::string& sequence_length, const std::string& ranks) {
    return {.sequence_length = sequence_length,
            .ranks = ranks,
            .heads = std::string("4"),
            .kv_heads = std::string("2"),
            .head_dim = std::string("8")};
  }

  fs::path folder_;
};

// Tags open and close in pairs, attributes are quoted, no stray characters: enough for what we
// write (no CDATA, no comments). Returns the first offence.
std::string malformed(const std::string& xml) {
  std::vector<std::string> open;
  std::size_t i = xml.find("?>");
  if (xml.rfind("<?xml", 0) != 0 || i == std::string::npos) return "no XML declaration";
  for (i += 2; i < xml.size();) {
    if (xml[i] == '>') return "a bare >";
    if (xml[i] == '&') {
      const std::string entity = xml.substr(i, xml.find(';', i) + 1 - i);
      if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;") return "entity " + entity;
    }
    if (xml[i] != '<') {
      ++i;
      continue;
    }
    const std::size_t end = xml.find('>', i);
    if (end == std::string::npos) return "an open tag at the end";
    const std::string tag = xml.substr(i + 1, end - i - 1);
    if (std::count(tag.begin(), tag.end(), '"') % 2 != 0 || has(tag, "<")) return "tag " + tag;
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag[0] == '/') {
      if (open.empty() || "/" + open.back() != tag) return "unmatched " + tag;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    i = end + 1;
  }
  return open.empty() ? "" : "left open: " + open.back();
}

TEST_F(InspectAttention, TheDocumentedLines) {
  std::string lengths = "# documents of a web crawl\n\n";
  for (int i = 0; i < 400; ++i) lengths += std::to_string(500 + i * 7919 % 6000) + "\n";
  const std::string file = write("lens.txt", lengths);
  const auto start = std::chrono::steady_clock::now();
  const Outcome json = inspect("attention --sequence-length 1M --doc-lengths " + file +
                               " --ranks 32 --layout balanced --json");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  ASSERT_EQ(json.code, 0) << json.err;
  EXPECT_LT(seconds.count(), 20);
  const Json j = Json::parse(json.out);
  for (const char* key :
       {"layout", "strategy", "ranks", "tokens_max_over_mean", "area_max_over_mean", "bytes_total",
        "bytes_ring_total", "bytes_unique", "bytes_bound", "hops", "tokens", "area", "documents",
        "sequence_length", "predicted", "speeds", "assumed", "bytes_backward"})
    EXPECT_TRUE(j.contains(key)) << key;
  EXPECT_EQ(j["layout"], "balanced");
  EXPECT_EQ(j["strategy"], "ring");
  EXPECT_EQ(j["ranks"], 32);
  EXPECT_EQ(j["sequence_length"], 1 << 20);
  EXPECT_EQ(j["tokens"].size(), 32u);
  EXPECT_LE(j["area_max_over_mean"].get<double>(), 1.06);
  EXPECT_LE(j["bytes_bound"].get<double>(), j["bytes_total"].get<double>());
  EXPECT_LE(j["bytes_total"].get<double>(), j["bytes_ring_total"].get<double>());
  double by_hop = 0;
  for (const Json& hop : j["hops"]) by_hop += hop["bytes"].get<double>();
  EXPECT_EQ(by_hop, j["bytes_total"].get<double>());

  const std::string svg = folder_ / "areas.svg";
  const Outcome text = inspect("attention configs/quickstart.yaml --ranks 8 --svg " + svg);
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_TRUE(has(text.out, "ring over 8 ranks; causal; 4/2 heads of 32, bf16")) << text.out;
  EXPECT_EQ(malformed(text_of(svg)), "");
}

TEST_F(InspectAttention, HandCheckedNumbers) {
  // Rank 0 holds tokens 0 1 6 7, rank 1 the others; a row of keys and values is 64 bytes in bf16.
  const Json j = attention_json(answer(read_question(options("8", "2"))));
  EXPECT_EQ(j["layout"], "zigzag");
  EXPECT_EQ(j["bytes_total"], 6 * 64);
  EXPECT_EQ(j["bytes_ring_total"], 8 * 64);
  EXPECT_EQ(j["bytes_unique"], 6 * 64);
  EXPECT_EQ(j["bytes_backward"], 6 * 64 + 6 * 128);
  EXPECT_EQ(j["area"], Json({18.0, 18.0}));
  EXPECT_EQ(j["area_by_hop"], Json({{10.0, 8.0}, {10.0, 8.0}}));
  EXPECT_EQ(j["hops"][0]["bytes"], 6 * 64);
  EXPECT_EQ(j["documents"], 1);
  AttentionOptions fp32 = options("8", "2");
  fp32.dtype = "fp32";
  EXPECT_EQ(attention_json(answer(read_question(fp32)))["bytes_total"], 6 * 128);
  AttentionOptions halo = options("64", "4");
  halo.layout = "contiguous";
  halo.window = "5";
  EXPECT_EQ(attention_json(answer(read_question(halo)))["bytes_total"], 3 * 4 * 64);
  AttentionOptions both = options("8", "2");
  both.non_causal = true;
  EXPECT_EQ(attention_json(answer(read_question(both)))["area"], Json({32.0, 32.0}));
}

TEST_F(InspectAttention, TextAsItIsShown) {
  const AttentionAnswer a = answer(read_question(options("8", "2")));
  const std::string plain = attention_text(a, {.unicode = false});
  EXPECT_TRUE(has(plain,
                  "a sequence of 8 tokens, one document\n"
                  "zigzag ring over 2 ranks; causal; 4/2 heads of 8, bf16\n"
                  "\n"
                  "Area by hop: a line is a rank, a column a hop. The darkest: 10 pairs.\n"
                  "rank  hop  0    1   area / mean        tokens / mean\n"
                  "        0 |@@%%  | ############ 1.00  ############ 1.00\n"
                  "        1 |@@%%  | ############ 1.00  ############ 1.00\n"))
      << plain;
  EXPECT_TRUE(has(plain, "forward is 75% of it")) << plain;
  EXPECT_TRUE(has(plain, "assumed: ")) << plain;
  for (const char c : plain) EXPECT_TRUE(c == '\n' || (c >= ' ' && c <= '~'));
  const std::string unicode = attention_text(a, {.unicode = true});
  EXPECT_TRUE(has(unicode, "0 │████  │ ████████████ 1.00")) << unicode;
}

TEST_F(InspectAttention, ManyRanksFoldIntoATerminal) {
  const AttentionAnswer a = answer(read_question(options("64k", "128")));
  const std::string text = attention_text(a, {.unicode = false});
  std::istringstream lines(text);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count)
    if (!has(line, "assumed")) {
      EXPECT_LE(line.size(), 120u) << line;
    }
  EXPECT_LE(count, 80);
  EXPECT_TRUE(has(text, "124-127 |")) << text;
}

TEST_F(InspectAttention, TheReportGoesToAFileInPlainCharacters) {
  const Outcome plain = inspect("attention --sequence-length 64 --ranks 4 --heads 4");
  ASSERT_EQ(plain.code, 0) << plain.err;
  for (const char c : plain.out) ASSERT_TRUE(c == '\n' || (c >= ' ' && c <= '~'));
}

TEST_F(InspectAttention, PicturesAreWellFormed) {
  for (const auto& [attention, ulysses, ranks] :
       std::vector<std::tuple<const char*, const char*, const char*>>{{"ring", "", "1"},
                                                                      {"ring", "", "3"},
                                                                      {"ring", "", "200"},
                                                                      {"allgather", "", "8"},
                                                                      {"ulysses", "", "4"},
                                                                      {"hybrid", "2", "8"}}) {
    AttentionOptions o = options("1000", ranks);
    o.attention = attention;
    o.ulysses = ulysses;
    const std::string svg = attention_svg(answer(read_question(o)));
    EXPECT_EQ(malformed(svg), "") << attention << " " << ranks;
    EXPECT_FALSE(has(svg, "nan") || has(svg, "inf\"")) << attention << " " << ranks;
    EXPECT_LT(svg.size(), 3u << 20);
  }
  EXPECT_NE(malformed("<?xml?><a><b></a>"), "");
}

TEST_F(InspectAttention, TheBoundSaysWhatItBounds) {
  // A ring that is far from even sends less than the bound of even ones.
  AttentionOptions uneven = options("200", "5");
  uneven.layout = "contiguous";
  uneven.doc_lengths = write("lens", "2\n40\n158\n");
  const AttentionAnswer a = answer(read_question(uneven));
  EXPECT_GT(a.summary.area_max_over_mean, 2);
  EXPECT_GT(a.summary.bytes_bound, a.summary.bytes_forward);
  const std::string text = attention_text(a, {});
  EXPECT_TRUE(has(text, "forward is 0.68 x: the least of any ring with area within 1.05")) << text;
  const auto sparse = [&](const std::string& ranks) {
    AttentionOptions o = options("", ranks);
    o.heads = o.kv_heads = o.head_dim = "";
    o.config = FARSPAN_SOURCE_DIR "/configs/sparse_small.yaml";
    return attention_text(answer(read_question(o)), {});
  };
  EXPECT_TRUE(has(sparse("4"), "unknown  which rows must travel")) << sparse("4");
  EXPECT_TRUE(has(sparse("1"), "none, one rank holds all rows")) << sparse("1");
}

TEST_F(InspectAttention, AllToAllIsTheRestOfTheBytes) {
  AttentionOptions o = options("1000", "8");
  o.attention = "hybrid";
  o.ulysses = "2";
  const AttentionAnswer a = answer(read_question(o));
  const Json j = attention_json(a);
  double by_hop = 0;
  for (const Json& hop : j["hops"]) by_hop += hop["bytes"].get<double>();
  EXPECT_GT(by_hop, 0);
  // Per token Q, K, V and O of half of the heads, of which a group of two sends half: bf16.
  EXPECT_EQ(j["bytes_all_to_all"], 1000 * (4 + 2 + 2 + 4) * 8 * 2 / 2);
  EXPECT_EQ(by_hop + j["bytes_all_to_all"].get<double>(), j["bytes_total"].get<double>());
  EXPECT_TRUE(has(attention_text(a, {}), "96 kB of it all-to-all")) << attention_text(a, {});
  EXPECT_EQ(attention_json(answer(read_question(options("1000", "8"))))["bytes_all_to_all"], 0);
}

TEST_F(InspectAttention, WhatAMatrixShowsStandsBelowItsTitle) {
  AttentionOptions o;
  o.config = FARSPAN_SOURCE_DIR "/configs/quickstart.yaml";
  o.overrides = {"data.train=[none.h5]", "train.micro_batch=8"};
  o.ranks = "8";
  const std::string svg = attention_svg(answer(read_question(o)));
  EXPECT_TRUE(has(svg, ">Who computes what: the score matrix<"));
  EXPECT_TRUE(has(svg, ">the first of 8 sequences<"));
}

TEST_F(InspectAttention, ScoreMapIsTheMask) {
  AttentionQuestion q = read_question(options("8", "2"));
  const ScoreMap map = score_map(q.problem, 100);
  ASSERT_EQ(map.size, 8);
  const int holders[] = {0, 0, 1, 1, 1, 1, 0, 0};
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) {
      EXPECT_EQ(map.at(i, j).place, j <= i ? holders[i] : ScoreMap::kNobody) << i << " " << j;
      if (j <= i) {
        EXPECT_EQ(map.at(i, j).own, holders[i] == holders[j]);
      }
    }
  q.problem.documents = {3, 5};
  q.problem.layout = LayoutKind::kStriped;
  const ScoreMap coarse = score_map(q.problem, 2);  // cells of four tokens, two of each rank
  EXPECT_EQ(coarse.at(0, 0).place, 0);
  q.problem.ranks = 4;
  EXPECT_EQ(score_map(q.problem, 2).at(1, 0).place, ScoreMap::kSeveral);
  EXPECT_EQ(score_map(q.problem, 2).at(0, 1).place, ScoreMap::kNobody);
}

TEST_F(InspectAttention, DocumentLengthsFillTheSequence) {
  std::vector<std::string> notes;
  using Lengths = std::vector<std::int64_t>;
  const std::string file = write("lens", "# two\n10\n\n  20 \r\n");
  EXPECT_EQ(read_document_lengths(file, 30, notes), (Lengths{10, 20}));
  EXPECT_TRUE(notes.empty());
  EXPECT_EQ(read_document_lengths(file, 25, notes), (Lengths{10, 15}));
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_TRUE(has(notes[0], "the last of them cut to 15 tokens")) << notes[0];
  EXPECT_EQ(read_document_lengths(file, 75, notes), (Lengths{10, 20, 10, 20, 10, 5}));
  ASSERT_EQ(notes.size(), 2u);
  EXPECT_TRUE(has(notes[1], "repeated")) << notes[1];
  EXPECT_EQ(read_document_lengths(write("k", "1k\n"), 1024, notes), (Lengths{1024}));
  EXPECT_EQ(read_document_lengths(write("mark",
                                        "\xEF\xBB\xBF"
                                        "7\n"),
                                  7, notes),
            (Lengths{7}));
  const Outcome said = inspect("attention --sequence-length 25 --ranks 2 --doc-lengths " + file);
  EXPECT_EQ(said.code, 0);
  EXPECT_EQ(std::count(said.err.begin(), said.err.end(), '\n'), 1) << said.err;
}

TEST_F(InspectAttention, DocumentsOfAConfiguration) {
  // The data is not there: each sequence is one document, and that is said.
  const Outcome absent = inspect(
      "attention configs/quickstart.yaml --ranks 4 data.train=[none.h5] train.micro_batch=2 "
      "--json");
  ASSERT_EQ(absent.code, 0) << absent.err;
  EXPECT_TRUE(has(absent.err, "each sequence is taken for one document")) << absent.err;
  const Json j = Json::parse(absent.out);
  EXPECT_EQ(j["documents"], 2);
  EXPECT_EQ(j["sequences"], 2);
  EXPECT_EQ(j["sequence_length"], 2048);
  EXPECT_EQ(j["heads"]["key_value"], 2);
  // Options win over the configuration's keys.
  const Outcome other = inspect(
      "attention configs/quickstart.yaml --ranks 2 data.train=[none.h5] --sequence-length 4k "
      "--window 256 --heads 8 --dtype fp32 --layout contiguous --json");
  ASSERT_EQ(other.code, 0) << other.err;
  const Json k = Json::parse(other.out);
  EXPECT_EQ(k["sequence_length"], 4096);
  EXPECT_EQ(k["layout"], "contiguous");
  EXPECT_EQ(k["heads"]["dtype"], "fp32");
  EXPECT_TRUE(has(k["patterns"][0]["pattern"], "256"));
}

TEST_F(InspectAttention, AutomaticChoiceSaysWhy) {
  const Outcome outcome =
      inspect("attention --sequence-length 64k --ranks 8 --layout auto --attention auto --json");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json j = Json::parse(outcome.out);
  EXPECT_TRUE(has(j["why"], "of the ring's bytes")) << j["why"];
  EXPECT_GE(j["candidates"].size(), 8u);
  EXPECT_NE(j["layout"], "auto");
  EXPECT_NE(j["strategy"], "auto");
  const Outcome text = inspect("attention --sequence-length 64k --ranks 8 --layout auto");
  EXPECT_TRUE(has(text.out, "chosen: ")) << text.out;
}

TEST_F(InspectAttention, GivenSpeedsReplaceNominalOnes) {
  const Json nominal = attention_json(answer(read_question(options("64k", "8"))));
  EXPECT_TRUE(has(nominal["speeds"]["name"], "nominal"));
  AttentionOptions o = options("64k", "8");
  o.bandwidth = "10";
  o.flops = "200";
  const Json j = attention_json(answer(read_question(o)));
  EXPECT_EQ(j["speeds"]["bytes_per_second"], 10e9);
  EXPECT_EQ(j["speeds"]["flops_per_second"], 200e12);
  EXPECT_EQ(j["speeds"]["name"], "10 GB/s, 200 TFLOP/s");
  EXPECT_GT(j["predicted"]["exposed_forward"].get<double>(),
            nominal["predicted"]["exposed_forward"].get<double>());
}

TEST_F(InspectAttention, ErrorsNameTheOptionAndWhatCouldBe) {
  const std::string bad = write("bad.txt", "10\n# fine\nten\n");
  const std::string negative = write("negative.txt", "10\n-5\n");
  const std::string zero = write("zero.txt", "0\n");
  const std::string binary = write("binary", "\x1B[31m\xFF\n");
  const std::string empty = write("empty.txt", "# nothing\n");
  const std::string base = "attention --sequence-length 1k ";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"attention", "neither a configuration nor a sequence length"},
      {"attention --sequence-length 1k", "--ranks is missing"},
      {base + "--ranks 0", "between 1 and 1024"},
      {base + "--ranks -3", "between 1 and 1024"},
      {base + "--ranks x", "'x' is not a whole number"},
      {base + "--ranks 1k", "a plain"},
      {base + "--ranks 8 --svg /nonexistent/x.svg", "--svg /nonexistent/x.svg"},
      {base + "--ranks 8 --doc-lengths " + binary, "'?[31m?' is not a whole number"},
      {base + "--ranks 8 --layout zigzagg", "did you mean zigzag?"},
      {base + "--ranks 8 --attention rings", "did you mean ring?"},
      {base + "--ranks 8 --attention hybrid --ulysses 3", "use 1, 2, 4 or 8"},
      {base + "--ranks 6 --attention ulysses --heads 4", "do not divide num_attention_heads 4"},
      {base + "--ranks 8 --window -5", "--window"},
      {base + "--ranks 8 --window 0", "--window 0"},
      {base + "--ranks 8 --sinks 4", "--sinks"},
      {base + "--ranks 8 --heads 5 --kv-heads 2", "--kv-heads"},
      {base + "--ranks 8 --dtype fp16", "did you mean bf16"},
      {base + "--ranks 8 --bandwidth 0", "must be above 0"},
      {base + "--ranks 8 --flops fast", "--flops"},
      {base + "--rank 8", "did you mean --ranks?"},
      {base + "--ranks 8 --doc-lengths /nonexistent", "cannot be read"},
      {base + "--ranks 8 --doc-lengths " + bad, "bad.txt:3"},
      {base + "--ranks 8 --doc-lengths " + negative, "negative.txt:2"},
      {base + "--ranks 8 --doc-lengths " + zero, "zero.txt:1"},
      {base + "--ranks 8 --doc-lengths " + empty, "no document length"},
      {"attention --sequence-length 1G --ranks 8", "more than inspect plans"},
      {"attention /nonexistent.yaml --ranks 8", "does not exist"},
      {"attention configs/quickstart.yaml --ranks 8 train.stepz=3", "did you mean train.steps"},
      {"runs/x attention --sequence-length 1k --ranks 8", "both a path and attention"},
  };
  for (const auto& [arguments, words] : cases) {
    const Outcome outcome = inspect(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.err;
    EXPECT_TRUE(has(outcome.err, words)) << arguments << "\n" << outcome.err;
    EXPECT_TRUE(has(outcome.err, "fix:")) << arguments << "\n" << outcome.err;
    EXPECT_EQ(outcome.out, "") << arguments;
  }
}

TEST_F(InspectAttention, PathsAreStillInspected) {
  const Outcome missing = inspect("/nonexistent/run");
  EXPECT_EQ(missing.code, 2);
  EXPECT_TRUE(has(missing.err, "there is nothing to inspect")) << missing.err;
  const Outcome nothing = inspect("");
  EXPECT_EQ(nothing.code, 2);
  EXPECT_TRUE(has(nothing.err, "no path was named")) << nothing.err;
  // A path that is called attention.
  const Outcome path = inspect("./attention");
  EXPECT_TRUE(has(path.err, "there is nothing to inspect")) << path.err;
  EXPECT_TRUE(has(inspect("attention --help").out, "--doc-lengths"));
}

}  // namespace
}  // namespace farspan::app
