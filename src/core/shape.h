// The extents of a tensor, outermost first: Shape{T, H, D}. At most kMaxDims, no heap.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/error.h"

namespace farspan {

class Shape {
 public:
  static constexpr int kMaxDims = 5;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents) {
    FARSPAN_CHECK(extents.size() <= kMaxDims, "{} dimensions", extents.size());
    for (std::int64_t extent : extents) {
      FARSPAN_CHECK(extent >= 0, "extent {}", extent);
      extents_[static_cast<std::size_t>(num_dims_++)] = extent;
    }
  }

  int num_dims() const { return num_dims_; }
  std::int64_t operator[](int dim) const {
    FARSPAN_CHECK(dim >= 0 && dim < num_dims_, "dim {} of {}", dim, num_dims_);
    return extents_[static_cast<std::size_t>(dim)];
  }
  // Product of the extents; 1 for a scalar.
  std::int64_t numel() const {
    std::int64_t n = 1;
    for (int i = 0; i < num_dims_; ++i) n *= extents_[static_cast<std::size_t>(i)];
    return n;
  }
  // The same shape with the outermost extent replaced.
  Shape with_rows(std::int64_t rows) const {
    FARSPAN_CHECK(num_dims_ > 0);
    Shape out = *this;
    out.extents_[0] = rows;
    return out;
  }
  std::string to_string() const;  // "(2, 4, 8)"

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.num_dims_ != b.num_dims_) return false;
    for (int i = 0; i < a.num_dims_; ++i)
      if (a[i] != b[i]) return false;
    return true;
  }

 private:
  std::array<std::int64_t, kMaxDims> extents_{};
  int num_dims_ = 0;
};

}  // namespace farspan
