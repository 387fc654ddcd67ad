// Copies, also between layouts and dtypes, and fills.
#include <cstddef>
#include <cstring>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/elementwise.h"

namespace farspan::cuda {
namespace {

// The bits of BFloat16 (core/dtype.h): a NaN keeps its upper half, where the hardware's conversion
// makes all NaNs one.
__device__ __forceinline__ std::uint32_t narrow_bits(float x) {
  if (!isnan(x)) return __bfloat16_as_ushort(__float2bfloat16_rn(x));
  return (__float_as_uint(x) >> 16) | 0x40u;
}

template <int N>
__device__ __forceinline__ void store_copy(float* p, const Floats<N>& x) {
  store_floats(p, x);
}
template <int N>
__device__ __forceinline__ void store_copy(bf16* p, const Floats<N>& x) {
  if constexpr (N == 1) {
    *p = __ushort_as_bfloat16(static_cast<unsigned short>(narrow_bits(x.at[0])));
  } else {
    std::uint32_t words[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i)
      words[i] = narrow_bits(x.at[2 * i]) | narrow_bits(x.at[2 * i + 1]) << 16;
    if constexpr (N == 8)
      *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
    else
      *reinterpret_cast<uint2*>(p) = make_uint2(words[0], words[1]);
  }
}

template <typename From, typename To>
struct Convert {
  const From* src;
  To* dst;
  template <int N>
  __device__ __forceinline__ Floats<N> load(std::int64_t i) const {
    return load_floats<N>(src + i);
  }
  template <int N>
  __device__ __forceinline__ void store(std::int64_t i, const Floats<N>& x) const {
    store_copy(dst + i, x);
  }
};

template <typename From, typename To>
void convert(const CopyArgs& args, cudaStream_t stream) {
  const auto* src = data<From>(args.src);
  auto* dst = data<To>(args.dst);
  over_elements<8>(Convert<From, To>{src, dst}, args.src.numel(), aligned_to(16, {src, dst}),
                   stream);
}

template <typename T>
__global__ void __launch_bounds__(kBlock) fill_kernel(T* dst, T value, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) dst[i] = value;
}

// Whole words of the repeated value, where dst is at a multiple of 16 bytes; else element by
// element.
template <typename T>
void fill_with(const FillArgs& args, cudaStream_t stream, T value) {
  auto* dst = data<T>(args.dst);
  const std::int64_t n = args.dst.numel();
  constexpr std::int64_t kPerPack = 16 / sizeof(T);
  const std::int64_t packs = aligned_to(16, {dst}) ? n / kPerPack : 0;
  if (packs > 0) {
    uint4 pack;
    for (std::int64_t i = 0; i < kPerPack; ++i)
      std::memcpy(reinterpret_cast<std::byte*>(&pack) + i * sizeof(T), &value, sizeof(T));
    launch(fill_kernel<uint4>, linear(packs, stream), reinterpret_cast<uint4*>(dst), pack, packs);
  }
  if (const std::int64_t rest = n - packs * kPerPack; rest > 0)
    launch(fill_kernel<T>, linear(rest, stream), dst + packs * kPerPack, value, rest);
}

// ---- rows -----------------------------------------------------------------------------------

// Rows of `cols` items: elements, or packs of N elements. Strides are in elements.
struct Rows2d {
  std::int64_t rows, cols, src_stride, dst_stride;
};

// Items of one size, whatever they are.
template <typename T>
__global__ void __launch_bounds__(kBlock) copy_rows_kernel(const T* src, T* dst, Rows2d r) {
  for (std::int64_t row = first_row(); row < r.rows; row += row_stride())
    for (std::int64_t col = first_col(); col < r.cols; col += col_stride())
      dst[row * r.dst_stride + col] = src[row * r.src_stride + col];
}

__global__ void __launch_bounds__(kBlock)
    add_integer_rows_kernel(const std::int64_t* src, std::int64_t* dst, Rows2d r) {
  for (std::int64_t row = first_row(); row < r.rows; row += row_stride())
    for (std::int64_t col = first_col(); col < r.cols; col += col_stride())
      dst[row * r.dst_stride + col] += src[row * r.src_stride + col];
}

template <int N, typename From, typename To>
__global__ void __launch_bounds__(kBlock)
    convert_rows_kernel(const From* src, To* dst, bool accumulate, Rows2d r) {
  for (std::int64_t row = first_row(); row < r.rows; row += row_stride())
    for (std::int64_t col = first_col(); col < r.cols; col += col_stride()) {
      To* const to = dst + row * r.dst_stride + col * N;
      Floats<N> x = load_floats<N>(src + row * r.src_stride + col * N);
      if (accumulate) {
        const Floats<N> before = load_floats<N>(to);
#pragma unroll
        for (int i = 0; i < N; ++i) x.at[i] = before.at[i] + x.at[i];
      }
      store_copy(to, x);
    }
}

// Copies whole items of T as long as everything, in bytes, is a multiple of its size.
template <typename T>
bool copied_as(const Copy2dArgs& args, cudaStream_t stream) {
  const auto element = static_cast<std::int64_t>(size_of(args.src.dtype));
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));
  const std::byte* const src = args.src.data + args.src_begin * element;
  std::byte* const dst = args.dst.data + args.dst_begin * element;
  const std::int64_t row_bytes = args.cols * element;
  const std::int64_t src_stride = args.src_stride * element;
  const std::int64_t dst_stride = args.dst_stride * element;
  if ((row_bytes | src_stride | dst_stride) % kSize != 0 || !aligned_to(kSize, {src, dst}))
    return false;
  const Rows2d shape{args.rows, row_bytes / kSize, src_stride / kSize, dst_stride / kSize};
  launch(copy_rows_kernel<T>, by_rows(shape.rows, shape.cols, stream),
         reinterpret_cast<const T*>(src), reinterpret_cast<T*>(dst), shape);
  return true;
}

template <typename From, typename To>
void convert_rows(const Copy2dArgs& args, cudaStream_t stream) {
  constexpr int kWide = 4;
  const auto* src = data<From>(args.src) + args.src_begin;
  auto* dst = data<To>(args.dst) + args.dst_begin;
  const bool accumulate = args.mode == GradMode::kAccumulate;
  Rows2d shape{args.rows, args.cols, args.src_stride, args.dst_stride};
  if ((shape.cols | shape.src_stride | shape.dst_stride) % kWide == 0 &&
      aligned_to(kWide * sizeof(From), {src}) && aligned_to(kWide * sizeof(To), {dst})) {
    shape.cols /= kWide;
    launch(convert_rows_kernel<kWide, From, To>, by_rows(shape.rows, shape.cols, stream), src, dst,
           accumulate, shape);
  } else {
    launch(convert_rows_kernel<1, From, To>, by_rows(shape.rows, shape.cols, stream), src, dst,
           accumulate, shape);
  }
}

}  // namespace

void copy(const CopyArgs& args, cudaStream_t stream) {
  if (args.src.numel() == 0) return;
  if (args.src.dtype == args.dst.dtype) {
    FARSPAN_CUDA(
        cudaMemcpyAsync(args.dst.data, args.src.data, args.src.bytes(), cudaMemcpyDefault, stream));
  } else if (args.dst.dtype == DType::kBF16) {
    FARSPAN_CHECK(args.src.dtype == DType::kF32, "copy of {} to bf16", name_of(args.src.dtype));
    convert<float, bf16>(args, stream);
  } else {
    FARSPAN_CHECK(args.src.dtype == DType::kBF16 && args.dst.dtype == DType::kF32,
                  "copy of {} to {}", name_of(args.src.dtype), name_of(args.dst.dtype));
    convert<bf16, float>(args, stream);
  }
}

void copy_2d(const Copy2dArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.cols == 0) return;
  const bool narrow = args.src.dtype == DType::kBF16;
  const bool accumulate = args.mode == GradMode::kAccumulate;
  if (accumulate && args.dst.dtype == DType::kI64)
    launch(add_integer_rows_kernel, by_rows(args.rows, args.cols, stream),
           data<std::int64_t>(args.src) + args.src_begin,
           data<std::int64_t>(args.dst) + args.dst_begin,
           Rows2d{args.rows, args.cols, args.src_stride, args.dst_stride});
  else if ((accumulate || args.src.dtype != args.dst.dtype) && narrow)
    convert_rows<bf16, float>(args, stream);
  else if (accumulate)
    convert_rows<float, float>(args, stream);
  else if (args.src.dtype != args.dst.dtype)
    convert_rows<float, bf16>(args, stream);
  else
    FARSPAN_CHECK(copied_as<uint4>(args, stream) || copied_as<std::uint64_t>(args, stream) ||
                  copied_as<std::uint32_t>(args, stream) ||
                  copied_as<std::uint16_t>(args, stream) || copied_as<std::uint8_t>(args, stream));
}

void fill(const FillArgs& args, cudaStream_t stream) {
  if (args.dst.numel() == 0) return;
  switch (args.dst.dtype) {
    case DType::kF32:
      fill_with(args, stream, static_cast<float>(args.value));
      break;
    case DType::kBF16:
      fill_with(args, stream,
                static_cast<std::uint16_t>(BFloat16(static_cast<float>(args.value)).bits));
      break;
    case DType::kF64:
      fill_with(args, stream, args.value);
      break;
    case DType::kI32:
      fill_with(args, stream, static_cast<std::int32_t>(args.value));
      break;
    case DType::kI64:
      fill_with(args, stream, static_cast<std::int64_t>(args.value));
      break;
    default:
      FARSPAN_CHECK(false, "fill of {}", name_of(args.dst.dtype));
  }
}

}  // namespace farspan::cuda
