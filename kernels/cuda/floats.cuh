// Consecutive elements as floats, moved 16 bytes at a time where addresses allow.
//
//   constexpr int kWidth = kPackWidth<bf16>;                    // 8
//   Floats<kWidth> x = load_floats<kWidth>(p);                  // p at a multiple of 16 bytes
//   store_floats<kWidth>(out, x);                               // rounded to nearest even
//   uint4 pack = load_pack<bf16, kWhole>(row, col, c);          // kept as it is in memory: 4
//   registers
//
// What a thread gets does not depend on how it is moved: a loop over packs gives the same bits on
// views that begin anywhere (kWhole false: element by element) as on aligned ones.
#pragma once

#include <initializer_list>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace farspan::cuda {

template <int N>
struct Floats {
  float at[N];
};

// Elements in 16 bytes.
template <typename T>
inline constexpr int kPackWidth = 16 / sizeof(T);

// Whether all addresses are multiples of `bytes`, a power of two.
inline bool aligned_to(std::uintptr_t bytes, std::initializer_list<const void*> addresses) {
  std::uintptr_t all = 0;
  for (const void* p : addresses) all |= reinterpret_cast<std::uintptr_t>(p);
  return all % bytes == 0;
}

__device__ __forceinline__ void widen_pair(std::uint32_t pair, float* to) {
  to[0] = __uint_as_float(pair << 16);
  to[1] = __uint_as_float(pair & 0xffff0000u);
}

// N elements from p: N = 1, or a multiple of 4 with p at a multiple of min(16, N * sizeof(T))
// bytes.
template <int N>
__device__ __forceinline__ Floats<N> load_floats(const float* p) {
  Floats<N> x;
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const float4 four = reinterpret_cast<const float4*>(p)[i];
      x.at[4 * i] = four.x;
      x.at[4 * i + 1] = four.y;
      x.at[4 * i + 2] = four.z;
      x.at[4 * i + 3] = four.w;
    }
  } else {
    static_assert(N == 1);
    x.at[0] = *p;
  }
  return x;
}

template <int N>
__device__ __forceinline__ Floats<N> load_floats(const bf16* p) {
  Floats<N> x;
  if constexpr (N == 8) {
    const uint4 bits = *reinterpret_cast<const uint4*>(p);
    widen_pair(bits.x, x.at);
    widen_pair(bits.y, x.at + 2);
    widen_pair(bits.z, x.at + 4);
    widen_pair(bits.w, x.at + 6);
  } else if constexpr (N == 4) {
    const uint2 bits = *reinterpret_cast<const uint2*>(p);
    widen_pair(bits.x, x.at);
    widen_pair(bits.y, x.at + 2);
  } else {
    static_assert(N == 1);
    x.at[0] = to_float(*p);
  }
  return x;
}

template <int N>
__device__ __forceinline__ void store_floats(float* p, const Floats<N>& x) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i)
      reinterpret_cast<float4*>(p)[i] =
          make_float4(x.at[4 * i], x.at[4 * i + 1], x.at[4 * i + 2], x.at[4 * i + 3]);
  } else {
    static_assert(N == 1);
    *p = x.at[0];
  }
}

template <int N>
__device__ __forceinline__ void store_floats(bf16* p, const Floats<N>& x) {
  if constexpr (N == 8) {
    *reinterpret_cast<uint4*>(p) =
        make_uint4(pack_bf16(x.at[0], x.at[1]), pack_bf16(x.at[2], x.at[3]),
                   pack_bf16(x.at[4], x.at[5]), pack_bf16(x.at[6], x.at[7]));
  } else if constexpr (N == 4) {
    *reinterpret_cast<uint2*>(p) =
        make_uint2(pack_bf16(x.at[0], x.at[1]), pack_bf16(x.at[2], x.at[3]));
  } else {
    static_assert(N == 1);
    *p = from_float<bf16>(x.at[0]);
  }
}

// ---- packs of a row's columns ---------------------------------------------------------------

template <typename T>
__device__ __forceinline__ Floats<kPackWidth<T>> floats_of(uint4 pack) {
  Floats<kPackWidth<T>> x;
  if constexpr (sizeof(T) == 4) {
    x.at[0] = __uint_as_float(pack.x);
    x.at[1] = __uint_as_float(pack.y);
    x.at[2] = __uint_as_float(pack.z);
    x.at[3] = __uint_as_float(pack.w);
  } else {
    widen_pair(pack.x, x.at);
    widen_pair(pack.y, x.at + 2);
    widen_pair(pack.z, x.at + 4);
    widen_pair(pack.w, x.at + 6);
  }
  return x;
}

template <typename T>
__device__ __forceinline__ uint4 pack_of(const Floats<kPackWidth<T>>& x) {
  if constexpr (sizeof(T) == 4)
    return make_uint4(__float_as_uint(x.at[0]), __float_as_uint(x.at[1]), __float_as_uint(x.at[2]),
                      __float_as_uint(x.at[3]));
  else
    return make_uint4(pack_bf16(x.at[0], x.at[1]), pack_bf16(x.at[2], x.at[3]),
                      pack_bf16(x.at[4], x.at[5]), pack_bf16(x.at[6], x.at[7]));
}

__device__ __forceinline__ std::uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ std::uint32_t bits_of(bf16 x) { return __bfloat16_as_ushort(x); }

// Columns [col, col + width) of a row of c elements, 0 beyond its end. kWhole: c is a multiple of
// the width and the row begins at a multiple of 16 bytes.
template <typename T, bool kWhole>
__device__ __forceinline__ uint4 load_pack(const T* row, int col, int c) {
  if constexpr (kWhole) {
    return col < c ? *reinterpret_cast<const uint4*>(row + col) : make_uint4(0, 0, 0, 0);
  } else {
    constexpr int kPerWord = 4 / sizeof(T);
    std::uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kPackWidth<T>; ++i)
      if (col + i < c) words[i / kPerWord] |= bits_of(row[col + i]) << (16 * (i % kPerWord));
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// Writes what load_pack reads.
template <typename T, bool kWhole>
__device__ __forceinline__ void store_pack(T* row, int col, int c, const Floats<kPackWidth<T>>& x) {
  if constexpr (kWhole) {
    if (col < c) *reinterpret_cast<uint4*>(row + col) = pack_of<T>(x);
  } else {
#pragma unroll
    for (int i = 0; i < kPackWidth<T>; ++i)
      if (col + i < c) row[col + i] = from_float<T>(x.at[i]);
  }
}

}  // namespace farspan::cuda
