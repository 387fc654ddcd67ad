#include "kernels/cpu/cpu_kernels.h"

#include <cstring>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/state.h"

namespace farspan::cpu {
namespace {

const RowOps& row_ops_for(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512:
    case CpuIsa::kAvx512Bf16:
    case CpuIsa::kAmx:
      return row_ops_avx512();
    case CpuIsa::kAvx2:
      return row_ops_avx2();
    case CpuIsa::kPortable:
    case CpuIsa::kAuto:
      break;
  }
  FARSPAN_CHECK(isa == CpuIsa::kPortable, "instruction set not resolved");
  return row_ops_portable();
}

// A forced lower instruction set also takes the widened path, which is how it is tested.
bool multiplies_bf16(CpuIsa isa) {
  return (isa == CpuIsa::kAvx512Bf16 || isa == CpuIsa::kAmx) && onednn_has_native_bf16();
}

template <typename T>
void fill_with(const Tensor& dst, T value, std::int64_t begin, std::int64_t end) {
  std::fill(raw<T>(dst) + begin, raw<T>(dst) + end, value);
}

}  // namespace

CpuKernels::Impl::Impl(CpuConfig given)
    : config(given),
      rows(row_ops_for(given.isa)),
      matmul({.num_threads = given.num_threads, .native_bf16 = multiplies_bf16(given.isa)}, rows),
      attention({.isa = given.isa, .num_threads = given.num_threads}) {}

CpuKernels::CpuKernels(CpuConfig config) : impl_(std::make_unique<Impl>(config)) {}
CpuKernels::~CpuKernels() = default;

std::string CpuKernels::description() const {
  return fmt::format("{} attention, oneDNN {} matmul ({}), {} thread{}", name_of(impl_->config.isa),
                     onednn_version(),
                     multiplies_bf16(impl_->config.isa) ? "bf16 native" : "bf16 widened to f32",
                     impl_->config.num_threads, impl_->config.num_threads == 1 ? "" : "s");
}

void CpuKernels::copy(const CopyArgs& args, Stream&) {
  const Tensor& src = args.src;
  const Tensor& dst = args.dst;
  const auto size = static_cast<std::int64_t>(size_of(src.dtype));
  impl_->over_elements(src.numel(), [&](std::int64_t begin, std::int64_t end) {
    if (src.dtype == dst.dtype)
      std::memmove(dst.data + begin * size, src.data + begin * size,
                   static_cast<std::size_t>((end - begin) * size));
    else if (src.dtype == DType::kF32)
      impl_->rows.narrow(raw<float>(src) + begin, raw<std::uint16_t>(dst) + begin, end - begin);
    else
      impl_->rows.widen(raw<std::uint16_t>(src) + begin, raw<float>(dst) + begin, end - begin);
  });
}

namespace {

void add_integers(std::int64_t* sum, const std::int64_t* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

}  // namespace

// Elements [col, col + n) of row `row`, by dtypes and mode.
void CpuKernels::Impl::copy_part(const Copy2dArgs& args, std::int64_t row, std::int64_t col,
                                 std::int64_t n) const {
  const std::int64_t from = args.src_begin + row * args.src_stride + col;
  const std::int64_t to = args.dst_begin + row * args.dst_stride + col;
  const bool narrow = args.src.dtype == DType::kBF16;
  if (args.mode == GradMode::kAccumulate) {
    if (args.dst.dtype == DType::kI64)
      add_integers(args.dst.ptr<std::int64_t>() + to, args.src.ptr<std::int64_t>() + from, n);
    else if (narrow)
      rows.bf16.accumulate(raw<float>(args.dst) + to, raw<std::uint16_t>(args.src) + from, n);
    else
      rows.f32.accumulate(raw<float>(args.dst) + to, raw<float>(args.src) + from, n);
  } else if (args.src.dtype == args.dst.dtype) {
    const auto size = static_cast<std::int64_t>(size_of(args.src.dtype));
    std::memcpy(args.dst.data + to * size, args.src.data + from * size,
                static_cast<std::size_t>(n * size));
  } else if (narrow) {
    rows.widen(raw<std::uint16_t>(args.src) + from, raw<float>(args.dst) + to, n);
  } else {
    rows.narrow(raw<float>(args.src) + from, raw<std::uint16_t>(args.dst) + to, n);
  }
}

// Cut by elements, not rows: there may be few long rows, or many short ones.
void CpuKernels::copy_2d(const Copy2dArgs& args, Stream&) {
  impl_->over_elements(args.rows * args.cols, [&](std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t row = begin / args.cols, col = begin % args.cols;
      const std::int64_t n = std::min(args.cols - col, end - begin);
      impl_->copy_part(args, row, col, n);
      begin += n;
    }
  });
}

void CpuKernels::fill(const FillArgs& args, Stream&) {
  const Tensor& dst = args.dst;
  const auto as_float = static_cast<float>(args.value);
  impl_->over_elements(dst.numel(), [&](std::int64_t begin, std::int64_t end) {
    switch (dst.dtype) {
      case DType::kF32:
        return fill_with<float>(dst, as_float, begin, end);
      case DType::kBF16:
        return fill_with<std::uint16_t>(dst, BFloat16::round(as_float), begin, end);
      case DType::kF64:
        return fill_with<double>(dst, args.value, begin, end);
      case DType::kI32:
        return fill_with<std::int32_t>(dst, static_cast<std::int32_t>(args.value), begin, end);
      default:  // checked: i64
        return fill_with<std::int64_t>(dst, static_cast<std::int64_t>(args.value), begin, end);
    }
  });
}

void CpuKernels::add(const AddArgs& args, Stream&) {
  by_dtype(args.out.dtype, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    impl_->over_elements(args.out.numel(), [&](std::int64_t begin, std::int64_t end) {
      ops.add(raw<T>(args.a) + begin, raw<T>(args.b) + begin, raw<T>(args.out) + begin,
              end - begin);
    });
  });
}

void CpuKernels::matmul(const MatmulArgs& args, Stream&) { impl_->matmul.run(args); }

void CpuKernels::rmsnorm_forward(const RmsNormForwardArgs& args, Stream&) {
  const std::int64_t c = args.weight.numel();
  const bool residual = args.residual.defined();
  const Tensor& x = residual ? args.sum : args.x;
  by_dtype(args.x.dtype, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    impl_->over_rows(args.rstd.numel(), c, [&](std::int64_t begin, std::int64_t end) {
      // A row's sum is still in the first cache when it is normalised.
      for (std::int64_t row = begin; row < end; ++row) {
        if (residual)
          ops.add(raw<T>(args.x) + row * c, raw<T>(args.residual) + row * c,
                  raw<T>(args.sum) + row * c, c);
        ops.rmsnorm_forward(raw<T>(x) + row * c, raw<T>(args.weight), raw<T>(args.y) + row * c,
                            args.rstd.ptr<float>() + row, 1, c, args.eps);
      }
    });
  });
}

// dweight: rows are cut into at most kMaxBlocks blocks by their number alone; each block sums its
// own partial, and the partials are added in order.
void CpuKernels::rmsnorm_backward(const RmsNormBackwardArgs& args, Stream&) {
  constexpr std::int64_t kMinRows = 32;
  constexpr std::int64_t kMaxBlocks = 64;
  const std::int64_t c = args.weight.numel();
  const std::int64_t num_rows = args.rstd.numel();
  const std::int64_t block = std::max(kMinRows, (num_rows + kMaxBlocks - 1) / kMaxBlocks);
  const std::int64_t num_blocks = (num_rows + block - 1) / block;
  float* partials = impl_->floats(num_blocks * c);
  const bool accumulate = args.dx_mode == GradMode::kAccumulate;
  by_dtype(args.x.dtype, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    impl_->over_rows(num_blocks, block * c, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i * block;
        float* partial = partials + i * c;
        std::fill(partial, partial + c, 0.0f);
        ops.rmsnorm_backward(raw<T>(args.x) + row * c, raw<T>(args.weight),
                             args.rstd.ptr<float>() + row, raw<T>(args.dy) + row * c,
                             raw<T>(args.dx) + row * c, partial, std::min(block, num_rows - row), c,
                             accumulate);
      }
    });
  });
  parallel_for(impl_->config.num_threads, c, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = 0; i < num_blocks; ++i)
      impl_->rows.f32.accumulate(args.dweight.ptr<float>() + begin, partials + i * c + begin,
                                 end - begin);
  });
}

void CpuKernels::rope_apply(const RopeApplyArgs& args, Stream&) {
  const std::int64_t heads = args.x.shape[1];
  const std::int64_t half = args.cos.shape[1];
  by_dtype(args.x.dtype, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    const std::int64_t width = heads * 2 * half;
    impl_->over_rows(args.x.shape[0], width, [&](std::int64_t begin, std::int64_t end) {
      ops.rope_apply(raw<T>(args.x) + begin * width, args.cos.ptr<float>() + begin * half,
                     args.sin.ptr<float>() + begin * half, end - begin, heads, half, args.inverse);
    });
  });
}

void CpuKernels::swiglu_forward(const SwiGluForwardArgs& args, Stream&) {
  by_dtype(args.out.dtype, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    impl_->over_elements(args.out.numel(), [&](std::int64_t begin, std::int64_t end) {
      ops.swiglu_forward(raw<T>(args.gate) + begin, raw<T>(args.up) + begin,
                         raw<T>(args.out) + begin, end - begin);
    });
  });
}

void CpuKernels::swiglu_backward(const SwiGluBackwardArgs& args, Stream&) {
  by_dtype(args.dout.dtype, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    impl_->over_elements(args.dout.numel(), [&](std::int64_t begin, std::int64_t end) {
      ops.swiglu_backward(raw<T>(args.gate) + begin, raw<T>(args.up) + begin,
                          raw<T>(args.dout) + begin, raw<T>(args.dgate) + begin,
                          raw<T>(args.dup) + begin, end - begin);
    });
  });
}

void CpuKernels::attention_forward(const AttentionForwardArgs& args, Stream&) {
  impl_->attention.forward(args);
}
void CpuKernels::attention_delta(const AttentionDeltaArgs& args, Stream&) {
  impl_->attention.delta(args);
}
void CpuKernels::attention_backward(const AttentionBackwardArgs& args, Stream&) {
  impl_->attention.backward(args);
}

}  // namespace farspan::cpu
