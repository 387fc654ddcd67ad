#include <cublasLt.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "support/simt/memory.h"
#include "support/simt/runtime.h"

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  std::int32_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
  std::int32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
};
struct cublasLtMatrixLayoutOpaque {
  cudaDataType_t type;
  std::uint64_t rows, cols;
  std::int64_t ld;
  std::int32_t batches = 1;
  std::int64_t batch_stride = 0;
};
struct cublasLtMatmulPreferenceOpaque {
  std::uint64_t workspace_bytes = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256};  // of a, b, c, d
};

namespace {

using Layout = cublasLtMatrixLayoutOpaque;
using Desc = cublasLtMatmulDescOpaque;
constexpr std::uint64_t kAlgorithmMark = 0x73696d74;

template <typename T>
cublasStatus_t read(T& to, const void* value, std::size_t bytes) {
  if (value == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

std::size_t bytes_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

// One matrix, and where its last element ends.
std::size_t extent(const Layout& l) {
  return ((l.cols - 1) * static_cast<std::uint64_t>(l.ld) + l.rows) * bytes_of(l.type) +
         static_cast<std::size_t>(l.batches - 1) * static_cast<std::size_t>(l.batch_stride) *
             bytes_of(l.type);
}

float element(const void* matrix, const Layout& l, std::int64_t row, std::int64_t column,
              std::int64_t offset) {
  const std::int64_t i = column * l.ld + row + offset;
  return l.type == CUDA_R_32F ? static_cast<const float*>(matrix)[i]
                              : static_cast<float>(static_cast<const __nv_bfloat16*>(matrix)[i]);
}

void store(void* matrix, const Layout& l, std::int64_t i, float x) {
  if (l.type == CUDA_R_32F)
    static_cast<float*>(matrix)[i] = x;
  else
    static_cast<__nv_bfloat16*>(matrix)[i] = x;
}

struct Product {
  Desc desc;
  Layout a, b, c, d;
  std::int64_t m, n, k;
};

// d = alpha op(a) op(b) + beta c, in f32, k ascending, rounded once.
void compute(const Product& p, float alpha, const void* a, const void* b, float beta, const void* c,
             void* d, std::int64_t batch) {
  const std::int64_t at_a = batch * p.a.batch_stride, at_b = batch * p.b.batch_stride,
                     at_c = batch * p.c.batch_stride, at_d = batch * p.d.batch_stride;
  std::vector<float> rows(static_cast<std::size_t>(p.m * p.k));  // op(a): k slices of m
  for (std::int64_t l = 0; l < p.k; ++l)
    for (std::int64_t i = 0; i < p.m; ++i)
      rows[static_cast<std::size_t>(l * p.m + i)] =
          p.desc.trans_a == CUBLAS_OP_N ? element(a, p.a, i, l, at_a) : element(a, p.a, l, i, at_a);
  std::vector<float> column(static_cast<std::size_t>(p.m));
  for (std::int64_t j = 0; j < p.n; ++j) {
    std::fill(column.begin(), column.end(), 0.0f);
    for (std::int64_t l = 0; l < p.k; ++l) {
      const float y =
          p.desc.trans_b == CUBLAS_OP_N ? element(b, p.b, l, j, at_b) : element(b, p.b, j, l, at_b);
      const float* const x = rows.data() + l * p.m;
      for (std::size_t i = 0; i < column.size(); ++i) column[i] += x[i] * y;
    }
    for (std::int64_t i = 0; i < p.m; ++i) {
      float sum = alpha * column[static_cast<std::size_t>(i)];
      if (beta != 0.0f) sum += beta * element(c, p.c, i, j, at_c);
      if (p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS) sum += element(p.desc.bias, p.d, i, 0, 0);
      store(d, p.d, j * p.d.ld + i + at_d, sum);
    }
  }
}

bool shapes_agree(const Desc& desc, const Layout& a, const Layout& b, const Layout& c,
                  const Layout& d, Product& p) {
  const bool ta = desc.trans_a != CUBLAS_OP_N, tb = desc.trans_b != CUBLAS_OP_N;
  p = {desc,
       a,
       b,
       c,
       d,
       static_cast<std::int64_t>(ta ? a.cols : a.rows),
       static_cast<std::int64_t>(tb ? b.rows : b.cols),
       static_cast<std::int64_t>(ta ? a.rows : a.cols)};
  const auto k = static_cast<std::int64_t>(tb ? b.cols : b.rows);
  for (const Layout* l : {&a, &b, &c, &d})
    if (l->rows == 0 || l->cols == 0 || l->ld < static_cast<std::int64_t>(l->rows)) return false;
  return k == p.k && d.rows == static_cast<std::uint64_t>(p.m) &&
         d.cols == static_cast<std::uint64_t>(p.n) && c.rows == d.rows && c.cols == d.cols;
}

// The combinations of types that Farspan asks for, all in cuBLASLt's table.
bool types_supported(const Desc& desc, const Layout& a, const Layout& b, const Layout& c,
                     const Layout& d) {
  const auto known = [](const Layout& l) { return l.type == CUDA_R_32F || l.type == CUDA_R_16BF; };
  return known(a) && a.type == b.type && known(c) && c.type == d.type &&
         (a.type == CUDA_R_16BF || d.type == CUDA_R_32F) && desc.scale == CUDA_R_32F &&
         (desc.compute == CUBLAS_COMPUTE_32F || desc.compute == CUBLAS_COMPUTE_32F_PEDANTIC);
}

// Memory of the device that holds the whole matrix, at the alignment that was promised.
bool placed(const void* matrix, const Layout& l, std::uint64_t alignment) {
  using namespace farspan::simt;
  const auto behind = memory().bytes_behind(matrix);
  return behind && *behind >= extent(l) &&
         reinterpret_cast<std::uintptr_t>(matrix) % std::min<std::uint64_t>(alignment, 256) == 0;
}

}  // namespace

std::size_t cublasLtGetVersion() { return 130000; }
const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    default:
      return "another cuBLAS status";
  }
}
const char* cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = new cublasLtMatmulDescOpaque{.compute = compute, .scale = scale};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return read(desc->trans_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return read(desc->trans_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return read(desc->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return read(desc->bias, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          std::uint64_t rows, std::uint64_t cols, std::int64_t ld) {
  *layout = new cublasLtMatrixLayoutOpaque{.type = type, .rows = rows, .cols = cols, .ld = ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, std::size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return read(layout->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return read(layout->cols, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return read(layout->ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return read(layout->batches, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return read(layout->batch_stride, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, std::size_t bytes) {
  std::uint32_t mask = 0;
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return read(preference->workspace_bytes, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return read(mask, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return read(preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                  value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  *found = 0;
  if (wanted < 1) return CUBLAS_STATUS_INVALID_VALUE;
  Product product;
  if (!shapes_agree(*desc, *a, *b, *c, *d, product)) return CUBLAS_STATUS_INVALID_VALUE;
  if (!types_supported(*desc, *a, *b, *c, *d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  *results = {.algo = {{kAlgorithmMark}},
              .workspaceSize = std::min<std::uint64_t>(preference->workspace_bytes, 4096),
              .state = CUBLAS_STATUS_SUCCESS,
              .wavesCount = 1.0f};
  results->algo.data[1] = results->workspaceSize;
  std::copy(std::begin(preference->alignment), std::end(preference->alignment),
            results->algo.data + 2);
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, std::size_t workspace_bytes, cudaStream_t stream) {
  Product p;
  if (!shapes_agree(*desc, *a_layout, *b_layout, *c_layout, *d_layout, p))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (!types_supported(*desc, p.a, p.b, p.c, p.d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  std::array<std::uint64_t, 4> alignment{1, 1, 1, 1};
  std::size_t needed = 0;
  if (algo != nullptr) {
    if (algo->data[0] != kAlgorithmMark) return CUBLAS_STATUS_INVALID_VALUE;
    needed = algo->data[1];
    std::copy_n(algo->data + 2, 4, alignment.begin());
  }
  const float factor = *static_cast<const float*>(alpha), addend = *static_cast<const float*>(beta);
  if (!placed(a, p.a, alignment[0]) || !placed(b, p.b, alignment[1]) ||
      (addend != 0.0f && !placed(c, p.c, alignment[2])) || !placed(d, p.d, alignment[3]))
    return CUBLAS_STATUS_INVALID_VALUE;
  const Layout space{.type = CUDA_R_16BF, .rows = needed / 2, .cols = 1, .ld = 1};
  if (needed > workspace_bytes || (needed > 0 && !placed(workspace, space, 16)))
    return CUBLAS_STATUS_INVALID_VALUE;
  farspan::simt::runtime().enqueue(stream, {.run = [=] {
                                     // A workspace holds what another product on another stream
                                     // would spoil.
                                     if (needed > 0)
                                       std::memset(workspace, farspan::simt::kGarbage, needed);
                                     for (std::int64_t batch = 0; batch < p.d.batches; ++batch)
                                       compute(p, factor, a, b, addend, c, d, batch);
                                   }});
  return CUBLAS_STATUS_SUCCESS;
}
