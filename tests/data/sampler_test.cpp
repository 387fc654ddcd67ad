#include "data/sampler.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "data/permutation.h"
#include "data_fixture.h"

namespace farspan::data_test {
namespace {

using Shared = std::shared_ptr<const TokenStore>;

class Stores : public ::testing::Test {
 protected:
  Shared store(const RandomDocuments& options, std::int64_t vocab = 1000) {
    documents_.push_back(make_documents(options));
    const auto path = folder_ / fmt::format("s{}.h5", documents_.size()).c_str();
    write_store(path, documents_.back(), vocab);
    return std::make_shared<const TokenStore>(path);
  }
  TemporaryFolder folder_;
  std::vector<std::vector<Document>> documents_;  // of each store made
};

void expect_equal(const Batch& a, const Batch& b, const std::string& what) {
  EXPECT_EQ(a.tokens, b.tokens) << what;
  EXPECT_EQ(a.labels, b.labels) << what;
  EXPECT_EQ(a.positions, b.positions) << what;
  EXPECT_EQ(a.segments, b.segments) << what;
}

// --- the parts ---

TEST(Permutation, IsOne) {
  for (const std::uint64_t n : {1, 2, 3, 4, 5, 63, 64, 65, 1000, 4096, 4097}) {
    const Permutation p(n, 5, 6);
    std::vector<bool> seen(n);
    for (std::uint64_t k = 0; k < n; ++k) {
      ASSERT_LT(p(k), n);
      ASSERT_FALSE(seen[p(k)]) << p(k) << " twice of " << n;
      seen[p(k)] = true;
    }
  }
}

// First places are spread evenly, and successive places are not related.
TEST(Permutation, LooksRandom) {
  constexpr std::uint64_t kSize = 10, kDraws = 20'000;
  std::array<int, kSize * kSize> pairs{};
  for (std::uint64_t seed = 0; seed < kDraws; ++seed) {
    const Permutation p(kSize, seed, 1);
    ++pairs[p(0) * kSize + p(1)];
  }
  const double expected = static_cast<double>(kDraws) / (kSize * (kSize - 1));
  double chi2 = 0;
  for (std::uint64_t i = 0; i < pairs.size(); ++i) {
    if (i % (kSize + 1) == 0) continue;  // equal pairs are impossible
    const double d = pairs[i] - expected;
    chi2 += d * d / expected;
  }
  EXPECT_LT(chi2, 89 + 6 * std::sqrt(2.0 * 89)) << "89 degrees of freedom";
}

TEST(Mixture, KeepsSharesAtEveryPoint) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const CounterRng rng(seed, 1);
    std::vector<double> weights(1 + rng.below(0, 7));
    for (std::size_t k = 0; k < weights.size(); ++k)
      weights[k] = std::exp(6 * rng.uniform(k + 1) - 3);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    const Mixture mixture(weights, seed);
    std::vector<std::int64_t> counts(weights.size());
    for (std::int64_t n = 0; n < 5000; ++n) {
      const auto place = mixture.place(n, seed);
      auto& count = counts[static_cast<std::size_t>(place.source)];
      ASSERT_EQ(place.ordinal, count) << "sample " << n << ", seed " << seed;
      ++count;
      if (n % 64 == 63) {
        for (std::size_t k = 0; k < weights.size(); ++k)
          ASSERT_NEAR(static_cast<double>(counts[k]), weights[k] / sum * static_cast<double>(n + 1),
                      2.0)
              << "source " << k << ", sample " << n << ", seed " << seed;
      }
      if (n % 37 == 0) {
        ASSERT_EQ(mixture.counts(n + 1, seed), counts) << n << ", seed " << seed;
      }
    }
  }
}

TEST(Mixture, ShufflesInsideBlocks) {
  const Mixture mixture({1, 1}, 9);
  int repeats = 0;
  for (std::int64_t n = 1; n < 6400; ++n)
    repeats += mixture.place(n, 0).source == mixture.place(n - 1, 0).source;
  EXPECT_NEAR(repeats / 6400.0, 0.5, 0.05) << "alternates or clusters";
}

TEST(Mixture, FarAwaySamples) {
  const Mixture mixture({0.3, 0.7}, 1);
  const std::int64_t far = std::int64_t{1} << 50;
  const auto counts = mixture.counts(far, 0);
  EXPECT_EQ(counts[0] + counts[1], far);
  EXPECT_NEAR(static_cast<double>(counts[0]) / static_cast<double>(far), 0.3, 1e-9);
}

// --- packing against a reference that is written token by token ---

struct RefToken {
  std::int32_t token, label, position, segment;
  std::int64_t document;  // counts document appearances in the stream
};

// Epochs of a source one after the other, in memory.
std::vector<RefToken> reference_stream(const std::vector<Document>& documents, std::uint64_t seed,
                                       std::uint64_t source, int epochs) {
  std::vector<RefToken> out;
  std::int64_t appearance = 0;
  for (int e = 0; e < epochs; ++e) {
    const Permutation order(documents.size(), seed,
                            stream_id("data.documents", source, static_cast<std::uint64_t>(e)));
    for (std::uint64_t k = 0; k < documents.size(); ++k, ++appearance) {
      const Document& d = documents[order(k)];
      for (std::size_t i = 0; i < d.tokens.size(); ++i)
        out.push_back({d.tokens[i], d.labels.empty() ? -7 : d.labels[i],
                       d.position_ids.empty() ? -7 : d.position_ids[i],
                       d.segment_ids.empty() ? -7 : d.segment_ids[i], appearance});
    }
  }
  return out;
}

// One row, written from the rules of data/packing.h.
Batch reference_row(const std::vector<RefToken>& stream, std::size_t begin, std::size_t length,
                    PackingOptions options) {
  Batch out{.sequences = 1, .sequence_length = static_cast<std::int64_t>(length)};
  const bool masked = options.documents == Documents::kMasked;
  std::int32_t segment = 0, position = 0;
  for (std::size_t t = 0; t < length; ++t) {
    const RefToken& here = stream[begin + t];
    const RefToken& next = stream[begin + t + 1];
    if (t > 0) {
      const RefToken& last = stream[begin + t - 1];
      const bool new_document = here.document != last.document;
      const bool new_segment = !new_document && here.segment != last.segment;
      if (new_segment || (new_document && masked)) ++segment;
      position = options.reset_positions && (new_document || new_segment) ? 0 : position + 1;
    }
    std::int32_t label = next.label != -7 ? next.label : next.token;
    if (next.document != here.document) {
      if (masked) label = kIgnoreLabel;
    } else if (next.segment != here.segment && next.label == -7) {
      label = kIgnoreLabel;
    }
    out.tokens.push_back(here.token);
    out.labels.push_back(label);
    out.positions.push_back(here.position != -7 ? here.position : position);
    out.segments.push_back(segment);
  }
  return out;
}

TEST_F(Stores, PackingEqualsReference) {
  for (std::uint64_t seed = 1; seed <= 24; ++seed) {
    const bool extras = seed % 3 == 0;
    const RandomDocuments kind{.seed = seed,
                               .count = 1 + static_cast<int>(seed * 7 % 30),
                               .longest = seed % 2 ? 60 : 7,
                               .labels = extras || seed % 5 == 0,
                               .position_ids = extras && seed % 2 == 0,
                               .segment_ids = extras || seed % 7 == 0};
    const Shared s = store(kind);
    const PackingOptions options{
        .documents = seed % 4 < 2 ? Documents::kMasked : Documents::kJoined,
        .reset_positions = seed % 2 == 0};
    SampleReader reader({{s, 1.0}}, {.seed = seed, .packing = options, .vocab_size = 1000});
    const auto stream = reference_stream(documents_.back(), seed, 0, 40);
    for (const std::int64_t length : {1, 2, 13, 64, 257}) {
      const auto n = static_cast<std::size_t>(length);
      for (std::size_t i = 0; (i + 1) * n + 1 < stream.size() && i < 60; ++i) {
        const Batch got =
            reader.make_batch(static_cast<std::int64_t>(i), 1, length, reader.first_stage());
        expect_equal(got, reference_row(stream, i * n, n, options),
                     fmt::format("seed {}, length {}, sample {}", seed, length, i));
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(Stores, SegmentsAscendOverRowsAndPositionsStayInside) {
  const Shared s = store({.count = 50, .longest = 40});
  SampleReader reader({{s, 1.0}}, {.seed = 3});
  const Batch b = reader.make_batch(0, 8, 64, reader.first_stage());
  for (std::size_t t = 0; t < b.tokens.size(); ++t) {
    EXPECT_LT(b.positions[t], 64);
    if (t == 0) continue;
    EXPECT_GE(b.segments[t], b.segments[t - 1]);
    if (t % 64 == 0) {
      EXPECT_GT(b.segments[t], b.segments[t - 1]) << "row " << t / 64;
    }
  }
}

// --- the loader as a whole ---

TEST_F(Stores, SamplesDoNotDependOnTheOrderOfCalls) {
  const Shared a = store({.seed = 1}), b = store({.seed = 2, .count = 33}),
               c = store({.seed = 3, .count = 5});
  const std::vector<WeightedStore> sources{{a, 0.5}, {b, 0.3}, {c, 0.2}};
  const SampleOptions options{.seed = 77};
  SampleReader forward(sources, options);
  const StageStart stage = forward.first_stage();
  std::vector<Batch> expected;
  for (std::int64_t i = 0; i < 200; ++i) expected.push_back(forward.make_batch(i, 1, 48, stage));
  SampleReader random(sources, options);
  const CounterRng rng(5, 5);
  for (std::uint64_t r = 0; r < 300; ++r) {
    const auto i = rng.below(r, 200);
    expect_equal(random.make_batch(static_cast<std::int64_t>(i), 1, 48, stage), expected[i],
                 fmt::format("sample {} in call {}", i, r));
  }
  // Rows of a batch are the samples, whatever the batch.
  const Batch batch = random.make_batch(37, 5, 48, stage);
  for (std::size_t row = 0; row < 5; ++row) {
    const auto begin = batch.tokens.begin() + static_cast<std::ptrdiff_t>(row) * 48;
    EXPECT_TRUE(std::equal(begin, begin + 48, expected[37 + row].tokens.begin())) << row;
  }
  SampleReader other_seed(sources, {.seed = 78});
  EXPECT_NE(other_seed.make_batch(0, 8, 48, stage).tokens,
            random.make_batch(0, 8, 48, stage).tokens);
}

// The mesh decides who reads a sample, never which samples a step has.
TEST(BatchPlace, EveryMeshReadsTheSameSamples) {
  constexpr std::int64_t kBatch = 24;
  for (const std::int64_t ranks : {1, 2, 3, 4})
    for (const std::int64_t micro : {1, 2, 3}) {
      if (kBatch % (ranks * micro) != 0) continue;
      std::multiset<std::int64_t> samples;
      for (std::int64_t a = 0; a < kBatch / (ranks * micro); ++a)
        for (std::int64_t rank = 0; rank < ranks; ++rank)
          for (std::int64_t row = 0; row < micro; ++row)
            samples.insert(row + first_sample_of({.step_first_sample = 5 * kBatch,
                                                  .accumulation = a,
                                                  .data_rank = rank,
                                                  .data_ranks = ranks,
                                                  .micro_batch = micro}));
      std::multiset<std::int64_t> expected;
      for (std::int64_t i = 0; i < kBatch; ++i) expected.insert(5 * kBatch + i);
      EXPECT_EQ(samples, expected) << ranks << " ranks, micro-batch " << micro;
    }
}

// Counts how often each token of an epoch is seen, over stages of different lengths.
TEST_F(Stores, EveryTokenOfAnEpochIsSeenOnce) {
  const RandomDocuments kind{.count = 301, .longest = 90, .unique = true};
  const Shared s = store(kind, 100'000);
  const std::int64_t total = s->info().num_tokens;
  for (const std::vector<std::int64_t>& lengths :
       {std::vector<std::int64_t>{64}, {1000}, {16, 128, 64}, {7, 13, 1}, {20'000}}) {
    SampleReader reader({{s, 1.0}}, {.seed = 4});
    StageStart stage = reader.first_stage();
    std::vector<std::int32_t> seen;
    for (std::size_t k = 0; static_cast<std::int64_t>(seen.size()) < 2 * total; ++k) {
      const std::int64_t length = lengths[k % lengths.size()];
      const std::int64_t samples = 50;
      const Batch b = reader.make_batch(stage.first_sample, samples, length, stage);
      seen.insert(seen.end(), b.tokens.begin(), b.tokens.end());
      stage = reader.next_stage(stage, samples, length);
      ASSERT_EQ(stage.source_tokens[0], static_cast<std::int64_t>(seen.size()));
    }
    std::vector<int> first(static_cast<std::size_t>(total)), second(first);
    for (std::int64_t i = 0; i < total; ++i) {
      ++first[static_cast<std::size_t>(seen[static_cast<std::size_t>(i)])];
      ++second[static_cast<std::size_t>(seen[static_cast<std::size_t>(total + i)])];
    }
    EXPECT_EQ(std::count(first.begin(), first.end(), 1), total) << lengths[0];
    EXPECT_EQ(std::count(second.begin(), second.end(), 1), total) << lengths[0];
    EXPECT_FALSE(std::equal(seen.begin(), seen.begin() + total, seen.begin() + total))
        << "both epochs have the same order";
  }
}

// The same with several sources and stages that end anywhere.
TEST_F(Stores, StagesContinueEachSource) {
  const Shared a = store({.seed = 1, .count = 90, .unique = true}, 100'000);
  const Shared b = store({.seed = 2, .count = 70, .unique = true}, 100'000);
  SampleReader reader({{a, 0.6}, {b, 0.4}}, {.seed = 8});
  const Mixture mixture({0.6, 0.4}, 8);
  StageStart stage = reader.first_stage();
  std::map<int, std::vector<std::int32_t>> seen;
  const std::array<std::pair<std::int64_t, std::int64_t>, 4> stages{
      {{13, 32}, {1, 100}, {77, 8}, {100, 64}}};
  for (const auto& [samples, length] : stages) {
    for (std::int64_t i = 0; i < samples; ++i) {
      const auto place = mixture.place(i, static_cast<std::uint64_t>(stage.first_sample));
      const Batch row = reader.make_batch(stage.first_sample + i, 1, length, stage);
      auto& tokens = seen[place.source];
      tokens.insert(tokens.end(), row.tokens.begin(), row.tokens.end());
    }
    stage = reader.next_stage(stage, samples, length);
  }
  for (int source = 0; source < 2; ++source) {
    const auto stream = reference_stream(documents_[static_cast<std::size_t>(source)], 8,
                                         static_cast<std::uint64_t>(source), 10);
    ASSERT_LE(seen[source].size(), stream.size());
    for (std::size_t i = 0; i < seen[source].size(); ++i)
      ASSERT_EQ(seen[source][i], stream[i].token) << "source " << source << ", token " << i;
  }
}

TEST(CutSegments, EachWindowOfARowStartsANewOne) {
  Batch batch = empty_batch(2, 7);
  batch.segments = {0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3};
  cut_segments(batch, 3);
  EXPECT_EQ(batch.segments, (std::vector<std::int32_t>{0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 6, 7}));
}

// One document of distinct tokens: which of them a row shows, what they predict, and what the next
// row begins with.
TEST_F(Stores, SourceWindowsCutOneDocument) {
  documents_.push_back({Document{}});
  for (std::int32_t i = 0; i < 4000; ++i) documents_.back()[0].tokens.push_back(i);
  write_store(folder_ / "long.h5", documents_.back(), 4000);
  const auto text = std::make_shared<const TokenStore>(folder_ / "long.h5");
  PackingOptions packing;
  packing.positions = {.sampler = PositionSampler::kPose,
                       .original_context = 64,
                       .target_context = 1024,
                       .chunks = 3,
                       .source_window = 256};
  SampleReader reader({{text, 1.0}}, {.seed = 9, .packing = packing});
  EXPECT_EQ(reader.stream_tokens(64, reader.first_stage()), 256);
  StageStart stage = reader.first_stage();
  int skips = 0;
  for (std::int64_t i = 0; i < 12; ++i) {
    const Batch b = reader.make_batch(i, 1, 64, stage);
    for (std::size_t t = 0; t < 64; ++t) {
      ASSERT_GE(b.tokens[t], 256 * i);
      ASSERT_LT(b.tokens[t], 256 * (i + 1));
      ASSERT_EQ(b.segments[t], 0) << "chunks attend to one another";
      if (t + 1 == 64) {
        ASSERT_EQ(b.labels[t], b.tokens[t] + 1);
      } else if (b.tokens[t + 1] == b.tokens[t] + 1) {
        ASSERT_EQ(b.labels[t], b.tokens[t + 1]);
      } else {
        ASSERT_GT(b.tokens[t + 1], b.tokens[t]);
        ASSERT_EQ(b.labels[t], kIgnoreLabel) << "predicted across a skip";
        ++skips;
      }
    }
    // Chunks of the text are chunks of the positions.
    const auto runs =
        draw_positions(packing.positions, {.seed = 9, .sample = static_cast<std::uint64_t>(i)}, 64);
    std::size_t t = 0;
    for (const PositionRun& run : runs)
      for (std::int64_t k = 0; k < run.count; ++k) ASSERT_EQ(b.positions[t++], run.first + k);
  }
  EXPECT_GT(skips, 12);
  stage = reader.next_stage(stage, 12, 64);
  EXPECT_EQ(stage.source_tokens[0], 12 * 256) << "skipped tokens are passed over";
}

// Packed documents: seen at most once in an epoch, W - S of each window skipped, and nothing is
// predicted across a skip or a border.
TEST_F(Stores, SourceWindowsOverPackedDocuments) {
  for (const bool joined : {false, true}) {
    const Shared s = store({.count = 400, .longest = 90, .unique = true}, 100'000);
    const std::int64_t total = s->info().num_tokens, kWindow = 200, kLength = 64;
    std::vector<std::int64_t> document_of(static_cast<std::size_t>(total));
    for (std::size_t d = 0; d + 1 < s->doc_offsets().size(); ++d)
      for (auto t = s->doc_offsets()[d]; t < s->doc_offsets()[d + 1]; ++t)
        document_of[t] = static_cast<std::int64_t>(d);
    PackingOptions packing{.documents = joined ? Documents::kJoined : Documents::kMasked,
                           .reset_positions = !joined};
    packing.positions = {.sampler = PositionSampler::kPose,
                         .original_context = kLength,
                         .target_context = 512,
                         .source_window = kWindow};
    SampleReader reader({{s, 1.0}}, {.seed = 5, .packing = packing});
    std::vector<int> seen(static_cast<std::size_t>(total));
    const std::int64_t samples = total / kWindow;
    const Batch b = reader.make_batch(0, samples, kLength, reader.first_stage());
    for (std::size_t t = 0; t < b.tokens.size(); ++t) {
      const std::int32_t token = b.tokens[t];
      ++seen[static_cast<std::size_t>(token)];
      if (b.labels[t] == kIgnoreLabel) continue;
      const auto next = static_cast<std::size_t>(b.labels[t]);
      if (!joined) {
        ASSERT_EQ(b.labels[t], token + 1);
      }
      ASSERT_TRUE(b.labels[t] == token + 1 ||
                  document_of[next] != document_of[static_cast<std::size_t>(token)]);
      if (t % kLength + 1 == kLength) continue;
      ASSERT_EQ(b.labels[t], b.tokens[t + 1]);
      ASSERT_EQ(b.segments[t], b.segments[t + 1]);
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), samples * kLength);
    EXPECT_EQ(std::count_if(seen.begin(), seen.end(), [](int n) { return n > 1; }), 0);
  }
}

TEST_F(Stores, ATinyStoreRepeatsInsideOneWindow) {
  const Shared s = store({.count = 1, .longest = 3, .unique = true});
  const std::int64_t total = s->info().num_tokens;
  SampleReader reader({{s, 1.0}}, {.seed = 4});
  const Batch b = reader.make_batch(0, 1, 100, reader.first_stage());
  for (std::int64_t t = 0; t < 100; ++t) {
    EXPECT_EQ(b.tokens[static_cast<std::size_t>(t)], t % total);
    EXPECT_EQ(b.segments[static_cast<std::size_t>(t)], t / total);
    EXPECT_EQ(b.positions[static_cast<std::size_t>(t)], t % total);
  }
}

TEST_F(Stores, VocabularyMustFit) {
  const Shared s = store({}, 1000);
  EXPECT_ERROR(SampleReader({{s, 1.0}}, {.vocab_size = 999}), ExitCode::kBadData,
               "model.vocab_size");
  EXPECT_ERROR(EvaluationReader(s, {}, 999), ExitCode::kBadData, "model.vocab_size");
  EXPECT_NO_THROW(SampleReader({{s, 1.0}}, {.vocab_size = 1024}));
}

// --- evaluation ---

TEST_F(Stores, EvaluationScoresEveryTargetOnce) {
  for (const bool masked : {true, false}) {
    const RandomDocuments kind{.seed = 6, .count = 40, .longest = 50, .unique = true};
    const Shared s = store(kind, 100'000);
    const std::int64_t total = s->info().num_tokens;
    const EvaluationReader reader(
        s, {.documents = masked ? Documents::kMasked : Documents::kJoined}, 0);
    for (const std::int64_t length : {1, 16, 37, 5000})
      for (const std::int64_t limit : {std::int64_t{0}, std::int64_t{100}, total, total + 500}) {
        const std::int64_t samples = reader.num_samples(length, limit);
        const std::int64_t covered = limit > 0 ? std::min(limit, total) : total;
        EXPECT_EQ(samples, (covered + length - 1) / length);
        const Batch b = reader.make_batch(0, samples + 2, length, limit);
        std::vector<int> targets(static_cast<std::size_t>(total) + 1);
        for (std::size_t t = 0; t < b.tokens.size(); ++t)
          if (b.labels[t] != kIgnoreLabel) {
            EXPECT_EQ(b.labels[t], b.tokens[t] + 1) << t;
            EXPECT_EQ(b.tokens[t], static_cast<std::int32_t>(t)) << "stored order";
            ++targets[static_cast<std::size_t>(b.labels[t])];
          }
        const auto offsets = s->doc_offsets();
        for (std::int64_t t = 1; t < total; ++t) {
          const bool starts =
              std::binary_search(offsets.begin(), offsets.end(), static_cast<std::uint64_t>(t));
          const int expected = t <= covered && !(masked && starts) ? 1 : 0;
          ASSERT_EQ(targets[static_cast<std::size_t>(t)], expected)
              << "target " << t << ", length " << length << ", limit " << limit;
        }
        // Rows without a sample are padding in a segment of its own.
        const std::size_t padding = static_cast<std::size_t>(samples * length);
        EXPECT_EQ(b.tokens[padding], 2) << "pad id";
        EXPECT_GT(b.segments[padding], b.segments[padding - 1]);
        EXPECT_EQ(b.labels.back(), kIgnoreLabel);
      }
  }
}

}  // namespace
}  // namespace farspan::data_test
