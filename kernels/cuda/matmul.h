// Matrix products through cuBLASLt: bf16 or f32 operands (f32 as IEEE f32, never TF32), f32
// accumulation, one rounding. The algorithm of each shape is chosen once and remembered, among
// those that add partial sums in f32 in a fixed order, so a product gives the same bits whenever
// its operands have the same shapes and alignment on the same GPU.
#pragma once

#include <cublasLt.h>

#include <array>
#include <map>
#include <memory>
#include <tuple>

#include "core/device.h"
#include "kernels/args.h"

namespace farspan::cuda {

class Matmul {
 public:
  // `device` must outlive this object.
  explicit Matmul(Device& device);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // As MatmulArgs says, on `stream`. Takes 32 MiB of the device at a stream's first product.
  void run(const MatmulArgs& args, Stream& stream);

 private:
  struct Plan;
  using Alignments = std::array<unsigned, 3>;  // of a, b and out, bytes
  using Key =
      std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, bool, DType, DType, Alignments>;
  Plan& plan(const MatmulArgs& args, std::int64_t m, std::int64_t n, std::int64_t k);
  cublasLtMatmulAlgo_t choose(const Plan& plan, const MatmulArgs& args,
                              const Alignments& alignments) const;
  Buffer& workspace(const Stream& stream);

  Device& device_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<void*, Buffer> workspaces_;  // by queue: products of two queues may run at once
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace farspan::cuda
