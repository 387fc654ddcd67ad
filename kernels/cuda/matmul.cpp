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

// Beyond this many shapes (ragged batches without end) the kept plans are dropped.
constexpr std::size_t kMaxPlans = 4096;

// The largest power of two that divides all of `bytes`, at most 16: no algorithm asks for more, and
// views of rows would otherwise get plans, and bits, of their own for each place that they begin
// at.
unsigned alignment_of(std::uintptr_t bytes) { return 1u << std::min(4, std::countr_zero(bytes)); }

std::array<unsigned, 3> alignments_of(const Product& p) {
  const auto of = [&](const std::byte* data, std::int64_t ld, DType dtype) {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    const auto row = static_cast<std::uintptr_t>(ld) * size_of(dtype);
    return alignment_of(p.anywhere ? address | row : address);
  };
  return {of(p.a, p.ld_a, p.in), of(p.b, p.ld_b, p.in), of(p.out, p.n, p.to)};
}

// A row-major (rows, cols) matrix is a column-major (cols, rows) one of leading dimension ld.
cublasLtMatrixLayout_t make_layout(DType dtype, std::int64_t rows, std::int64_t cols,
                                   std::int64_t ld) {
  cublasLtMatrixLayout_t layout = nullptr;
  FARSPAN_CUDA(cublasLtMatrixLayoutCreate(&layout, data_type(dtype),
                                          static_cast<std::uint64_t>(cols),
                                          static_cast<std::uint64_t>(rows), ld));
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

cublasLtMatmulAlgo_t Matmul::choose(const Plan& plan, const Product& product,
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
                "cuBLASLt has no algorithm for {} -> {}, M {} N {} K {}, trans_a {} trans_b {}, "
                "aligned to {}, {} and {} bytes",
                name_of(product.in), name_of(product.to), product.m, product.n, product.k,
                product.trans_a, product.trans_b, a, b, out);
  return found.algo;
}

Matmul::Plan& Matmul::plan(const Product& p) {
  const Alignments alignments = alignments_of(p);
  const Key key{p.m, p.n, p.k, p.ld_a, p.ld_b, p.trans_a, p.trans_b, p.in, p.to, alignments};
  if (const auto known = plans_.find(key); known != plans_.end()) return *known->second;
  if (plans_.size() >= kMaxPlans) plans_.clear();
  auto made = std::make_unique<Plan>();
  FARSPAN_CUDA(cublasLtMatmulDescCreate(&made->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t first_op = p.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second_op = p.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  FARSPAN_CUDA(cublasLtMatmulDescSetAttribute(made->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                              &first_op, sizeof first_op));
  FARSPAN_CUDA(cublasLtMatmulDescSetAttribute(made->operation, CUBLASLT_MATMUL_DESC_TRANSB,
                                              &second_op, sizeof second_op));
  made->first = make_layout(p.in, p.trans_b ? p.n : p.k, p.trans_b ? p.k : p.n, p.ld_b);
  made->second = make_layout(p.in, p.trans_a ? p.k : p.m, p.trans_a ? p.m : p.k, p.ld_a);
  made->result = make_layout(p.to, p.m, p.n, p.n);
  made->algorithm = choose(*made, p, alignments);
  return *plans_.emplace(key, std::move(made)).first->second;
}

Buffer& Matmul::workspace(const Stream& stream) {
  Buffer& buffer = workspaces_[native(stream)];
  if (buffer.data() == nullptr) buffer = device_.allocate(kWorkspaceBytes);
  return buffer;
}

void Matmul::multiply(const Product& product, Stream& stream) {
  const Plan& p = plan(product);
  Buffer& space = workspace(stream);
  // With beta 0 out is not read. out is both addend and result, which cuBLASLt allows for one
  // layout.
  const float alpha = 1.0f, beta = product.accumulate ? 1.0f : 0.0f;
  FARSPAN_CUDA(cublasLtMatmul(handle_, p.operation, &alpha, product.b, p.first, product.a, p.second,
                              &beta, product.out, p.result, product.out, p.result, &p.algorithm,
                              space.data(), space.bytes(), native(stream)));
}

void Matmul::run(const MatmulArgs& args, Stream& stream) {
  const std::int64_t k = args.a.shape[args.trans_a ? 0 : 1];
  Product product{.a = args.a.data,
                  .b = args.b.data,
                  .out = args.out.data,
                  .m = args.out.shape[0],
                  .n = args.out.shape[1],
                  .k = k,
                  .ld_a = args.a.shape[1],
                  .ld_b = args.b.shape[1],
                  .trans_a = args.trans_a,
                  .trans_b = args.trans_b,
                  .accumulate = args.mode == GradMode::kAccumulate,
                  .in = args.a.dtype,
                  .to = args.out.dtype,
                  .anywhere = !args.row_blocks.empty()};
  if (product.m == 0 || product.n == 0) return;
  if (k == 0) {  // the empty sum
    if (!product.accumulate)
      FARSPAN_CUDA(cudaMemsetAsync(args.out.data, 0, args.out.bytes(), native(stream)));
    return;
  }
  if (args.row_blocks.size() <= 2) {
    multiply(product, stream);
    return;
  }
  for (std::size_t i = 0; i + 1 < args.row_blocks.size(); ++i) {  // not trans_a
    const std::int64_t begin = args.row_blocks[i];
    product.m = args.row_blocks[i + 1] - begin;
    if (product.m == 0) continue;
    product.a = args.a.rows(begin, product.m).data;
    product.out = args.out.rows(begin, product.m).data;
    multiply(product, stream);
  }
}

}  // namespace farspan::cuda
