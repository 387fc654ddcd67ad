// One GPU's attention by mask, length and kernel, beside its matmul in the same run.
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "bench_attention.h"
#include "device_fill.h"
#include "device_timer.h"

namespace farspan::bench {
namespace {

constexpr std::int64_t kProduct = 8192;  // of the matmul that rates are shares of
constexpr double kProductFlops = 2.0 * kProduct * kProduct * kProduct;

// Device tensors that live as long as the pool.
class DevicePool {
 public:
  explicit DevicePool(Backend& backend) : backend_(backend) {}
  Tensor random(DType dtype, Shape shape) {
    const auto bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
    memory_.push_back(backend_.device().allocate(bytes));
    const Tensor t{memory_.back().data(), dtype, shape, backend_.device().id()};
    fill_random(t, backend_, memory_.size());
    return t;
  }
  // A host tensor's values; undefined for an undefined one.
  Tensor upload(const Tensor& host) {
    if (!host.defined()) return {};
    memory_.push_back(backend_.device().allocate(host.bytes()));
    backend_.device().copy(memory_.back().data(), host.data, host.bytes(), backend_.stream());
    backend_.stream().synchronize();
    return {memory_.back().data(), host.dtype, host.shape, backend_.device().id()};
  }

 private:
  Backend& backend_;
  std::vector<Buffer> memory_;
};

// Forward and backward of one problem.
class DeviceRank {
 public:
  DeviceRank(const Problem& problem, const Options& o, Backend& backend)
      : backend_(backend),
        pool_(backend),
        plan_(single_plan(problem, o.heads(), /*gather=*/false)),
        deterministic_(o.deterministic),
        scale_(1.0f / std::sqrt(static_cast<float>(o.head_dim))) {
    TensorPool host;
    const BiasTables tables = bias_tables(problem, o.heads(), host);
    bias_ = {.slopes = pool_.upload(tables.slopes),
             .decay = pool_.upload(tables.decay),
             .position_stride = plan_.position_stride};
    const std::int64_t n = problem.tokens();
    const Shape q_shape{n, o.q_heads, o.head_dim}, k_shape{n, o.kv_heads, o.head_dim};
    const Shape stats{o.q_heads, n};
    q_ = pool_.random(o.compute(), q_shape), k_ = pool_.random(o.compute(), k_shape);
    v_ = pool_.random(o.compute(), k_shape), dout_ = pool_.random(o.compute(), q_shape);
    out_ = pool_.random(o.compute(), q_shape), acc_ = pool_.random(DType::kF32, q_shape);
    dk_ = pool_.random(DType::kF32, k_shape), dv_ = pool_.random(DType::kF32, k_shape);
    row_max_ = pool_.random(DType::kF32, stats), row_sum_ = pool_.random(DType::kF32, stats);
    lse_ = pool_.random(DType::kF32, stats), delta_ = pool_.random(DType::kF32, stats);
  }

  const AttentionPlan& plan() const { return plan_; }

  void forward() {
    backend_.kernels().attention_forward({.q = q_,
                                          .k = k_,
                                          .v = v_,
                                          .acc = acc_,
                                          .row_max = row_max_,
                                          .row_sum = row_sum_,
                                          .slices = plan_.hops[0].slices,
                                          .scale = scale_,
                                          .bias = bias_,
                                          .first = true,
                                          .last = true,
                                          .out = out_,
                                          .lse = lse_},
                                         backend_.stream());
  }
  // dQ takes the memory of acc, which is free by then.
  void backward() {
    backend_.kernels().attention_delta({.out = out_, .dout = dout_, .delta = delta_},
                                       backend_.stream());
    backend_.kernels().attention_backward({.q = q_,
                                           .k = k_,
                                           .v = v_,
                                           .dout = dout_,
                                           .lse = lse_,
                                           .delta = delta_,
                                           .dq = acc_,
                                           .dk = dk_,
                                           .dv = dv_,
                                           .slices = plan_.hops[0].slices,
                                           .scale = scale_,
                                           .bias = bias_,
                                           .deterministic = deterministic_,
                                           .out = out_},
                                          backend_.stream());
  }

 private:
  Backend& backend_;
  DevicePool pool_;
  AttentionPlan plan_;
  PositionBias bias_;
  bool deterministic_;
  float scale_;
  Tensor q_, k_, v_, dout_, out_, acc_, dk_, dv_, row_max_, row_sum_, lse_, delta_;
};

// Nothing, with the reason in `refused`, where the kernel that was asked for does not do the call.
template <typename Call>
std::optional<Timing> time_calls(DeviceTimer& timer, int repeat, std::string& refused,
                                 const Call& call) {
  try {
    for (int i = 0; i < 2; ++i) call();  // plans, schedules, clocks
    Timing timing;
    for (int i = 0; i < repeat; ++i) {
      timer.begin();
      call();
      timing.add(timer.end());
    }
    return timing;
  } catch (const Error& e) {
    if (e.code() != ExitCode::kUsage && e.code() != ExitCode::kExhausted) throw;
    refused = e.text().what;
    return std::nullopt;
  }
}

struct DeviceRow {
  std::optional<Timing> forward, backward;
  std::string forward_refused, backward_refused;
  std::vector<std::string> notes;  // which kernel took the calls
  double pairs = 0;
  std::size_t slices = 0;
};

DeviceRow measure(const Problem& problem, const Options& o, Backend& backend, DeviceTimer& timer) {
  DeviceRow row;
  DeviceRank rank(problem, o, backend);
  row.pairs = rank.plan().visible_pairs;
  row.slices = rank.plan().hops[0].slices.size();
  row.forward = time_calls(timer, o.repeat, row.forward_refused, [&] { rank.forward(); });
  row.backward = time_calls(timer, o.repeat, row.backward_refused, [&] { rank.backward(); });
  row.notes = backend.take_notes();
  return row;
}

void print_row(const Problem& problem, const DeviceRow& row, const Options& o,
               const std::string& kernel, const std::string& device, double matmul) {
  const double forward = forward_flops(row.pairs, o.heads()) * 1e-9;
  const double backward = backward_flops(row.pairs, o.heads()) * 1e-9;
  if (o.json) {
    nlohmann::ordered_json result = {{"device", device},
                                     {"kernel", kernel},
                                     {"deterministic", o.deterministic},
                                     {"dtype", o.dtype},
                                     {"mask", problem.name},
                                     {"pattern", problem.pattern.description()},
                                     {"q_heads", o.q_heads},
                                     {"kv_heads", o.kv_heads},
                                     {"head_dim", o.head_dim},
                                     {"tokens", problem.tokens()},
                                     {"slices", row.slices},
                                     {"visible_pairs", row.pairs},
                                     {"matmul_gflops", matmul}};
    const auto add = [&](const std::string& pass, const std::optional<Timing>& timing, double gflop,
                         const std::string& refused) {
      if (!timing) {
        result[pass + "_refused"] = refused;
        return;
      }
      result[pass + "_seconds"] = timing->fastest();
      result[pass + "_seconds_median"] = timing->median();
      result[pass + "_gflops"] = gflop / timing->median();
    };
    add("forward", row.forward, forward, row.forward_refused);
    add("backward", row.backward, backward, row.backward_refused);
    result["notes"] = row.notes;
    fmt::print("{}\n", result.dump());
  } else {
    const auto rate = [&](const std::optional<Timing>& timing, double gflop) {
      return timing ? fmt::format("{:>8.1f} {:>5.2f}", gflop * 1e-3 / timing->median(),
                                  gflop / timing->median() / matmul)
                    : fmt::format("{:>8} {:>5}", "-", "-");
    };
    fmt::print("{:8} {:>8} {:>7} {:6} {}  {}\n", problem.name, problem.tokens(), row.slices, kernel,
               rate(row.forward, forward), rate(row.backward, backward));
    for (const std::string& refused : {row.forward_refused, row.backward_refused})
      if (!refused.empty()) fmt::print("         {}\n", refused);
    for (const std::string& note : row.notes) fmt::print("         {}\n", note);
  }
  std::fflush(stdout);
}

// GFLOP/s of a bf16 product, the median.
double matmul_gflops(Backend& backend, DeviceTimer& timer) {
  DevicePool pool(backend);
  const Shape square{kProduct, kProduct};
  const MatmulArgs args{.a = pool.random(DType::kBF16, square),
                        .b = pool.random(DType::kBF16, square),
                        .out = pool.random(DType::kBF16, square)};
  Timing timing;
  for (int i = 0; i < 13; ++i) {
    timer.begin();
    backend.kernels().matmul(args, backend.stream());
    const double seconds = timer.end();
    if (i >= 3) timing.add(seconds);
  }
  return kProductFlops * 1e-9 / timing.median();
}

AttentionKernel kernel_named(const std::string& name) {
  return name == "own"     ? AttentionKernel::kOwn
         : name == "cudnn" ? AttentionKernel::kCudnn
                           : AttentionKernel::kAuto;
}

}  // namespace

void run_on_device(const Options& o) {
  std::optional<double> matmul;
  for (const std::string& kernel : o.kernels) {
    const auto backend =
        make_backend({.kind = DeviceKind::kCuda, .attention_kernel = kernel_named(kernel)});
    const auto timer = make_device_timer(*backend);
    if (!matmul) {
      matmul = matmul_gflops(*backend, *timer);
      if (!o.json)
        fmt::print(
            "{}\n{}, {}/{} heads x {}, gradients {}: TFLOP/s of visible pairs (median of {}), and "
            "as a share of {:.1f}, a bf16 {}^3 product in the same run\n"
            "{:8} {:>8} {:>7} {:6} {:>8} {:>5}  {:>8} {:>5}\n",
            backend->description(), o.dtype, o.q_heads, o.kv_heads, o.head_dim,
            o.deterministic ? "bitwise repeatable" : "in any order", o.repeat, *matmul * 1e-3,
            kProduct, "mask", "tokens", "slices", "kernel", "forward", "share", "backward",
            "share");
    }
    for (const std::int64_t tokens : o.tokens)
      for (const std::string& mask : o.masks) {
        const Problem problem = make_problem(mask, tokens, o);
        print_row(problem, measure(problem, o, *backend, *timer), o, kernel, backend->description(),
                  *matmul);
      }
  }
}

}  // namespace farspan::bench
