// CUDA's attention kernels, on tensors that are copied there and back for each call.
#include <list>

#include "core/error.h"
#include "kernels/attention/variants.h"
#include "kernels/cuda/attention/any_shape.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/backward.h"
#include "kernels/cuda/attention/delta.h"
#include "kernels/cuda/cuda_device.h"

namespace farspan::testing {
namespace {

enum Implementation { kAsDispatched, kAnyShape, kAtomicDq };

// Device copies of a call's tensors, those that it writes copied back at the end.
class Copies {
 public:
  Copies(cuda::CudaDevice& device, Stream& stream) : device_(device), stream_(stream) {}

  Tensor in(const Tensor& host) {
    if (!host.defined() || host.numel() == 0) return host;
    Buffer& buffer = buffers_.emplace_back(device_.allocate(host.bytes()));
    device_.copy(buffer.data(), host.data, host.bytes(), stream_);
    Tensor copy = host;
    copy.data = buffer.data();
    copy.device = device_.id();
    return copy;
  }
  Tensor in_out(const Tensor& host) {
    const Tensor copy = in(host);
    if (copy.data != host.data) written_.push_back({host, copy});
    return copy;
  }
  void finish() {
    for (const auto& [host, copy] : written_)
      device_.copy(host.data, copy.data, host.bytes(), stream_);
    stream_.synchronize();
  }

 private:
  struct Written {
    Tensor host, copy;
  };
  cuda::CudaDevice& device_;
  Stream& stream_;
  std::list<Buffer> buffers_;
  std::vector<Written> written_;
};

class CudaCalls final : public AttentionUnderTest::Calls {
 public:
  explicit CudaCalls(int implementation)
      : implementation_(implementation),
        device_(0),
        stream_(device_.make_stream()),
        schedules_(device_) {}

  void forward(const AttentionForwardArgs& host) override {
    Copies copies(device_, *stream_);
    AttentionForwardArgs args = host;
    for (Tensor* t : {&args.q, &args.k, &args.v}) *t = copies.in(*t);
    for (Tensor* t : {&args.acc, &args.row_max, &args.row_sum, &args.out, &args.lse})
      *t = copies.in_out(*t);
    move_bias(args.bias, copies);
    if (implementation_ == kAnyShape)
      cuda::attention_forward_any_shape(args, schedules_, *stream_);
    else
      cuda::attention_forward(args, schedules_, *stream_);
    copies.finish();
  }

  void delta(const AttentionDeltaArgs& host) override {
    Copies copies(device_, *stream_);
    cuda::attention_delta({.out = copies.in(host.out),
                           .dout = copies.in(host.dout),
                           .delta = copies.in_out(host.delta)},
                          cuda::native(*stream_));
    copies.finish();
  }

  void backward(const AttentionBackwardArgs& host) override {
    Copies copies(device_, *stream_);
    AttentionBackwardArgs args = host;
    for (Tensor* t : {&args.q, &args.k, &args.v, &args.dout, &args.lse, &args.delta})
      *t = copies.in(*t);
    for (Tensor* t : {&args.dq, &args.dk, &args.dv}) *t = copies.in_out(*t);
    move_bias(args.bias, copies);
    args.deterministic = implementation_ != kAtomicDq;
    if (implementation_ == kAnyShape)
      cuda::attention_backward_any_shape(args, schedules_, *stream_);
    else
      cuda::attention_backward(args, schedules_, *stream_);
    copies.finish();
  }

 private:
  static void move_bias(PositionBias& bias, Copies& copies) {
    if (bias.slopes.defined()) bias.slopes = copies.in(bias.slopes);
    if (bias.decay.defined()) bias.decay = copies.in(bias.decay);
  }

  int implementation_;
  cuda::CudaDevice device_;
  std::unique_ptr<Stream> stream_;
  cuda::ScheduleCache schedules_;
};

}  // namespace

std::vector<Variant> all_variants() {
  return {{"cuda_f32", DType::kF32, kAsDispatched},
          {"cuda_bf16", DType::kBF16, kAsDispatched},
          {"cuda_any_shape_bf16", DType::kBF16, kAnyShape},
          {"cuda_atomic_dq_bf16", DType::kBF16, kAtomicDq, false}};
}

std::string why_not(const Variant&) {
  const cuda::DeviceCount found = cuda::count_devices();
  return found.devices > 0 ? "" : "no GPU on this machine: " + found.reason;
}

AttentionUnderTest make_attention(const Variant& variant, int /*num_threads*/) {
  return AttentionUnderTest(std::make_unique<CudaCalls>(variant.implementation));
}

}  // namespace farspan::testing
