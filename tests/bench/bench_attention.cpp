// Speed of the CPU's attention kernels, beside oneDNN's matmul in the same run.
//
//   bench_attention --q-heads 8 --kv-heads 4 --head-dim 64 --tokens 2048 --dtype bf16 --threads 2
//
// FLOPs are those of visible pairs: 4 D forward and 10 D backward per (query head, key).
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <oneapi/dnnl/dnnl.hpp>
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

// Median seconds of one call of `body`, after one that is not counted.
template <typename Body>
double median_seconds(int repeat, const Body& body) {
  std::vector<double> seconds;
  for (int i = 0; i <= repeat; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (i > 0) seconds.push_back(took.count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

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

// GFLOP/s of a 2048^3 product, f32 results.
double matmul_gflops(DType dtype, const Options& o) {
  constexpr std::int64_t kN = 2048;
  omp_set_num_threads(o.threads);
  const auto type =
      dtype == DType::kF32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const dnnl::memory::desc in({kN, kN}, type, dnnl::memory::dims{kN, 1});
  const dnnl::memory::desc out({kN, kN}, dnnl::memory::data_type::f32, dnnl::memory::dims{kN, 1});
  auto a_bytes = random_bytes(dtype, kN * kN, 1), b_bytes = random_bytes(dtype, kN * kN, 2);
  std::vector<float> c(kN * kN);
  dnnl::memory a(in, engine, a_bytes.data()), b(in, engine, b_bytes.data()),
      y(out, engine, c.data());
  const dnnl::matmul matmul({dnnl::matmul::desc(in, in, out), engine});
  const double seconds = median_seconds(o.repeat, [&] {
    matmul.execute(stream, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, y}});
    stream.wait();
  });
  return 2.0 * kN * kN * kN / seconds * 1e-9;
}

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
  const double forward = median_seconds(o.repeat, [&] {
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
  });
  const double backward = median_seconds(o.repeat, [&] {
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
  });
  const double per_pair = visible_pairs(o) * static_cast<double>(o.q_heads * o.head_dim) * 1e-9;
  const nlohmann::ordered_json result = {{"isa", name_of(engine.isa())},
                                         {"dtype", o.dtype},
                                         {"mask", o.mask},
                                         {"q_heads", o.q_heads},
                                         {"kv_heads", o.kv_heads},
                                         {"head_dim", o.head_dim},
                                         {"tokens", o.tokens},
                                         {"threads", o.threads},
                                         {"forward_seconds", forward},
                                         {"backward_seconds", backward},
                                         {"forward_gflops", 4 * per_pair / forward},
                                         {"backward_gflops", 10 * per_pair / backward},
                                         {"matmul_gflops", matmul_gflops(dtype, o)}};
  if (o.json) {
    fmt::print("{}\n", result.dump());
    return;
  }
  const double matmul = result["matmul_gflops"];
  const auto line = [&](const char* what, double seconds, double gflops) {
    fmt::print("{:9} {:10.6f} s {:8.1f} GFLOP/s {:6.1f}% of oneDNN's matmul\n", what, seconds,
               gflops, 100 * gflops / matmul);
  };
  fmt::print("{} {} {}, {}/{} heads x {}, {} tokens, {} threads; oneDNN matmul {:.1f} GFLOP/s\n",
             name_of(engine.isa()), o.dtype, o.mask, o.q_heads, o.kv_heads, o.head_dim, o.tokens,
             o.threads, matmul);
  line("forward", forward, result["forward_gflops"]);
  line("backward", backward, result["backward_gflops"]);
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
  app.add_option("--repeat", o.repeat, "calls to take the median of")->check(CLI::PositiveNumber);
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
