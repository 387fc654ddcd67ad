// Matrix products through cuBLASLt: bf16 or f32 operands (f32 as IEEE f32, never TF32), f32
// accumulation, one rounding. The algorithm of each shape is the first that cuBLASLt's heuristic
// names among those that add partial sums in f32 in a fixed order, and is remembered. It is not
// chosen by timing: two runs, or two ranks, could then choose differently, and a product must give
// the same bits whenever its operands have the same shapes and alignment on the same kind of GPU,
// across resumes and ranks too.
#pragma once

#include <cublasLt.h>

#include <array>
#include <map>
#include <memory>
#include <tuple>

#include "core/device.h"
#include "kernels/args.h"

namespace farspan::cuda {

// out (m, n) = op(a) op(b), or += with accumulate; k > 0. Row-major; ld: elements from one stored
// row to the next (out's is n).
struct Product {
  const std::byte *a = nullptr, *b = nullptr;
  std::byte* out = nullptr;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t ld_a = 0, ld_b = 0;
  bool trans_a = false, trans_b = false, accumulate = false;
  DType in = DType::kF32, to = DType::kF32;
  // The algorithm depends on the extents alone, not on which rows of larger matrices these are:
  // rows that begin at a multiple of 16 bytes are used only as what all rows of their length are.
  bool anywhere = false;
};

class Matmul {
 public:
  // `device` must outlive this object.
  explicit Matmul(Device& device);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // As MatmulArgs says, on `stream`. Takes 32 MiB of the device at a stream's first product.
  void run(const MatmulArgs& args, Stream& stream);
  void multiply(const Product& product, Stream& stream);

 private:
  struct Plan;
  using Alignments = std::array<unsigned, 3>;  // of a, b and out, bytes
  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool,
                         bool, DType, DType, Alignments>;
  Plan& plan(const Product& product);
  cublasLtMatmulAlgo_t choose(const Plan& plan, const Product& product,
                              const Alignments& alignments) const;
  Buffer& workspace(const Stream& stream);

  Device& device_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<void*, Buffer> workspaces_;  // by queue: products of two queues may run at once
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace farspan::cuda
