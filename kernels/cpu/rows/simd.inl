// Vectors of FARSPAN_LANES floats for one instruction set, by GCC's vector extension. Included by
// rows.inl only. Everything has internal linkage: each instruction set has its own copy.
//
// A loop is written once, for whole vectors and for the tail:
//   for_lanes(n, [&](std::int64_t i, auto part) { store(out + i, load(x + i, part) * 2, part); });
#include <immintrin.h>

#include <cstdint>

namespace farspan::cpu {
namespace {

constexpr int kLanes = FARSPAN_LANES;
typedef float VecF __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t VecU __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t VecH __attribute__((vector_size(2 * kLanes)));
typedef float HalfF __attribute__((vector_size(2 * kLanes)));
typedef double VecD __attribute__((vector_size(4 * kLanes)));

// How many lanes of a vector are in memory: all (known to the compiler), or the first n.
struct Whole {};
struct Part {
  std::int64_t n;
};

inline VecF widen(VecH h) {
#if FARSPAN_LANES == 16
  // One instruction; __builtin_convertvector makes two halves of it in GCC 12.
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(h));
  return reinterpret_cast<VecF>(reinterpret_cast<VecU>(wide) << 16);
#else
  return reinterpret_cast<VecF>(__builtin_convertvector(h, VecU) << 16);
#endif
}

// Nearest even; NaN stays NaN: the same as BFloat16::round.
inline VecH narrow(VecF v) {
  const VecU u = reinterpret_cast<VecU>(v);
  const VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VecU quiet = (u >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : quiet, VecH);
}

inline VecF load(const float* p, Whole = {}) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline VecF load(const std::uint16_t* p, Whole = {}) {
  VecH h;
  __builtin_memcpy(&h, p, sizeof h);
  return widen(h);
}
inline void store(float* p, VecF v, Whole = {}) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(std::uint16_t* p, VecF v, Whole = {}) {
  const VecH h = narrow(v);
  __builtin_memcpy(p, &h, sizeof h);
}

// Lanes beyond the part read 0 and are not written.
template <typename T>
inline VecF load(const T* p, Part part) {
  T lanes[kLanes] = {};
  for (std::int64_t i = 0; i < part.n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <typename T>
inline void store(T* p, VecF v, Part part) {
  T lanes[kLanes];
  store(lanes, v);
  for (std::int64_t i = 0; i < part.n; ++i) p[i] = lanes[i];
}

template <typename Body>
inline __attribute__((always_inline)) void for_lanes(std::int64_t n, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Whole{});
  if (i < n) body(i, Part{n - i});
}

// Lanes outside the part replaced by `other`.
inline VecF keep(VecF v, VecF, Whole) { return v; }
inline VecF keep(VecF v, VecF other, Part part) {
  for (int i = 0; i < kLanes; ++i)
    if (i >= part.n) v[i] = other[i];
  return v;
}

inline VecF splat(float value) { return VecF{} + value; }
inline VecF max(VecF a, VecF b) { return a > b ? a : b; }

inline float sum(VecF v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline double sum(VecD v) {
  double total = 0;
  for (int i = 0; i < kLanes / 2; ++i) total += v[i];
  return total;
}

inline float max(VecF v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

inline VecF sqrt(VecF v) {
#if FARSPAN_LANES == 16
  return _mm512_maskz_sqrt_ps(0xffff,
                              v);  // the plain form warns about its undefined source in GCC 12
#elif FARSPAN_LANES == 8
  return _mm256_sqrt_ps(v);
#else
  return _mm_sqrt_ps(v);
#endif
}

// e^x, relative error below 2e-7: x = n ln 2 + r, a polynomial in r (Cephes' minimax coefficients,
// Moshier 1989), times 2^n. Below -87.3 it is 0 (no denormals), above 88.37 it saturates, NaN
// stays NaN.
inline VecF exp(VecF x) {
  const VecF highest = splat(88.37f);
  const VecF lowest = splat(-87.3f);
  const VecI vanishes = x < lowest;
  VecF y = x > highest ? highest : x;
  y = vanishes ? lowest : y;
  const VecF shifted = y * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to integer
  const VecF n = shifted - 12582912.0f;
  const VecF r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  VecF p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VecF power = reinterpret_cast<VecF>((reinterpret_cast<VecU>(shifted) << 23) + 0x3f800000u);
  return vanishes ? VecF{} : p * power;
}

}  // namespace
}  // namespace farspan::cpu
