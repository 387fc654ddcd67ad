// One rank's kernels by mask and length, beside oneDNN's matmul in the same run.
#include <omp.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "bench_attention.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/isa.h"

namespace farspan::bench {
namespace {

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

// One rank's forward and backward pass over one problem.
class SingleRank {
 public:
  SingleRank(const Problem& problem, const HeadShape& heads)
      : plan_(single_plan(problem, heads, /*gather=*/false)),
        bias_(bias_tables(problem, heads, pool_)),
        scale_(1.0f / std::sqrt(static_cast<float>(heads.head_dim))) {
    const std::int64_t n = problem.tokens();
    const Shape q_shape{n, heads.num_heads, heads.head_dim};
    const Shape k_shape{n, heads.num_kv_heads, heads.head_dim};
    const Shape stats{heads.num_heads, n};
    q_ = pool_.random(heads.compute, q_shape), k_ = pool_.random(heads.compute, k_shape);
    v_ = pool_.random(heads.compute, k_shape), dout_ = pool_.random(heads.compute, q_shape);
    out_ = pool_.random(heads.compute, q_shape), acc_ = pool_.random(DType::kF32, q_shape);
    dq_ = pool_.random(DType::kF32, q_shape), dk_ = pool_.random(DType::kF32, k_shape);
    dv_ = pool_.random(DType::kF32, k_shape), row_max_ = pool_.random(DType::kF32, stats);
    row_sum_ = pool_.random(DType::kF32, stats), lse_ = pool_.random(DType::kF32, stats);
    delta_ = pool_.random(DType::kF32, stats);
  }

  const AttentionPlan& plan() const { return plan_; }

  void forward(cpu::AttentionEngine& engine) {
    engine.forward({.q = q_,
                    .k = k_,
                    .v = v_,
                    .acc = acc_,
                    .row_max = row_max_,
                    .row_sum = row_sum_,
                    .slices = plan_.hops[0].slices,
                    .scale = scale_,
                    .bias = bias(),
                    .first = true,
                    .last = true,
                    .out = out_,
                    .lse = lse_});
  }
  void backward(cpu::AttentionEngine& engine) {
    engine.delta({.out = out_, .dout = dout_, .delta = delta_});
    engine.backward({.q = q_,
                     .k = k_,
                     .v = v_,
                     .dout = dout_,
                     .lse = lse_,
                     .delta = delta_,
                     .dq = dq_,
                     .dk = dk_,
                     .dv = dv_,
                     .slices = plan_.hops[0].slices,
                     .scale = scale_,
                     .bias = bias()});
  }

 private:
  PositionBias bias() const {
    return {.slopes = bias_.slopes, .decay = bias_.decay, .position_stride = plan_.position_stride};
  }

  TensorPool pool_;
  AttentionPlan plan_;
  BiasTables bias_;
  float scale_;
  Tensor q_, k_, v_, dout_, out_, acc_, dq_, dk_, dv_, row_max_, row_sum_, lse_, delta_;
};

struct Row {
  Timing forward, backward, product;
  double pairs = 0;
  std::size_t slices = 0;
};

Row measure(const Problem& problem, const Options& o, cpu::AttentionEngine& engine,
            Matmul& matmul) {
  SingleRank rank(problem, o.heads());
  Row row{.forward = {},
          .backward = {},
          .product = {},
          .pairs = rank.plan().visible_pairs,
          .slices = rank.plan().hops[0].slices.size()};
  rank.forward(engine);
  rank.backward(engine);
  for (int i = 0; i < o.repeat; ++i) {  // taking turns, so that all see the same machine
    row.forward.add(seconds_of<wall_seconds>([&] { rank.forward(engine); }));
    row.backward.add(seconds_of<wall_seconds>([&] { rank.backward(engine); }));
    row.product.add(seconds_of<wall_seconds>([&] { matmul.run(); }));
  }
  return row;
}

void print_row(const Problem& problem, const Row& row, const Options& o, std::string_view isa) {
  const double matmul = Matmul::kFlops * 1e-9 / row.product.fastest();
  const double forward = forward_flops(row.pairs, o.heads()) * 1e-9 / row.forward.fastest();
  const double backward = backward_flops(row.pairs, o.heads()) * 1e-9 / row.backward.fastest();
  if (o.json) {
    const nlohmann::ordered_json result = {{"isa", isa},
                                           {"dtype", o.dtype},
                                           {"mask", problem.name},
                                           {"pattern", problem.pattern.description()},
                                           {"q_heads", o.q_heads},
                                           {"kv_heads", o.kv_heads},
                                           {"head_dim", o.head_dim},
                                           {"tokens", problem.tokens()},
                                           {"threads", o.threads},
                                           {"slices", row.slices},
                                           {"visible_pairs", row.pairs},
                                           {"forward_seconds", row.forward.fastest()},
                                           {"forward_seconds_median", row.forward.median()},
                                           {"backward_seconds", row.backward.fastest()},
                                           {"backward_seconds_median", row.backward.median()},
                                           {"forward_gflops", forward},
                                           {"backward_gflops", backward},
                                           {"matmul_gflops", matmul}};
    fmt::print("{}\n", result.dump());
  } else {
    fmt::print("{:8} {:>8} {:>7} {:>8.1f}M  {:>7.1f} {:>5.2f}  {:>7.1f} {:>5.2f}  {}\n",
               problem.name, problem.tokens(), row.slices, row.pairs * 1e-6, forward,
               forward / matmul, backward, backward / matmul, problem.pattern.description());
  }
  std::fflush(stdout);
}

}  // namespace

void run_masks(const Options& o) {
  cpu::AttentionEngine engine({.isa = o.cpu_isa(), .num_threads = o.threads});
  omp_set_num_threads(o.threads);  // for oneDNN
  Matmul matmul(o.compute());
  matmul.run();
  if (!o.json)
    fmt::print(
        "{} {}, {}/{} heads x {}, {} thread(s): GFLOP/s of visible pairs (fastest of {}), and as a "
        "share of oneDNN's {}^3 matmul in the same run\n{:8} {:>8} {:>7} {:>9}  {:>7} {:>5}  {:>7} "
        "{:>5}\n",
        name_of(engine.isa()), o.dtype, o.q_heads, o.kv_heads, o.head_dim, o.threads, o.repeat,
        Matmul::kN, "mask", "tokens", "slices", "pairs", "forward", "share", "backw.", "share");
  for (const std::int64_t tokens : o.tokens)
    for (const std::string& mask : o.masks) {
      const Problem problem = make_problem(mask, tokens, o);
      print_row(problem, measure(problem, o, engine, matmul), o, name_of(engine.isa()));
    }
}

}  // namespace farspan::bench
