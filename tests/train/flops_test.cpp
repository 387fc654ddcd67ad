#include "train/flops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/device.h"
#include "core/error.h"
#include "train/micro_batch.h"

namespace farspan {
namespace {

config::Model model_of(std::int64_t d, std::int64_t layers, std::int64_t hq, std::int64_t hkv,
                       std::int64_t f, std::int64_t v) {
  config::Model m;
  m.set_hidden_size(d);
  m.set_num_hidden_layers(layers);
  m.set_num_attention_heads(hq);
  m.set_num_key_value_heads(hkv);
  m.set_head_dim(d / hq);
  m.set_intermediate_size(f);
  m.set_vocab_size(v);
  return m;
}

// Pairs of one layer, mean over query heads, counted one by one.
double brute_force_pairs(const AttentionPattern& pattern, std::int64_t length,
                         std::int64_t num_kv_heads) {
  double n = 0;
  for (const MaskTile& tile : mask_tiles(pattern, length, num_kv_heads)) {
    const std::int64_t heads = std::min<std::int64_t>(tile.kv_heads.end, num_kv_heads) -
                               std::min<std::int64_t>(tile.kv_heads.begin, num_kv_heads);
    for (std::int64_t q = tile.q.begin; q < tile.q.end; q += tile.q.stride)
      for (std::int64_t k = tile.k.begin; k < tile.k.end; k += tile.k.stride) {
        const bool kept =
            tile.step == 1 || (q % tile.step == tile.residue && k % tile.step == tile.residue);
        if (kept && q - k >= tile.min_distance && q - k <= tile.max_distance)
          n += static_cast<double>(heads);
      }
  }
  return n / static_cast<double>(num_kv_heads);
}

TEST(Flops, PairsAreCountedExactly) {
  config::Model window = model_of(8, 3, 4, 2, 16, 10);
  window.set_sliding_window(7);
  config::Model sinks = window;
  sinks.set_attention_sinks(3);
  config::Model mixed = sinks;
  for (const char* type : {"full_attention", "sliding_attention", "sliding_attention"})
    mixed.add_layer_types(type);
  config::Model dilated = model_of(8, 3, 4, 2, 16, 10);
  auto& branches = *dilated.mutable_sparse_attention();
  branches.set_type("dilated");
  for (const std::int64_t length : {8, 18}) branches.add_segment_lengths(length);
  for (const std::int64_t dilation : {1, 3}) branches.add_dilations(dilation);
  config::Model bigbird = model_of(8, 3, 4, 2, 16, 10);
  bigbird.mutable_sparse_attention()->set_type("bigbird");
  bigbird.mutable_sparse_attention()->set_block_size(4);
  config::Model shifted = model_of(8, 3, 4, 2, 16, 10);
  shifted.mutable_sparse_attention()->set_type("s2");
  shifted.mutable_sparse_attention()->set_group_size(6);
  for (const config::Model& m :
       {model_of(8, 3, 4, 2, 16, 10), window, sinks, mixed, dilated, bigbird, shifted}) {
    const LayerPatterns patterns = layer_patterns(m);
    SCOPED_TRACE(patterns.patterns.back().description());
    for (const std::int64_t length : {1, 2, 5, 8, 19, 37, 64}) {
      double expected = 0;
      for (const int p : patterns.of_layer)
        expected +=
            brute_force_pairs(patterns.patterns[static_cast<std::size_t>(p)], length, 2) / 3;
      const std::vector<std::int32_t> segments(static_cast<std::size_t>(length), 4);
      EXPECT_NEAR(FlopModel(m).pairs(segments), expected, 1e-9 * expected) << length;
    }
  }
}

TEST(Flops, DocumentsAreApart) {
  config::Model m = model_of(8, 3, 2, 1, 16, 10);
  const std::vector<std::int32_t> segments = {0, 0, 0, 1, 2, 2, 5, 5, 5, 5};
  EXPECT_EQ(FlopModel(m).pairs(segments), 6 + 1 + 3 + 10);
  EXPECT_EQ(FlopModel(m).pairs({}), 0);
  m.set_sliding_window(2);
  EXPECT_EQ(FlopModel(m).pairs(segments), 5 + 1 + 3 + 7);
}

// Llama-3-8B: 8,030,261,248 parameters, of which the embedding (V d) and the gains (65 d) take no
// part in a product; tau = attention / matmul FLOPs is .14 at 8k and 2.29 at 128k (planner's
// table).
TEST(Flops, Llama3GoldenFigures) {
  const FlopModel m(model_of(4096, 32, 32, 8, 14336, 128256));
  EXPECT_EQ(m.matmul_weights(), 8030261248.0 - 128256.0 * 4096 - 65.0 * 4096);
  const auto tau = [&](std::int64_t s) { return m.per_token(s) / (6 * m.matmul_weights()) - 1; };
  EXPECT_NEAR(tau(8192), 0.14, 0.005);
  EXPECT_NEAR(tau(131072), 2.29, 0.005);
}

TEST(Flops, StepAddsItsLayers) {
  config::Model m = model_of(8, 3, 2, 1, 16, 10);
  m.set_sliding_window(4);
  for (const char* type : {"full_attention", "sliding_attention", "sliding_attention"})
    m.add_layer_types(type);
  const FlopModel flops(m);
  const double weights = 3 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16) + 10 * 8;
  EXPECT_EQ(flops.matmul_weights(), weights);
  EXPECT_EQ(flops.step(7, 30), 6 * weights * 7 + 12 * 8 * 3 * 30);
  // A document of 10 tokens: 55 pairs in the full layer, 34 under the window of 4.
  const std::vector<std::int32_t> document(10, 0);
  EXPECT_NEAR(flops.step(0, flops.pairs(document)), 12 * 8 * (55 + 2 * 34), 1e-6);
  m.clear_layer_types();
  const FlopModel all(m);
  EXPECT_NEAR(all.step(0, all.pairs(document)), 12 * 8 * 3 * 34, 1e-6)
      << "a window without types: all layers";
}

// A backend whose matmul takes a fixed time, other operations fail.
class TimedKernels : public Kernels {
 public:
  double slowdown_of_1536 = 1;

  void matmul(const MatmulArgs& args, Stream&) override {
    const double seconds = 1e-3 * (args.b.shape[0] == 1536 ? slowdown_of_1536 : 1);
    EXPECT_EQ(args.out.shape, Shape({args.a.shape[0], args.b.shape[0]}));
    const auto begin = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - begin < std::chrono::duration<double>(seconds)) {
    }
  }
  void fill(const FillArgs&, Stream&) override {}
  void copy(const CopyArgs&, Stream&) override { FAIL(); }
  void add(const AddArgs&, Stream&) override { FAIL(); }
  void rmsnorm_forward(const RmsNormForwardArgs&, Stream&) override { FAIL(); }
  void rmsnorm_backward(const RmsNormBackwardArgs&, Stream&) override { FAIL(); }
  void rope_table(const RopeTableArgs&, Stream&) override { FAIL(); }
  void rope_apply(const RopeApplyArgs&, Stream&) override { FAIL(); }
  void swiglu_forward(const SwiGluForwardArgs&, Stream&) override { FAIL(); }
  void swiglu_backward(const SwiGluBackwardArgs&, Stream&) override { FAIL(); }
  void embedding_forward(const EmbeddingForwardArgs&, Stream&) override { FAIL(); }
  void embedding_backward(const EmbeddingBackwardArgs&, Stream&) override { FAIL(); }
  void cross_entropy(const CrossEntropyArgs&, Stream&) override { FAIL(); }
  void squared_norm(const SquaredNormArgs&, Stream&) override { FAIL(); }
  void clip(const ClipArgs&, Stream&) override { FAIL(); }
  void adamw(const AdamWArgs&, Stream&) override { FAIL(); }
  void attention_forward(const AttentionForwardArgs&, Stream&) override { FAIL(); }
  void attention_delta(const AttentionDeltaArgs&, Stream&) override { FAIL(); }
  void attention_backward(const AttentionBackwardArgs&, Stream&) override { FAIL(); }
  void copy_2d(const Copy2dArgs&, Stream&) override { FAIL(); }
  void exact_add(const ExactAddArgs&, Stream&) override { FAIL(); }
  void exact_matmul(const ExactMatmulArgs&, Stream&) override { FAIL(); }
  void exact_read(const ExactReadArgs&, Stream&) override { FAIL(); }
};

class TimedBackend : public Backend {
 public:
  explicit TimedBackend(std::unique_ptr<Device> device)
      : device_(std::move(device)), stream_(device_->make_stream()) {}
  Device& device() override { return *device_; }
  TimedKernels& kernels() override { return kernels_; }
  Stream& stream() override { return *stream_; }
  std::string description() const override { return "timed"; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  TimedKernels kernels_;
};

TEST(Flops, PeakIsTheBestMeasuredRate) {
  TimedBackend backend(make_cpu_device());
  const auto begin = std::chrono::steady_clock::now();
  const MatmulPeak peak = measure_matmul_peak(backend, DType::kF32);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(spent.count(), 2.0);
  // All shapes take 1 ms here, so the one with the most FLOPs wins: 2 * 1536^3 / 1 ms.
  EXPECT_NEAR(peak.flops_per_second, 2.0 * 1536 * 1536 * 1536 / 1e-3, 0.1 * 7.2e12);
  EXPECT_EQ(peak.how, "measured: f32 matmul 1536x1536x1536");
  EXPECT_EQ((MatmulPeak{9.5e11, peak.how}.description()),
            "peak 0.95 TFLOP/s per rank (measured: f32 matmul 1536x1536x1536)");
}

TEST(Flops, PeakMayBeAnEarlierShape) {
  TimedBackend backend(make_cpu_device());
  backend.kernels().slowdown_of_1536 = 5;
  EXPECT_EQ(measure_matmul_peak(backend, DType::kBF16).how, "measured: bf16 matmul 2048x1024x1024");
}

TEST(Flops, TheDryBackendHasNoPeak) {
  TimedBackend backend(make_dry_device());
  EXPECT_THROW(measure_matmul_peak(backend, DType::kF32), InternalError);
}

}  // namespace
}  // namespace farspan
