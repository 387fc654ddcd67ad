#include "kernels/cudnn_support.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "kernels/visible_pairs.h"

namespace farspan::cuda {
namespace {

// Before 9.15: wrong results (9.10.0, 9.10.1), windows (9.14.0), illegal accesses under CUDA graphs
// (9.13 and 9.14: NVIDIA/TransformerEngine #2344).
constexpr int kOldestVersion = 91500;
constexpr std::size_t kMostSlices = 256;  // looked at: packed documents are not cuDNN's case anyway
constexpr std::size_t kMostPieces = 8;    // calls, each with a plan of its own
constexpr std::int64_t kTile = 128;       // rows of cuDNN's tiles on Hopper
// cuDNN's bitwise repeatable backward writes all of P: batch * heads * rows * keys * 2 bytes.
constexpr std::int64_t kMostDeterministic = std::int64_t{256} << 20;

constexpr const char* kNothing = "no key is visible: there is nothing to compute";

std::string version_text(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

bool aligned(const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0; }

// What holds for a whole call, forward or backward; the reason if it does not.
std::optional<std::string> refuse_call(const CudnnFacts& facts, const Tensor& q, const Tensor& k,
                                       const PositionBias& bias, bool invariant,
                                       std::int64_t widest_head) {
  if (!facts.absent.empty()) return facts.absent;
  if (facts.version < kOldestVersion)
    return fmt::format("cuDNN {} has faults in attention that 9.15 has not",
                       version_text(facts.version));
  const int generation = facts.capability / 10;
  if (generation < 8 || generation > 10)
    return fmt::format("cuDNN's attention is not vetted on compute capability {}.{}", generation,
                       facts.capability % 10);
  if (q.dtype != DType::kBF16)
    return fmt::format("cuDNN's attention is for bf16, not {}", name_of(q.dtype));
  if (invariant) return "the invariant mode fixes the order of sums, which cuDNN does not";
  if (bias.slopes.defined()) return "cuDNN knows ALiBi on one diagonal only, not by positions";
  if (bias.decay.defined()) return "cuDNN has no xPos";
  const std::int64_t head_dim = q.shape[2];
  if (head_dim % 8 != 0 || head_dim > widest_head)
    return fmt::format("a head dim of {} is not a multiple of 8 up to {}", head_dim, widest_head);
  constexpr std::int64_t kMostElements = std::int64_t{1} << 31;
  if (q.numel() >= kMostElements || k.numel() >= kMostElements)
    return fmt::format("Q of {} elements: beyond 2^31 cuDNN is not vetted",
                       std::max(q.numel(), k.numel()));
  return std::nullopt;
}

std::string at(const AttentionSlice& s) {
  return fmt::format("slice q [{}, +{}) k [{}, +{})", s.q_begin, s.q_len, s.k_begin, s.k_len);
}

// The slice with its kind as plain as its mask allows; the reason where cuDNN has no such mask.
std::optional<std::string> simplify(AttentionSlice& s) {
  const std::int64_t farthest = s.q_len - 1 + s.diagonal;  // distance of last row and first key
  const std::int64_t nearest = s.diagonal - (s.k_len - 1);
  if (s.kind == MaskKind::kInverseCausal && farthest < s.window) s.kind = MaskKind::kFull;
  if (s.kind == MaskKind::kInverseCausal)
    return at(s) + ": cuDNN has no window without a causal border";
  if (s.kind == MaskKind::kBand && farthest < s.window) s.kind = MaskKind::kCausal;
  if (s.kind == MaskKind::kBand && nearest > 0)
    return at(s) + ": cuDNN has no window that does not touch the diagonal";
  if (s.kind == MaskKind::kCausal && nearest >= 0) s.kind = MaskKind::kFull;
  if (s.kind == MaskKind::kFull) {
    s.diagonal = 0;
  } else if (s.diagonal < 0) {
    return at(s) + ": rows without a key, of which cuDNN makes NaN";
  }
  if (s.kind != MaskKind::kBand) s.window = 0;
  return std::nullopt;
}

bool same_rows(const AttentionSlice& a, const AttentionSlice& b) {
  return a.q_begin == b.q_begin && a.q_len == b.q_len;
}

// b's keys follow a's for the same rows, and a's are all visible: one mask.
bool join_keys(AttentionSlice& a, const AttentionSlice& b) {
  if (!same_rows(a, b) || a.kind != MaskKind::kFull || b.kind == MaskKind::kBand) return false;
  if (a.k_begin + a.k_len != b.k_begin) return false;
  a.kind = b.kind;
  a.diagonal = b.kind == MaskKind::kCausal ? b.diagonal + a.k_len : 0;
  a.k_len += b.k_len;
  return true;
}

// b's rows follow a's under one border or over the same keys.
bool join_rows(AttentionSlice& a, const AttentionSlice& b) {
  if (a.q_begin + a.q_len != b.q_begin || a.k_begin != b.k_begin || a.kind != b.kind) return false;
  if (a.kind == MaskKind::kFull && a.k_len != b.k_len) return false;
  // All that a's rows may see are keys of a, so that the longer b.k_len shows them nothing new.
  if (a.kind != MaskKind::kFull &&
      (b.diagonal != a.diagonal + a.q_len || a.q_len + a.diagonal > a.k_len || a.k_len > b.k_len ||
       a.window != b.window))
    return false;
  a.q_len += b.q_len;
  a.k_len = b.k_len;
  return true;
}

template <typename Less, typename Join>
void join_neighbours(std::vector<AttentionSlice>& slices, Less less, Join join) {
  std::sort(slices.begin(), slices.end(), less);
  std::vector<AttentionSlice> joined;
  for (const AttentionSlice& s : slices)
    if (joined.empty() || !join(joined.back(), s)) joined.push_back(s);
  slices = std::move(joined);
}

std::string describe_length(const AttentionSlice& s) {
  return fmt::format("{}: a piece of {} x {}", at(s), s.q_len, s.k_len);
}

// The call that a slice is; the reason where cuDNN does not do it.
std::optional<std::string> make_piece(AttentionSlice s, bool backward, CudnnPiece& piece) {
  if (s.kind != MaskKind::kFull) s.k_len = std::min(s.k_len, s.q_len + s.diagonal);
  if (s.kind != MaskKind::kFull && s.k_len < s.q_len + s.diagonal)
    return at(s) + ": the causal border ends beside the last row, where cuDNN has none";
  if (s.q_len < kTile || s.k_len < kTile)
    return fmt::format("{} gains nothing, and short ones have given NaN (cudnn-frontend #1072)",
                       describe_length(s));
  if (backward && (s.q_len % kTile != 0 || s.k_len % kTile != 0))
    return fmt::format(
        "{} has no whole tiles of {}: its last keys can give NaN in dQ (pytorch #196678)",
        describe_length(s), kTile);
  piece = {.q_begin = s.q_begin,
           .q_len = s.q_len,
           .k_begin = s.k_begin,
           .k_len = s.k_len,
           .q_step = s.q_len,
           .k_step = s.k_len,
           .mask = s.kind == MaskKind::kFull ? CudnnMask::kFull
                   : s.diagonal == 0         ? CudnnMask::kCausal
                                             : CudnnMask::kCausalToEnd,
           .window = s.window};
  return std::nullopt;
}

// b is the next sequence of a's batch.
bool join_batch(CudnnPiece& a, const CudnnPiece& b) {
  if (a.q_len != b.q_len || a.k_len != b.k_len || a.mask != b.mask || a.window != b.window)
    return false;
  const std::int64_t last_q = a.q_begin + (a.batch - 1) * a.q_step;
  const std::int64_t last_k = a.k_begin + (a.batch - 1) * a.k_step;
  const std::int64_t q_step = b.q_begin - last_q, k_step = b.k_begin - last_k;
  if (q_step < a.q_len || k_step < a.k_len) return false;
  if (a.batch > 1 && (q_step != a.q_step || k_step != a.k_step)) return false;
  a.q_step = q_step;
  a.k_step = k_step;
  ++a.batch;
  return true;
}

struct Cover {
  bool disjoint = true, all = true;
};

// How the pieces lie on the query rows.
Cover cover_of(const std::vector<CudnnPiece>& pieces, std::int64_t num_rows) {
  std::vector<std::pair<std::int64_t, std::int64_t>> runs;
  for (const CudnnPiece& p : pieces)
    for (std::int64_t b = 0; b < p.batch; ++b) runs.emplace_back(p.q_begin + b * p.q_step, p.q_len);
  std::sort(runs.begin(), runs.end());
  Cover cover;
  std::int64_t end = 0;
  for (const auto& [begin, length] : runs) {
    if (begin < end) cover.disjoint = false;
    if (begin > end) cover.all = false;
    end = std::max(end, begin + length);
  }
  cover.all = cover.all && end == num_rows;
  return cover;
}

// Slices as pieces, in `answer`; the reason where there is no way.
std::optional<std::string> cut(std::span<const AttentionSlice> slices, std::int64_t num_kv_heads,
                               bool backward, std::vector<CudnnPiece>& pieces) {
  if (slices.size() > kMostSlices)
    return fmt::format("{} slices, such as of many documents: cuDNN would run each by itself",
                       slices.size());
  std::vector<AttentionSlice> left;
  for (AttentionSlice s : slices) {
    if (visible_pairs(s) == 0) continue;
    if (heads_of(s, num_kv_heads) != num_kv_heads)
      return at(s) + ": some heads see other keys than the rest";
    if (auto reason = simplify(s)) return reason;
    left.push_back(s);
  }
  const auto by_rows = [](const AttentionSlice& a, const AttentionSlice& b) {
    return std::tie(a.q_begin, a.q_len, a.k_begin) < std::tie(b.q_begin, b.q_len, b.k_begin);
  };
  const auto by_keys = [](const AttentionSlice& a, const AttentionSlice& b) {
    return std::tie(a.k_begin, a.q_begin) < std::tie(b.k_begin, b.q_begin);
  };
  join_neighbours(left, by_rows, join_keys);
  join_neighbours(left, by_keys, join_rows);
  std::sort(left.begin(), left.end(), by_rows);
  for (const AttentionSlice& s : left) {
    CudnnPiece piece;
    if (auto reason = make_piece(s, backward, piece)) return reason;
    if (pieces.empty() || !join_batch(pieces.back(), piece)) pieces.push_back(piece);
  }
  if (pieces.empty()) return kNothing;
  if (pieces.size() > kMostPieces)
    return fmt::format("{} pieces of different shapes: cuDNN needs a plan for each", pieces.size());
  return std::nullopt;
}

CudnnAnswer refuse(std::string reason) {
  const bool nothing = reason == kNothing;
  return {.refusal = std::move(reason), .nothing_to_do = nothing};
}

// The largest divisor of n that is at most `limit`, at least 1.
std::int64_t divisor_up_to(std::int64_t n, std::int64_t limit) {
  std::int64_t best = 1;
  for (std::int64_t d = 1; d <= std::min(n, limit); ++d)
    if (n % d == 0) best = d;
  return best;
}

std::int64_t widest_head(const CudnnFacts& facts) { return facts.capability / 10 == 9 ? 256 : 128; }

}  // namespace

CudnnAnswer cudnn_forward_support(const AttentionForwardArgs& args, const CudnnFacts& facts) {
  CudnnAnswer answer;
  if (auto reason =
          refuse_call(facts, args.q, args.k, args.bias, args.invariant, widest_head(facts)))
    return refuse(*reason);
  if (!aligned(args.q) || !aligned(args.k) || !aligned(args.v) || (args.last && !aligned(args.out)))
    return refuse("Q, K, V or the output does not begin at a multiple of 16 bytes");
  if (auto reason = cut(args.slices, args.k.shape[1], false, answer.pieces)) return refuse(*reason);
  const Cover cover = cover_of(answer.pieces, args.q.shape[0]);
  answer.covers_all_rows = cover.all;
  answer.whole = args.first && args.last && cover.disjoint;
  return answer;
}

std::int64_t cudnn_backward_bytes(const CudnnPiece& piece, std::int64_t group,
                                  std::int64_t head_dim, bool deterministic) {
  const std::int64_t rows = piece.batch * piece.q_len, keys = piece.batch * piece.k_len;
  constexpr std::int64_t kBf16 = 2, kF32 = 4;
  const std::int64_t gradients = (rows * group + 2 * keys) * head_dim * kBf16;
  const std::int64_t dq_sum =
      deterministic ? rows * group * piece.k_len * kBf16 : rows * group * head_dim * kF32;
  const std::int64_t every_head = group > 1 ? 2 * keys * group * head_dim * kBf16 : 0;
  const std::int64_t row_sums = 2 * rows * group * kF32;
  return gradients + dq_sum + every_head + row_sums;
}

CudnnAnswer cudnn_backward_support(const AttentionBackwardArgs& args, const CudnnFacts& facts) {
  CudnnAnswer answer;
  if (auto reason =
          refuse_call(facts, args.q, args.k, args.bias, args.invariant, widest_head(facts)))
    return refuse(*reason);
  if (!args.out.defined())
    return refuse("cuDNN reads the output again for gradients, and it is on other ranks");
  if (!aligned(args.q) || !aligned(args.k) || !aligned(args.v) || !aligned(args.dout) ||
      !aligned(args.out))
    return refuse("Q, K, V, the output or its gradient does not begin at a multiple of 16 bytes");
  if (auto reason = cut(args.slices, args.k.shape[1], true, answer.pieces)) return refuse(*reason);
  const std::int64_t heads = args.q.shape[1], kv_heads = args.k.shape[1];
  std::int64_t most = 0;
  for (const CudnnPiece& p : answer.pieces) {
    const std::int64_t all_of_p = p.batch * heads * p.q_len * p.k_len * 2;
    if (args.deterministic && facts.capability / 10 != 9)
      return refuse("cuDNN's bitwise repeatable gradients are vetted on Hopper only");
    if (args.deterministic && all_of_p > kMostDeterministic)
      return refuse(
          fmt::format("parallel.deterministic is true, and cuDNN's bitwise repeatable gradients of "
                      "{} x {} take {} MiB for P; ours take none",
                      p.q_len, p.k_len, all_of_p >> 20));
    most = std::max(most,
                    cudnn_backward_bytes(p, heads / kv_heads, args.q.shape[2], args.deterministic));
  }
  if (most > kMostCudnnWorkspace)
    return refuse(fmt::format("gradients of one KV head take cuDNN {} MiB of workspace, above {}",
                              most >> 20, kMostCudnnWorkspace >> 20));
  answer.kv_heads_at_once = divisor_up_to(kv_heads, facts.workspace / most);
  answer.covers_all_rows = cover_of(answer.pieces, args.q.shape[0]).all;
  return answer;
}

}  // namespace farspan::cuda
