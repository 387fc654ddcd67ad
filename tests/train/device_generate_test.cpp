// Generation on a GPU, or on the emulated one, against the CPU.
#include "support/saved_run.h"
#include "train/cached_passes.h"
#include "train/device_runs.h"
#include "train/generate.h"
#include "train/temporary_folder.h"

namespace farspan::testing {
namespace {

class GeneratesOnDevice : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (!IsSkipped()) save_run(folder_.path(), saved_config());
  }

  Rows logits(Overrides overrides, int ranks, std::int64_t length, std::int64_t chunk,
              const LongAttentionOptions& long_attention = {}) const {
    const std::vector<std::int32_t> tokens = random_tokens(length);
    Rows out;
    run_local_ranks(ranks, [&](Communicator& world) {
      InferenceModel model(folder_.path(), overrides, {.quiet = true}, world);
      Rows mine = cached_passes(model, tokens, length - 4, chunk, long_attention);
      if (world.rank() == 0) out = std::move(mine);
    });
    return out;
  }

  TemporaryFolder folder_;
};

TEST_F(GeneratesOnDevice, InChunksAsOnTheCpu) {
  for (const Overrides& mask :
       {Overrides{}, Overrides{"model.sliding_window=9", "model.attention_sinks=3"}}) {
    Overrides device = mask;
    device.emplace_back("device=cuda");
    const Rows want = logits(mask, 1, 40, 64);
    for (const std::int64_t chunk : {13, 64})
      EXPECT_LT(distance(logits(device, 1, 40, chunk), want), 1e-5) << "chunk " << chunk;
  }
}

TEST_F(GeneratesOnDevice, OnTwoRanksAsOnTheCpu) {
  EXPECT_LT(distance(logits({"device=cuda"}, 2, 140, 64), logits({}, 1, 140, 64)), 1e-5);
}

TEST_F(GeneratesOnDevice, BeyondTheContextAsOnTheCpu) {
  for (const LongAttentionKind kind :
       {LongAttentionKind::kLmInfinite, LongAttentionKind::kDualChunk}) {
    const LongAttentionOptions options{.kind = kind, .context = 16, .global = 4};
    EXPECT_LT(distance(logits({"device=cuda"}, 1, 40, 13, options), logits({}, 1, 40, 13, options)),
              1e-5);
  }
}

}  // namespace
}  // namespace farspan::testing
