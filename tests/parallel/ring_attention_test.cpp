// Ring attention on P ranks against one rank: output, log-sum-exp and gradients, bytes,
// repeatability.
#include "parallel/ring_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <random>

#include "comm/factory.h"
#include "parallel/random_documents.h"

namespace farspan {
namespace {

struct Problem {
  std::int64_t length, q_heads, kv_heads, dim;
  std::vector<std::int32_t> segments;
  std::vector<float> q, k, v, dout;  // global, f32
};

struct Result {
  std::vector<float> out, lse, dq, dk, dv;  // global; lse (T, Hq) for easy scattering
};

Problem make_problem(std::uint64_t seed, std::int64_t length, std::int64_t longest) {
  std::mt19937_64 rng(seed);
  Problem p{length, 4, 2, 16, testing::random_segments(rng, length, longest), {}, {}, {}, {}};
  std::normal_distribution<float> normal;
  const auto draw = [&](std::vector<float>& x, std::int64_t heads) {
    x.resize(static_cast<std::size_t>(length * heads * p.dim));
    for (float& e : x) e = normal(rng);
  };
  draw(p.q, p.q_heads);
  draw(p.k, p.kv_heads);
  draw(p.v, p.kv_heads);
  draw(p.dout, p.q_heads);
  return p;
}

// Rows of a global (T, width) array that `rank` holds, as a tensor of `dtype` in `arena`.
Tensor scatter(const std::vector<float>& global, const SequenceLayout& layout, int rank, Shape row,
               DType dtype, Arena& arena, Backend& backend) {
  const std::int64_t width = row.numel();
  std::vector<float> local;
  for (const IndexRange& r : layout.ranges(rank))
    local.insert(local.end(), global.begin() + r.begin * width, global.begin() + r.end * width);
  const std::int64_t rows = layout.local_tokens(rank);
  const Tensor t = arena.take(dtype, {rows, row[0], row[1]}, "input");
  backend.kernels().copy({.src = host_tensor(local.data(), t.shape), .dst = t}, backend.stream());
  return t;
}

void gather(const std::vector<float>& local, std::int64_t width, const SequenceLayout& layout,
            int rank, std::vector<float>& global) {
  std::size_t row = 0;
  for (const IndexRange& r : layout.ranges(rank))
    for (std::int64_t i = r.begin; i < r.end; ++i, ++row)
      for (std::int64_t c = 0; c < width; ++c)
        global[static_cast<std::size_t>(i * width + c)] =
            local[row * static_cast<std::size_t>(width) + static_cast<std::size_t>(c)];
}

std::vector<float> to_host(Tensor t, Backend& backend) {
  std::vector<float> host(static_cast<std::size_t>(t.numel()));
  backend.kernels().copy({.src = t, .dst = host_tensor(host.data(), t.shape)}, backend.stream());
  return host;
}

Result run(const Problem& p, LayoutKind kind, int ranks, DType dtype) {
  const auto layout = SequenceLayout::make(kind, 1, p.length, ranks);
  Result result;
  result.out.resize(p.q.size());
  result.dq.resize(p.q.size());
  result.dk.resize(p.k.size());
  result.dv.resize(p.v.size());
  result.lse.resize(static_cast<std::size_t>(p.length * p.q_heads));
  std::mutex mutex;
  run_local_ranks(ranks, [&](Communicator& world) {
    const int rank = world.rank();
    const auto backend = make_backend({.kind = DeviceKind::kCpu});
    Arena inputs(backend->device(), 1 << 24, "inputs"), saved(backend->device(), 1 << 20, "saved"),
        scratch(backend->device(), 1 << 24, "scratch");
    const AttentionPattern pattern;
    const AttentionPlan plan = plan_attention(
        {.segments = p.segments, .positions = {}, .layout = layout, .pattern = pattern}, rank);
    const Mesh mesh(world, 1, ranks);
    Trace trace;
    const StepContext ctx{*backend, saved, scratch, mesh, {&plan, 1}, trace};
    const Shape q_row{p.q_heads, p.dim}, kv_row{p.kv_heads, p.dim};
    const auto put = [&](const std::vector<float>& x, Shape row) {
      return scatter(x, layout, rank, row, dtype, inputs, *backend);
    };
    const AttentionInputs in{put(p.q, q_row), put(p.k, kv_row), put(p.v, kv_row)};
    const Tensor dout = put(p.dout, q_row);
    const Tensor out = inputs.take(dtype, in.q.shape, "out");
    const Tensor lse = inputs.take(DType::kF32, {p.q_heads, in.q.shape[0]}, "lse");
    const AttentionGradients grads{inputs.take(DType::kF32, in.q.shape, "dq"),
                                   inputs.take(DType::kF32, in.k.shape, "dk"),
                                   inputs.take(DType::kF32, in.v.shape, "dv")};
    const RingAttention ring;
    ring.forward(in, out, lse, {}, ctx);
    const AttentionBytes bytes =
        attention_bytes("ring", plan, mesh.place(), {p.q_heads, p.kv_heads, p.dim, dtype}, false);
    EXPECT_EQ(mesh.context_counters().total_bytes(), bytes.forward) << "rank " << rank;
    ring.backward(in, out, lse, dout, {}, grads, ctx);
    EXPECT_EQ(mesh.context_counters().total_bytes(), bytes.forward + bytes.backward)
        << "rank " << rank;
    EXPECT_EQ(scratch.used(), 0u);

    std::vector<float> lse_rows(static_cast<std::size_t>(lse.numel()));
    const std::int64_t tokens = in.q.shape[0];
    for (std::int64_t h = 0; h < p.q_heads; ++h)
      for (std::int64_t t = 0; t < tokens; ++t)
        lse_rows[static_cast<std::size_t>(t * p.q_heads + h)] = lse.ptr<float>()[h * tokens + t];
    const std::lock_guard lock(mutex);
    gather(to_host(out, *backend), p.q_heads * p.dim, layout, rank, result.out);
    gather(lse_rows, p.q_heads, layout, rank, result.lse);
    gather(to_host(grads.dq, *backend), p.q_heads * p.dim, layout, rank, result.dq);
    gather(to_host(grads.dk, *backend), p.kv_heads * p.dim, layout, rank, result.dk);
    gather(to_host(grads.dv, *backend), p.kv_heads * p.dim, layout, rank, result.dv);
  });
  return result;
}

// The same in double, on one rank, from the definition.
Result reference(const Problem& p) {
  const std::int64_t group = p.q_heads / p.kv_heads;
  const double scale = 1 / std::sqrt(static_cast<double>(p.dim));
  Result r;
  std::vector<double> out(p.q.size()), dq(p.q.size()), dk(p.k.size()), dv(p.v.size());
  r.lse.resize(static_cast<std::size_t>(p.length * p.q_heads));
  const auto at = [&](std::int64_t t, std::int64_t heads, std::int64_t h) {
    return static_cast<std::size_t>((t * heads + h) * p.dim);
  };
  for (std::int64_t h = 0; h < p.q_heads; ++h)
    for (std::int64_t i = 0; i < p.length; ++i) {
      const std::size_t q = at(i, p.q_heads, h);
      std::vector<std::int64_t> keys;
      std::vector<double> s, dp;
      for (std::int64_t j = 0; j <= i; ++j)
        if (p.segments[static_cast<std::size_t>(i)] == p.segments[static_cast<std::size_t>(j)]) {
          const std::size_t k = at(j, p.kv_heads, h / group);
          double dot = 0;
          for (std::size_t c = 0; c < static_cast<std::size_t>(p.dim); ++c)
            dot += double{p.q[q + c]} * p.k[k + c];
          keys.push_back(j);
          s.push_back(dot * scale);
        }
      const double top = *std::max_element(s.begin(), s.end());
      double sum = 0;
      for (const double x : s) sum += std::exp(x - top);
      const double lse = top + std::log(sum);
      r.lse[static_cast<std::size_t>(i * p.q_heads + h)] = static_cast<float>(lse);
      double delta = 0;
      for (std::size_t n = 0; n < keys.size(); ++n) {
        const std::size_t v = at(keys[n], p.kv_heads, h / group);
        const double prob = std::exp(s[n] - lse);
        double dot = 0;
        for (std::size_t c = 0; c < static_cast<std::size_t>(p.dim); ++c) {
          out[q + c] += prob * p.v[v + c];
          dv[v + c] += prob * p.dout[q + c];
          dot += double{p.dout[q + c]} * p.v[v + c];
        }
        dp.push_back(dot);
        delta += prob * dot;
      }
      for (std::size_t n = 0; n < keys.size(); ++n) {
        const std::size_t k = at(keys[n], p.kv_heads, h / group);
        const double ds = std::exp(s[n] - lse) * (dp[n] - delta) * scale;
        for (std::size_t c = 0; c < static_cast<std::size_t>(p.dim); ++c) {
          dq[q + c] += ds * p.k[k + c];
          dk[k + c] += ds * p.q[q + c];
        }
      }
    }
  r.out.assign(out.begin(), out.end());
  r.dq.assign(dq.begin(), dq.end());
  r.dk.assign(dk.begin(), dk.end());
  r.dv.assign(dv.begin(), dv.end());
  return r;
}

// Relative L2; where the gradient vanishes (a document of one token), relative to values of 0.1.
double error(const std::vector<float>& a, const std::vector<float>& b) {
  double diff = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    diff += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(diff / std::max(norm, 0.01 * static_cast<double>(a.size())));
}

struct Errors {
  double out, lse, dq, dk, dv;
};
Errors errors(const Result& a, const Result& b) {
  return {error(a.out, b.out), error(a.lse, b.lse), error(a.dq, b.dq), error(a.dk, b.dk),
          error(a.dv, b.dv)};
}

TEST(RingAttention, EqualsTheDefinitionUnderAnySharding) {
  for (const auto& [length, longest] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {3, 3}, {3, 2}, {5, 1}, {97, 97}, {128, 1000}, {131, 40}, {160, 9}}) {
    const Problem p = make_problem(static_cast<std::uint64_t>(length), length, longest);
    const Result expected = reference(p);
    for (const LayoutKind kind : {LayoutKind::kZigzag, LayoutKind::kContiguous})
      for (const int ranks : {1, 2, 3, 4, 5, 8}) {
        SCOPED_TRACE(fmt::format("length {} longest {} layout {} ranks {}", length, longest,
                                 kind == LayoutKind::kZigzag ? "zigzag" : "contiguous", ranks));
        const Errors e = errors(run(p, kind, ranks, DType::kF32), expected);
        EXPECT_LE(e.out, 1e-5);
        EXPECT_LE(e.lse, 1e-5);
        EXPECT_LE(e.dq, 1e-5);
        EXPECT_LE(e.dk, 1e-5);
        EXPECT_LE(e.dv, 1e-5);
      }
  }
}

// f32 partials: the error must not grow with the number of ranks.
TEST(RingAttention, Bf16ErrorDoesNotGrowWithRanks) {
  const Problem p = make_problem(7, 512, 512);
  const Result expected = reference(p);
  const Errors one = errors(run(p, LayoutKind::kZigzag, 1, DType::kBF16), expected);
  for (const int ranks : {2, 4, 8, 16}) {
    SCOPED_TRACE(ranks);
    const Errors many = errors(run(p, LayoutKind::kZigzag, ranks, DType::kBF16), expected);
    EXPECT_LE(many.out, 1.1 * one.out);
    EXPECT_LE(many.dq, 1.1 * one.dq);
    EXPECT_LE(many.dk, 1.1 * one.dk);
    EXPECT_LE(many.dv, 1.1 * one.dv);
  }
}

TEST(RingAttention, ARerunIsBitwiseEqual) {
  const Problem p = make_problem(11, 200, 90);
  const Result a = run(p, LayoutKind::kZigzag, 4, DType::kBF16);
  const Result b = run(p, LayoutKind::kZigzag, 4, DType::kBF16);
  EXPECT_EQ(a.out, b.out);
  EXPECT_EQ(a.dq, b.dq);
  EXPECT_EQ(a.dk, b.dk);
  EXPECT_EQ(a.dv, b.dv);
}

}  // namespace
}  // namespace farspan
