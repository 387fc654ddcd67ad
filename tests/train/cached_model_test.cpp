// Kept keys and values against a pass over the whole document.
#include "train/cached_model.h"

#include <gmock/gmock.h>

#include <mutex>

#include "support/saved_run.h"
#include "train/cached_passes.h"
#include "train/generate.h"
#include "train/temporary_folder.h"

namespace farspan {
namespace {

using ::testing::HasSubstr;
using namespace testing;
// Logits after each of the tokens [first, length) of the document, from passes over all of it.
Rows whole_passes(InferenceModel& model, const std::vector<std::int32_t>& tokens,
                  std::int64_t first) {
  Rows out;
  const auto length = static_cast<std::int64_t>(tokens.size());
  Batch batch = blank_batch(1, length);
  for (std::int64_t i = 0; i < length; ++i)
    batch.tokens[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  Sharding sharding = Sharding::from(model.config(), {});
  sharding.layout = LayoutKind::kContiguous;
  MicroBatch micro = shard(batch, sharding);
  const std::vector<std::int32_t> order = micro.tokens;
  for (std::size_t row = 0; row < order.size(); ++row)
    micro.tokens[row] = tokens[static_cast<std::size_t>(order[row])];
  const auto pass = [&](ForwardEngine& engine) {
    out.clear();
    for (std::int64_t i = first; i < length; ++i) {
      auto scope = engine.scratch().scope();
      const Tensor logits = engine.scratch().take(DType::kF32, {1, 40}, "logits");
      const auto row = std::find(order.begin(), order.end(), i) - order.begin();
      engine.model().logits(engine.upload(micro), row, logits, engine.context(micro));
      out.emplace_back(40);
      engine.read(logits, out.back().data());
    }
  };
  model.reserve(pass);
  pass(model.engine());
  return out;
}

config::RunConfig with_position(const std::string& position) {
  config::RunConfig c = saved_config();
  c.mutable_model()->set_position(position);
  return c;
}

struct Case {
  const char* name;
  const char* position;
  Overrides overrides;
};
std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

class CachedPatterns : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    All, CachedPatterns,
    ::testing::Values(
        Case{"full", "rope", {}}, Case{"none", "none", {}}, Case{"alibi", "alibi", {}},
        Case{"xpos", "xpos", {}}, Case{"window", "rope", {"model.sliding_window=9"}},
        Case{"sinks", "rope", {"model.sliding_window=9", "model.attention_sinks=3"}},
        Case{"alibi_sinks", "alibi", {"model.sliding_window=9", "model.attention_sinks=3"}},
        Case{"layer_types",
             "rope",
             {"model.sliding_window=9", "model.layer_types=[sliding_attention, full_attention]"}},
        Case{"yarn_on_full_layers",
             "rope",
             {"model.sliding_window=9", "model.layer_types=[sliding_attention, full_attention]",
              "model.rope.scaling={type: yarn, original_context: 16, factor: 8, layers: "
              "full_attention}"}},
        Case{"dynamic_on_full_layers",
             "rope",
             {"model.sliding_window=9", "model.layer_types=[sliding_attention, full_attention]",
              "model.rope.scaling={type: dynamic, original_context: 16, factor: 8, layers: "
              "full_attention}"}},
        Case{"bigbird",
             "rope",
             {"model.sparse_attention.type=bigbird", "model.sparse_attention.block_size=8",
              "model.sparse_attention.window_blocks=1"}},
        Case{"s2",
             "rope",
             {"model.sparse_attention.type=s2", "model.sparse_attention.group_size=16"}},
        Case{"dilated",
             "xpos",
             {"model.sparse_attention.type=dilated",
              "model.sparse_attention.segment_lengths=[12, 48]",
              "model.sparse_attention.dilations=[1, 4]"}}),
    [](const auto& c) { return std::string(c.param.name); });

TEST_P(CachedPatterns, ChunksEqualOnePass) {
  const TemporaryFolder folder;
  save_run(folder.path(), with_position(GetParam().position));
  const auto world = make_self_communicator();
  InferenceModel model(folder.path(), GetParam().overrides, {}, *world);
  const std::vector<std::int32_t> tokens = random_tokens(70);
  const Rows want = whole_passes(model, tokens, 60);
  for (const std::int64_t chunk : {1, 7, 32, 100})
    EXPECT_LT(distance(cached_passes(model, tokens, 60, chunk), want), 1e-5) << "chunk " << chunk;
}

// The same on ranks that share the document: the prompt by any strategy, later tokens by merging.
TEST_P(CachedPatterns, RanksEqualOne) {
  const TemporaryFolder folder;
  save_run(folder.path(), with_position(GetParam().position));
  const std::vector<std::int32_t> tokens = random_tokens(280);
  Rows want;
  {
    const auto world = make_self_communicator();
    InferenceModel model(folder.path(), GetParam().overrides, {}, *world);
    want = cached_passes(model, tokens, 271, 64);
  }
  for (const Overrides& parallel : {Overrides{},
                                    {"parallel.attention=allgather", "parallel.layout=striped"},
                                    {"parallel.attention=hybrid", "parallel.ulysses=2"}}) {
    Overrides overrides = GetParam().overrides;
    overrides.insert(overrides.end(), parallel.begin(), parallel.end());
    const int ranks = parallel.empty() ? 3 : 4;
    std::mutex mutex;
    std::vector<Rows> got;
    run_local_ranks(ranks, [&](Communicator& world) {
      InferenceModel model(folder.path(), overrides, {.quiet = true}, world);
      Rows mine = cached_passes(model, tokens, 271, 64);
      const std::lock_guard lock(mutex);
      got.push_back(std::move(mine));
    });
    for (const Rows& rank : got) {
      EXPECT_LT(distance(rank, want), 1e-5) << ::testing::PrintToString(parallel);
      EXPECT_EQ(rank, got.front()) << "ranks differ";
    }
  }
}

TEST(CachedModel, Bf16IsCloseToOnePass) {
  const TemporaryFolder folder;
  save_run(folder.path(), saved_config("bf16"));
  const auto world = make_self_communicator();
  InferenceModel model(folder.path(), {}, {}, *world);
  const std::vector<std::int32_t> tokens = random_tokens(70);
  EXPECT_LT(distance(cached_passes(model, tokens, 60, 16), whole_passes(model, tokens, 60)), 0.05);
}

// Prompts that are too short to share, and texts whose later tokens outnumber the prompt's.
TEST(Generate, RanksWriteTheSameText) {
  const TemporaryFolder folder;
  save_run(folder.path(), saved_config());
  for (const std::size_t prompt_length : {1u, 5u, 300u}) {
    const std::vector<std::int32_t> prompt =
        random_tokens(static_cast<std::int64_t>(prompt_length));
    const auto text = [&](int ranks, const GenerateOptions& options) {
      std::mutex mutex;
      std::vector<std::vector<std::int32_t>> all;
      run_local_ranks(ranks, [&](Communicator& world) {
        InferenceModel model(folder.path(), {}, {.quiet = true}, world);
        auto tokens = generate(model, prompt, options).tokens;
        const std::lock_guard lock(mutex);
        all.push_back(std::move(tokens));
      });
      for (const auto& tokens : all) EXPECT_EQ(tokens, all.front());
      return all.front();
    };
    for (const double temperature : {0.0, 1.0}) {
      const GenerateOptions options{.max_new_tokens = 70, .temperature = temperature, .chunk = 32};
      const auto alone = text(1, options);
      EXPECT_EQ(alone.size(), 70u);
      EXPECT_EQ(text(3, options), alone) << "prompt " << prompt_length << ", " << temperature;
    }
  }
}

TEST(Generate, StopsWhereItIsTold) {
  const TemporaryFolder folder;
  save_run(folder.path(), saved_config());
  const auto world = make_self_communicator();
  InferenceModel model(folder.path(), {}, {}, *world);
  const std::vector<std::int32_t> prompt = random_tokens(9);
  const GenerateOptions options{.max_new_tokens = 20, .temperature = 1.0};
  const auto all = generate(model, prompt, options).tokens;
  std::vector<std::int32_t> heard;
  const auto some = generate(model, prompt, options, [&](std::int32_t token) {
                      heard.push_back(token);
                      return heard.size() < 4;
                    }).tokens;
  EXPECT_EQ(some, std::vector(all.begin(), all.begin() + 4));
  EXPECT_EQ(heard, some);
  GenerateOptions stopping = options;
  stopping.stop_token = all[5];
  const auto end = std::find(all.begin(), all.end(), all[5]);
  EXPECT_EQ(generate(model, prompt, stopping).tokens, std::vector(all.begin(), end));
  EXPECT_THROW(generate(model, std::vector<std::int32_t>{40}, options), Error);
}

TEST(Generate, ATrainingModelWritesWhatItsCheckpointDoes) {
  const TemporaryFolder folder;
  config::RunConfig config = saved_config();
  save_run(folder.path(), config);
  const std::vector<std::int32_t> prompt = random_tokens(9);
  const GenerateOptions options{.max_new_tokens = 20};
  const auto world = make_self_communicator();
  InferenceModel model(folder.path(), {}, {}, *world);
  const auto backend = make_backend({});
  const Mesh mesh(*world, 1, 1);
  Trace trace;
  config.set_seed(config.seed() + 1);
  Engine engine(config, *backend, mesh, dry_run(config, 0, 1).sizes, trace);
  engine.initialize();
  EXPECT_EQ(generate(config, engine.model(), *backend, prompt, options).tokens,
            generate(model, prompt, options).tokens);
}

TEST(Generate, SamplesTheNucleus) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.1f), std::log(0.4f)};
  EXPECT_EQ(sample_token(logits, 0, 1, 0.99), 0);
  EXPECT_EQ(sample_token(logits, 1, 1, 0.49), 0);
  EXPECT_EQ(sample_token(logits, 1, 1, 0.51), 2);
  EXPECT_EQ(sample_token(logits, 1, 1, 0.95), 1);
  EXPECT_EQ(sample_token(logits, 1, 0.85, 0.99), 2) << "0.5 + 0.4 reach 0.85: 1 is cut off";
  EXPECT_EQ(sample_token(logits, 1, 0.01, 0.99), 0);
}

// What the long modes refuse, with the reason.
TEST(LongGenerate, SaysWhatCannotBe) {
  const TemporaryFolder folder;
  save_run(folder.path(), saved_config());
  const TemporaryFolder alibi;
  save_run(alibi.path(), with_position("alibi"));
  const GenerateOptions options{
      .max_new_tokens = 2,
      .long_attention = {.kind = LongAttentionKind::kDualChunk, .context = 48}};
  const auto refusal = [&](const std::filesystem::path& path, const Overrides& overrides,
                           int ranks) {
    std::string text = "accepted";
    try {
      run_local_ranks(ranks, [&](Communicator& world) {
        InferenceModel model(path, overrides, {.quiet = true}, world);
        generate(model, random_tokens(9), options);
      });
    } catch (const Error& error) {
      text = error.what();
    }
    return text;
  };
  EXPECT_EQ(refusal(folder.path(), {}, 1), "accepted");
  EXPECT_THAT(refusal(folder.path(), {}, 2), HasSubstr("on one rank, and 2 ranks share it"));
  EXPECT_THAT(refusal(alibi.path(), {}, 1), HasSubstr("model.position is alibi"));
  EXPECT_THAT(refusal(folder.path(), {"model.sliding_window=8"}, 1), HasSubstr("window 8"));
  EXPECT_THAT(refusal(folder.path(), {"parallel.data=2"}, 2), HasSubstr("parallel.data"));
}

// Within the context that was trained, both modes are the model's own attention.
TEST(LongGenerate, IsPlainAttentionInShortTexts) {
  const TemporaryFolder folder;
  save_run(folder.path(), saved_config());
  const auto world = make_self_communicator();
  InferenceModel model(folder.path(), {}, {}, *world);
  const std::vector<std::int32_t> prompt = random_tokens(20);
  GenerateOptions options{.max_new_tokens = 12, .temperature = 0};
  const auto plain = generate(model, prompt, options).tokens;
  options.chunk = 6;
  options.long_attention = {.kind = LongAttentionKind::kLmInfinite, .context = 40, .global = 4};
  EXPECT_EQ(generate(model, prompt, options).tokens, plain);
  options.long_attention = {.kind = LongAttentionKind::kDualChunk, .context = 48, .chunk = 36};
  EXPECT_EQ(generate(model, prompt, options).tokens, plain);
}

}  // namespace
}  // namespace farspan
