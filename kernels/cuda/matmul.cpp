#include "kernels/cuda/matmul.h"

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

cudaDataType_t data_type(DType dtype) {
  FARSPAN_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "matmul of {}", name_of(dtype));
  return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

}  // namespace

// cuBLASLt is column-major: a row-major C (M, N) is its transpose (N, M) there, so C^T = B^T A^T is
// asked for, with B as the first operand.
struct Matmul::Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, result = nullptr;
  cublasLtMatmulAlgo_t algorithm{};

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (result != nullptr) cublasLtMatrixLayoutDestroy(result);
    if (second != nullptr) cublasLtMatrixLayoutDestroy(second);
    if (first != nullptr) cublasLtMatrixLayoutDestroy(first);
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
  }
};

Matmul::Matmul(Device& device) : workspace_(device.allocate(kWorkspaceBytes)) {
  FARSPAN_CUDA(cublasLtCreate(&handle_));
}

Matmul::~Matmul() {
  plans_.clear();
  cublasLtDestroy(handle_);
}

Matmul::Plan& Matmul::plan(const MatmulArgs& args, std::int64_t m, std::int64_t n, std::int64_t k) {
  const bool accumulate = args.mode == GradMode::kAccumulate;
  const Key key{m, n, k, args.trans_a, args.trans_b, args.a.dtype, args.out.dtype, accumulate};
  auto& slot = plans_[key];
  if (slot) return *slot;
  auto made = std::make_unique<Plan>();
  FARSPAN_CUDA(cublasLtMatmulDescCreate(&made->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t first_op = args.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second_op = args.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  FARSPAN_CUDA(cublasLtMatmulDescSetAttribute(made->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                              &first_op, sizeof first_op));
  FARSPAN_CUDA(cublasLtMatmulDescSetAttribute(made->operation, CUBLASLT_MATMUL_DESC_TRANSB,
                                              &second_op, sizeof second_op));
  const auto layout = [](cublasLtMatrixLayout_t* out, DType dtype, std::int64_t rows,
                         std::int64_t cols) {
    // A row-major (rows, cols) matrix: column-major (cols, rows), leading dimension cols.
    FARSPAN_CUDA(cublasLtMatrixLayoutCreate(out, data_type(dtype), static_cast<std::uint64_t>(cols),
                                            static_cast<std::uint64_t>(rows), cols));
  };
  layout(&made->first, args.b.dtype, args.b.shape[0], args.b.shape[1]);
  layout(&made->second, args.a.dtype, args.a.shape[0], args.a.shape[1]);
  layout(&made->result, args.out.dtype, m, n);
  cublasLtMatmulPreference_t preference = nullptr;
  FARSPAN_CUDA(cublasLtMatmulPreferenceCreate(&preference));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  cublasStatus_t status =
      cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                           &kWorkspaceBytes, sizeof kWorkspaceBytes);
  if (status == CUBLAS_STATUS_SUCCESS)
    status =
        cublasLtMatmulAlgoGetHeuristic(handle_, made->operation, made->first, made->second,
                                       made->result, made->result, preference, 1, &found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  FARSPAN_CUDA(status);
  FARSPAN_CHECK(count == 1, "cuBLASLt has no algorithm for {} x {} -> {}", args.a.to_string(),
                args.b.to_string(), args.out.to_string());
  made->algorithm = found.algo;
  slot = std::move(made);
  return *slot;
}

void Matmul::run(const MatmulArgs& args, Stream& stream) {
  const std::int64_t m = args.out.shape[0], n = args.out.shape[1];
  const std::int64_t k = args.a.shape[args.trans_a ? 0 : 1];
  if (m == 0 || n == 0) return;
  const bool accumulate = args.mode == GradMode::kAccumulate;
  if (k == 0) {
    if (!accumulate)
      FARSPAN_CUDA(cudaMemsetAsync(args.out.data, 0, args.out.bytes(), native(stream)));
    return;
  }
  Plan& p = plan(args, m, n, k);
  const float alpha = 1.0f, beta = accumulate ? 1.0f : 0.0f;
  FARSPAN_CUDA(cublasLtMatmul(handle_, p.operation, &alpha, args.b.data, p.first, args.a.data,
                              p.second, &beta, args.out.data, p.result, args.out.data, p.result,
                              &p.algorithm, workspace_.data(), workspace_.bytes(), native(stream)));
}

}  // namespace farspan::cuda
