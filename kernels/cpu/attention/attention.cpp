#include "kernels/cpu/attention/attention.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/attention/schedule.h"
#include "kernels/cpu/attention/threads.h"
#include "kernels/cpu/isa.h"

namespace farspan::cpu {
namespace {

constexpr Index kMaxHeadDim = 256;

Index ceil_div(Index n, Index unit) { return (n + unit - 1) / unit; }
Index round_up(Index n, Index unit) { return ceil_div(n, unit) * unit; }

const KernelTable& table_for(const AttentionConfig& config, DType dtype) {
  const bool f32 = dtype == DType::kF32;
  if (config.emulate_amx_tiles && !f32) return amx_bf16_emulated();
  switch (config.isa) {
    case CpuIsa::kAvx2:
      return f32 ? avx2_f32() : avx2_bf16();
    case CpuIsa::kAvx512:
      return f32 ? avx512_f32() : avx512_bf16_widened();
    case CpuIsa::kAvx512Bf16:
      return f32 ? avx512_f32() : avx512_bf16_native();
    case CpuIsa::kAmx:
      return f32 ? avx512_f32() : amx_bf16();
    case CpuIsa::kPortable:
    case CpuIsa::kAuto:
      break;
  }
  return f32 ? portable_f32() : portable_bf16();
}

void check_shape(const Tensor& t, DType dtype, const Shape& shape, const char* name) {
  FARSPAN_CHECK(t.dtype == dtype && t.shape == shape, "{} is {}, expected {} {}", name,
                t.to_string(), name_of(dtype), shape.to_string());
}

struct Dims {
  Index num_q, num_q_heads, num_k, num_kv_heads, head_dim;
  Index group() const { return num_q_heads / num_kv_heads; }
};

Dims check_qkv(const Tensor& q, const Tensor& k, const Tensor& v, float scale) {
  FARSPAN_CHECK(q.dtype == DType::kF32 || q.dtype == DType::kBF16, "q is {}", q.to_string());
  FARSPAN_CHECK(q.shape.num_dims() == 3 && k.shape.num_dims() == 3, "q {}, k {}", q.to_string(),
                k.to_string());
  const Dims dims = {q.shape[0], q.shape[1], k.shape[0], k.shape[1], q.shape[2]};
  FARSPAN_CHECK(dims.head_dim >= 1 && dims.head_dim <= kMaxHeadDim, "head dim {}", dims.head_dim);
  FARSPAN_CHECK(
      dims.num_kv_heads >= 1 && dims.num_q_heads >= 1 && dims.num_q_heads % dims.num_kv_heads == 0,
      "{} query heads, {} KV heads", dims.num_q_heads, dims.num_kv_heads);
  const Shape kv{dims.num_k, dims.num_kv_heads, dims.head_dim};
  check_shape(k, q.dtype, kv, "k");
  check_shape(v, q.dtype, kv, "v");
  FARSPAN_CHECK(scale > 0.0f, "scale {}", scale);
  return dims;
}

// Decay (D / 2) for both halves of a head, with zeros up to a multiple of 16, and how many rows may
// share a reference (decay-inl.h).
void set_decay(const PositionBias& bias, const Dims& dims, std::vector<float>& padded, Bias& to) {
  constexpr double kMostBits = 24;  // of a factor above 1
  constexpr double kManyRows = 1024;
  FARSPAN_CHECK(dims.head_dim % 2 == 0, "xPos with head dim {}", dims.head_dim);
  const auto half = static_cast<std::size_t>(dims.head_dim / 2);
  check_shape(bias.decay, DType::kF32, {dims.head_dim / 2}, "decay");
  padded.assign(static_cast<std::size_t>(round_up(dims.head_dim, 16)), 0.0f);
  double steepest = 0;
  for (std::size_t c = 0; c < half; ++c) {
    const float decay = bias.decay.ptr<float>()[c];
    FARSPAN_CHECK(decay <= 0 && std::isfinite(decay), "decay[{}] is {}", c, decay);
    padded[c] = padded[c + half] = decay;
    steepest = std::max(steepest, -static_cast<double>(decay));
  }
  const double bits = steepest * static_cast<double>(bias.position_stride);
  to.decay = padded.data();
  to.decay_rows = 1 + static_cast<Index>(std::min(kManyRows, kMostBits / bits));  // 24 / 0: inf
}

}  // namespace

struct AttentionEngine::Impl {
  explicit Impl(AttentionConfig given) : config(given) {}

  AttentionConfig config;
  Workspaces workspaces;
  std::vector<Piece> pieces;
  std::vector<float> decay;  // of the current call
  ForwardSchedule forward_schedule;
  BackwardSchedule backward_schedule;
  Turns row_turns, key_turns;

  // Sets `pieces` and `decay`. CHECKs slices and bias.
  Bias begin_call(std::span<const AttentionSlice> slices, const PositionBias& bias,
                  const Dims& dims);

  // Adds the gradients of the pieces: cell by cell, many threads at once, or a head's pieces one
  // after the other, so that no sum depends on where in the call's KV block a piece lies.
  void backward_by_cells(const KernelTable& table, const BackwardCall& call, const Dims& dims);
  void backward_in_slice_order(const KernelTable& table, const BackwardCall& call);

  // Calls body(task, workspace) for tasks 0 .. num_tasks - 1, handed out in ascending order.
  template <typename Body>
  void run(Index num_tasks, const Body& body) {
    if (config.num_threads == 1 || num_tasks == 1) {
      for (Index t = 0; t < num_tasks; ++t) body(t, workspaces.of(0));
      return;
    }
    std::atomic<Index> next{0};
#pragma omp parallel num_threads(config.num_threads)
    {
      std::byte* workspace = workspaces.of(omp_get_thread_num());
      for (Index t = next.fetch_add(1); t < num_tasks; t = next.fetch_add(1)) body(t, workspace);
    }
  }
};

Bias AttentionEngine::Impl::begin_call(std::span<const AttentionSlice> slices,
                                       const PositionBias& bias, const Dims& dims) {
  pieces.clear();
  append_pieces(slices, dims.num_q, dims.num_k, dims.num_kv_heads, pieces);
  Bias to = {.slopes = nullptr, .decay = nullptr, .decay_rows = 0, .stride = 1};
  if (!bias.any()) return to;
  FARSPAN_CHECK(bias.position_stride >= 1, "position stride {}", bias.position_stride);
  to.stride = bias.position_stride;
  if (bias.slopes.defined()) {
    check_shape(bias.slopes, DType::kF32, {dims.num_q_heads}, "slopes");
    to.slopes = bias.slopes.ptr<float>();
  }
  if (!bias.decay.defined()) return to;
  set_decay(bias, dims, decay, to);
  for (const Piece& p : pieces) {
    const Index shortest = std::max(p.min_distance, 1 - p.k_len) * to.stride + p.position;
    FARSPAN_CHECK(shortest >= 0, "xPos over a distance of {}", shortest);
  }
  return to;
}

AttentionEngine::AttentionEngine(AttentionConfig config) {
  FARSPAN_CHECK(config.num_threads >= 1, "{} threads", config.num_threads);
  if (config.isa == CpuIsa::kAuto) config.isa = best_cpu_isa();
  if (!cpu_supports(config.isa))
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("this processor does not run {}", name_of(config.isa)),
                 .where = "CPU backend, attention",
                 .fix = fmt::format("choose {} or lower", name_of(best_cpu_isa()))});
  FARSPAN_CHECK(!config.emulate_amx_tiles || config.isa == CpuIsa::kAvx512Bf16,
                "emulated tiles on {}", name_of(config.isa));
  impl_ = std::make_unique<Impl>(config);
}

AttentionEngine::AttentionEngine(AttentionEngine&&) noexcept = default;
AttentionEngine& AttentionEngine::operator=(AttentionEngine&&) noexcept = default;
AttentionEngine::~AttentionEngine() = default;

CpuIsa AttentionEngine::isa() const { return impl_->config.isa; }

namespace {

// Measured on a Zen 5 (48 KB L1, 1 MB L2): docs/benchmarks/attention_cpu.md.
TileSizes choose_tiles(Index head_dim, DType dtype) {
  const bool wide = head_dim * static_cast<Index>(size_of(dtype)) > 512;
  return {.forward_rows = 256,
          .forward_keys = wide ? 256 : 512,
          .backward_rows = wide ? 128 : 256,
          .backward_keys = 256};
}

// A forward task takes up to 4 heads of a group, which share packed K and V.
struct ForwardGrid {
  Index heads, rows;  // of a task
  Index chunks;       // tasks per KV head and block of rows
};
ForwardGrid forward_grid(const Dims& dims, Index forward_rows, bool invariant) {
  constexpr Index kEnoughTasks = 64, kMostHeads = 4;
  ForwardGrid grid = {.heads = std::min(dims.group(), kMostHeads), .rows = 0, .chunks = 0};
  grid.chunks = ceil_div(dims.group(), grid.heads);
  // Where a task begins a reference of xPos begins: not even the number of heads may move that.
  grid.rows = forward_rows / (invariant ? kMostHeads : grid.heads);
  if (invariant) return grid;
  while (grid.rows > 32 &&
         dims.num_kv_heads * grid.chunks * ceil_div(dims.num_q, grid.rows) < kEnoughTasks)
    grid.rows /= 2;
  return grid;
}

// Blocks of rows and keys that backward tasks own. Large blocks pack less; but all tasks of a block
// of keys run one after the other, so at most (Hkv blocks) / 2 or so threads find work under a
// causal mask. At most about 64 x 64 cells.
Index backward_block(const Dims& dims) {
  const Index longest = std::max(dims.num_q, dims.num_k);
  const auto columns = [&](Index block) { return ceil_div(longest, block) * dims.num_kv_heads; };
  const Index block = columns(512) >= 64 ? 512 : (columns(256) >= 32 ? 256 : 128);
  return std::max(block, round_up(ceil_div(longest, 64), block));
}

}  // namespace

void AttentionEngine::forward(const AttentionForwardArgs& args) {
  const Dims dims = check_qkv(args.q, args.k, args.v, args.scale);
  const Shape stats{dims.num_q_heads, dims.num_q};
  check_shape(args.acc, DType::kF32, args.q.shape, "acc");
  check_shape(args.row_max, DType::kF32, stats, "row_max");
  check_shape(args.row_sum, DType::kF32, stats, "row_sum");
  if (args.last) {
    check_shape(args.out, args.q.dtype, args.q.shape, "out");
    check_shape(args.lse, DType::kF32, stats, "lse");
  }
  if (dims.num_q == 0) return;

  Impl& impl = *impl_;
  const Bias bias = impl.begin_call(args.slices, args.bias, dims);
  const KernelTable& table = table_for(impl.config, args.q.dtype);
  const TileSizes tiles = choose_tiles(dims.head_dim, args.q.dtype);
  impl.workspaces.reserve(impl.config.num_threads,
                          table.workspace_bytes(dims.head_dim, tiles, bias.decay));
  const ForwardGrid grid = forward_grid(dims, tiles.forward_rows, args.invariant);
  impl.forward_schedule.build(impl.pieces, dims.num_q, grid.rows);

  const ForwardCall call = {.q = args.q.data,
                            .k = args.k.data,
                            .v = args.v.data,
                            .acc = args.acc.ptr<float>(),
                            .row_max = args.row_max.ptr<float>(),
                            .row_sum = args.row_sum.ptr<float>(),
                            .out = args.out.data,
                            .lse = args.last ? args.lse.ptr<float>() : nullptr,
                            .num_q = dims.num_q,
                            .num_q_heads = dims.num_q_heads,
                            .num_kv_heads = dims.num_kv_heads,
                            .head_dim = dims.head_dim,
                            .scale = args.scale,
                            .first = args.first,
                            .last = args.last,
                            .bias = bias,
                            .pieces = impl.pieces.data(),
                            .tiles = tiles};
  const auto order = impl.forward_schedule.order();
  const Index per_block = dims.num_kv_heads * grid.chunks;
  impl.run(static_cast<Index>(order.size()) * per_block, [&](Index t, std::byte* workspace) {
    const Index block = order[static_cast<std::size_t>(t / per_block)];
    const auto ids = impl.forward_schedule.pieces_of(block);
    if (ids.empty() && !args.first && !args.last) return;
    const Index kv_head = t % per_block / grid.chunks;
    const Index skipped = t % grid.chunks * grid.heads;
    table.forward(call,
                  {.piece_ids = ids.data(),
                   .num_pieces = static_cast<Index>(ids.size()),
                   .row_begin = block * grid.rows,
                   .num_rows = std::min(grid.rows, dims.num_q - block * grid.rows),
                   .head_begin = kv_head * dims.group() + skipped,
                   .num_heads = std::min(grid.heads, dims.group() - skipped)},
                  workspace);
  });
}

void AttentionEngine::delta(const AttentionDeltaArgs& args) {
  FARSPAN_CHECK(args.out.shape.num_dims() == 3, "out is {}", args.out.to_string());
  FARSPAN_CHECK(args.out.dtype == DType::kF32 || args.out.dtype == DType::kBF16, "out is {}",
                args.out.to_string());
  check_shape(args.dout, args.out.dtype, args.out.shape, "dout");
  const DeltaCall call = {.out = args.out.data,
                          .dout = args.dout.data,
                          .delta = args.delta.ptr<float>(),
                          .num_q = args.out.shape[0],
                          .num_q_heads = args.out.shape[1],
                          .head_dim = args.out.shape[2]};
  check_shape(args.delta, DType::kF32, {call.num_q_heads, call.num_q}, "delta");
  const KernelTable& table = table_for(impl_->config, args.out.dtype);
  constexpr Index kRows = 64;
  impl_->run(ceil_div(call.num_q, kRows), [&](Index t, std::byte*) {
    table.delta(call, t * kRows, std::min((t + 1) * kRows, call.num_q));
  });
}

void AttentionEngine::Impl::backward_by_cells(const KernelTable& table, const BackwardCall& call,
                                              const Dims& dims) {
  const Index block = backward_block(dims);
  BackwardSchedule& schedule = backward_schedule;
  schedule.build(pieces, dims.num_q, dims.num_k, block, dims.group());
  row_turns.reset(dims.num_q_heads * schedule.num_row_blocks());
  key_turns.reset(dims.num_kv_heads * schedule.num_key_blocks());

  const auto items = schedule.items();
  const Index num_tasks = static_cast<Index>(items.size()) * dims.num_kv_heads;
  run(num_tasks, [&](Index t, std::byte* workspace) {
    const auto& item = items[static_cast<std::size_t>(t / dims.num_kv_heads)];
    const auto& cell = schedule.cell(item);
    const auto ids = schedule.pieces_of(cell);
    const Index kv_head = t % dims.num_kv_heads;
    const Index head = kv_head * dims.group() + item.head;
    const Index rows = head * schedule.num_row_blocks() + cell.row_block;
    const Index keys = kv_head * schedule.num_key_blocks() + cell.key_block;
    row_turns.wait(rows, item.row_turn);
    key_turns.wait(keys, item.key_turn);
    table.backward(call,
                   {.piece_ids = ids.data(),
                    .num_pieces = static_cast<Index>(ids.size()),
                    .row_begin = cell.row_block * block,
                    .row_end = (cell.row_block + 1) * block,
                    .key_begin = cell.key_block * block,
                    .key_end = (cell.key_block + 1) * block,
                    .head = head},
                   workspace);
    row_turns.finish(rows, item.row_turn);
    key_turns.finish(keys, item.key_turn);
  });
}

void AttentionEngine::Impl::backward_in_slice_order(const KernelTable& table,
                                                    const BackwardCall& call) {
  const Index group = call.num_q_heads / call.num_kv_heads;
  run(call.num_kv_heads, [&](Index kv_head, std::byte* workspace) {
    for (std::int32_t id = 0; id < static_cast<std::int32_t>(pieces.size()); ++id) {
      const Piece& p = pieces[static_cast<std::size_t>(id)];
      for (Index h = 0; h < group; ++h)
        table.backward(call,
                       {.piece_ids = &id,
                        .num_pieces = 1,
                        .row_begin = p.q_begin,
                        .row_end = p.q_begin + p.q_len,
                        .key_begin = p.k_begin,
                        .key_end = p.k_begin + p.k_len,
                        .head = kv_head * group + h},
                       workspace);
    }
  });
}

void AttentionEngine::backward(const AttentionBackwardArgs& args) {
  const Dims dims = check_qkv(args.q, args.k, args.v, args.scale);
  const Shape stats{dims.num_q_heads, dims.num_q};
  check_shape(args.dout, args.q.dtype, args.q.shape, "dout");
  check_shape(args.lse, DType::kF32, stats, "lse");
  check_shape(args.delta, DType::kF32, stats, "delta");
  check_shape(args.dq, DType::kF32, args.q.shape, "dq");
  check_shape(args.dk, DType::kF32, args.k.shape, "dk");
  check_shape(args.dv, DType::kF32, args.v.shape, "dv");

  Impl& impl = *impl_;
  const Bias bias = impl.begin_call(args.slices, args.bias, dims);
  if (impl.pieces.empty()) return;
  const KernelTable& table = table_for(impl.config, args.q.dtype);
  const TileSizes tiles = choose_tiles(dims.head_dim, args.q.dtype);
  impl.workspaces.reserve(impl.config.num_threads,
                          table.workspace_bytes(dims.head_dim, tiles, bias.decay));
  const BackwardCall call = {.q = args.q.data,
                             .k = args.k.data,
                             .v = args.v.data,
                             .dout = args.dout.data,
                             .lse = args.lse.ptr<float>(),
                             .delta = args.delta.ptr<float>(),
                             .dq = args.dq.ptr<float>(),
                             .dk = args.dk.ptr<float>(),
                             .dv = args.dv.ptr<float>(),
                             .num_q = dims.num_q,
                             .num_q_heads = dims.num_q_heads,
                             .num_kv_heads = dims.num_kv_heads,
                             .head_dim = dims.head_dim,
                             .scale = args.scale,
                             .bias = bias,
                             .pieces = impl.pieces.data(),
                             .tiles = tiles};
  if (args.invariant)
    impl.backward_in_slice_order(table, call);
  else
    impl.backward_by_cells(table, call, dims);
}

}  // namespace farspan::cpu
