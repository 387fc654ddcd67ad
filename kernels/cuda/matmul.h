// Matrix products through cuBLASLt: bf16 or f32 operands, f32 accumulation, the algorithm of each
// shape chosen once and remembered.
#pragma once

#include <cublasLt.h>

#include <map>
#include <memory>
#include <tuple>

#include "core/device.h"
#include "kernels/args.h"

namespace farspan::cuda {

class Matmul {
 public:
  // `device` holds the workspace (32 MiB, what cuBLAS recommends on Hopper).
  explicit Matmul(Device& device);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  void run(const MatmulArgs& args, Stream& stream);

 private:
  struct Plan;
  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, bool, DType, DType, bool>;
  Plan& plan(const MatmulArgs& args, std::int64_t m, std::int64_t n, std::int64_t k);

  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace farspan::cuda
