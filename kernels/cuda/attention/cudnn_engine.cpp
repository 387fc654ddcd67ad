// Built with less optimisation than the rest (CMakeLists.txt): the frontend's headers take a minute
// to compile, and nothing here runs often.
#include "kernels/cuda/attention/cudnn_engine.h"

#include <cudnn_frontend.h>

#include <list>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "kernels/cuda/attention/cudnn_library.h"
#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {
namespace {

namespace fe = cudnn_frontend;
using FeTensor = std::shared_ptr<fe::graph::Tensor_attributes>;

// Names of the tensors within a plan.
enum Uid : std::int64_t { kQ = 1, kK, kV, kOut, kStats, kDout, kDq, kDk, kDv };

[[noreturn]] void refuse(const SdpaShape& s, const std::string& reason) {
  throw Error(
      ExitCode::kUsage,
      {.what = fmt::format("cuDNN cannot plan attention {}: batch {}, heads {}:{}, {} "
                           "queries, {} keys, head dim {}: {}",
                           s.backward ? "backward" : "forward", s.batch, s.q_heads, s.kv_heads,
                           s.q_len, s.k_len, s.head_dim, reason.substr(0, reason.find('\n'))),
       .where = "parallel.attention_kernel",
       .fix = "set parallel.attention_kernel: own"});
}

class Plan {
 public:
  Plan(const SdpaShape& shape, cudnnHandle_t handle) : shape_(shape) {
    graph_.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (shape.backward)
      add_backward();
    else
      add_forward();
    auto status = graph_.build(handle, {fe::HeurMode_t::A});
    if (status.is_bad()) refuse(shape, status.get_message());
    std::int64_t bytes = 0;
    if (graph_.get_workspace_size(bytes).is_bad()) refuse(shape, "its workspace is unknown");
    workspace_ = static_cast<std::size_t>(bytes);
  }

  const SdpaShape& shape() const { return shape_; }
  std::size_t workspace() const { return workspace_; }

  void run(cudnnHandle_t handle, const SdpaTensors& t, void* space) const {
    std::unordered_map<std::int64_t, void*> pack{{kQ, const_cast<void*>(t.q)},
                                                 {kK, const_cast<void*>(t.k)},
                                                 {kV, const_cast<void*>(t.v)},
                                                 {kOut, t.out},
                                                 {kStats, t.stats}};
    if (shape_.backward) {
      pack[kDout] = const_cast<void*>(t.dout);
      pack[kDq] = t.dq;
      pack[kDk] = t.dk;
      pack[kDv] = t.dv;
    }
    auto status = graph_.execute(handle, pack, space);
    if (status.is_bad())
      throw Error(ExitCode::kInternal, {.what = "cuDNN attention: " + status.get_message()});
  }

 private:
  // (batch, heads, rows, head_dim), of which heads lie side by side in a row.
  FeTensor input(const char* name, Uid uid, std::int64_t heads, std::int64_t rows, std::int64_t row,
                 std::int64_t sequence) {
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_name(name)
                             .set_uid(uid)
                             .set_dim({shape_.batch, heads, rows, shape_.head_dim})
                             .set_stride({sequence, shape_.head_dim, row, 1}));
  }
  void output(const FeTensor& tensor, Uid uid, std::int64_t heads, std::int64_t rows,
              std::int64_t row, std::int64_t sequence) {
    tensor->set_output(true)
        .set_uid(uid)
        .set_dim({shape_.batch, heads, rows, shape_.head_dim})
        .set_stride({sequence, shape_.head_dim, row, 1});
  }
  FeTensor stats_like(const FeTensor& tensor) {
    tensor->set_uid(kStats)
        .set_dim({shape_.batch, shape_.q_heads, shape_.q_len, 1})
        .set_stride({shape_.q_heads * shape_.q_len, shape_.q_len, 1, 1})
        .set_data_type(fe::DataType_t::FLOAT);
    return tensor;
  }
  template <typename Attributes>
  void set_mask(Attributes& attributes) const {
    if (shape_.mask == CudnnMask::kFull) return;
    attributes
        .set_diagonal_alignment(shape_.mask == CudnnMask::kCausal
                                    ? fe::DiagonalAlignment_t::TOP_LEFT
                                    : fe::DiagonalAlignment_t::BOTTOM_RIGHT)
        .set_diagonal_band_right_bound(0);
    if (shape_.window > 0) attributes.set_diagonal_band_left_bound(static_cast<int>(shape_.window));
  }
  struct Inputs {
    FeTensor q, k, v;
  };
  Inputs inputs() {
    const SdpaShape& s = shape_;
    return {input("q", kQ, s.q_heads, s.q_len, s.q_row, s.q_sequence),
            input("k", kK, s.kv_heads, s.k_len, s.k_row, s.k_sequence),
            input("v", kV, s.kv_heads, s.k_len, s.k_row, s.k_sequence)};
  }

  void add_forward() {
    const SdpaShape& s = shape_;
    const Inputs in = inputs();
    auto attributes = fe::graph::SDPA_attributes()
                          .set_name("sdpa")
                          .set_generate_stats(true)
                          .set_attn_scale(s.scale)
                          .set_implementation(fe::AttentionImplementation_t::COMPOSITE);
    set_mask(attributes);
    auto [out, stats] = graph_.sdpa(in.q, in.k, in.v, attributes);
    output(out, kOut, s.q_heads, s.q_len, s.out_row, s.out_sequence);
    stats_like(stats)->set_output(true);
  }

  void add_backward() {
    const SdpaShape& s = shape_;
    const Inputs in = inputs();
    const FeTensor out = input("out", kOut, s.q_heads, s.q_len, s.q_row, s.q_sequence);
    const FeTensor dout = input("dout", kDout, s.q_heads, s.q_len, s.q_row, s.q_sequence);
    const FeTensor stats =
        stats_like(graph_.tensor(fe::graph::Tensor_attributes().set_name("stats")));
    auto attributes = fe::graph::SDPA_backward_attributes()
                          .set_name("sdpa_backward")
                          .set_attn_scale(s.scale)
                          .set_deterministic_algorithm(s.deterministic);
    set_mask(attributes);
    auto [dq, dk, dv] = graph_.sdpa_backward(in.q, in.k, in.v, out, dout, stats, attributes);
    const std::int64_t q_row = s.q_heads * s.head_dim, k_row = s.kv_heads * s.head_dim;
    output(dq, kDq, s.q_heads, s.q_len, q_row, s.q_len * q_row);
    output(dk, kDk, s.kv_heads, s.k_len, k_row, s.k_len * k_row);
    output(dv, kDv, s.kv_heads, s.k_len, k_row, s.k_len * k_row);
  }

  SdpaShape shape_;
  fe::graph::Graph graph_;
  std::size_t workspace_ = 0;
};

class CudnnEngine final : public SdpaEngine {
 public:
  CudnnEngine() { check(cudnnCreate(&handle_), "cudnnCreate"); }
  CudnnEngine(const CudnnEngine&) = delete;
  CudnnEngine& operator=(const CudnnEngine&) = delete;
  ~CudnnEngine() override {
    plans_.clear();
    cudnnDestroy(handle_);
  }

  std::size_t workspace(const SdpaShape& shape) override { return plan(shape).workspace(); }

  void run(const SdpaShape& shape, const SdpaTensors& tensors, void* space,
           cudaStream_t stream) override {
    const Plan& made = plan(shape);
    check(cudnnSetStream(handle_, stream), "cudnnSetStream");
    // What a call left there has made NaN of the next one's gradients (TransformerEngine #2186).
    if (shape.backward && made.workspace() > 0)
      FARSPAN_CUDA(cudaMemsetAsync(space, 0, made.workspace(), stream));
    made.run(handle_, tensors, space);
  }

 private:
  static void check(cudnnStatus_t status, const char* call) {
    if (status == CUDNN_STATUS_SUCCESS) return;
    throw Error(ExitCode::kInternal,
                {.what = fmt::format("cuDNN: {}", cudnnGetErrorString(status)), .where = call});
  }

  // The most recently used plan first.
  const Plan& plan(const SdpaShape& shape) {
    for (auto it = plans_.begin(); it != plans_.end(); ++it)
      if (it->shape() == shape) {
        plans_.splice(plans_.begin(), plans_, it);
        return plans_.front();
      }
    plans_.emplace_front(shape, handle_);
    if (plans_.size() > kMostPlans) plans_.pop_back();
    return plans_.front();
  }

  cudnnHandle_t handle_ = nullptr;
  std::list<Plan> plans_;
};

}  // namespace

CudnnFacts cudnn_facts() {
  const CudnnLibrary& library = cudnn_library();
  CudnnFacts facts{.version = library.version};
  if (!library.absent.empty()) facts.absent = "cuDNN is not on this machine: " + library.absent;
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess)
    facts.capability = 10 * major + minor;
  else
    (void)cudaGetLastError();  // no GPU is a fact like another
  return facts;
}

std::unique_ptr<SdpaEngine> make_sdpa_engine() { return std::make_unique<CudnnEngine>(); }

}  // namespace farspan::cuda
