#include "train/flops.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

#include "core/error.h"
#include "train/micro_batch.h"

namespace farspan {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct MatmulShape {
  std::int64_t m, n, k;
};

// Near the shapes of a model's own products, so that the peak is one that a step could reach.
constexpr std::array<MatmulShape, 3> kCpuShapes = {
    {{1024, 1024, 1024}, {2048, 1024, 1024}, {1536, 1536, 1536}}};
constexpr std::array<MatmulShape, 2> kGpuShapes = {{{4096, 4096, 4096}, {8192, 8192, 8192}}};
constexpr double kSecondsPerShape = 0.08;
constexpr int kMinRuns = 2;

// TFLOP/s, dense. NVIDIA's data sheets of A100 (2021), H100 (2024), H100 NVL, H200 (2024) and H200
// NVL, which give twice these bf16 rates with sparsity. The first name that a device's contains.
struct DataSheet {
  std::string_view name;
  double bf16, f32;
};
constexpr std::array<DataSheet, 9> kDataSheets = {{{"H200 NVL", 835.5, 60},
                                                   {"H200", 989.4, 66.9},
                                                   {"GH200", 989.4, 66.9},
                                                   {"H100 NVL", 835.5, 60},
                                                   {"H100 PCIe", 756, 51},
                                                   {"H100", 989.4, 66.9},
                                                   {"H800", 989.4, 66.9},
                                                   {"A100", 312, 19.5},
                                                   {"A800", 312, 19.5}}};

// Seconds of the fastest of several products of this shape, after one that warms up.
double fastest_matmul(Backend& backend, DType dtype, const MatmulShape& s) {
  Device& device = backend.device();
  const auto bytes = [&](std::int64_t n) { return static_cast<std::size_t>(n) * size_of(dtype); };
  const Buffer a = device.allocate(bytes(s.m * s.k));
  const Buffer b = device.allocate(bytes(s.n * s.k));
  const Buffer out = device.allocate(bytes(s.m * s.n));
  const MatmulArgs args{.a = a.tensor(dtype, {s.m, s.k}),
                        .b = b.tensor(dtype, {s.n, s.k}),
                        .out = out.tensor(dtype, {s.m, s.n}),
                        .trans_b = true};
  Stream& stream = backend.stream();
  // Ordinary numbers: what memory held before could be denormals, which are slow.
  backend.kernels().fill({.dst = args.a, .value = 0.5}, stream);
  backend.kernels().fill({.dst = args.b, .value = 0.25}, stream);
  backend.kernels().matmul(args, stream);
  stream.synchronize();
  double best = 1e30;
  const double begin = seconds_now();
  for (int run = 0; run < kMinRuns || seconds_now() - begin < kSecondsPerShape; ++run) {
    const double start = seconds_now();
    backend.kernels().matmul(args, stream);
    stream.synchronize();
    best = std::min(best, seconds_now() - start);
  }
  return best;
}

}  // namespace

FlopModel::FlopModel(const config::Model& model)
    : patterns_(layer_patterns(model)), num_kv_heads_(model.num_key_value_heads()) {
  const auto d = static_cast<double>(model.hidden_size());
  const auto f = static_cast<double>(model.intermediate_size());
  const auto k = static_cast<double>(model.num_key_value_heads() * model.head_dim());
  const auto q = static_cast<double>(model.num_attention_heads() * model.head_dim());
  const auto layers = static_cast<double>(model.num_hidden_layers());
  FARSPAN_CHECK(d > 0 && f > 0 && k > 0 && layers > 0 && q > 0, "unresolved model");
  matmul_weights_ =
      layers * (2 * d * q + 2 * d * k + 3 * d * f) + static_cast<double>(model.vocab_size()) * d;
  pair_flops_ = 12 * q * layers;
}

double FlopModel::pairs(std::span<const std::int32_t> segments) const {
  return visible_pairs(segments, patterns_, num_kv_heads_);
}

double FlopModel::step(std::int64_t tokens, double pairs) const {
  return 6.0 * matmul_weights_ * static_cast<double>(tokens) + pair_flops_ * pairs;
}

double FlopModel::per_token(std::int64_t sequence_length) const {
  FARSPAN_CHECK(sequence_length > 0);
  const std::vector<std::int32_t> one_document(static_cast<std::size_t>(sequence_length), 0);
  return step(sequence_length, pairs(one_document)) / static_cast<double>(sequence_length);
}

std::string MatmulPeak::description() const {
  return fmt::format("peak {:.3g} TFLOP/s per rank ({})", flops_per_second / 1e12, how);
}

std::optional<MatmulPeak> data_sheet_peak(std::string_view device, DType dtype) {
  if (device.find("MIG") != std::string_view::npos) return std::nullopt;
  for (const DataSheet& sheet : kDataSheets) {
    if (device.find(sheet.name) == std::string_view::npos) continue;
    const double rate = dtype == DType::kBF16 ? sheet.bf16 : dtype == DType::kF32 ? sheet.f32 : 0;
    if (rate == 0) return std::nullopt;
    return MatmulPeak{.flops_per_second = rate * 1e12,
                      .how = fmt::format("data sheet: dense {} of {}", name_of(dtype), device)};
  }
  return std::nullopt;
}

MatmulPeak matmul_peak(Backend& backend, DType dtype) {
  if (const auto known = data_sheet_peak(backend.device().name(), dtype)) return *known;
  return measure_matmul_peak(backend, dtype);
}

MatmulPeak measure_matmul_peak(Backend& backend, DType dtype) {
  const DeviceKind kind = backend.device().id().kind;
  FARSPAN_CHECK(kind != DeviceKind::kDry, "the dry backend has no speed");
  const std::span<const MatmulShape> shapes =
      kind == DeviceKind::kCpu ? std::span<const MatmulShape>(kCpuShapes) : kGpuShapes;
  MatmulPeak best;
  for (const MatmulShape& s : shapes) {
    const double flops =
        2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
    const double rate = flops / fastest_matmul(backend, dtype, s);
    if (rate <= best.flops_per_second) continue;
    best.flops_per_second = rate;
    best.how = fmt::format("measured: {} matmul {}x{}x{}", name_of(dtype), s.m, s.n, s.k);
  }
  return best;
}

}  // namespace farspan
