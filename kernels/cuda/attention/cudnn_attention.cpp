#include "kernels/cuda/attention/cudnn_attention.h"

#include <utility>

#include "core/error.h"
#include "kernels/cuda/attention/cudnn_merge.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/elementwise.h"

namespace farspan::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

std::size_t padded(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Tensors one after the other in a workspace that is taken once all of them are known.
class Layout {
 public:
  std::size_t add(std::size_t bytes) {
    const std::size_t at = bytes_;
    bytes_ += padded(bytes);
    return at;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

std::size_t size_of_tensor(DType dtype, const Shape& shape) {
  return static_cast<std::size_t>(shape.numel()) * size_of(dtype);
}

// Rows [begin, ...) and heads [head, ...) of a (T, H, D) tensor.
std::byte* corner(const Tensor& t, std::int64_t begin, std::int64_t head) {
  return t.data +
         static_cast<std::size_t>((begin * t.shape[1] + head) * t.shape[2]) * size_of(t.dtype);
}

SdpaShape shape_of(const CudnnPiece& piece, const Tensor& q, const Tensor& k, float scale) {
  const std::int64_t q_row = q.shape[1] * q.shape[2], k_row = k.shape[1] * k.shape[2];
  return {.batch = piece.batch,
          .q_heads = q.shape[1],
          .kv_heads = k.shape[1],
          .q_len = piece.q_len,
          .k_len = piece.k_len,
          .head_dim = q.shape[2],
          .q_row = q_row,
          .q_sequence = piece.q_step * q_row,
          .k_row = k_row,
          .k_sequence = piece.k_step * k_row,
          .mask = piece.mask,
          .window = piece.window,
          .scale = scale};
}

SdpaShape forward_shape(const AttentionForwardArgs& args, const CudnnPiece& piece, bool whole) {
  SdpaShape shape = shape_of(piece, args.q, args.k, args.scale);
  shape.out_row = shape.q_row;
  shape.out_sequence = whole ? shape.q_sequence : piece.q_len * shape.q_row;
  return shape;
}

SdpaShape backward_shape(const AttentionBackwardArgs& args, const CudnnPiece& piece,
                         std::int64_t num_kv_heads) {
  SdpaShape shape = shape_of(piece, args.q, args.k, args.scale);
  shape.backward = true;
  shape.deterministic = args.deterministic;
  shape.q_heads = num_kv_heads * (args.q.shape[1] / args.k.shape[1]);
  shape.kv_heads = num_kv_heads;
  return shape;
}

// Whether a piece's statistics (batch, heads, rows) lie in the caller's (heads, T) as they are.
bool is_all_rows(const CudnnPiece& piece, const Tensor& q) {
  return piece.batch == 1 && piece.q_begin == 0 && piece.q_len == q.shape[0];
}

// Between columns of the caller's (H, T), from head `head` on, and dense (batch, heads, q_len).
void copy_stats(const Tensor& all, const Tensor& dense, const CudnnPiece& piece, std::int64_t head,
                bool gather, cudaStream_t stream) {
  const std::int64_t heads = dense.shape[1], tokens = all.shape[1];
  for (std::int64_t b = 0; b < piece.batch; ++b) {
    const std::int64_t in_all = head * tokens + piece.q_begin + b * piece.q_step;
    const std::int64_t in_dense = b * heads * piece.q_len;
    copy_2d({.src = gather ? all : dense,
             .dst = gather ? dense : all,
             .rows = heads,
             .cols = piece.q_len,
             .src_begin = gather ? in_all : in_dense,
             .src_stride = gather ? tokens : piece.q_len,
             .dst_begin = gather ? in_dense : in_all,
             .dst_stride = gather ? piece.q_len : tokens},
            stream);
  }
}

// Adds dense (batch, rows, heads, D) bf16 to rows and heads of `sums` (T, H, D) f32.
void add_gradient(const Tensor& dense, const Tensor& sums, std::int64_t begin, std::int64_t step,
                  std::int64_t head, cudaStream_t stream) {
  const std::int64_t batch = dense.shape[0], rows = dense.shape[1];
  const std::int64_t cols = dense.shape[2] * dense.shape[3];
  const std::int64_t row = sums.shape[1] * sums.shape[2];
  const bool one_run = batch == 1 || step == rows;
  for (std::int64_t b = 0; b < (one_run ? 1 : batch); ++b)
    copy_2d({.src = dense,
             .dst = sums,
             .rows = one_run ? batch * rows : rows,
             .cols = cols,
             .src_begin = b * rows * cols,
             .src_stride = cols,
             .dst_begin = (begin + b * step) * row + head * sums.shape[2],
             .dst_stride = row,
             .mode = GradMode::kAccumulate},
            stream);
}

std::string version_text(const CudnnFacts& facts) {
  return fmt::format("cuDNN {}.{}.{}", facts.version / 10000, facts.version / 100 % 100,
                     facts.version % 100);
}

}  // namespace

CudnnAttention::CudnnAttention(Device& device, AttentionKernel wanted, CudnnFacts facts,
                               MakeEngine make_engine)
    : device_(device),
      wanted_(wanted),
      facts_(std::move(facts)),
      make_engine_(std::move(make_engine)) {}

std::string CudnnAttention::description() const {
  if (wanted_ == AttentionKernel::kOwn) return "own kernels";
  if (!facts_.absent.empty()) return "own kernels (" + facts_.absent + ")";
  return version_text(facts_) + (wanted_ == AttentionKernel::kCudnn ? "" : " where it can");
}

std::vector<std::string> CudnnAttention::take_notes() { return std::exchange(notes_, {}); }

void CudnnAttention::say(Said what, std::string text) {
  bool& said = said_[static_cast<std::size_t>(what)];
  if (!said) notes_.push_back(std::move(text));
  said = true;
}

bool CudnnAttention::take(const CudnnAnswer& answer, const char* pass, Said own) {
  if (answer.nothing_to_do) return false;
  std::string reason = answer.refusal;
  constexpr int kHopper = 90;
  if (reason.empty() && wanted_ == AttentionKernel::kAuto && facts_.capability < kHopper)
    reason = "before Hopper cuDNN gains nothing on our kernels";
  if (!reason.empty()) {
    if (wanted_ == AttentionKernel::kCudnn)
      throw Error(ExitCode::kUsage,
                  {.what = fmt::format("cuDNN does not do this attention ({}): {}", pass, reason),
                   .where = "parallel.attention_kernel: cudnn",
                   .fix = "use attention_kernel: auto (cuDNN where it can) or own"});
    say(own, fmt::format("attention {}: own kernel; not cuDNN: {}", pass, reason));
    return false;
  }
  return true;
}

bool CudnnAttention::plan(const SdpaShape& shape, const char* pass, Said own) {
  if (refused_.contains(shape)) return false;
  try {
    if (!engine_) engine_ = make_engine_();
    engine_->workspace(shape);
    return true;
  } catch (const Error& e) {
    if (wanted_ == AttentionKernel::kCudnn) throw;
    say(own, fmt::format("attention {}: own kernel; {}", pass, e.text().what));
    if (refused_.size() >= SdpaEngine::kMostPlans) refused_.clear();
    refused_.insert(shape);
    return false;
  }
}

std::byte* CudnnAttention::workspace(std::size_t bytes, const Stream& stream) {
  Space& space = workspaces_[stream.native_handle()];
  if (space.buffer.bytes() < bytes) {
    if (space.captured) captured_.push_back(std::move(space.buffer));
    space = {};  // the old one goes first: both need not fit
    space.buffer = device_.allocate(bytes);
  }
  space.captured |= is_capturing(stream);
  return space.buffer.data();
}

void CudnnAttention::release_captured() {
  captured_.clear();
  for (auto& [queue, space] : workspaces_) space.captured = false;
}

bool CudnnAttention::forward(const AttentionForwardArgs& args, Stream& stream,
                             const OwnForward& own) {
  if (wanted_ == AttentionKernel::kOwn) return false;
  const CudnnAnswer answer = cudnn_forward_support(args, facts_);
  if (!take(answer, "forward", Said::kForwardOwn)) return false;
  for (const CudnnPiece& piece : answer.pieces)
    if (!plan(forward_shape(args, piece, answer.whole), "forward", Said::kForwardOwn)) return false;
  AttentionForwardArgs state = args;
  state.slices = {};
  if (answer.whole) {
    say(Said::kForwardWhole,
        fmt::format("attention forward: {}, the whole result in {} call{}", version_text(facts_),
                    answer.pieces.size(), answer.pieces.size() == 1 ? "" : "s"));
    if (!answer.covers_all_rows) own(state);  // rows that see nothing
  } else {
    say(Said::kForwardMerged,
        fmt::format("attention forward: {}, partial results rounded to bf16 and merged in f32 "
                    "(parallel.attention_kernel: own keeps them in f32)",
                    version_text(facts_)));
    state.last = false;
    if (args.first) own(state);
  }
  for (const CudnnPiece& piece : answer.pieces) forward_piece(args, piece, answer.whole, stream);
  if (!answer.whole && args.last) {
    state.first = false;
    state.last = true;
    own(state);
  }
  return true;
}

void CudnnAttention::forward_piece(const AttentionForwardArgs& args, const CudnnPiece& piece,
                                   bool whole, Stream& stream) {
  const cudaStream_t queue = native(stream);
  const SdpaShape shape = forward_shape(args, piece, whole);
  const bool stats_in_place = whole && is_all_rows(piece, args.q);
  const Shape out_shape{piece.batch, piece.q_len, shape.q_heads, shape.head_dim};
  const Shape stats_shape{piece.batch, shape.q_heads, piece.q_len};
  const std::size_t plan_bytes = engine_->workspace(shape);
  Layout layout;
  const std::size_t plan_at = layout.add(plan_bytes);
  const std::size_t stats_at =
      layout.add(stats_in_place ? 0 : size_of_tensor(DType::kF32, stats_shape));
  const std::size_t out_at = layout.add(whole ? 0 : size_of_tensor(DType::kBF16, out_shape));
  std::byte* const space = workspace(layout.bytes(), stream);
  const Tensor stats{stats_in_place ? args.lse.data : space + stats_at, DType::kF32, stats_shape,
                     device_.id()};
  const Tensor partial{space + out_at, DType::kBF16, out_shape, device_.id()};
  engine_->run(shape,
               {.q = corner(args.q, piece.q_begin, 0),
                .k = corner(args.k, piece.k_begin, 0),
                .v = corner(args.v, piece.k_begin, 0),
                .out = whole ? corner(args.out, piece.q_begin, 0) : partial.data,
                .stats = stats.data},
               space + plan_at, queue);
  if (!whole)
    merge_partial(partial, stats,
                  {.batch = piece.batch,
                   .q_len = piece.q_len,
                   .q_begin = piece.q_begin,
                   .q_step = piece.q_step},
                  args, queue);
  else if (!stats_in_place)
    copy_stats(args.lse, stats, piece, 0, false, queue);
}

bool CudnnAttention::backward(const AttentionBackwardArgs& args, Stream& stream) {
  if (wanted_ == AttentionKernel::kOwn) return false;
  const CudnnAnswer answer = cudnn_backward_support(args, facts_);
  if (!take(answer, "backward", Said::kBackwardOwn)) return false;
  for (const CudnnPiece& piece : answer.pieces)
    if (!plan(backward_shape(args, piece, answer.kv_heads_at_once), "backward", Said::kBackwardOwn))
      return false;
  say(Said::kBackward, fmt::format("attention backward: {}, {} of {} KV heads at a time",
                                   version_text(facts_), answer.kv_heads_at_once, args.k.shape[1]));
  for (const CudnnPiece& piece : answer.pieces)
    for (std::int64_t head = 0; head < args.k.shape[1]; head += answer.kv_heads_at_once)
      backward_piece(args, piece, head, answer.kv_heads_at_once, stream);
  return true;
}

void CudnnAttention::backward_piece(const AttentionBackwardArgs& args, const CudnnPiece& piece,
                                    std::int64_t kv_head, std::int64_t num_kv_heads,
                                    Stream& stream) {
  const cudaStream_t queue = native(stream);
  const std::int64_t group = args.q.shape[1] / args.k.shape[1], head = kv_head * group;
  const SdpaShape shape = backward_shape(args, piece, num_kv_heads);
  const bool stats_in_place = is_all_rows(piece, args.q);
  const Shape q_shape{piece.batch, piece.q_len, shape.q_heads, shape.head_dim};
  const Shape k_shape{piece.batch, piece.k_len, shape.kv_heads, shape.head_dim};
  const Shape stats_shape{piece.batch, shape.q_heads, piece.q_len};
  const std::size_t plan_bytes = engine_->workspace(shape);
  Layout layout;
  const std::size_t plan_at = layout.add(plan_bytes);
  const std::size_t stats_at =
      layout.add(stats_in_place ? 0 : size_of_tensor(DType::kF32, stats_shape));
  const std::size_t dq_at = layout.add(size_of_tensor(DType::kBF16, q_shape));
  const std::size_t dk_at = layout.add(size_of_tensor(DType::kBF16, k_shape));
  const std::size_t dv_at = layout.add(size_of_tensor(DType::kBF16, k_shape));
  std::byte* const space = workspace(layout.bytes(), stream);
  std::byte* const lse_of_head =
      args.lse.data + static_cast<std::size_t>(head * args.lse.shape[1]) * sizeof(float);
  const Tensor stats{stats_in_place ? lse_of_head : space + stats_at, DType::kF32, stats_shape,
                     device_.id()};
  const Tensor dq{space + dq_at, DType::kBF16, q_shape, device_.id()};
  const Tensor dk{space + dk_at, DType::kBF16, k_shape, device_.id()};
  const Tensor dv{space + dv_at, DType::kBF16, k_shape, device_.id()};
  if (!stats_in_place) copy_stats(args.lse, stats, piece, head, true, queue);
  engine_->run(shape,
               {.q = corner(args.q, piece.q_begin, head),
                .k = corner(args.k, piece.k_begin, kv_head),
                .v = corner(args.v, piece.k_begin, kv_head),
                .out = corner(args.out, piece.q_begin, head),
                .stats = stats.data,
                .dout = corner(args.dout, piece.q_begin, head),
                .dq = dq.data,
                .dk = dk.data,
                .dv = dv.data},
               space + plan_at, queue);
  add_gradient(dq, args.dq, piece.q_begin, piece.q_step, head, queue);
  add_gradient(dk, args.dk, piece.k_begin, piece.k_step, kv_head, queue);
  add_gradient(dv, args.dv, piece.k_begin, piece.k_step, kv_head, queue);
}

}  // namespace farspan::cuda
