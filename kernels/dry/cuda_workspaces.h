// Device memory that the CUDA backend's operations take beside their tensors, predicted from the
// calls themselves: the dry backend that stands for CUDA shows each call to this. What
// kernels/cuda does, in numbers; a test on the CUDA backend compares the two.
//
//   CudaWorkspaces spaces(AttentionKernel::kAuto);
//   spaces.see(matmul_args);  spaces.see(attention_backward_args);  ...
//   for (const MemoryItem& item : spaces.items()) ...
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "kernels/args.h"
#include "kernels/backend.h"

namespace farspan::dry {

class CudaWorkspaces {
 public:
  // Where cuDNN may compute attention it is taken to be at hand, on Hopper.
  explicit CudaWorkspaces(AttentionKernel attention) : attention_(attention) {}

  void see(const MatmulArgs& args);
  void see(const RmsNormBackwardArgs& args);
  void see(const EmbeddingBackwardArgs& args);
  void see(const CrossEntropyArgs& args);
  void see(const SquaredNormArgs& args);
  void see(const ExactMatmulArgs& args);
  void see(const AttentionForwardArgs& args);
  void see(const AttentionBackwardArgs& args);

  // Those that are not zero.
  std::vector<MemoryItem> items() const;

 private:
  // An operation needs this much while it runs. Growing, as kernels/cuda/workspace.h does: a piece
  // is kept, and the next is at least twice as large.
  void need(std::int64_t bytes);
  // Lists of tiles (kernels/cuda/attention/schedule_cache.h), one for each distinct call.
  void need_list(std::span<const AttentionSlice> slices, bool backward, std::int64_t rows,
                 std::int64_t tile);

  AttentionKernel attention_;
  bool multiplies_ = false;
  std::int64_t piece_ = 0, pieces_ = 0;
  std::set<std::pair<bool, std::uint64_t>> seen_lists_;
  std::int64_t lists_ = 0;
  std::int64_t cudnn_ = 0;
};

}  // namespace farspan::dry
