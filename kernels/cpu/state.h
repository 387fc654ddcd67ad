// What the CPU's operations share: configuration, the table of inner loops, workspace. Private to
// kernels/cpu; the operations are spread over cpu_kernels.cpp, tokens.cpp and optimizer.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows/rows.h"

namespace farspan::cpu {

// Elements that one thread takes at least: below this, waking a thread costs more than it gives.
inline constexpr std::int64_t kGrain = 16384;

struct CpuKernels::Impl {
  explicit Impl(CpuConfig given);

  // Grows on first use of a size; steps of the same shapes then allocate nothing.
  double* doubles(std::int64_t n) { return grown(double_workspace, n); }
  float* floats(std::int64_t n) { return grown(float_workspace, n); }

  template <typename Body>
  void over_elements(std::int64_t n, const Body& body) const {
    parallel_for(config.num_threads, n, kGrain, body);
  }
  // Rows of `width` elements, several to a grain.
  template <typename Body>
  void over_rows(std::int64_t num_rows, std::int64_t width, const Body& body) const {
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, width));
    parallel_for(config.num_threads, num_rows, grain, body);
  }
  // Rows (tokens, c) that are added to rows of a table, chosen by an id each: columns [begin, end)
  // of the tokens whose id is `id` modulo `num_ids`.
  struct Part {
    std::int64_t begin, end, id, num_ids;
  };
  // Cut into columns, and into ids where columns are too few: a part walks all tokens in ascending
  // order, so each element of the table is summed by one thread in one order.
  template <typename Body>
  void over_parts(std::int64_t tokens, std::int64_t c, const Body& body) const {
    constexpr std::int64_t kMinColumns = 64;
    const std::int64_t threads = tokens * c < kGrain ? 1 : config.num_threads;
    const std::int64_t column_parts = std::clamp<std::int64_t>(c / kMinColumns, 1, threads);
    const std::int64_t id_parts = std::max<std::int64_t>(1, threads / column_parts);
    parallel_for(
        static_cast<int>(threads), column_parts * id_parts, 1,
        [&](std::int64_t first, std::int64_t last) {
          for (std::int64_t i = first; i < last; ++i)
            body(Part{c * (i % column_parts) / column_parts,
                      c * (i % column_parts + 1) / column_parts, i / column_parts, id_parts});
        });
  }

  // cos and sin of positions 0 .. count - 1, a row of each in turn; kept while inv_freq stays.
  const std::vector<double>& low_angles_of(const double* inv_freq, std::int64_t half,
                                           std::int64_t count);

  void copy_part(const Copy2dArgs& args, std::int64_t row, std::int64_t col, std::int64_t n) const;

  CpuConfig config;
  const RowOps& rows;
  Matmul matmul;
  AttentionEngine attention;
  std::vector<double> low_angles;  // of low_angles_of
  std::vector<double> low_angles_inv_freq;
  std::vector<double> double_workspace;
  std::vector<float> float_workspace;

 private:
  template <typename T>
  static T* grown(std::vector<T>& workspace, std::int64_t n) {
    if (workspace.size() < static_cast<std::size_t>(n))
      workspace.resize(static_cast<std::size_t>(n));
    return workspace.data();
  }
};

// Elements of the compute dtype as the inner loops see them.
template <typename T>
T* raw(const Tensor& t) {
  return reinterpret_cast<T*>(t.data);
}

// Calls body(T{}, loops for T) with T float or std::uint16_t, by the compute dtype.
template <typename Body>
void by_dtype(DType dtype, const RowOps& rows, const Body& body) {
  if (dtype == DType::kF32)
    body(float{}, rows.f32);
  else
    body(std::uint16_t{}, rows.bf16);
}

}  // namespace farspan::cpu
