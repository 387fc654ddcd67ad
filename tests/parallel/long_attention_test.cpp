// LM-Infinite and Dual Chunk Attention against the whole score matrix in double: each pair is
// rotated by the distance that the papers' formulas give it.
#include "parallel/long_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "comm/factory.h"
#include "support/device_values.h"

namespace farspan {
namespace {

using testing::DeviceValues;

constexpr std::int64_t kTokens = 53, kHeads = 4, kKvHeads = 2, kDim = 8;
constexpr double kScale = 1.2;  // of cos and sin, as YaRN has one

struct Values {
  std::vector<double> q, k, v;
};

Values random_values() {
  std::mt19937_64 rng(3);
  std::normal_distribution<float> normal;
  Values x;
  for (std::int64_t i = 0; i < kTokens * kHeads * kDim; ++i) x.q.push_back(normal(rng));
  for (std::int64_t i = 0; i < kTokens * kKvHeads * kDim; ++i) x.k.push_back(normal(rng));
  for (std::int64_t i = 0; i < kTokens * kKvHeads * kDim; ++i) x.v.push_back(normal(rng));
  return x;
}

const std::vector<double>& inv_freq() {
  static const std::vector<double> kValues = {1.0, 0.31, 0.1, 0.031};
  return kValues;
}

// Distance by which query i meets key j; negative: it does not see it.
using Distance = std::int64_t (*)(const LongAttentionOptions&, std::int64_t i, std::int64_t j);

// arXiv 2308.16137: the Lambda-shaped mask and the distance limit.
std::int64_t lm_infinite(const LongAttentionOptions& o, std::int64_t i, std::int64_t j) {
  if (j > i || (i - j >= o.context && j >= o.global)) return -1;
  return std::min(i - j, o.context);
}

// arXiv 2402.17463: the relative position matrix M.
std::int64_t dual_chunk(const LongAttentionOptions& o, std::int64_t i, std::int64_t j) {
  if (j > i) return -1;
  const std::int64_t s = o.chunk, c = o.context, key = j % s;
  std::vector<std::int64_t> successive;  // [s, s + 1, ..., s + w - 1, c - 1, ..., c - 1], w = c - s
  for (std::int64_t p = 0; p < s; ++p) successive.push_back(p < c - s ? s + p : c - 1);
  if (i / s == j / s) return i % s - key;
  if (i / s == j / s + 1) return successive[static_cast<std::size_t>(i % s)] - key;
  return c - 1 - key;
}

std::vector<double> reference(const Values& x, const LongAttentionOptions& options,
                              Distance distance) {
  std::vector<double> out(x.q.size());
  for (std::int64_t i = 0; i < kTokens; ++i)
    for (std::int64_t h = 0; h < kHeads; ++h) {
      const std::int64_t g = h / (kHeads / kKvHeads);
      const double* q = &x.q[static_cast<std::size_t>((i * kHeads + h) * kDim)];
      double* o = &out[static_cast<std::size_t>((i * kHeads + h) * kDim)];
      double sum = 0;
      for (std::int64_t j = 0; j < kTokens; ++j) {
        const std::int64_t apart = distance(options, i, j);
        if (apart < 0) continue;
        const auto at = static_cast<std::size_t>((j * kKvHeads + g) * kDim);
        double score = 0;
        for (std::size_t d = 0; d < kDim / 2; ++d) {
          const double a = static_cast<double>(apart) * inv_freq()[d];
          const double k0 = x.k[at + d], k1 = x.k[at + d + kDim / 2];
          const double q0 = q[d], q1 = q[d + kDim / 2];
          score += std::cos(a) * (q0 * k0 + q1 * k1) + std::sin(a) * (q0 * k1 - q1 * k0);
        }
        const double weight = std::exp(score * kScale * kScale / std::sqrt(double{kDim}));
        sum += weight;
        for (std::size_t d = 0; d < kDim; ++d) o[d] += weight * x.v[at + d];
      }
      for (std::size_t d = 0; d < kDim; ++d) o[d] /= sum;
    }
  return out;
}

std::vector<double> rows(const std::vector<double>& all, std::int64_t begin, std::int64_t count) {
  const std::int64_t width = static_cast<std::int64_t>(all.size()) / kTokens;
  return {all.begin() + begin * width, all.begin() + (begin + count) * width};
}

std::vector<double> in_chunks(const Values& x, const LongAttentionOptions& options,
                              std::int64_t chunk) {
  const auto backend = make_backend({});
  DeviceValues on(*backend);
  Arena arena(backend->device(), std::size_t{1} << 24, "test");
  const auto world = make_self_communicator();
  const Mesh mesh(*world, 1, 1);
  Trace trace;
  const StepContext ctx{.backend = *backend,
                        .saved = arena,
                        .scratch = arena,
                        .mesh = mesh,
                        .plans = {},
                        .trace = trace};
  const Tensor frequencies = arena.take(DType::kF64, {kDim / 2}, "inv_freq");
  std::copy(inv_freq().begin(), inv_freq().end(), frequencies.ptr<double>());
  LongAttention attention(options,
                          {.num_layers = 1,
                           .capacity = options.room(kTokens, chunk),
                           .num_kv_heads = kKvHeads,
                           .head_dim = kDim,
                           .dtype = DType::kF32},
                          {.inv_freq = frequencies, .scale = kScale}, arena);
  std::vector<double> out;
  for (std::int64_t begin = 0; begin < kTokens; begin += chunk) {
    const std::int64_t n = std::min(chunk, kTokens - begin);
    auto scope = arena.scope();
    attention.begin(n, ctx);
    const AttentionInputs in{.q = on.put(rows(x.q, begin, n), DType::kF32, {n, kHeads, kDim}),
                             .k = on.put(rows(x.k, begin, n), DType::kF32, {n, kKvHeads, kDim}),
                             .v = on.put(rows(x.v, begin, n), DType::kF32, {n, kKvHeads, kDim})};
    const Tensor result = arena.take(DType::kF32, in.q.shape, "out");
    attention.forward(in, result, arena.take(DType::kF32, {kHeads, n}, "lse"), {}, ctx);
    out.insert(out.end(), result.ptr<float>(), result.ptr<float>() + result.numel());
  }
  return out;
}

void compare(const LongAttentionOptions& options, Distance distance) {
  const Values x = random_values();
  const std::vector<double> want = reference(x, options, distance);
  for (const std::int64_t chunk : {std::int64_t{1}, std::int64_t{5}, std::int64_t{17}, kTokens}) {
    const std::vector<double> got = in_chunks(x, options, chunk);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got[i], want[i], 2e-5)
          << "token " << i / (kHeads * kDim) << ", chunk " << chunk << ", context "
          << options.context << ", chunks of " << options.chunk;
  }
}

TEST(LongAttention, LmInfiniteIsThePapers) {
  for (const std::int64_t context : {2, 11, 40, 60})
    for (const std::int64_t global : {0, 1, 10, 30})
      compare({.kind = LongAttentionKind::kLmInfinite, .context = context, .global = global},
              lm_infinite);
}

TEST(LongAttention, DualChunkIsThePapers) {
  for (const auto& [context, chunk] :
       {std::pair<std::int64_t, std::int64_t>{16, 12}, {12, 4}, {9, 8}, {2, 1}, {64, 60}})
    compare({.kind = LongAttentionKind::kDualChunk, .context = context, .chunk = chunk},
            dual_chunk);
}

// What lies beyond the context is forgotten (the comparison above runs in this room).
TEST(LongAttention, LmInfiniteKeepsAWindow) {
  const LongAttentionOptions lm{.kind = LongAttentionKind::kLmInfinite, .context = 4096};
  EXPECT_EQ(lm.room(1 << 20, 2048), 4095 + 2048);
  EXPECT_EQ(lm.room(1 << 20, 1), 4095 + 1024);
  EXPECT_EQ(lm.room(100, 2048), 100);
  const LongAttentionOptions dca{.kind = LongAttentionKind::kDualChunk, .context = 4096};
  EXPECT_EQ(dca.room(1 << 20, 2048), 1 << 20);
}

TEST(LongAttention, TakesThreeQuartersOfTheContextAsChunks) {
  EXPECT_EQ((LongAttentionOptions{.context = 4096}.chunk_tokens()), 3072);
  EXPECT_EQ((LongAttentionOptions{.context = 2}.chunk_tokens()), 1);
}

}  // namespace
}  // namespace farspan
