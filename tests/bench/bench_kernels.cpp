// Speed of the CPU's operations: matmul in the layouts that training needs, in GFLOP/s, and every
// memory-bound operation, in GB/s of the bytes that the dry backend counts for it.
//
//   build/cpu/bench_kernels --benchmark_filter=matmul
//   taskset -c 0 build/cpu/bench_kernels --threads=1 --benchmark_min_time=0.2
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>

#include "core/arena.h"
#include "kernels/backend.h"

namespace farspan {
namespace {

// Takes an operation's tensors from an arena of any device, and returns the call.
using Prepare = std::function<std::function<void(Kernels&, Stream&)>(Arena&, DType)>;

struct Row {
  std::string name;
  Prepare prepare;
};

constexpr std::int64_t kTokens = 2048;
constexpr std::int64_t kHidden = 512;
constexpr std::int64_t kFfn = 1408;
constexpr std::int64_t kVocab = 8192;
constexpr std::int64_t kParameters = 4 << 20;

void run(benchmark::State& state, const Row& row, DType dtype, int threads) {
  // What it moves and computes, counted by the dry backend.
  const auto dry = make_backend({.kind = DeviceKind::kDry});
  Arena dry_arena(dry->device(), kDryCapacity, "dry");
  row.prepare(dry_arena, dtype)(dry->kernels(), dry->stream());
  const WorkCounters work = dry->work();

  const auto backend = make_backend({.num_threads = threads});
  Arena arena(backend->device(), dry_arena.high_water() + (1 << 20), "bench");
  const Tensor all = [&] {
    const Arena::Scope scope = arena.scope();
    return arena.take(DType::kF32, {static_cast<std::int64_t>(dry_arena.high_water() / 4)}, "all");
  }();
  backend->kernels().fill({.dst = all, .value = 0}, backend->stream());
  const auto operation = row.prepare(arena, dtype);
  operation(backend->kernels(), backend->stream());
  for (auto _ : state) operation(backend->kernels(), backend->stream());
  const auto rate = [&](double per_call) {
    return benchmark::Counter(per_call * static_cast<double>(state.iterations()) * 1e-9,
                              benchmark::Counter::kIsRate);
  };
  if (work.matmul_flops > 0)
    state.counters["GFLOP/s"] = rate(work.matmul_flops);
  else
    state.counters["GB/s"] = rate(work.bytes);
}

Row matmul_row(std::string name, std::int64_t m, std::int64_t n, std::int64_t k, bool trans_a,
               bool trans_b, bool to_gradient) {
  return {fmt::format("matmul/{}/{}x{}x{}", name, m, n, k), [=](Arena& arena, DType dtype) {
            const MatmulArgs args{
                .a = arena.take(dtype, trans_a ? Shape{k, m} : Shape{m, k}, "a"),
                .b = arena.take(dtype, trans_b ? Shape{n, k} : Shape{k, n}, "b"),
                .out = arena.take(to_gradient ? DType::kF32 : dtype, {m, n}, "out"),
                .trans_a = trans_a,
                .trans_b = trans_b,
                .mode = to_gradient ? GradMode::kAccumulate : GradMode::kOverwrite};
            return [args](Kernels& kernels, Stream& s) { kernels.matmul(args, s); };
          }};
}

std::vector<Row> matmul_rows() {
  std::vector<Row> rows;
  for (const auto& [c, f] :
       {std::pair{kHidden, kFfn}, std::pair<std::int64_t, std::int64_t>{128, 352}}) {
    rows.push_back(matmul_row("y=x@W^T", kTokens, f, c, false, true, false));
    rows.push_back(matmul_row("dx=dy@W", kTokens, c, f, false, false, false));
    rows.push_back(matmul_row("dW+=dy^T@x", f, c, kTokens, true, false, true));
  }
  return rows;
}

std::vector<Row> memory_rows() {
  const Shape hidden{kTokens, kHidden};
  const Shape ffn{kTokens, kFfn};
  std::vector<Row> rows;
  rows.push_back({"copy", [=](Arena& a, DType t) {
                    const CopyArgs args{.src = a.take(DType::kF32, hidden, "x"),
                                        .dst = a.take(t, hidden, "y")};
                    return [args](Kernels& k, Stream& s) { k.copy(args, s); };
                  }});
  rows.push_back({"fill", [=](Arena& a, DType t) {
                    const FillArgs args{.dst = a.take(t, hidden, "x"), .value = 0};
                    return [args](Kernels& k, Stream& s) { k.fill(args, s); };
                  }});
  rows.push_back({"add", [=](Arena& a, DType t) {
                    const AddArgs args{.a = a.take(t, hidden, "a"),
                                       .b = a.take(t, hidden, "b"),
                                       .out = a.take(t, hidden, "out")};
                    return [args](Kernels& k, Stream& s) { k.add(args, s); };
                  }});
  rows.push_back({"rmsnorm_forward", [=](Arena& a, DType t) {
                    const RmsNormForwardArgs args{.x = a.take(t, hidden, "x"),
                                                  .weight = a.take(t, {kHidden}, "w"),
                                                  .y = a.take(t, hidden, "y"),
                                                  .rstd = a.take(DType::kF32, {kTokens}, "r")};
                    return [args](Kernels& k, Stream& s) { k.rmsnorm_forward(args, s); };
                  }});
  rows.push_back({"rmsnorm_backward", [=](Arena& a, DType t) {
                    const RmsNormBackwardArgs args{.x = a.take(t, hidden, "x"),
                                                   .weight = a.take(t, {kHidden}, "w"),
                                                   .rstd = a.take(DType::kF32, {kTokens}, "r"),
                                                   .dy = a.take(t, hidden, "dy"),
                                                   .dx = a.take(t, hidden, "dx"),
                                                   .dweight = a.take(DType::kF32, {kHidden}, "dw")};
                    return [args](Kernels& k, Stream& s) { k.rmsnorm_backward(args, s); };
                  }});
  rows.push_back({"rope_table", [](Arena& a, DType) {
                    const RopeTableArgs args{.positions = a.take(DType::kI32, {kTokens}, "p"),
                                             .inv_freq = a.take(DType::kF64, {32}, "f"),
                                             .cos = a.take(DType::kF32, {kTokens, 32}, "cos"),
                                             .sin = a.take(DType::kF32, {kTokens, 32}, "sin")};
                    return [args](Kernels& k, Stream& s) { k.rope_table(args, s); };
                  }});
  rows.push_back({"rope_apply", [](Arena& a, DType t) {
                    const RopeApplyArgs args{.x = a.take(t, {kTokens, kHidden / 64, 64}, "x"),
                                             .cos = a.take(DType::kF32, {kTokens, 32}, "cos"),
                                             .sin = a.take(DType::kF32, {kTokens, 32}, "sin")};
                    return [args](Kernels& k, Stream& s) { k.rope_apply(args, s); };
                  }});
  rows.push_back({"swiglu_forward", [=](Arena& a, DType t) {
                    const SwiGluForwardArgs args{.gate = a.take(t, ffn, "gate"),
                                                 .up = a.take(t, ffn, "up"),
                                                 .out = a.take(t, ffn, "out")};
                    return [args](Kernels& k, Stream& s) { k.swiglu_forward(args, s); };
                  }});
  rows.push_back({"swiglu_backward", [=](Arena& a, DType t) {
                    const SwiGluBackwardArgs args{.gate = a.take(t, ffn, "gate"),
                                                  .up = a.take(t, ffn, "up"),
                                                  .dout = a.take(t, ffn, "dout"),
                                                  .dgate = a.take(t, ffn, "dgate"),
                                                  .dup = a.take(t, ffn, "dup")};
                    return [args](Kernels& k, Stream& s) { k.swiglu_backward(args, s); };
                  }});
  rows.push_back({"embedding_forward", [=](Arena& a, DType t) {
                    const EmbeddingForwardArgs args{.ids = a.take(DType::kI32, {kTokens}, "ids"),
                                                    .table = a.take(t, {kVocab, kHidden}, "table"),
                                                    .out = a.take(t, hidden, "out")};
                    return [args](Kernels& k, Stream& s) { k.embedding_forward(args, s); };
                  }});
  rows.push_back({"embedding_backward", [=](Arena& a, DType t) {
                    const EmbeddingBackwardArgs args{
                        .ids = a.take(DType::kI32, {kTokens}, "ids"),
                        .dout = a.take(t, hidden, "dout"),
                        .dtable = a.take(DType::kF32, {kVocab, kHidden}, "dtable")};
                    return [args](Kernels& k, Stream& s) { k.embedding_backward(args, s); };
                  }});
  rows.push_back({"cross_entropy", [](Arena& a, DType t) {
                    const CrossEntropyArgs args{
                        .logits = a.take(DType::kF32, {kTokens / 4, kVocab}, "logits"),
                        .labels = a.take(DType::kI32, {kTokens / 4}, "labels"),
                        .dlogits = a.take(t, {kTokens / 4, kVocab}, "dlogits"),
                        .loss_sum = a.take(DType::kF64, {1}, "loss"),
                        .valid_count = a.take(DType::kF64, {1}, "valid")};
                    return [args](Kernels& k, Stream& s) { k.cross_entropy(args, s); };
                  }});
  rows.push_back({"squared_norm", [](Arena& a, DType) {
                    const SquaredNormArgs args{.x = a.take(DType::kF32, {kParameters}, "x"),
                                               .sum = a.take(DType::kF64, {1}, "sum")};
                    return [args](Kernels& k, Stream& s) { k.squared_norm(args, s); };
                  }});
  rows.push_back({"adamw", [](Arena& a, DType t) {
                    const Shape n{kParameters};
                    const AdamWArgs args{
                        .master = a.take(DType::kF32, n, "p"),
                        .m = a.take(DType::kF32, n, "m"),
                        .v = a.take(DType::kF32, n, "v"),
                        .grad = a.take(DType::kF32, n, "g"),
                        .working = t == DType::kBF16 ? a.take(t, n, "w") : Tensor{},
                        .grad_scale = a.take(DType::kF32, {1}, "scale"),
                        .skip = a.take(DType::kI32, {1}, "skip"),
                        .applied_steps = a.take(DType::kI64, {1}, "steps"),
                        .lr = 1e-3f};
                    return [args](Kernels& k, Stream& s) { k.adamw(args, s); };
                  }});
  rows.push_back({"copy_2d/heads", [](Arena& a, DType t) {
                    const Copy2dArgs args{.src = a.take(t, {kTokens, kHidden}, "x"),
                                          .dst = a.take(t, {kTokens, kHidden / 4}, "y"),
                                          .rows = kTokens,
                                          .cols = kHidden / 4,
                                          .src_begin = kHidden / 4,
                                          .src_stride = kHidden,
                                          .dst_stride = kHidden / 4};
                    return [args](Kernels& k, Stream& s) { k.copy_2d(args, s); };
                  }});
  rows.push_back({"exact_add", [](Arena& a, DType t) {
                    const Shape n{kParameters / 4};
                    const ExactAddArgs args{
                        .src = a.take(t, n, "x"),
                        .sum = {a.take(DType::kI64, n, "high"), a.take(DType::kI64, n, "low"),
                                a.take(DType::kI64, {1}, "invalid")}};
                    return [args](Kernels& k, Stream& s) { k.exact_add(args, s); };
                  }});
  rows.push_back({"exact_read", [](Arena& a, DType) {
                    const Shape n{kParameters / 4};
                    const ExactReadArgs args{
                        .sum = {a.take(DType::kI64, n, "high"), a.take(DType::kI64, n, "low"),
                                a.take(DType::kI64, {1}, "invalid")},
                        .dst = a.take(DType::kF32, n, "y")};
                    return [args](Kernels& k, Stream& s) { k.exact_read(args, s); };
                  }});
  return rows;
}

// Takes "--threads=N" out of the arguments; 2 without it.
int take_threads(int& argc, char** argv) {
  constexpr std::string_view kOption = "--threads=";
  int threads = 2;
  int kept = 0;
  for (int i = 0; i < argc; ++i) {
    if (std::string_view(argv[i]).starts_with(kOption))
      threads = std::atoi(argv[i] + kOption.size());
    else
      argv[kept++] = argv[i];
  }
  argc = kept;
  return threads;
}

int bench_main(int argc, char** argv) {
  const int threads = take_threads(argc, argv);
  std::vector<Row> rows = matmul_rows();
  for (Row& row : memory_rows()) rows.push_back(std::move(row));
  for (const Row& row : rows)
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      auto* row_benchmark = benchmark::RegisterBenchmark(
          fmt::format("{}/{}", row.name, name_of(dtype)).c_str(),
          [row, dtype, threads](benchmark::State& state) { run(state, row, dtype, threads); });
      row_benchmark->Unit(benchmark::kMicrosecond);
      // One thread's rates are by its CPU time: right on a busy machine too.
      if (threads > 1) row_benchmark->UseRealTime();
    }
  benchmark::AddCustomContext("backend", make_backend({.num_threads = threads})->description());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace farspan

int main(int argc, char** argv) { return farspan::bench_main(argc, argv); }
