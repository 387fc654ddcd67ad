#include "train/flops.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "core/error.h"

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

std::int64_t causal_pairs(std::int64_t length, std::int64_t window) {
  FARSPAN_CHECK(length >= 0 && window >= 0, "length {} window {}", length, window);
  if (window == 0 || length <= window) return length * (length + 1) / 2;
  return length * window - window * (window - 1) / 2;
}

FlopModel::FlopModel(const config::Model& model) {
  FARSPAN_CHECK(model.sparse_attention().type() == "none" && model.attention_sinks() == 0,
                "pairs of sparse attention are not counted");
  const auto d = static_cast<double>(model.hidden_size());
  const auto f = static_cast<double>(model.intermediate_size());
  const auto k = static_cast<double>(model.num_key_value_heads() * model.head_dim());
  const auto layers = static_cast<double>(model.num_hidden_layers());
  query_width_ = static_cast<double>(model.num_attention_heads() * model.head_dim());
  FARSPAN_CHECK(d > 0 && f > 0 && k > 0 && layers > 0 && query_width_ > 0, "unresolved model");
  matmul_weights_ = layers * (2 * d * query_width_ + 2 * d * k + 3 * d * f) +
                    static_cast<double>(model.vocab_size()) * d;
  window_ = model.sliding_window();
  for (const std::string& type : model.layer_types())
    if (type == "sliding_attention" && window_ > 0) ++windowed_layers_;
  if (model.layer_types_size() == 0 && window_ > 0) windowed_layers_ = model.num_hidden_layers();
  full_layers_ = model.num_hidden_layers() - windowed_layers_;
  FARSPAN_CHECK(full_layers_ >= 0, "more layer_types than layers");
}

AttentionPairs FlopModel::pairs(std::span<const std::int32_t> segments) const {
  AttentionPairs out;
  for (std::size_t begin = 0; begin < segments.size();) {
    std::size_t end = begin + 1;
    while (end < segments.size() && segments[end] == segments[begin]) ++end;
    const auto length = static_cast<std::int64_t>(end - begin);
    out.full += causal_pairs(length);
    out.windowed += causal_pairs(length, window_);
    begin = end;
  }
  return out;
}

double FlopModel::step(std::int64_t tokens, const AttentionPairs& pairs) const {
  const double layer_pairs =
      static_cast<double>(full_layers_) * static_cast<double>(pairs.full) +
      static_cast<double>(windowed_layers_) * static_cast<double>(pairs.windowed);
  return 6.0 * matmul_weights_ * static_cast<double>(tokens) + 12.0 * query_width_ * layer_pairs;
}

double FlopModel::per_token(std::int64_t sequence_length) const {
  FARSPAN_CHECK(sequence_length > 0);
  const AttentionPairs all{causal_pairs(sequence_length), causal_pairs(sequence_length, window_)};
  return step(sequence_length, all) / static_cast<double>(sequence_length);
}

std::string MatmulPeak::description() const {
  return fmt::format("peak {:.3g} TFLOP/s per rank ({})", flops_per_second / 1e12, how);
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
