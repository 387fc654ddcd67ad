// The operations that bench_kernels measures, at the sizes of a CPU or of a GPU.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "device_fill.h"
#include "kernels/kernels.h"

namespace farspan::bench {

struct Sizes {
  std::int64_t tokens, hidden, ffn, vocab, parameters, loss_tokens;
};
inline constexpr Sizes kCpuSizes{2048, 512, 1408, 8192, 4 << 20, 512};
inline constexpr Sizes kGpuSizes{16384, 4096, 14336, 128256, 256 << 20, 1024};

// An operation's tensors, from an arena of any device.
class Tensors {
 public:
  explicit Tensors(Arena& arena) : arena_(arena) {}
  Tensor take(DType dtype, Shape shape, std::string_view name) {
    return take_integers(dtype, shape, name, 1);
  }
  // Integers of [0, bound).
  Tensor take_integers(DType dtype, Shape shape, std::string_view name, std::int64_t bound) {
    taken_.push_back({arena_.take(dtype, shape, name), bound});
    return taken_.back().tensor;
  }
  void randomize(Backend& backend) const {
    std::uint64_t seed = 0;
    for (const Taken& t : taken_) fill_random(t.tensor, backend, ++seed, t.bound);
  }

 private:
  struct Taken {
    Tensor tensor;
    std::int64_t bound;
  };
  Arena& arena_;
  std::vector<Taken> taken_;
};

// Takes the tensors, and returns the call.
using Prepare = std::function<std::function<void(Kernels&, Stream&)>(Tensors&, DType)>;

struct Row {
  std::string name;
  Prepare prepare;
};

std::vector<Row> all_rows(const Sizes& sizes);

}  // namespace farspan::bench
