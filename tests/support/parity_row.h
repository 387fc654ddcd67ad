// The rows that every parity test runs on: backend, instruction set, dtype. A new backend becomes a
// row here and nowhere else.
//
//   class Parity : public ParityTest {};
//   TEST_P(Parity, Add) { ... backend() ... dtype() ... }
//   INSTANTIATE_TEST_SUITE_P(Rows, Parity, ::testing::ValuesIn(parity_rows()), name_of_row);
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "support/device_values.h"
#include "support/sanitizers.h"

namespace farspan::testing {

struct ParityRow {
  DeviceKind kind;
  CpuIsa isa;  // kAuto where it means nothing
  DType dtype;
};

// Rows of the CPU, and of the GPU in a build that has it: a build with CUDA, or a program of
// another that runs on the emulated device (tests/support/simt).
inline std::vector<ParityRow> parity_rows() {
  std::vector<ParityRow> rows;
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const DeviceKind kind : built_backends())
      if (kind == DeviceKind::kCpu)
        for (const CpuIsa isa :
             {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx})
          rows.push_back({kind, isa, dtype});
      else if (kind == DeviceKind::kCuda)
        rows.push_back({kind, CpuIsa::kAuto, dtype});
  return rows;
}

inline std::vector<ParityRow> parity_rows_of(DeviceKind kind) {
  std::vector<ParityRow> rows = parity_rows();
  std::erase_if(rows, [&](const ParityRow& row) { return row.kind != kind; });
  return rows;
}

inline std::string name_of(const ParityRow& row) {
  return row.kind == DeviceKind::kCuda
             ? fmt::format("cuda_{}", name_of(row.dtype))
             : fmt::format("cpu_{}_{}", name_of(row.isa), name_of(row.dtype));
}
inline std::string name_of_row(const ::testing::TestParamInfo<ParityRow>& info) {
  return name_of(info.param);
}
inline void PrintTo(const ParityRow& row, std::ostream* out) { *out << name_of(row); }

class ParityTest : public ::testing::TestWithParam<ParityRow> {
 protected:
  void SetUp() override {
    const ParityRow& row = GetParam();
    if (row.kind == DeviceKind::kCpu && !cpu_supports(row.isa))
      GTEST_SKIP() << "this processor has no " << name_of(row.isa);
    try {
      backend_ = make_backend({.kind = row.kind, .num_threads = kTestThreads, .cpu_isa = row.isa});
    } catch (const Error& absent) {
      if (row.kind == DeviceKind::kCpu || absent.code() != ExitCode::kUsage) throw;
      GTEST_SKIP() << absent.text().what;
    }
    on_ = std::make_unique<DeviceValues>(*backend_);
  }

  DType dtype() const { return GetParam().dtype; }
  Kernels& kernels() { return backend_->kernels(); }
  Stream& stream() { return backend_->stream(); }
  DeviceValues& on() { return *on_; }
  // Normal numbers that the row's dtype represents exactly.
  std::vector<double> values(std::int64_t n, std::uint64_t seed, double scale = 1) const {
    return rounded(random_values(n, seed, scale), dtype());
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<DeviceValues> on_;
};

}  // namespace farspan::testing
