#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {
namespace {

// What cuBLAS's manual recommends on Hopper.
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

cudaDataType_t data_type(DType dtype) {
  FARSPAN_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "matmul of {}", name_of(dtype));
  return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

// The largest power of two that divides the address, at most 256, which is what cuBLASLt takes for
// granted unless told: a view of some rows may start anywhere.
unsigned alignment_of(const Tensor& t) {
  const auto address = reinterpret_cast<std::uintptr_t>(t.data);
  return 1u << std::min(8, std::countr_zero(address));
}

// A row-major (rows, cols) matrix is a column-major (cols, rows) one of leading dimension cols.
cublasLtMatrixLayout_t make_layout(DType dtype, std::int64_t rows, std::int64_t cols) {
  cublasLtMatrixLayout_t layout = nullptr;
  FARSPAN_CUDA(cublasLtMatrixLayoutCreate(&layout, data_type(dtype),
                                          static_cast<std::uint64_t>(cols),
                                          static_cast<std::uint64_t>(rows), cols));
  return layout;
}

// The preferences of one search for an algorithm.
class Preference {
 public:
  Preference() { FARSPAN_CUDA(cublasLtMatmulPreferenceCreate(&preference_)); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  ~Preference() { cublasLtMatmulPreferenceDestroy(preference_); }
  template <typename T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    FARSPAN_CUDA(
        cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof value));
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

// cuBLASLt is column-major: a row-major out (M, N) is its transpose (N, M) there, so out^T =
// op(b)^T op(a)^T is asked for, with b as the first operand. Read as column-major, b is b^T
// already: it is transposed (once more) exactly where the caller says trans_b, and a likewise.
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

Matmul::Matmul(Device& device) : device_(device) { FARSPAN_CUDA(cublasLtCreate(&handle_)); }

Matmul::~Matmul() {
  plans_.clear();
  cublasLtDestroy(handle_);
}

cublasLtMatmulAlgo_t Matmul::choose(const Plan& plan, const MatmulArgs& args,
                                    const Alignments& alignments) const {
  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  // Split sums only in f32, in the workspace: the other schemes add in out's dtype, which rounds
  // bf16 more than once.
  preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  const auto& [a, b, out] = alignments;
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t{b});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::uint32_t{a});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::uint32_t{out});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::uint32_t{out});
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.first, plan.second, plan.result,
                                     plan.result, preference.get(), 1, &found, &count);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED)
    check(status, "cublasLtMatmulAlgoGetHeuristic", __FILE__, __LINE__);
  FARSPAN_CHECK(status == CUBLAS_STATUS_SUCCESS && count == 1,
                "cuBLASLt has no algorithm for {}{} x {}{} -> {}, aligned to {}, {} and {} bytes",
                args.a.to_string(), args.trans_a ? "^T" : "", args.b.to_string(),
                args.trans_b ? "^T" : "", args.out.to_string(), a, b, out);
  return found.algo;
}

Matmul::Plan& Matmul::plan(const MatmulArgs& args, std::int64_t m, std::int64_t n, std::int64_t k) {
  const Alignments alignments{alignment_of(args.a), alignment_of(args.b), alignment_of(args.out)};
  const Key key{m, n, k, args.trans_a, args.trans_b, args.a.dtype, args.out.dtype, alignments};
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
  made->first = make_layout(args.b.dtype, args.b.shape[0], args.b.shape[1]);
  made->second = make_layout(args.a.dtype, args.a.shape[0], args.a.shape[1]);
  made->result = make_layout(args.out.dtype, m, n);
  made->algorithm = choose(*made, args, alignments);
  slot = std::move(made);
  return *slot;
}

Buffer& Matmul::workspace(const Stream& stream) {
  Buffer& buffer = workspaces_[native(stream)];
  if (buffer.data() == nullptr) buffer = device_.allocate(kWorkspaceBytes);
  return buffer;
}

void Matmul::run(const MatmulArgs& args, Stream& stream) {
  for (std::size_t i = 0; args.row_blocks.size() > 2 && i + 1 < args.row_blocks.size(); ++i) {
    const std::int64_t begin = args.row_blocks[i], count = args.row_blocks[i + 1] - begin;
    MatmulArgs block = args;  // not trans_a
    block.row_blocks = {};
    block.a = args.a.rows(begin, count);
    block.out = args.out.rows(begin, count);
    run(block, stream);
  }
  if (args.row_blocks.size() > 2) return;
  const std::int64_t m = args.out.shape[0], n = args.out.shape[1];
  const std::int64_t k = args.a.shape[args.trans_a ? 0 : 1];
  if (m == 0 || n == 0) return;
  const bool accumulate = args.mode == GradMode::kAccumulate;
  if (k == 0) {
    if (!accumulate)
      FARSPAN_CUDA(cudaMemsetAsync(args.out.data, 0, args.out.bytes(), native(stream)));
    return;
  }
  const Plan& p = plan(args, m, n, k);
  Buffer& space = workspace(stream);
  // With beta 0 out is not read. out is both addend and result, which cuBLASLt allows for one
  // layout.
  const float alpha = 1.0f, beta = accumulate ? 1.0f : 0.0f;
  FARSPAN_CUDA(cublasLtMatmul(handle_, p.operation, &alpha, args.b.data, p.first, args.a.data,
                              p.second, &beta, args.out.data, p.result, args.out.data, p.result,
                              &p.algorithm, space.data(), space.bytes(), native(stream)));
}

}  // namespace farspan::cuda
