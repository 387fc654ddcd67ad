#include "kernels/dry/cuda_workspaces.h"

#include <algorithm>
#include <bit>

#include "kernels/cudnn_support.h"

namespace farspan::dry {
namespace {

constexpr std::int64_t kMatmul = std::int64_t{32} << 20;     // kernels/cuda/matmul.cpp
constexpr std::int64_t kMostLists = std::int64_t{64} << 20;  // ScheduleCache::Limits
constexpr std::int64_t kLeastList = std::int64_t{16} << 10;
constexpr std::int64_t kItemBytes = 64, kTileBytes = 16;  // SliceItem, StationaryTile

// The oldest that kernels/cuda knows all of.
const cuda::CudnnFacts kCudnn{.absent = {}, .version = 91900, .capability = 90};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// FNV-1a over what makes one list differ from another.
std::uint64_t hash_of(std::span<const AttentionSlice> slices, std::int64_t rows) {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](std::int64_t x) {
    hash = (hash ^ static_cast<std::uint64_t>(x)) * 0x100000001b3;
  };
  add(rows);
  for (const AttentionSlice& s : slices)
    for (const std::int64_t x :
         {s.q_begin, s.q_len, s.k_begin, s.k_len, static_cast<std::int64_t>(s.kind), s.diagonal,
          s.window, s.position_diagonal, std::int64_t{s.kv_heads.begin},
          std::int64_t{s.kv_heads.end}})
      add(x);
  return hash;
}

}  // namespace

void CudaWorkspaces::need(std::int64_t bytes) {
  if (bytes <= piece_) return;
  piece_ = std::max(bytes, 2 * piece_);
  pieces_ += piece_;
}

void CudaWorkspaces::see(const MatmulArgs& args) { multiplies_ |= args.out.numel() > 0; }

// Sums of each group of rows (norm.cu): as many groups as 132 multiprocessors run at once.
void CudaWorkspaces::see(const RmsNormBackwardArgs& args) {
  const std::int64_t rows = args.rstd.numel(), c = args.weight.numel();
  if (rows == 0) return;
  const std::int64_t packs = ceil_div(c * static_cast<std::int64_t>(size_of(args.x.dtype)), 16);
  const auto threads = static_cast<std::int64_t>(std::bit_ceil(
      static_cast<std::uint64_t>(std::clamp<std::int64_t>(ceil_div(packs, 2), 32, 512))));
  const std::int64_t at_once = 132 * (threads == 512 ? 512 : 768) / threads;
  const std::int64_t rows_each = std::max<std::int64_t>(4, ceil_div(rows, at_once));
  need(ceil_div(rows, rows_each) * c * 4);
}

// Tokens in the order of their ids (two pairs of arrays, and counts of digits), runs of equal ids,
// and f32 sums of long runs (embedding.cu, token_order.cu).
void CudaWorkspaces::see(const EmbeddingBackwardArgs& args) {
  const std::int64_t n = args.ids.numel(), c = args.dtable.shape[1];
  if (n == 0) return;
  const std::int64_t order = n * 4 * 4 + 512 * 4 * (ceil_div(n, 4096) + 1);
  const std::int64_t long_runs = n / 256 + 1;
  need(order + n * 16 + long_runs * (16 + 2 * 4 * c));
}

void CudaWorkspaces::see(const CrossEntropyArgs& args) { need(args.logits.shape[0] * 8); }

void CudaWorkspaces::see(const SquaredNormArgs& args) {
  need(ceil_div(args.x.numel(), std::int64_t{256} * 64) * 8);
}

void CudaWorkspaces::see(const ExactMatmulArgs& args) {
  multiplies_ = true;
  need(std::min<std::int64_t>(args.a.shape[1] * args.b.shape[1],
                              std::max<std::int64_t>(1 << 20, 8 * args.b.shape[1])) *
       4);
}

void CudaWorkspaces::need_list(std::span<const AttentionSlice> slices, bool backward,
                               std::int64_t rows, std::int64_t tile) {
  if (!seen_lists_.insert({backward, hash_of(slices, rows)}).second) return;
  std::int64_t items = 0;
  for (const AttentionSlice& s : slices) items += (backward ? s.k_len : s.q_len) / tile + 1;
  const std::int64_t bytes = items * kItemBytes + ceil_div(rows, tile) * kTileBytes;
  const auto capacity = static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(std::max(bytes, kLeastList))));
  lists_ = std::min(lists_ + capacity, kMostLists);
}

void CudaWorkspaces::see(const AttentionForwardArgs& args) {
  need_list(args.slices, false, args.q.shape[0], 128);
  if (attention_ == AttentionKernel::kOwn) return;
  const cuda::CudnnAnswer answer = cudnn_forward_support(args, kCudnn);
  if (!answer.supported()) return;
  const std::int64_t heads = args.q.shape[1], dim = args.q.shape[2];
  for (const cuda::CudnnPiece& p : answer.pieces) {
    const std::int64_t rows = p.batch * p.q_len * heads;
    const bool in_place = answer.whole && p.batch == 1 && p.q_len == args.q.shape[0];
    cudnn_ = std::max(cudnn_, (in_place ? 0 : rows * 4) + (answer.whole ? 0 : rows * dim * 2));
  }
}

void CudaWorkspaces::see(const AttentionBackwardArgs& args) {
  need_list(args.slices, true, args.k.shape[0], 64);
  if (attention_ == AttentionKernel::kOwn) return;
  const cuda::CudnnAnswer answer = cudnn_backward_support(args, kCudnn);
  if (!answer.supported()) return;
  for (const cuda::CudnnPiece& p : answer.pieces)
    cudnn_ = std::max(cudnn_, answer.kv_heads_at_once *
                                  cuda::cudnn_backward_bytes(p, args.q.shape[1] / args.k.shape[1],
                                                             args.q.shape[2], args.deterministic));
}

std::vector<MemoryItem> CudaWorkspaces::items() const {
  std::vector<MemoryItem> out;
  const auto add = [&](const char* name, std::int64_t bytes) {
    if (bytes > 0) out.push_back({name, static_cast<std::size_t>(bytes)});
  };
  add("cuBLASLt workspace", multiplies_ ? kMatmul : 0);
  add("operations' workspace", pieces_);
  add("attention's lists of tiles", lists_);
  add("cuDNN workspace", cudnn_);
  return out;
}

}  // namespace farspan::dry
