#include "train/long_samples.h"

#include <gmock/gmock.h>

#include "data/synth.h"
#include "support/saved_run.h"
#include "train/factor_search.h"
#include "train/perplexity.h"
#include "train/temporary_folder.h"

namespace farspan::testing {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const TokenStore> text(const TemporaryFolder& folder, std::int64_t tokens,
                                       std::int64_t length) {
  synthesize({.kind = SynthKind::kMarkov,
              .tokens = tokens,
              .length = length,
              .vocab_size = 40,
              .out = folder / "text.h5"});
  return std::make_shared<const TokenStore>(folder / "text.h5");
}

TEST(LongSamples, LieWholeInOneDocument) {
  const TemporaryFolder folder;
  const auto store = text(folder, 1000, 100);
  const EvaluationReader masked(store, {}, 40);
  const auto all = draw_long_samples(masked, {.length = 48, .count = 100});
  EXPECT_EQ(all.size(), 20u);  // two to a document
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].end - all[i].begin, 48);
    EXPECT_EQ(all[i].scored, all[i].begin);
    EXPECT_EQ(masked.context_within(all[i].begin, all[i].end - 1), 48);
    if (i > 0) {
      EXPECT_GE(all[i].begin, all[i - 1].end);
    }
  }
  const auto begins = [&](std::uint64_t seed) {
    std::vector<std::int64_t> out;
    for (const auto& w :
         draw_long_samples(masked, {.length = 48, .count = 4, .scored = 10, .seed = seed})) {
      EXPECT_EQ(w.scored, w.end - 10);
      out.push_back(w.begin);
    }
    return out;
  };
  EXPECT_EQ(begins(1).size(), 4u);
  EXPECT_EQ(begins(1), begins(1));
  EXPECT_NE(begins(1), begins(2));
  EXPECT_THROW(draw_long_samples(masked, {.length = 101}), Error);
  const EvaluationReader joined(store, {.documents = Documents::kJoined, .reset_positions = false},
                                40);
  EXPECT_EQ(draw_long_samples(joined, {.length = 300, .count = 9}).size(), 3u);
  try {
    draw_long_samples(masked, {.length = 200});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_THAT(error.what(), HasSubstr("no document has 200 tokens: the longest has 100"));
  }
}

struct Scored {
  std::vector<double> of_candidates;  // one model, rescaled for each
  std::vector<double> windows;        // eval's own pass, with a model that was loaded so
};

const std::vector<std::string> kLongRope = {
    "model.rope.scaling={type: longrope, original_context: 48, target_context: 96, "
    "attention_factor: 1.5, short_factor: [1, 1, 1, 1], long_factor: [1, 1.5, 2, 2.5]}"};

Scored score(const TemporaryFolder& folder, int ranks, const char* parallel) {
  Scored out;
  const EvaluationReader reader(std::make_shared<const TokenStore>(folder / "text.h5"), {}, 40);
  const auto samples = draw_long_samples(reader, {.length = 96, .count = 9});
  const SearchSpace space{.head_dim = 8, .original_context = 48, .target_context = 96};
  run_local_ranks(ranks, [&](Communicator& world) {
    Scored mine;
    const std::vector<std::string> overrides = {parallel};
    InferenceModel model(folder / "run", overrides, {.quiet = true}, world);
    const auto scoring = scoring_model(model);
    for (const RotaryFactors& f :
         {RotaryFactors{{1, 1, 1, 1}, 1}, {{1, 1.5, 2, 2.5}, 1.5}, {{2, 2, 2, 2}, 1}}) {
      model.rescale(to_scaling(f, space));
      mine.of_candidates.push_back(long_samples_nll(*scoring, reader, samples, 96));
    }
    for (const auto& scaling : {std::vector<std::string>(), kLongRope}) {
      InferenceModel fresh(folder / "run", scaling, {.quiet = true}, world);
      mine.windows.push_back(
          score_windows(*scoring_model(fresh), reader,
                        {.length = 96, .stride = 96, .first = 1, .tokens = 5 * 96})
              .mean());
    }
    if (world.rank() == world.size() - 1) out = std::move(mine);
  });
  return out;
}

TEST(LongSamples, AreScoredAsEvalScoresThemAndTheSameOnAnyRanks) {
  const TemporaryFolder folder;
  text(folder, 5 * 96 + 1, 5 * 96 + 1);  // five samples, one after the other
  save_run(folder / "run", saved_config());
  const Scored one = score(folder, 1, "parallel.context=1");
  EXPECT_NEAR(one.of_candidates[0], one.windows[0], 1e-12);
  EXPECT_NEAR(one.of_candidates[1], one.windows[1], 1e-12);
  EXPECT_GT(std::abs(one.of_candidates[1] - one.of_candidates[0]), 1e-4);
  EXPECT_GT(std::abs(one.of_candidates[2] - one.of_candidates[0]), 1e-4);
  for (const int ranks : {2, 3})
    EXPECT_EQ(score(folder, ranks, "parallel.context=1").of_candidates, one.of_candidates) << ranks;
  const Scored shared = score(folder, 2, "parallel.context=2");
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_NEAR(shared.of_candidates[i], one.of_candidates[i], 1e-5);
}

}  // namespace
}  // namespace farspan::testing
