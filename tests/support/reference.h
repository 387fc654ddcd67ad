// The operations of kernels/args.h in double precision, written as plainly as possible: the oracle
// of every backend. Row-major vectors; sizes as in args.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace farspan::testing::reference {

using Values = std::vector<double>;

inline Values zeros(std::int64_t n) { return Values(static_cast<std::size_t>(n), 0.0); }

inline Values matmul(const Values& a, const Values& b, std::int64_t m, std::int64_t n,
                     std::int64_t k, bool trans_a = false, bool trans_b = false) {
  Values out = zeros(m * n);
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t l = 0; l < k; ++l)
        out[i * n + j] += a[trans_a ? l * m + i : i * k + l] * b[trans_b ? j * k + l : l * n + j];
  return out;
}

struct RmsNorm {
  Values y, rstd;
};

inline RmsNorm rmsnorm_forward(const Values& x, const Values& weight, double eps) {
  const std::size_t c = weight.size();
  RmsNorm out{Values(x.size()), Values(x.size() / c)};
  for (std::size_t t = 0; t < out.rstd.size(); ++t) {
    double squares = 0;
    for (std::size_t i = 0; i < c; ++i) squares += x[t * c + i] * x[t * c + i];
    out.rstd[t] = 1 / std::sqrt(squares / static_cast<double>(c) + eps);
    for (std::size_t i = 0; i < c; ++i) out.y[t * c + i] = x[t * c + i] * out.rstd[t] * weight[i];
  }
  return out;
}

struct RmsNormGradients {
  Values dx, dweight;
};

inline RmsNormGradients rmsnorm_backward(const Values& x, const Values& weight, const Values& rstd,
                                         const Values& dy) {
  const std::size_t c = weight.size();
  RmsNormGradients out{Values(x.size()), Values(c, 0.0)};
  for (std::size_t t = 0; t < rstd.size(); ++t) {
    const double r = rstd[t];
    double mean = 0;
    for (std::size_t i = 0; i < c; ++i)
      mean += dy[t * c + i] * weight[i] * x[t * c + i] / static_cast<double>(c);
    for (std::size_t i = 0; i < c; ++i) {
      out.dx[t * c + i] = r * (dy[t * c + i] * weight[i] - x[t * c + i] * r * r * mean);
      out.dweight[i] += dy[t * c + i] * x[t * c + i] * r;
    }
  }
  return out;
}

struct RopeTables {
  Values cos, sin;  // (T, D / 2)
};

// Angles in long double: 64 bits of mantissa, so that they are exact where double's are tested.
inline RopeTables rope_tables(const Values& positions, const Values& inv_freq, double scale) {
  RopeTables out;
  for (const double position : positions)
    for (const double frequency : inv_freq) {
      const long double angle = static_cast<long double>(position) * frequency;
      out.cos.push_back(static_cast<double>(scale * std::cos(angle)));
      out.sin.push_back(static_cast<double>(scale * std::sin(angle)));
    }
  return out;
}

inline Values rope_apply(Values x, const RopeTables& tables, std::int64_t heads, std::int64_t dim,
                         bool inverse) {
  const std::int64_t half = dim / 2;
  const auto tokens = static_cast<std::int64_t>(x.size()) / (heads * dim);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t j = 0; j < half; ++j) {
        double& a = x[(t * heads + h) * dim + j];
        double& b = x[(t * heads + h) * dim + half + j];
        const double c = tables.cos[t * half + j];
        const double s = inverse ? -tables.sin[t * half + j] : tables.sin[t * half + j];
        const double rotated = a * c - b * s;
        b = b * c + a * s;
        a = rotated;
      }
  return x;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

inline Values swiglu_forward(const Values& gate, const Values& up) {
  Values out(gate.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
  return out;
}

struct SwiGluGradients {
  Values dgate, dup;
};

inline SwiGluGradients swiglu_backward(const Values& gate, const Values& up, const Values& dout) {
  SwiGluGradients out{Values(gate.size()), Values(gate.size())};
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double s = sigmoid(gate[i]);
    out.dgate[i] = dout[i] * up[i] * s * (1 + gate[i] * (1 - s));
    out.dup[i] = dout[i] * gate[i] * s;
  }
  return out;
}

inline Values embedding_forward(const Values& ids, const Values& table, std::size_t c) {
  Values out;
  for (const double id : ids)
    for (std::size_t i = 0; i < c; ++i) out.push_back(table[static_cast<std::size_t>(id) * c + i]);
  return out;
}

// Adds to dtable.
inline void embedding_backward(const Values& ids, const Values& dout, Values& dtable,
                               std::size_t c) {
  for (std::size_t t = 0; t < ids.size(); ++t)
    for (std::size_t i = 0; i < c; ++i)
      dtable[static_cast<std::size_t>(ids[t]) * c + i] += dout[t * c + i];
}

struct CrossEntropy {
  Values dlogits, nll;
  double loss_sum = 0, valid_count = 0;
};

inline CrossEntropy cross_entropy(const Values& logits, const Values& labels, std::size_t v) {
  CrossEntropy out{Values(logits.size(), 0.0), Values(labels.size())};
  for (std::size_t t = 0; t < labels.size(); ++t) {
    out.nll[t] = std::numeric_limits<double>::quiet_NaN();
    if (labels[t] < 0) continue;
    const auto label = static_cast<std::size_t>(labels[t]);
    double top = logits[t * v];
    for (std::size_t i = 0; i < v; ++i) top = std::max(top, logits[t * v + i]);
    double sum = 0;
    for (std::size_t i = 0; i < v; ++i) sum += std::exp(logits[t * v + i] - top);
    for (std::size_t i = 0; i < v; ++i)
      out.dlogits[t * v + i] = std::exp(logits[t * v + i] - top) / sum - (i == label ? 1 : 0);
    out.nll[t] = top + std::log(sum) - logits[t * v + label];
    out.loss_sum += out.nll[t];
    out.valid_count += 1;
  }
  return out;
}

struct AdamWSettings {
  double lr, beta1, beta2, eps, weight_decay, grad_scale;
};

// Step number `step`, counted from 1.
inline void adamw(Values& p, Values& m, Values& v, const Values& grad, int step,
                  const AdamWSettings& s) {
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double g = grad[i] * s.grad_scale;
    m[i] = s.beta1 * m[i] + (1 - s.beta1) * g;
    v[i] = s.beta2 * v[i] + (1 - s.beta2) * g * g;
    const double m_hat = m[i] / (1 - std::pow(s.beta1, step));
    const double v_hat = v[i] / (1 - std::pow(s.beta2, step));
    p[i] -= s.lr * (m_hat / (std::sqrt(v_hat) + s.eps) + s.weight_decay * p[i]);
  }
}

}  // namespace farspan::testing::reference
