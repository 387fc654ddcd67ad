#include "train/long_scoring.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "parallel/attention_cost.h"
#include "support/engine_runs.h"
#include "support/saved_run.h"
#include "train/cached_passes.h"
#include "train/generate.h"
#include "train/temporary_folder.h"

namespace farspan::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kRows = 3;
constexpr LongAttentionKind kKinds[] = {LongAttentionKind::kLmInfinite,
                                        LongAttentionKind::kDualChunk};

// The rows of `all`; beyond them, rows without labels.
ScoredRows rows_of(const Batch& all) {
  return {.count = all.sequences,
          .length = all.sequence_length,
          .make = [&all](std::int64_t first, std::int64_t n) {
            const std::int64_t length = all.sequence_length;
            Batch b = blank_batch(n, length);
            std::fill(b.labels.begin(), b.labels.end(), -100);
            for (std::int64_t i = 0; i < std::min(n, all.sequences - first) * length; ++i) {
              const auto to = static_cast<std::size_t>(i);
              const auto from = static_cast<std::size_t>(first * length + i);
              b.tokens[to] = all.tokens[from];
              b.labels[to] = all.labels[from];
              b.positions[to] = all.positions[from];
              b.segments[to] = all.segments[from] + 1000;  // other numbers than the blank rows have
            }
            return b;
          }};
}

// nats of each token's label, -1 where this rank has none.
std::vector<double> nll_of(ScoringModel& model, const Batch& all) {
  std::vector<double> out(all.tokens.size(), -1);
  score_nll(model, rows_of(all), [&](std::int64_t row, std::int64_t token, double nll) {
    out[static_cast<std::size_t>(row * all.sequence_length + token)] = nll;
  });
  return out;
}

std::vector<LabelScore> labels_of(ScoringModel& model, const Batch& all) {
  std::vector<LabelScore> out;
  score_labels(model, rows_of(all), [&](const LabelScore& score) { out.push_back(score); });
  return out;
}

double nll_in(const std::vector<float>& logits, std::int32_t label) {
  double sum = 0;
  for (const float l : logits) sum += std::exp(double{l});
  return std::log(sum) - double{logits[static_cast<std::size_t>(label)]};
}

class LongScoring : public ::testing::Test {
 protected:
  void SetUp() override { save_run(folder_.path(), saved_config()); }

  // Calls body on each of `ranks` ranks.
  void on_ranks(int ranks, const Overrides& overrides,
                const std::function<void(InferenceModel&)>& body) const {
    run_local_ranks(ranks, [&](Communicator& world) {
      InferenceModel model(folder_.path(), overrides, {.quiet = true}, world);
      body(model);
    });
  }

  TemporaryFolder folder_;
};

TEST_F(LongScoring, IsPlainScoringWithinTheContext) {
  const Batch batch = random_batch(5, kRows, 90, 40, 30);
  const std::vector<std::int64_t> lengths = document_lengths(batch.segments);
  on_ranks(1, {}, [&](InferenceModel& model) {
    const std::vector<double> want = nll_of(*scoring_model(model), batch);
    for (const LongAttentionKind kind : kKinds) {
      // All documents fit, or only some of each pass do.
      for (const std::int64_t context : {30, 20}) {
        const auto scoring = long_scoring_model(
            model, {.kind = kind, .context = context, .chunk = 16, .global = 2}, 7);
        const std::vector<double> got = nll_of(*scoring, batch);
        std::size_t t = 0, others = 0;
        for (const std::int64_t length : lengths)
          for (std::int64_t i = 0; i < length; ++i, ++t) {
            if (i < context) {
              ASSERT_NEAR(got[t], want[t], 1e-5) << "token " << t << ", context " << context;
            } else if (std::abs(got[t] - want[t]) > 1e-5) {
              ++others;
            }
          }
        EXPECT_EQ(others > 0, context == 20);
      }
    }
  });
}

// Each label is scored by what the same attention says token by token, as generation computes it.
TEST_F(LongScoring, IsWhatGenerationSees) {
  constexpr std::int64_t kLength = 150;
  const Batch batch = random_batch(5, kRows, kLength, 40, 0);
  on_ranks(1, {}, [&](InferenceModel& model) {
    for (const LongAttentionKind kind : kKinds) {
      const LongAttentionOptions attention{.kind = kind, .context = 24, .chunk = 17, .global = 2};
      std::vector<std::vector<float>> want;
      for (std::int64_t row = 0; row < kRows; ++row) {
        const auto begin = batch.tokens.begin() + row * kLength;
        const Rows logits = cached_passes(model, {begin, begin + kLength}, 0, 64, attention);
        want.insert(want.end(), logits.begin(), logits.end());
      }
      for (const std::int64_t chunk : {1, 13, 64, 2048}) {
        const auto scoring = long_scoring_model(model, attention, chunk);
        const std::vector<double> nll = nll_of(*scoring, batch);
        const std::vector<LabelScore> labels = labels_of(*scoring, batch);
        std::size_t scored = 0;
        for (std::size_t t = 0; t < nll.size(); ++t) {
          const std::int32_t label = batch.labels[t];
          ASSERT_EQ(nll[t] < 0, label < 0) << "token " << t;
          if (label < 0) continue;
          ASSERT_NEAR(nll[t], nll_in(want[t], label), 1e-5) << "token " << t << ", chunk " << chunk;
          const LabelScore& score = labels[scored++];
          ASSERT_EQ(score.row * kLength + score.token, static_cast<std::int64_t>(t));
          ASSERT_NEAR(score.nll, nll[t], 1e-5) << "token " << t;
          ASSERT_EQ(score.best, sample_token(want[t], 0, 1, 0)) << "token " << t;
        }
        ASSERT_EQ(scored, labels.size());
      }
    }
  });
}

TEST_F(LongScoring, DataRanksHaveDocumentsOfTheirOwn) {
  const Batch batch = random_batch(5, kRows, 90, 40, 0);
  const LongAttentionOptions attention{.kind = LongAttentionKind::kDualChunk, .context = 24};
  std::vector<double> want, got(batch.tokens.size(), -1);
  on_ranks(1, {"parallel.layout=striped"}, [&](InferenceModel& model) {
    want = nll_of(*long_scoring_model(model, attention), batch);
  });
  std::mutex mutex;
  on_ranks(2, {"parallel.data=2"}, [&](InferenceModel& model) {
    const std::vector<double> mine = nll_of(*long_scoring_model(model, attention), batch);
    const std::lock_guard lock(mutex);
    for (std::size_t t = 0; t < mine.size(); ++t)
      if (mine[t] >= 0) got[t] = mine[t];
  });
  EXPECT_EQ(got, want);
  on_ranks(2, {}, [&](InferenceModel& model) {
    try {
      long_scoring_model(model, attention);
      ADD_FAILURE() << "two ranks share a document";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("parallel.data=2"));
    }
  });
}

// The memory of a pass does not grow with the document; LM-Infinite forgets keys as well.
TEST_F(LongScoring, MemoryIsBounded) {
  const auto bytes = [&](LongAttentionKind kind, std::int64_t length) {
    std::size_t out = 0;
    const Batch batch = random_batch(5, 1, length, 40, 0);
    on_ranks(1, {}, [&](InferenceModel& model) {
      nll_of(*long_scoring_model(model, {.kind = kind, .context = 24}, 32), batch);
      out = model.engine().scratch().capacity();
    });
    return out;
  };
  EXPECT_EQ(bytes(LongAttentionKind::kLmInfinite, 256),
            bytes(LongAttentionKind::kLmInfinite, 1024));
  const config::Model model = saved_config().model();
  const std::int64_t keys_and_values = 2 * model.num_hidden_layers() * model.num_key_value_heads() *
                                       model.head_dim() * std::int64_t{sizeof(float)};
  EXPECT_EQ(bytes(LongAttentionKind::kDualChunk, 1024) - bytes(LongAttentionKind::kDualChunk, 256),
            static_cast<std::size_t>(768 * keys_and_values));
}

TEST_F(LongScoring, RefusesPositionsThatDoNotCountTokens) {
  Batch batch = random_batch(5, kRows, 90, 40, 0);
  for (std::size_t t = 0; t < batch.positions.size(); ++t)
    batch.positions[t] += static_cast<std::int32_t>(t / 7);
  on_ranks(1, {}, [&](InferenceModel& model) {
    const auto scoring =
        long_scoring_model(model, {.kind = LongAttentionKind::kLmInfinite, .context = 24});
    try {
      nll_of(*scoring, batch);
      ADD_FAILURE() << "positions jump";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("positions go from 6 to 8"));
    }
  });
}

}  // namespace
}  // namespace farspan::testing
