// Central finite differences in double.
//
//   auto loss = [&](const Values& x) { return dot(dy, forward(x)); };
//   expect_close(backward(x, dy), numeric_gradient(loss, x), kGradcheckTolerance, "dx");
#pragma once

#include <numeric>
#include <vector>

namespace farspan::testing {

// d f / d x[i] = (f(x + h e_i) - f(x - h e_i)) / 2h + O(h^2).
template <typename Function>
std::vector<double> numeric_gradient(const Function& f, std::vector<double> x, double h = 1e-5) {
  std::vector<double> gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    x[i] = at + h;
    const double above = f(x);
    x[i] = at - h;
    const double below = f(x);
    x[i] = at;
    gradient[i] = (above - below) / (2 * h);
  }
  return gradient;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

}  // namespace farspan::testing
