// parallel.invariant: weights after some steps are the same bits whatever the ranks, the layout,
// the micro-batches and the threads.
#include <gtest/gtest.h>

#include <cstring>

#include "support/engine_runs.h"
#include "support/sanitizers.h"
#include "support/tiny_config.h"

namespace farspan::testing {
namespace {

// Sequences of two blocks and a rest, packed with documents; a layer with a window, one without.
config::RunConfig invariant_config(std::string_view precision) {
  config::RunConfig c = tiny_config(precision);
  c.mutable_model()->set_sliding_window(70);
  for (const char* type : {"full_attention", "sliding_attention"})
    c.mutable_model()->add_layer_types(type);
  c.mutable_train()->set_sequence_length(300);
  c.mutable_train()->set_batch_tokens(1200);
  c.mutable_train()->set_steps(5);
  c.mutable_parallel()->set_attention("allgather");
  c.mutable_parallel()->set_layout("contiguous");
  c.mutable_parallel()->set_invariant(true);
  return c;
}

struct Shape4 {
  int context = 1;
  std::string layout = "contiguous";
  int micro_batch = 1;
  int data = 1;
  int threads = 1;
};

EngineRun run(config::RunConfig c, const Shape4& s) {
  c.mutable_parallel()->set_context(s.context);
  c.mutable_parallel()->set_data(s.data);
  c.mutable_parallel()->set_layout(s.layout);
  c.mutable_train()->set_micro_batch(s.micro_batch);
  return run_engine(c, /*longest=*/260, s.threads);
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// The parameters that differ, and what else does.
std::string differences(const EngineRun& a, const EngineRun& b) {
  std::string text;
  for (const auto& [name, weights] : a.weights)
    if (!same_bits(weights, b.weights.at(name))) text += name + " ";
  for (const auto& [name, gradients] : a.gradients)
    if (!same_bits(gradients, b.gradients.at(name))) text += "d(" + name + ") ";
  for (std::size_t i = 0; i < a.steps.size(); ++i) {
    if (a.steps[i].loss != b.steps[i].loss) text += fmt::format("loss {} ", i);
    if (a.steps[i].grad_norm != b.steps[i].grad_norm) text += fmt::format("norm {} ", i);
  }
  return text;
}

class Invariant : public ::testing::TestWithParam<std::string> {
 protected:
  void expect_all_equal(const config::RunConfig& config, const std::vector<Shape4>& shapes) {
    const EngineRun one = run(config, {});
    ASSERT_EQ(one.steps.size(), static_cast<std::size_t>(config.train().steps()));
    ASSERT_TRUE(std::isfinite(one.steps.back().loss));
    EXPECT_LT(one.steps.back().loss, one.steps.front().loss) << "it learns";
    for (const Shape4& s : shapes)
      EXPECT_EQ(differences(one, run(config, s)), "")
          << "context " << s.context << " layout " << s.layout << " micro_batch " << s.micro_batch
          << " data " << s.data << " threads " << s.threads;
  }
};
INSTANTIATE_TEST_SUITE_P(Precisions, Invariant, ::testing::Values("fp32", "bf16"),
                         [](const auto& row) { return row.param; });

TEST_P(Invariant, AnyRanksAndLayouts) {
  std::vector<Shape4> shapes;
  for (const int context : {2, 3, 4})
    for (const char* layout : {"contiguous", "zigzag", "striped", "balanced"})
      shapes.push_back({.context = context, .layout = layout});
  expect_all_equal(invariant_config(GetParam()), shapes);
}

TEST_P(Invariant, AnyMicroBatchesAndDataRanks) {
  std::vector<Shape4> shapes;
  for (const int micro_batch : {1, 2})
    for (const int data : {1, 2})
      for (const auto& [context, layout] :
           {std::pair{1, "contiguous"}, {2, "zigzag"}, {2, "striped"}})
        shapes.push_back({context, layout, micro_batch, data});
  shapes.push_back({.context = 3, .layout = "balanced", .micro_batch = 4});
  expect_all_equal(invariant_config(GetParam()), shapes);
}

TEST_P(Invariant, AnyThreads) {
  if (kThreadSanitizer) GTEST_SKIP() << "one OpenMP thread under ThreadSanitizer";
  expect_all_equal(invariant_config(GetParam()),
                   {{.threads = 2}, {.threads = 3}, {.context = 2, .threads = 2}});
}

// Fewer tokens than a block, so that some ranks hold nothing; untied head; recomputation.
TEST_P(Invariant, ShortSequencesAndRecomputation) {
  config::RunConfig c = invariant_config(GetParam());
  c.mutable_train()->set_sequence_length(100);
  c.mutable_train()->set_batch_tokens(400);
  c.mutable_train()->set_recompute("full");
  c.mutable_model()->set_tie_word_embeddings(false);
  expect_all_equal(c, {{.context = 2},
                       {.context = 3, .layout = "zigzag", .micro_batch = 2},
                       {.context = 2, .layout = "striped", .micro_batch = 4}});
}

// What the mode is for; and the test above can fail.
TEST_P(Invariant, WithoutItBitsDiffer) {
  config::RunConfig c = invariant_config(GetParam());
  c.mutable_parallel()->set_invariant(false);
  const EngineRun one = run(c, {});
  EXPECT_NE(differences(one, run(c, {.context = 2, .layout = "zigzag"})), "");
  EXPECT_NE(differences(one, run(c, {.micro_batch = 2})), "");
}

// So many words that the loss is taken in chunks: these follow the blocks too.
TEST(InvariantMode, LargeVocabulary) {
  config::RunConfig c = invariant_config("fp32");
  c.mutable_model()->set_vocab_size(140000);
  c.mutable_train()->set_sequence_length(200);
  c.mutable_train()->set_batch_tokens(400);
  c.mutable_train()->set_steps(1);
  EXPECT_EQ(differences(run(c, {}), run(c, {.micro_batch = 2})), "");
}

// 16 bytes more for each gradient, which the dry run sees.
TEST(InvariantMode, IsInTheDryRun) {
  config::RunConfig c = invariant_config("fp32");
  const DryRunReport exact = dry_run(c, 0, 1);
  c.mutable_parallel()->set_invariant(false);
  const DryRunReport plain = dry_run(c, 0, 1);
  EXPECT_GE(exact.sizes.gradients, plain.sizes.gradients * 5);
  EXPECT_LE(exact.sizes.gradients, plain.sizes.gradients * 5 + 4096);
  EXPECT_EQ(exact.sizes.weights, plain.sizes.weights);
  EXPECT_EQ(exact.step_work.matmul_flops, plain.step_work.matmul_flops);
}

// The same mathematics: close to the mode that is not invariant.
TEST(InvariantMode, ComputesWhatTheOtherModesCompute) {
  config::RunConfig c = invariant_config("fp32");
  c.mutable_train()->set_steps(1);
  const EngineRun exact = run(c, {.context = 2, .layout = "zigzag"});
  c.mutable_parallel()->set_invariant(false);
  const EngineRun plain = run(c, {.context = 2, .layout = "zigzag"});
  EXPECT_NEAR(exact.steps[0].loss, plain.steps[0].loss, 1e-6 * plain.steps[0].loss);
  EXPECT_NEAR(exact.steps[0].grad_norm, plain.steps[0].grad_norm, 1e-5 * plain.steps[0].grad_norm);
  for (const auto& [name, gradient] : plain.gradients)
    EXPECT_LT(relative_l2(exact.gradients.at(name), gradient), 1e-5) << name;
}

}  // namespace
}  // namespace farspan::testing
