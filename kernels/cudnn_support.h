// Which attention calls cuDNN's scaled dot-product attention does, in what pieces, and why not the
// others. Pure: needs neither a GPU nor cuDNN; dry runs tell cuDNN's workspace by it.
//
//   const CudnnAnswer answer = cudnn_forward_support(args, facts);
//   if (!answer.refusal.empty()) log("own kernel: {}", answer.refusal);
//
// cuDNN knows a rectangle that is full, causal from its first row (or to its last), or a window
// along that diagonal, for all heads alike, of as many equal sequences as lie evenly spaced. Slices
// that are one such rectangle in parts are joined first: the first hop of a causal zigzag ring is
// one causal rectangle.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/args.h"

namespace farspan::cuda {

// Memory that a backward call takes beside its arguments, bytes: aimed at, and the most for one KV
// head.
inline constexpr std::int64_t kCudnnWorkspace = std::int64_t{1} << 30;
inline constexpr std::int64_t kMostCudnnWorkspace = std::int64_t{4} << 30;

struct CudnnFacts {
  std::string absent;  // why there is none; empty: there is
  int version = 0;     // 91900 is 9.19.0
  int capability = 0;  // of the GPU: 90 is 9.0
  std::int64_t workspace = kCudnnWorkspace;
};

// kCausal: row i sees keys up to i. kCausalToEnd: the last row sees all keys, each row above one
// less.
enum class CudnnMask : std::uint8_t { kFull, kCausal, kCausalToEnd };

// One call of cuDNN: `batch` sequences, the first at q_begin and k_begin, each q_step and k_step
// rows after the one before.
struct CudnnPiece {
  std::int64_t q_begin = 0, q_len = 0;
  std::int64_t k_begin = 0, k_len = 0;
  std::int64_t batch = 1, q_step = 0, k_step = 0;
  CudnnMask mask = CudnnMask::kFull;
  std::int64_t window = 0;  // keys that a row sees at most, its own the last; 0: no window
  friend bool operator==(const CudnnPiece&, const CudnnPiece&) = default;
};

struct CudnnAnswer {
  std::string refusal;  // empty: cuDNN does it
  std::vector<CudnnPiece> pieces;
  // Forward: the call is the only one for its rows and each row lies in one piece, so cuDNN's
  // output is the result, rounded once. Otherwise each piece's output, in bf16, is merged into the
  // f32 state.
  bool whole = false;
  bool covers_all_rows = false;  // each query row lies in some piece
  bool nothing_to_do = false;    // no key is visible; refused without a word
  // Backward: KV heads (with their query heads) of one call, so that its workspace stays within
  // kCudnnWorkspace. Divides their number.
  std::int64_t kv_heads_at_once = 0;
  bool supported() const { return refusal.empty(); }
};

CudnnAnswer cudnn_forward_support(const AttentionForwardArgs& args, const CudnnFacts& facts);
CudnnAnswer cudnn_backward_support(const AttentionBackwardArgs& args, const CudnnFacts& facts);

// Bytes beside the arguments of a piece's backward call for one KV head and its `group` query
// heads: cuDNN's gradients in bf16, its f32 sum of dQ, dK and dV of every query head, row sums.
std::int64_t cudnn_backward_bytes(const CudnnPiece& piece, std::int64_t group,
                                  std::int64_t head_dim, bool deterministic);

}  // namespace farspan::cuda
