// Speed of a device's operations: matmul in the layouts that training needs, in GFLOP/s, and every
// memory-bound operation, in GB/s of the bytes that the dry backend counts for it.
//
//   build/cpu/bench_kernels --benchmark_filter=matmul
//   taskset -c 0 build/cpu/bench_kernels --threads=1 --benchmark_min_time=0.2
//   build/cuda/bench_kernels --device=cuda --benchmark_format=json
//
// On a GPU the shapes are those of an 8B model, tensors hold random numbers, times are the median
// of events around single calls, and rates stand beside the device's own copy and product.
#include "bench_kernels.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "core/error.h"
#include "device_fill.h"
#include "device_timer.h"
#include "kernels/backend.h"

namespace farspan::bench {
namespace {

// What rates on a GPU are shares of, measured when the program starts.
struct Peaks {
  double copy_bytes = 0, product_flops = 0;  // per second; 0: not measured
};

// What a call moves and computes, counted by the dry backend, and the memory that it needs.
struct Needs {
  WorkCounters work;
  std::size_t bytes = 0;
};
Needs needs_of(const Row& row, DType dtype) {
  const auto dry = make_backend({.kind = DeviceKind::kDry});
  Arena arena(dry->device(), kDryCapacity, "dry");
  Tensors tensors(arena);
  row.prepare(tensors, dtype)(dry->kernels(), dry->stream());
  return {dry->work(), arena.high_water()};
}

void run(benchmark::State& state, const Row& row, DType dtype, int threads) {
  const Needs needs = needs_of(row, dtype);
  const auto backend = make_backend({.num_threads = threads});
  Arena arena(backend->device(), needs.bytes + (1 << 20), "bench");
  const Tensor all = [&] {
    const Arena::Scope scope = arena.scope();
    return arena.take(DType::kF32, {static_cast<std::int64_t>(needs.bytes / 4)}, "all");
  }();
  backend->kernels().fill({.dst = all, .value = 0}, backend->stream());
  Tensors tensors(arena);
  const auto operation = row.prepare(tensors, dtype);
  operation(backend->kernels(), backend->stream());
  for (auto _ : state) operation(backend->kernels(), backend->stream());
  const auto rate = [&](double per_call) {
    return benchmark::Counter(per_call * static_cast<double>(state.iterations()) * 1e-9,
                              benchmark::Counter::kIsRate);
  };
  if (needs.work.matmul_flops > 0)
    state.counters["GFLOP/s"] = rate(needs.work.matmul_flops);
  else
    state.counters["GB/s"] = rate(needs.work.bytes);
}

void run_on_gpu(benchmark::State& state, const Row& row, DType dtype, const Peaks& peaks) {
  try {
    const Needs needs = needs_of(row, dtype);
    const auto backend = make_backend({.kind = DeviceKind::kCuda});
    Arena arena(backend->device(), needs.bytes + (1 << 20), "bench");
    Tensors tensors(arena);
    const auto operation = row.prepare(tensors, dtype);
    tensors.randomize(*backend);
    const auto timer = make_device_timer(*backend);
    constexpr int kWarmUps = 3;
    for (int i = 0; i < kWarmUps; ++i) operation(backend->kernels(), backend->stream());
    std::vector<double> seconds;
    for (auto _ : state) {
      timer->begin();
      operation(backend->kernels(), backend->stream());
      seconds.push_back(timer->end());
      state.SetIterationTime(seconds.back());
    }
    std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
    const double median = seconds[seconds.size() / 2];
    if (needs.work.matmul_flops > 0) {
      state.counters["GFLOP/s"] = needs.work.matmul_flops * 1e-9 / median;
      if (peaks.product_flops > 0 && dtype == DType::kBF16)
        state.counters["of_product"] = needs.work.matmul_flops / median / peaks.product_flops;
    } else {
      state.counters["GB/s"] = needs.work.bytes * 1e-9 / median;
      if (peaks.copy_bytes > 0)
        state.counters["of_copy"] = needs.work.bytes / median / peaks.copy_bytes;
    }
  } catch (const Error& e) {
    state.SkipWithError(e.text().what.c_str());
  }
}

// Bytes read and written by a copy of 2 GiB, and the product of two 8192^2 matrices in bf16.
Peaks measure_peaks() {
  const auto backend = make_backend({.kind = DeviceKind::kCuda});
  const auto timer = make_device_timer(*backend);
  const auto fastest = [&](const auto& call) {
    call();
    double best = 0;
    for (int i = 0; i < 10; ++i) {
      timer->begin();
      call();
      const double seconds = timer->end();
      best = i == 0 ? seconds : std::min(best, seconds);
    }
    return best;
  };
  Peaks peaks;
  constexpr std::size_t kBytes = std::size_t{2} << 30;
  {
    const Buffer from = backend->device().allocate(kBytes), to = backend->device().allocate(kBytes);
    peaks.copy_bytes = 2.0 * static_cast<double>(kBytes) / fastest([&] {
                         backend->device().copy(to.data(), from.data(), kBytes, backend->stream());
                       });
  }
  constexpr std::int64_t kN = 8192;
  const Buffer memory = backend->device().allocate(3 * kN * kN * 2);
  const Tensor all = memory.tensor(DType::kBF16, {3 * kN, kN});
  fill_random(all, *backend, 1);
  const MatmulArgs args{.a = all.rows(0, kN), .b = all.rows(kN, kN), .out = all.rows(2 * kN, kN)};
  peaks.product_flops =
      2.0 * kN * kN * kN / fastest([&] { backend->kernels().matmul(args, backend->stream()); });
  return peaks;
}

// Takes "--NAME=VALUE" out of the arguments; `otherwise` without it.
std::string take_option(int& argc, char** argv, const std::string& name, std::string otherwise) {
  const std::string option = "--" + name + "=";
  int kept = 0;
  for (int i = 0; i < argc; ++i) {
    if (std::string_view(argv[i]).starts_with(option))
      otherwise = argv[i] + option.size();
    else
      argv[kept++] = argv[i];
  }
  argc = kept;
  return otherwise;
}

void register_rows(bool gpu, int threads, const Peaks& peaks) {
  for (const Row& row : all_rows(gpu ? kGpuSizes : kCpuSizes))
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const std::string name = fmt::format("{}/{}", row.name, name_of(dtype));
      auto* registered = benchmark::RegisterBenchmark(
          name.c_str(), [row, dtype, threads, gpu, peaks](benchmark::State& state) {
            if (gpu)
              run_on_gpu(state, row, dtype, peaks);
            else
              run(state, row, dtype, threads);
          });
      registered->Unit(benchmark::kMicrosecond);
      if (gpu) registered->UseManualTime();
      // One thread's rates are by its CPU time: right on a busy machine too.
      else if (threads > 1)
        registered->UseRealTime();
    }
}

int bench_main(int argc, char** argv) {
  const int threads = std::atoi(take_option(argc, argv, "threads", "2").c_str());
  const std::string device = take_option(argc, argv, "device", "cpu");
  if (device != "cpu" && device != "cuda")
    throw Error(ExitCode::kUsage,
                {.what = "--device=" + device, .fix = "write --device=cpu or --device=cuda"});
  const bool gpu = device == "cuda";
  // Before anything is measured: without a GPU this says what is missing.
  const auto backend =
      make_backend({.kind = gpu ? DeviceKind::kCuda : DeviceKind::kCpu, .num_threads = threads});
  benchmark::AddCustomContext("backend", backend->description());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const Peaks peaks = gpu ? measure_peaks() : Peaks{};
  if (gpu) {
    benchmark::AddCustomContext("copy", fmt::format("{:.0f} GB/s", peaks.copy_bytes * 1e-9));
    benchmark::AddCustomContext("product_bf16_8192",
                                fmt::format("{:.1f} TFLOP/s", peaks.product_flops * 1e-12));
  }
  register_rows(gpu, threads, peaks);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace farspan::bench

int main(int argc, char** argv) {
  try {
    return farspan::bench::bench_main(argc, argv);
  } catch (const farspan::Error& e) {
    fmt::print(stderr, "bench_kernels: {}\n", e.what());
    return static_cast<int>(e.code());
  }
}
