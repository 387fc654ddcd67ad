// The loops of rows.h for one instruction set. The including file defines FARSPAN_LANES and is
// compiled with the flags of that instruction set; see CMakeLists.txt.
#include "kernels/cpu/rows/rows.h"
#include "kernels/cpu/rows/simd.inl"

namespace farspan::cpu {
namespace {

template <typename T>
void add(const T* a, const T* b, T* out, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, auto part) {
    store(out + i, load(a + i, part) + load(b + i, part), part);
  });
}

template <typename T>
void accumulate(float* total, const T* x, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, auto part) {
    store(total + i, load(total + i, part) + load(x + i, part), part);
  });
}

// The sum over one row of term(i, part), in four chains so that additions overlap.
template <typename Term>
inline float row_sum(std::int64_t n, const Term& term) {
  VecF s0{}, s1{}, s2{}, s3{};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 += term(i, Whole{});
    s1 += term(i + kLanes, Whole{});
    s2 += term(i + 2 * kLanes, Whole{});
    s3 += term(i + 3 * kLanes, Whole{});
  }
  for (; i + kLanes <= n; i += kLanes) s0 += term(i, Whole{});
  if (i < n) s1 += term(i, Part{n - i});
  return sum((s0 + s1) + (s2 + s3));
}

template <typename T>
void rmsnorm_forward(const T* x, const T* weight, T* y, float* rstd, std::int64_t rows,
                     std::int64_t c, float eps) {
  for (std::int64_t row = 0; row < rows; ++row, x += c, y += c) {
    const float squares = row_sum(c, [&](std::int64_t i, auto part) {
      const VecF v = load(x + i, part);
      return v * v;
    });
    const float r = 1.0f / __builtin_sqrtf(squares / static_cast<float>(c) + eps);
    rstd[row] = r;
    for_lanes(c, [&](std::int64_t i, auto part) {
      store(y + i, load(x + i, part) * r * load(weight + i, part), part);
    });
  }
}

template <typename T, bool kAccumulateDx>
void rmsnorm_backward_rows(const T* x, const T* weight, const float* rstd, const T* dy, T* dx,
                           float* dweight, std::int64_t rows, std::int64_t c) {
  for (std::int64_t row = 0; row < rows; ++row, x += c, dy += c, dx += c) {
    const float dot = row_sum(c, [&](std::int64_t i, auto part) {
      return load(dy + i, part) * load(weight + i, part) * load(x + i, part);
    });
    const float r = rstd[row];
    const float along = r * r * (dot / static_cast<float>(c));
    for_lanes(c, [&](std::int64_t i, auto part) {
      const VecF xi = load(x + i, part);
      const VecF dyi = load(dy + i, part);
      VecF value = (dyi * load(weight + i, part) - xi * along) * r;
      if constexpr (kAccumulateDx) value += load(dx + i, part);
      store(dx + i, value, part);
      store(dweight + i, load(dweight + i, part) + dyi * (xi * r), part);
    });
  }
}

template <typename T>
void rmsnorm_backward(const T* x, const T* weight, const float* rstd, const T* dy, T* dx,
                      float* dweight, std::int64_t rows, std::int64_t c, bool accumulate_dx) {
  if (accumulate_dx)
    rmsnorm_backward_rows<T, true>(x, weight, rstd, dy, dx, dweight, rows, c);
  else
    rmsnorm_backward_rows<T, false>(x, weight, rstd, dy, dx, dweight, rows, c);
}

template <typename T>
void rope_apply(T* x, const float* cos, const float* sin, std::int64_t tokens, std::int64_t heads,
                std::int64_t half, bool inverse) {
  const float sign = inverse ? -1.0f : 1.0f;
  for (std::int64_t t = 0; t < tokens; ++t, cos += half, sin += half)
    for (std::int64_t h = 0; h < heads; ++h, x += 2 * half)
      for_lanes(half, [&](std::int64_t j, auto part) {
        const VecF a = load(x + j, part);
        const VecF b = load(x + half + j, part);
        const VecF c = load(cos + j, part);
        const VecF s = load(sin + j, part) * sign;
        store(x + j, a * c - b * s, part);
        store(x + half + j, b * c + a * s, part);
      });
}

template <typename T>
void swiglu_forward(const T* gate, const T* up, T* out, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, auto part) {
    const VecF g = load(gate + i, part);
    store(out + i, g / (exp(-g) + 1.0f) * load(up + i, part), part);
  });
}

template <typename T>
void swiglu_backward(const T* gate, const T* up, const T* dout, T* dgate, T* dup, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, auto part) {
    const VecF g = load(gate + i, part);
    const VecF d = load(dout + i, part);
    const VecF u = load(up + i, part);
    const VecF sigmoid = 1.0f / (exp(-g) + 1.0f);
    const VecF silu = g * sigmoid;
    store(dgate + i, d * u * (sigmoid + silu * (1.0f - sigmoid)), part);
    store(dup + i, d * silu, part);
  });
}

// Sum of e^(x - top), in blocks whose totals are added in double: exact enough for any vocabulary.
inline double sum_exp(const float* x, std::int64_t n, float top) {
  constexpr std::int64_t kBlock = 2048;
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t count = n - begin < kBlock ? n - begin : kBlock;
    total += row_sum(count, [&](std::int64_t i, auto part) {
      return keep(exp(load(x + begin + i, part) - top), VecF{}, part);
    });
  }
  return total;
}

template <typename T>
double cross_entropy(const float* logits, T* dlogits, std::int64_t v, std::int64_t label) {
  VecF best = splat(logits[0]);
  for_lanes(v, [&](std::int64_t i, auto part) {
    best = max(keep(load(logits + i, part), best, part), best);
  });
  const float top = max(best);
  const double total = sum_exp(logits, v, top);
  const double nll = __builtin_log(total) + (static_cast<double>(top) - logits[label]);
  if (dlogits != nullptr) {
    const float inverse = static_cast<float>(1.0 / total);
    const float at_label = exp(splat(logits[label] - top))[0] * inverse - 1.0f;
    for_lanes(v, [&](std::int64_t i, auto part) {
      store(dlogits + i, exp(load(logits + i, part) - top) * inverse, part);
    });
    store(dlogits + label, splat(at_label), Part{1});
  }
  return nll;
}

template <typename T>
void adamw(float* master, float* m, float* v, const float* grad, T* working, std::int64_t n,
           const AdamWScalars& s) {
  for_lanes(n, [&](std::int64_t i, auto part) {
    const VecF g = load(grad + i, part) * s.grad_scale;
    const VecF mi = load(m + i, part) * s.beta1 + g * s.one_minus_beta1;
    const VecF vi = load(v + i, part) * s.beta2 + g * g * s.one_minus_beta2;
    const VecF denominator = sqrt(vi) * s.inv_sqrt_bias2 + s.eps;
    const VecF p = load(master + i, part) * s.decay - mi * s.step_size / denominator;
    store(m + i, mi, part);
    store(v + i, vi, part);
    store(master + i, p, part);
    if constexpr (sizeof(T) == 2) store(working + i, p, part);
  });
}

void narrow_row(const float* src, std::uint16_t* dst, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, auto part) { store(dst + i, load(src + i, part), part); });
}

void widen_row(const std::uint16_t* src, float* dst, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, auto part) { store(dst + i, load(src + i, part), part); });
}

double sum_squares(const float* x, std::int64_t n) {
  constexpr int kHalf = kLanes / 2;
  VecD sums[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kHalf <= n; i += 4 * kHalf)
    for (int j = 0; j < 4; ++j) {
      HalfF half;
      __builtin_memcpy(&half, x + i + j * kHalf, sizeof half);
      const VecD wide = __builtin_convertvector(half, VecD);
      sums[j] += wide * wide;
    }
  double total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

void add_angles(const double* cos_a, const double* sin_a, const double* cos_b, const double* sin_b,
                double scale, float* cos_out, float* sin_out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    cos_out[i] = static_cast<float>((cos_a[i] * cos_b[i] - sin_a[i] * sin_b[i]) * scale);
    sin_out[i] = static_cast<float>((sin_a[i] * cos_b[i] + cos_a[i] * sin_b[i]) * scale);
  }
}

template <typename T>
constexpr TypedRowOps<T> typed_ops() {
  return {add<T>,        rmsnorm_forward<T>, rmsnorm_backward<T>,
          rope_apply<T>, swiglu_forward<T>,  swiglu_backward<T>,
          accumulate<T>, cross_entropy<T>,   adamw<T>};
}

constexpr RowOps kOps{
    typed_ops<float>(), typed_ops<std::uint16_t>(), narrow_row, widen_row, sum_squares, add_angles};

}  // namespace
}  // namespace farspan::cpu
