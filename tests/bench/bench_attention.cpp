// Speed of the CPU's attention kernels, beside oneDNN's matmul in the same run.
//
//   bench_attention --q-heads 8 --kv-heads 4 --head-dim 64 --tokens 2048 --dtype bf16 --threads 2
//
// FLOPs are those of visible pairs: 4 D forward and 10 D backward per (query head, key).
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "core/rng.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/isa.h"

namespace farspan {
namespace {

struct Options {
  std::int64_t q_heads = 8, kv_heads = 4, head_dim = 64, tokens = 2048, window = 256;
  int threads = 2, repeat = 9;
  std::string dtype = "bf16", isa = "auto", mask = "causal";
  bool json = false;
};

// Seconds of each of `repeat` calls of `body`, in ascending order. The fastest is what the machine
// can do; the median is what it did, beside whatever else was running.
class Timing {
 public:
  template <typename Body>
  void add(const Body& body) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    seconds_.insert(std::upper_bound(seconds_.begin(), seconds_.end(), took.count()), took.count());
  }
  double fastest() const { return seconds_.front(); }
  double median() const { return seconds_[seconds_.size() / 2]; }

 private:
  std::vector<double> seconds_;
};

// Normal numbers of either dtype.
std::vector<std::byte> random_bytes(DType dtype, std::int64_t n, std::uint64_t stream) {
  const CounterRng rng(1, stream);
  std::vector<std::byte> bytes(static_cast<std::size_t>(n) * size_of(dtype));
  for (std::int64_t i = 0; i < n; ++i) {
    const auto x = static_cast<float>(rng.normal(static_cast<std::uint64_t>(i)));
    if (dtype == DType::kF32)
      reinterpret_cast<float*>(bytes.data())[i] = x;
    else
      reinterpret_cast<BFloat16*>(bytes.data())[i] = BFloat16(x);
  }
  return bytes;
}

// A product of two square matrices by oneDNN, f32 results.
class Matmul {
 public:
  static constexpr std::int64_t kN = 2048;
  static constexpr double kFlops = 2.0 * kN * kN * kN;

  explicit Matmul(DType dtype)
      : engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        a_(random_bytes(dtype, kN * kN, 1)),
        b_(random_bytes(dtype, kN * kN, 2)),
        c_(kN * kN) {
    const auto type =
        dtype == DType::kF32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
    const dnnl::memory::dims strides = {kN, 1};
    const dnnl::memory::desc in({kN, kN}, type, strides);
    const dnnl::memory::desc out({kN, kN}, dnnl::memory::data_type::f32, strides);
    matmul_ = dnnl::matmul({dnnl::matmul::desc(in, in, out), engine_});
    args_ = {{DNNL_ARG_SRC, dnnl::memory(in, engine_, a_.data())},
             {DNNL_ARG_WEIGHTS, dnnl::memory(in, engine_, b_.data())},
             {DNNL_ARG_DST, dnnl::memory(out, engine_, c_.data())}};
  }
  void run() {
    matmul_.execute(stream_, args_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::vector<std::byte> a_, b_;
  std::vector<float> c_;
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> args_;
};

struct Buffers {
  Buffers(DType dtype, const Options& o)
      : q_shape{o.tokens, o.q_heads, o.head_dim},
        k_shape{o.tokens, o.kv_heads, o.head_dim},
        stats_shape{o.q_heads, o.tokens},
        q(tensor(dtype, q_shape)),
        k(tensor(dtype, k_shape)),
        v(tensor(dtype, k_shape)),
        dout(tensor(dtype, q_shape)),
        out(tensor(dtype, q_shape)),
        acc(tensor(DType::kF32, q_shape)),
        row_max(tensor(DType::kF32, stats_shape)),
        row_sum(tensor(DType::kF32, stats_shape)),
        lse(tensor(DType::kF32, stats_shape)),
        delta(tensor(DType::kF32, stats_shape)),
        dq(tensor(DType::kF32, q_shape)),
        dk(tensor(DType::kF32, k_shape)),
        dv(tensor(DType::kF32, k_shape)) {}

  Tensor tensor(DType dtype, Shape shape) {
    memory.push_back(random_bytes(dtype, shape.numel(), memory.size()));
    return {.data = memory.back().data(), .dtype = dtype, .shape = shape, .device = {}};
  }
  std::vector<std::vector<std::byte>> memory;
  Shape q_shape, k_shape, stats_shape;
  Tensor q, k, v, dout, out, acc, row_max, row_sum, lse, delta, dq, dk, dv;
};

AttentionSlice make_slice(const Options& o) {
  AttentionSlice slice{.q_len = o.tokens, .k_len = o.tokens};
  if (o.mask == "causal") slice.kind = MaskKind::kCausal;
  if (o.mask == "window") slice.kind = MaskKind::kBand, slice.window = o.window;
  return slice;
}

double visible_pairs(const Options& o) {
  double pairs = 0;
  for (std::int64_t i = 0; i < o.tokens; ++i) {
    const std::int64_t before = o.mask == "full" ? o.tokens : i + 1;
    pairs += static_cast<double>(o.mask == "window" ? std::min(before, o.window) : before);
  }
  return pairs;
}

void run(const Options& o) {
  const DType dtype = o.dtype == "fp32" ? DType::kF32 : DType::kBF16;
  CpuIsa isa = CpuIsa::kAuto;
  for (const CpuIsa candidate :
       {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx})
    if (o.isa == name_of(candidate)) isa = candidate;
  cpu::AttentionEngine engine({.isa = isa, .num_threads = o.threads});
  Buffers b(dtype, o);
  const AttentionSlice slice = make_slice(o);
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(o.head_dim)));
  const auto run_forward = [&] {
    engine.forward({.q = b.q,
                    .k = b.k,
                    .v = b.v,
                    .acc = b.acc,
                    .row_max = b.row_max,
                    .row_sum = b.row_sum,
                    .slices = {&slice, 1},
                    .scale = scale,
                    .first = true,
                    .last = true,
                    .out = b.out,
                    .lse = b.lse});
  };
  const auto run_backward = [&] {
    engine.delta({.out = b.out, .dout = b.dout, .delta = b.delta});
    engine.backward({.q = b.q,
                     .k = b.k,
                     .v = b.v,
                     .dout = b.dout,
                     .lse = b.lse,
                     .delta = b.delta,
                     .dq = b.dq,
                     .dk = b.dk,
                     .dv = b.dv,
                     .slices = {&slice, 1},
                     .scale = scale});
  };
  omp_set_num_threads(o.threads);  // for oneDNN
  Matmul matmul(dtype);
  run_forward();
  run_backward();
  matmul.run();
  Timing forward, backward, product;
  for (int i = 0; i < o.repeat; ++i) {  // interleaved, so that all see the same machine
    forward.add(run_forward);
    backward.add(run_backward);
    product.add([&] { matmul.run(); });
  }
  const double per_pair = visible_pairs(o) * static_cast<double>(o.q_heads * o.head_dim) * 1e-9;
  const double matmul_gflops = Matmul::kFlops * 1e-9 / product.fastest();
  const double forward_gflops = 4 * per_pair / forward.fastest();
  const double backward_gflops = 10 * per_pair / backward.fastest();
  if (o.json) {
    const nlohmann::ordered_json result = {{"isa", name_of(engine.isa())},
                                           {"dtype", o.dtype},
                                           {"mask", o.mask},
                                           {"q_heads", o.q_heads},
                                           {"kv_heads", o.kv_heads},
                                           {"head_dim", o.head_dim},
                                           {"tokens", o.tokens},
                                           {"threads", o.threads},
                                           {"forward_seconds", forward.fastest()},
                                           {"forward_seconds_median", forward.median()},
                                           {"backward_seconds", backward.fastest()},
                                           {"backward_seconds_median", backward.median()},
                                           {"forward_gflops", forward_gflops},
                                           {"backward_gflops", backward_gflops},
                                           {"matmul_gflops", matmul_gflops}};
    fmt::print("{}\n", result.dump());
    return;
  }
  fmt::print("{} {} {}, {}/{} heads x {}, {} tokens, {} threads; oneDNN matmul {:.1f} GFLOP/s\n",
             name_of(engine.isa()), o.dtype, o.mask, o.q_heads, o.kv_heads, o.head_dim, o.tokens,
             o.threads, matmul_gflops);
  const auto line = [&](const char* what, const Timing& t, double gflops) {
    fmt::print("{:9} {:10.6f} s (median {:10.6f}) {:8.1f} GFLOP/s {:6.1f}% of oneDNN's matmul\n",
               what, t.fastest(), t.median(), gflops, 100 * gflops / matmul_gflops);
  };
  line("forward", forward, forward_gflops);
  line("backward", backward, backward_gflops);
}

}  // namespace
}  // namespace farspan

int main(int argc, char** argv) {
  farspan::Options o;
  CLI::App app("Speed of the CPU's attention kernels");
  app.add_option("--q-heads", o.q_heads)->check(CLI::PositiveNumber);
  app.add_option("--kv-heads", o.kv_heads)->check(CLI::PositiveNumber);
  app.add_option("--head-dim", o.head_dim)->check(CLI::Range(1, 256));
  app.add_option("--tokens", o.tokens)->check(CLI::PositiveNumber);
  app.add_option("--window", o.window, "of --mask window")->check(CLI::PositiveNumber);
  app.add_option("--dtype", o.dtype)->check(CLI::IsMember({"bf16", "fp32"}));
  app.add_option("--threads", o.threads)->check(CLI::PositiveNumber);
  app.add_option("--isa", o.isa)
      ->check(CLI::IsMember({"auto", "portable", "avx2", "avx512", "avx512_bf16", "amx"}));
  app.add_option("--mask", o.mask)->check(CLI::IsMember({"causal", "full", "window"}));
  app.add_option("--repeat", o.repeat, "calls to take the fastest and the median of")
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", o.json, "one JSON object");
  CLI11_PARSE(app, argc, argv);
  try {
    farspan::run(o);
  } catch (const farspan::Error& e) {
    fmt::print(stderr, "bench_attention: {}\n", e.what());
    return static_cast<int>(e.code());
  }
  return 0;
}
