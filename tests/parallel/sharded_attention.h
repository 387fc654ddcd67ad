// Attention of a packed sequence by any strategy on thread ranks, and the same from its definition
// in double: one pair of tokens at a time (mask_formula.h), no slices, no ranks.
//
//   const AttentionTask task = make_task({.seed = 7, .length = 97, .heads = {4, 2, 16}});
//   const TaskResult expected = definition(task);
//   const TaskResult actual = run_sharded(task, {.strategy = "hybrid", .ring = 2, .ulysses = 2});
//   expect_equal_results(actual, expected);
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "comm/factory.h"
#include "parallel/attention.h"
#include "parallel/mask_formula.h"
#include "parallel/random_documents.h"

namespace farspan::testing {

struct TaskHeads {
  std::int64_t q = 4, kv = 2, dim = 16;
};

struct TaskOptions {
  std::uint64_t seed = 1;
  std::int64_t length = 64;
  std::int64_t longest = std::int64_t{1} << 40;  // document
  TaskHeads heads{};
  AttentionPattern pattern{};
  bool alibi = false, xpos = false;
  bool jumps = false;  // positions that jump ahead (PoSE) and, without xPos, start again
};

struct AttentionTask {
  TaskOptions options;
  std::vector<std::int32_t> segments, positions;
  std::vector<float> slopes, decay;  // (Hq), (D / 2), or empty
  std::vector<float> q, k, v, dout;  // global (S, H, D)
  std::int64_t length() const { return options.length; }
};

// All global: (S, H, D), lse (S, Hq).
struct TaskResult {
  std::vector<float> out, lse, dq, dk, dv;
};

inline AttentionTask make_task(const TaskOptions& options) {
  std::mt19937_64 rng(options.seed);
  AttentionTask task{.options = options,
                     .segments = random_segments(rng, options.length, options.longest),
                     .positions = {},
                     .slopes = {},
                     .decay = {},
                     .q = {},
                     .k = {},
                     .v = {},
                     .dout = {}};
  task.positions =
      random_positions(rng, task.segments, options.jumps ? 20 : 0, options.jumps && !options.xpos);
  std::normal_distribution<float> normal;
  const auto draw = [&](std::vector<float>& x, std::int64_t heads) {
    x.resize(static_cast<std::size_t>(options.length * heads * options.heads.dim));
    for (float& e : x) e = normal(rng);
  };
  draw(task.q, options.heads.q);
  draw(task.k, options.heads.kv);
  draw(task.v, options.heads.kv);
  draw(task.dout, options.heads.q);
  for (std::int64_t h = 0; options.alibi && h < options.heads.q; ++h)
    task.slopes.push_back(
        std::exp2(-8.0f * static_cast<float>(h + 1) / static_cast<float>(options.heads.q)));
  for (std::int64_t c = 0; options.xpos && c < options.heads.dim / 2; ++c)
    task.decay.push_back(-0.02f / static_cast<float>(c + 1));
  return task;
}

// ---- from the definition --------------------------------------------------------------------

namespace detail {

struct SeenKey {
  std::int64_t row;
  int count;  // how often
  double score, probability = 0, dprobability = 0;
};

class Definition {
 public:
  explicit Definition(const AttentionTask& task)
      : task_(task),
        heads_(task.options.heads),
        out_(task.q.size()),
        dq_(task.q.size()),
        dk_(task.k.size()),
        dv_(task.v.size()) {
    result_.lse.resize(static_cast<std::size_t>(task.length() * heads_.q));
    std::int64_t start = 0;
    for (std::int64_t i = 0; i < task.length(); ++i) {
      if (i > 0 && segment(i) != segment(i - 1)) start = i;
      starts_.push_back(start);
    }
    for (std::int64_t i = 0; i < task.length(); ++i)
      for (std::int64_t h = 0; h < heads_.q; ++h) attend(i, h);
  }

  TaskResult take() {
    result_.out.assign(out_.begin(), out_.end());
    result_.dq.assign(dq_.begin(), dq_.end());
    result_.dk.assign(dk_.begin(), dk_.end());
    result_.dv.assign(dv_.begin(), dv_.end());
    return std::move(result_);
  }

 private:
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  std::int32_t segment(std::int64_t i) const { return task_.segments[at(i)]; }
  std::int64_t group() const { return heads_.q / heads_.kv; }
  std::size_t query(std::int64_t i, std::int64_t h) const {
    return at((i * heads_.q + h) * heads_.dim);
  }
  std::size_t key(std::int64_t j, std::int64_t h) const {
    return at((j * heads_.kv + h / group()) * heads_.dim);
  }
  double distance(std::int64_t i, std::int64_t j) const {
    return double{static_cast<double>(task_.positions[at(i)])} - task_.positions[at(j)];
  }
  // xPos: what the product of dim c of q and k is multiplied by.
  double factor(std::int64_t i, std::int64_t j, std::int64_t c) const {
    return task_.decay.empty()
               ? 1.0
               : std::exp2(double{task_.decay[at(c % (heads_.dim / 2))]} * distance(i, j));
  }
  double scale() const { return 1 / std::sqrt(static_cast<double>(heads_.dim)); }

  std::vector<SeenKey> seen(std::int64_t i, std::int64_t h) const {
    std::vector<SeenKey> keys;
    const std::int64_t start = starts_[at(i)];
    for (std::int64_t j = start; j < task_.length() && segment(j) == segment(i); ++j) {
      const int count =
          count_of(task_.options.pattern, i - start, j - start, h / group(), heads_.kv);
      if (count == 0) continue;
      double dot = 0;
      for (std::int64_t c = 0; c < heads_.dim; ++c)
        dot += factor(i, j, c) * task_.q[query(i, h) + at(c)] * task_.k[key(j, h) + at(c)];
      const double bias = task_.slopes.empty() ? 0 : task_.slopes[at(h)] * distance(i, j);
      keys.push_back({j, count, scale() * dot - bias});
    }
    return keys;
  }

  void attend(std::int64_t i, std::int64_t h) {
    std::vector<SeenKey> keys = seen(i, h);
    double top = -std::numeric_limits<double>::infinity(), sum = 0, delta = 0;
    for (const SeenKey& k : keys) top = std::max(top, k.score);
    for (const SeenKey& k : keys) sum += k.count * std::exp(k.score - top);
    const double lse = keys.empty() ? top : top + std::log(sum);
    result_.lse[at(i * heads_.q + h)] = static_cast<float>(lse);
    const std::size_t q = query(i, h);
    for (SeenKey& k : keys) {
      k.probability = k.count * std::exp(k.score - lse);
      const std::size_t v = key(k.row, h);
      for (std::size_t c = 0; c < at(heads_.dim); ++c) {
        out_[q + c] += k.probability * task_.v[v + c];
        dv_[v + c] += k.probability * task_.dout[q + c];
        k.dprobability += double{task_.dout[q + c]} * task_.v[v + c];
      }
      delta += k.probability * k.dprobability;
    }
    for (const SeenKey& k : keys) {
      const double ds = k.probability * (k.dprobability - delta) * scale();
      const std::size_t row = key(k.row, h);
      for (std::int64_t c = 0; c < heads_.dim; ++c) {
        const double f = ds * factor(i, k.row, c);
        dq_[q + at(c)] += f * task_.k[row + at(c)];
        dk_[row + at(c)] += f * task_.q[q + at(c)];
      }
    }
  }

  const AttentionTask& task_;
  TaskHeads heads_;
  std::vector<std::int64_t> starts_;  // of each token's document
  std::vector<double> out_, dq_, dk_, dv_;
  TaskResult result_;
};

}  // namespace detail

inline TaskResult definition(const AttentionTask& task) { return detail::Definition(task).take(); }

// ---- on thread ranks ------------------------------------------------------------------------

struct Sharded {
  std::string strategy = "ring";
  int ring = 1, ulysses = 1;
  LayoutKind layout = LayoutKind::kZigzag;  // over the places of the ring
  std::uint64_t random_layout = 0;          // seed; 0: `layout` instead
  DType dtype = DType::kF32;
  std::int64_t block = 0;  // tokens of a block: invariant

  int ranks() const { return ring * ulysses; }
  std::string description() const {
    return fmt::format("{} {} x {}, layout {}, {}", strategy, ring, ulysses,
                       random_layout == 0 ? static_cast<int>(layout) : -1, name_of(dtype));
  }
};

inline SequenceLayout layout_of(const AttentionTask& task, const Sharded& how) {
  const std::int64_t stride = task.options.pattern.row_stride();
  std::mt19937_64 rng(how.random_layout);
  const auto layout = how.random_layout != 0
                          ? SequenceLayout(random_ranges(rng, task.length(), how.ring, stride))
                          : SequenceLayout::make(how.layout, 1, task.length(), how.ring,
                                                 std::max<std::int64_t>(how.block, 1));
  return layout.stride() % stride == 0 ? layout : layout.refined(stride);
}

namespace detail {

// One rank of run_sharded.
class RankRun {
 public:
  RankRun(const AttentionTask& task, const Sharded& how, const SequenceLayout& layout,
          Communicator& world)
      : task_(task),
        how_(how),
        heads_(task.options.heads),
        mesh_(world, 1, how.ranks(), how.ulysses),
        backend_(make_backend({.kind = DeviceKind::kCpu})),
        inputs_(backend_->device(), 1 << 26, "inputs"),
        saved_(backend_->device(), 1 << 26, "saved"),
        scratch_(backend_->device(), 1 << 26, "scratch"),
        share_(ulysses_heads(heads_.q, heads_.kv, mesh_.place().ulysses_rank, how.ulysses)) {
    for (const IndexRange& r : layout.ranges(mesh_.place().ring_rank))
      for (std::int64_t i = r.begin; i < r.end; i += r.stride) merged_.push_back(i);
    const IndexRange mine = ulysses_share(static_cast<std::int64_t>(merged_.size()),
                                          mesh_.place().ulysses_rank, how.ulysses);
    rows_.assign(merged_.begin() + mine.begin, merged_.begin() + mine.end);
    const bool biased = task.options.alibi || task.options.xpos;
    plan_ = plan_attention({.segments = task.segments,
                            .positions = biased ? std::span<const std::int32_t>(task.positions)
                                                : std::span<const std::int32_t>(),
                            .layout = layout,
                            .pattern = task.options.pattern,
                            .local_kv_heads = how.strategy == "ulysses" || how.strategy == "hybrid"
                                                  ? std::span<const std::int32_t>(share_.kv_heads)
                                                  : std::span<const std::int32_t>(),
                            .num_kv_heads = heads_.kv,
                            .gather = how.strategy == "allgather",
                            .block = how.block,
                            .sequence_length = task.length()},
                           mesh_.place().ring_rank);
    for (std::size_t r = 1; how.block > 0 && r <= rows_.size(); ++r)
      if (r == rows_.size() || rows_[r] / how.block != rows_[r - 1] / how.block)
        row_blocks_.push_back(static_cast<std::int64_t>(r));
  }

  void run(TaskResult& result, std::mutex& mutex) {
    Trace trace;
    StepContext ctx{*backend_, saved_, scratch_, mesh_, {&plan_, 1}, trace};
    if (how_.block > 0) ctx.row_blocks = row_blocks_;
    const auto attention = make_attention(how_.strategy, how_.block > 0);
    const AttentionInputs in{put(task_.q, heads_.q), put(task_.k, heads_.kv),
                             put(task_.v, heads_.kv)};
    const Tensor dout = put(task_.dout, heads_.q);
    const Tensor out = inputs_.take(how_.dtype, in.q.shape, "out");
    const AttentionGradients grads{inputs_.take(DType::kF32, in.q.shape, "dq"),
                                   inputs_.take(DType::kF32, in.k.shape, "dk"),
                                   inputs_.take(DType::kF32, in.v.shape, "dv")};
    const BiasTables bias{table(task_.slopes), table(task_.decay)};
    const AttentionBytes bytes =
        attention_bytes(how_.strategy, plan_, mesh_.place(),
                        {heads_.q, heads_.kv, heads_.dim, how_.dtype}, how_.block > 0);
    const auto sent = [&] { return mesh_.context_counters().total_bytes(); };

    const AttentionInputs spread = attention->spread(in, saved_, ctx);
    EXPECT_EQ(sent(), bytes.spread) << "rank " << mesh_.world().rank();
    const Tensor lse = saved_.take(DType::kF32, attention->lse_shape(spread), "lse");
    attention->forward(spread, out, lse, bias, ctx);
    EXPECT_EQ(sent(), bytes.forward) << "rank " << mesh_.world().rank();
    attention->backward(spread, out, lse, dout, bias, grads, ctx);
    EXPECT_EQ(sent(), bytes.forward + bytes.backward) << "rank " << mesh_.world().rank();
    EXPECT_EQ(scratch_.used(), 0u);
    if (bytes.forward > 0) {
      EXPECT_TRUE(trace.sums().contains("attention.exposed"));
    }

    const std::lock_guard lock(mutex);
    get(out, heads_.q, result.out);
    get(grads.dq, heads_.q, result.dq);
    get(grads.dk, heads_.kv, result.dk);
    get(grads.dv, heads_.kv, result.dv);
    const auto num_rows = merged_.size();
    for (std::int64_t h = share_.q_begin; h < share_.q_end; ++h)
      for (std::size_t t = 0; t < num_rows; ++t)
        result.lse[static_cast<std::size_t>(merged_[t] * heads_.q + h)] =
            lse.ptr<float>()[static_cast<std::size_t>(h - share_.q_begin) * num_rows + t];
  }

 private:
  // This rank's rows of a global (S, heads, D) array.
  Tensor put(const std::vector<float>& global, std::int64_t heads) {
    const std::int64_t width = heads * heads_.dim;
    std::vector<float> local;
    for (const std::int64_t i : rows_)
      local.insert(local.end(), global.begin() + i * width, global.begin() + (i + 1) * width);
    const Tensor t = inputs_.take(
        how_.dtype, {static_cast<std::int64_t>(rows_.size()), heads, heads_.dim}, "input");
    backend_->kernels().copy({.src = host_tensor(local.data(), t.shape), .dst = t},
                             backend_->stream());
    return t;
  }

  // As the model reads it: rounded once to the compute dtype.
  void get(Tensor local, std::int64_t heads, std::vector<float>& global) {
    const Tensor rounded = inputs_.take(how_.dtype, local.shape, "rounded");
    std::vector<float> host(static_cast<std::size_t>(local.numel()));
    backend_->kernels().copy({.src = local, .dst = rounded}, backend_->stream());
    backend_->kernels().copy({.src = rounded, .dst = host_tensor(host.data(), local.shape)},
                             backend_->stream());
    const std::int64_t width = heads * heads_.dim;
    for (std::size_t r = 0; r < rows_.size(); ++r)
      std::copy_n(host.begin() + static_cast<std::int64_t>(r) * width, width,
                  global.begin() + rows_[r] * width);
  }

  Tensor table(const std::vector<float>& values) {
    if (values.empty()) return {};
    const Tensor t = inputs_.take(DType::kF32, {static_cast<std::int64_t>(values.size())}, "bias");
    std::copy(values.begin(), values.end(), t.ptr<float>());
    return t;
  }

  const AttentionTask& task_;
  const Sharded& how_;
  TaskHeads heads_;
  Mesh mesh_;
  std::unique_ptr<Backend> backend_;
  Arena inputs_, saved_, scratch_;
  HeadShare share_;
  std::vector<std::int64_t> merged_, rows_;  // tokens of the place, and of this rank
  AttentionPlan plan_;
  std::vector<std::int64_t> row_blocks_{0};
};

}  // namespace detail

// Forward and backward by `how`. Checks on every rank that the communicators have counted exactly
// attention_bytes. Starts from NaN: what no rank writes is found.
inline TaskResult run_sharded(const AttentionTask& task, const Sharded& how) {
  const SequenceLayout layout = layout_of(task, how);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto rows = static_cast<std::size_t>(task.length() * task.options.heads.q);
  TaskResult result{.out = std::vector<float>(task.q.size(), nan),
                    .lse = std::vector<float>(rows, nan),
                    .dq = std::vector<float>(task.q.size(), nan),
                    .dk = std::vector<float>(task.k.size(), nan),
                    .dv = std::vector<float>(task.v.size(), nan)};
  std::mutex mutex;
  run_local_ranks(how.ranks(), [&](Communicator& world) {
    detail::RankRun(task, how, layout, world).run(result, mutex);
  });
  return result;
}

// ---- comparison -----------------------------------------------------------------------------

// Relative L2; where the true values vanish (a document of one token), relative to values of 0.1.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double diff = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    diff += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(diff / std::max(norm, 0.01 * static_cast<double>(a.size())));
}

// The largest |a - b| / max(1, |b|); equal infinities differ by 0.
inline double lse_error(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    const double error = std::abs(double{a[i]} - b[i]) / std::max(1.0, std::abs(double{b[i]}));
    if (!(error <= worst)) worst = std::isfinite(error) ? error : 1e300;
  }
  return worst;
}

// f32: the tolerances of a sharded against the double-precision result.
inline void expect_equal_results(const TaskResult& actual, const TaskResult& expected) {
  EXPECT_LE(relative_error(actual.out, expected.out), 1e-5);
  EXPECT_LE(lse_error(actual.lse, expected.lse), 1e-5);
  EXPECT_LE(relative_error(actual.dq, expected.dq), 1e-5);
  EXPECT_LE(relative_error(actual.dk, expected.dk), 1e-5);
  EXPECT_LE(relative_error(actual.dv, expected.dv), 1e-5);
}

}  // namespace farspan::testing
