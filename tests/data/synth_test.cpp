#include "data/synth.h"

#include <cmath>
#include <map>
#include <set>

#include "data/loader.h"
#include "data_fixture.h"

namespace farspan::data_test {
namespace {

std::string text_of(const std::vector<std::int32_t>& tokens) {
  std::string out;
  for (std::int32_t id : tokens)
    if (id < 256) out += static_cast<char>(id);
  return out;
}

// The tokens that are scored, as text, with the end as <end>.
std::string scored(const SynthDocument& d) {
  std::string out;
  for (std::size_t t = 0; t < d.tokens.size(); ++t) {
    if (d.labels[t] == kIgnoreLabel) continue;
    EXPECT_EQ(d.labels[t], d.tokens[t]);
    out += d.tokens[t] == 257 ? "<end>" : text_of({d.tokens[t]});
  }
  return out;
}

TEST(Synth, Passkey) {
  std::set<std::string> keys;
  std::set<std::size_t> depths;
  for (std::int64_t i = 0; i < 50; ++i) {
    const SynthDocument d = make_synth_document({.kind = SynthKind::kPasskey, .length = 700}, i);
    ASSERT_EQ(d.tokens.size(), 700u);
    EXPECT_EQ(d.tokens.back(), 257);
    const std::string text = text_of(d.tokens);
    const std::string key = text.substr(text.size() - 5);
    EXPECT_EQ(scored(d), key + "<end>");
    const auto fact = text.find("The pass key is " + key + ". Remember it. ");
    ASSERT_NE(fact, std::string::npos) << text;
    keys.insert(key);
    depths.insert(fact * 4 / text.size());
  }
  EXPECT_GT(keys.size(), 45u);
  EXPECT_GE(depths.size(), 3u) << "depths are spread";
}

TEST(Synth, Kv) {
  for (std::int64_t i = 0; i < 30; ++i) {
    const SynthDocument d = make_synth_document({.kind = SynthKind::kKv, .length = 500 + i}, i);
    ASSERT_EQ(static_cast<std::int64_t>(d.tokens.size()), 500 + i);
    const std::string text = text_of(d.tokens);
    std::map<std::string, std::string> pairs;
    std::size_t at = text.find_first_not_of('\n');
    for (; text[at] != '?'; at += 11)
      EXPECT_TRUE(pairs.emplace(text.substr(at, 4), text.substr(at + 6, 4)).second) << "key twice";
    EXPECT_GT(pairs.size(), 40u);
    EXPECT_EQ(scored(d), pairs.at(text.substr(at + 2, 4)) + "<end>");
    EXPECT_EQ(text.substr(at + 8), pairs.at(text.substr(at + 2, 4)));
  }
}

TEST(Synth, Copy) {
  for (const std::int64_t vocab : {260, 64}) {
    const SynthDocument d =
        make_synth_document({.kind = SynthKind::kCopy, .length = 102, .vocab_size = vocab}, 3);
    ASSERT_EQ(d.tokens.size(), 102u);
    EXPECT_EQ(d.tokens[50], vocab == 260 ? '|' : 62);
    EXPECT_EQ(d.tokens[101], vocab == 260 ? 257 : 63);
    for (std::size_t t = 0; t < 50; ++t) {
      EXPECT_EQ(d.tokens[51 + t], d.tokens[t]);
      EXPECT_LT(d.tokens[t], vocab == 260 ? 'z' + 1 : 62);
      EXPECT_EQ(d.labels[t], kIgnoreLabel);
      EXPECT_EQ(d.labels[51 + t], d.tokens[t]);
    }
    EXPECT_EQ(d.labels[50], kIgnoreLabel);
  }
  const SynthDocument all =
      make_synth_document({.kind = SynthKind::kCopy, .length = 102, .labels = LabelMode::kAll}, 3);
  EXPECT_TRUE(all.labels.empty());
}

// The entropy that the header promises, measured.
TEST(Synth, MarkovHasItsEntropy) {
  std::map<std::int32_t, std::map<std::int32_t, double>> after;
  double total = 0;
  for (std::int64_t i = 0; i < 40; ++i) {
    const SynthDocument d =
        make_synth_document({.kind = SynthKind::kMarkov, .length = 5000, .vocab_size = 50}, i);
    for (std::size_t t = 1; t + 1 < d.tokens.size(); ++t, ++total)
      ++after[d.tokens[t - 1]][d.tokens[t]];
  }
  double bits = 0;
  for (const auto& [symbol, next] : after) {
    EXPECT_LE(next.size(), 4u) << symbol;
    double sum = 0;
    for (const auto& [_, n] : next) sum += n;
    for (const auto& [_, n] : next) bits -= n / total * std::log2(n / sum);
  }
  EXPECT_NEAR(bits, 1.75, 0.02);
}

TEST(Synth, StoresAreDeterministicAndSplit) {
  TemporaryFolder folder;
  for (const SynthKind kind : {SynthKind::kPasskey, SynthKind::kKv, SynthKind::kCopy,
                               SynthKind::kMarkov, SynthKind::kDocuments}) {
    SynthOptions options{.kind = kind,
                         .tokens = 50'000,
                         .length = 256,
                         .seed = 5,
                         .out = folder / "a.h5",
                         .split = Split{"val", 0.2},
                         .overwrite = true};
    const SinkReport a = synthesize(options);
    ASSERT_EQ(a.parts.size(), 2u);
    const std::int64_t tokens = a.parts[0].info.num_tokens + a.parts[1].info.num_tokens;
    EXPECT_GE(tokens, 50'000);
    EXPECT_LT(tokens, 52'000);
    options.out = folder / "b.h5";
    const SinkReport b = synthesize(options);
    EXPECT_EQ(a.parts[0].info.file_hash, b.parts[0].info.file_hash);
    EXPECT_EQ(a.parts[1].info.file_hash, b.parts[1].info.file_hash);
    options.seed = 6;
    EXPECT_NE(synthesize(options).parts[0].info.file_hash, a.parts[0].info.file_hash);
    TokenStore(folder / "a.h5").verify_content();
  }
  SynthOptions documents{
      .kind = SynthKind::kDocuments, .documents = 300, .length = 160, .out = folder / "d.h5"};
  EXPECT_EQ(synthesize(documents).parts[0].info.num_documents, 300);
  const TokenStore store(folder / "d.h5");
  std::uint64_t shortest = 1 << 30, longest = 0;
  for (std::size_t d = 0; d < 300; ++d) {
    const auto length = store.doc_offsets()[d + 1] - store.doc_offsets()[d];
    shortest = std::min(shortest, length);
    longest = std::max(longest, length);
  }
  EXPECT_LT(shortest, 13u);
  EXPECT_GT(longest, 500u);
}

TEST(Synth, ImpossibleOptions) {
  TemporaryFolder folder;
  auto run = [&](SynthOptions options) {
    options.out = folder / "a.h5";
    synthesize(options);
  };
  EXPECT_ERROR(run({.kind = SynthKind::kPasskey, .length = 50}), ExitCode::kUsage, "at least");
  EXPECT_ERROR(run({.kind = SynthKind::kKv, .vocab_size = 5}), ExitCode::kUsage, "--vocab-size");
  EXPECT_ERROR(run({.kind = SynthKind::kMarkov, .vocab_size = 5}), ExitCode::kUsage, "at least 6");
  EXPECT_ERROR(run({.kind = SynthKind::kCopy, .length = 3}), ExitCode::kUsage, "at least 4");
  EXPECT_ERROR(parse_synth_kind("pass"), ExitCode::kUsage, "not known");
  EXPECT_EQ(farspan::testing::count_files(folder.path()), 0);
}

// --- data/loader.h ---

TEST(Loader, FollowsTheConfiguration) {
  TemporaryFolder folder;
  synthesize({.kind = SynthKind::kDocuments,
              .tokens = 20'000,
              .length = 64,
              .out = folder / "a.h5",
              .split = Split{"val", 0.2}});
  config::RunConfig c;
  c.set_seed(9);
  c.mutable_model()->set_vocab_size(260);
  auto* source = c.mutable_data()->add_train();
  source->set_path((folder / "a.h5").string());
  SampleReader reader = open_training_data(c, TokenStore::Verify::kHash);
  const Batch masked = reader.make_batch(0, 2, 512, reader.first_stage());
  EXPECT_GT(masked.segments.back(), 2);
  EXPECT_FALSE(open_validation_data(c, TokenStore::Verify::kHash).has_value());

  c.mutable_data()->set_documents("joined");
  c.mutable_positions()->set_reset_per_document(false);
  SampleReader joined_reader = open_training_data(c, TokenStore::Verify::kSize);
  const Batch joined = joined_reader.make_batch(0, 2, 512, joined_reader.first_stage());
  EXPECT_EQ(joined.tokens, masked.tokens);
  EXPECT_EQ(joined.segments.back(), 1) << "one segment per row";
  EXPECT_EQ(joined.positions[511], 511);
  EXPECT_EQ(joined_reader.fingerprint(), reader.fingerprint());

  c.mutable_data()->set_validation((folder / "a.val.h5").string());
  const auto held_out = open_validation_data(c, TokenStore::Verify::kHash);
  ASSERT_TRUE(held_out.has_value());
  EXPECT_NE(held_out->store().info().file_hash, reader.sources()[0].store->info().file_hash);

  c.mutable_model()->set_vocab_size(200);
  EXPECT_ERROR(open_training_data(c, TokenStore::Verify::kHash), ExitCode::kBadData, "vocabulary");
  EXPECT_ERROR(open_validation_data(c, TokenStore::Verify::kHash), ExitCode::kBadData,
               "vocabulary");
  c.mutable_model()->set_vocab_size(260);
  c.mutable_data()->set_packing("best_fit");
  EXPECT_ERROR(open_training_data(c, TokenStore::Verify::kHash), ExitCode::kUsage, "best_fit");
}

}  // namespace
}  // namespace farspan::data_test
