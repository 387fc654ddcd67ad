#include "core/tensor.h"

#include <fmt/ranges.h>

namespace farspan {

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF64:
      return "f64";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
    case DType::kU16:
      return "u16";
    case DType::kU32:
      return "u32";
  }
  return "?";
}

std::string Shape::to_string() const {
  return fmt::format("({})", fmt::join(extents_.begin(), extents_.begin() + num_dims_, ", "));
}

Tensor Tensor::rows(std::int64_t begin, std::int64_t count) const {
  FARSPAN_CHECK(begin >= 0 && count >= 0 && begin + count <= shape[0], "rows [{}, {}) of {}", begin,
                begin + count, to_string());
  Tensor out = *this;
  const std::int64_t row = shape[0] == 0 ? 0 : numel() / shape[0];
  out.data = data + static_cast<std::size_t>(begin * row) * size_of(dtype);
  out.shape = shape.with_rows(count);
  return out;
}

Tensor Tensor::view(Shape new_shape) const {
  FARSPAN_CHECK(new_shape.numel() == numel(), "{} seen as {}", to_string(), new_shape.to_string());
  Tensor out = *this;
  out.shape = new_shape;
  return out;
}

std::string Tensor::to_string() const {
  return fmt::format("{} {}", name_of(dtype), shape.to_string());
}

}  // namespace farspan
