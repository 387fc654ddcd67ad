// Operations that read integers per token: rotary tables, embedding, cross-entropy.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/state.h"

namespace farspan::cpu {
namespace {

// Integers that point outside their table would write outside memory: found before the work.
void check_below(const Tensor& values, std::int64_t limit, const char* what) {
  const std::int32_t* p = values.ptr<std::int32_t>();
  std::int64_t bad = -1;
  for (std::int64_t i = 0; i < values.numel(); ++i)
    if (p[i] >= limit) bad = i;
  FARSPAN_CHECK(bad < 0, "{} {} at {} is not below {}", what, p[bad], bad, limit);
}

void check_not_negative(const Tensor& values, const char* what) {
  const std::int32_t* p = values.ptr<std::int32_t>();
  std::int64_t bad = -1;
  for (std::int64_t i = 0; i < values.numel(); ++i)
    if (p[i] < 0) bad = i;
  FARSPAN_CHECK(bad < 0, "{} {} at {} is negative", what, p[bad], bad);
}

void sincos_row(double position, const double* inv_freq, std::int64_t half, double* cos,
                double* sin) {
  for (std::int64_t j = 0; j < half; ++j) {
    cos[j] = std::cos(position * inv_freq[j]);
    sin[j] = std::sin(position * inv_freq[j]);
  }
}

}  // namespace

const std::vector<double>& CpuKernels::Impl::low_angles_of(const double* inv_freq,
                                                           std::int64_t half, std::int64_t count) {
  std::vector<double>& known = low_angles_inv_freq;
  if (std::equal(known.begin(), known.end(), inv_freq, inv_freq + half)) return low_angles;
  low_angles.resize(static_cast<std::size_t>(2 * count * half));
  double* low = low_angles.data();
  parallel_for(config.num_threads, count, 32, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p)
      sincos_row(static_cast<double>(p), inv_freq, half, low + 2 * p * half,
                 low + (2 * p + 1) * half);
  });
  known.assign(inv_freq, inv_freq + half);
  return low_angles;
}

// position = high + low, low < kLow: cos and sin of the sum from those of the parts, in double. The
// same formula for every token, so a token's angles do not depend on its neighbours or on threads;
// and 128k consecutive positions take 768 rows of sines instead of 131,072. Either way the angle
// carries the error of one double product (6e-11 at position 2^20), far below half an f32 ulp.
// Several tables: one after the other, each over its own tokens.
void CpuKernels::rope_table(const RopeTableArgs& args, Stream&) {
  constexpr std::int32_t kLow = 256;
  const std::int64_t tokens = args.positions.numel();
  const std::int64_t half = args.cos.shape[1];
  if (tokens == 0 || half == 0) return;
  check_not_negative(args.positions, "position");
  const std::int64_t tables = args.inv_freq.numel() / half;
  const std::int32_t* ids = nullptr;
  if (args.table_ids.defined()) {
    check_not_negative(args.table_ids, "table id");
    check_below(args.table_ids, tables, "table id");
    ids = args.table_ids.ptr<std::int32_t>();
  }
  const std::int32_t* positions = args.positions.ptr<std::int32_t>();
  const int threads = impl_->config.num_threads;
  double* high_rows = impl_->doubles(threads * 2 * half);
  for (std::int64_t table = 0; table < tables; ++table) {
    const double* inv_freq = args.inv_freq.ptr<double>() + table * half;
    const std::vector<double>& low = impl_->low_angles_of(inv_freq, half, kLow);
    impl_->over_rows(tokens, 16 * half, [&](std::int64_t begin, std::int64_t end) {
      double* high = high_rows + 2 * omp_get_thread_num() * half;
      std::int32_t current = -1;
      for (std::int64_t t = begin; t < end; ++t) {
        if (ids != nullptr && ids[t] != table) continue;
        if (const std::int32_t base = positions[t] / kLow * kLow; base != current) {
          sincos_row(base, inv_freq, half, high, high + half);
          current = base;
        }
        const double* from = low.data() + 2 * (positions[t] % kLow) * half;
        impl_->rows.add_angles(high, high + half, from, from + half, args.attention_scale,
                               args.cos.ptr<float>() + t * half, args.sin.ptr<float>() + t * half,
                               half);
      }
    });
  }
}

void CpuKernels::embedding_forward(const EmbeddingForwardArgs& args, Stream&) {
  check_not_negative(args.ids, "token id");
  check_below(args.ids, args.table.shape[0], "token id");
  const std::int32_t* ids = args.ids.ptr<std::int32_t>();
  const std::int64_t c = args.table.shape[1];
  const std::size_t row_bytes = static_cast<std::size_t>(c) * size_of(args.table.dtype);
  impl_->over_rows(args.ids.numel(), c, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t)
      std::memcpy(args.out.data + static_cast<std::size_t>(t) * row_bytes,
                  args.table.data + static_cast<std::size_t>(ids[t]) * row_bytes, row_bytes);
  });
}

void CpuKernels::embedding_backward(const EmbeddingBackwardArgs& args, Stream&) {
  check_not_negative(args.ids, "token id");
  check_below(args.ids, args.dtable.shape[0], "token id");
  const std::int32_t* ids = args.ids.ptr<std::int32_t>();
  const std::int64_t tokens = args.ids.numel();
  const std::int64_t c = args.dtable.shape[1];
  by_dtype(args.dout.dtype, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    impl_->over_parts(tokens, c, [&](const Impl::Part& part) {
      for (std::int64_t t = 0; t < tokens; ++t)
        if (ids[t] % part.num_ids == part.id)
          ops.accumulate(args.dtable.ptr<float>() + ids[t] * c + part.begin,
                         raw<T>(args.dout) + t * c + part.begin, part.end - part.begin);
    });
  });
}

void CpuKernels::cross_entropy(const CrossEntropyArgs& args, Stream&) {
  const std::int64_t num_rows = args.logits.shape[0];
  const std::int64_t v = args.logits.shape[1];
  check_below(args.labels, v, "label");
  const std::int32_t* labels = args.labels.ptr<std::int32_t>();
  double* nll = impl_->doubles(num_rows);
  const DType out = args.dlogits.defined() ? args.dlogits.dtype : DType::kF32;
  by_dtype(out, impl_->rows, [&]<typename T>(T, const TypedRowOps<T>& ops) {
    impl_->over_rows(num_rows, v, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        T* dlogits = args.dlogits.defined() ? raw<T>(args.dlogits) + i * v : nullptr;
        if (labels[i] >= 0)
          nll[i] = ops.cross_entropy(args.logits.ptr<float>() + i * v, dlogits, v, labels[i]);
        else if (dlogits != nullptr)
          std::fill(dlogits, dlogits + v, T{0});
      }
    });
  });
  double loss = 0;  // in the order of rows, whatever the threads
  double valid = 0;
  for (std::int64_t i = 0; i < num_rows; ++i) {
    const bool scored = labels[i] >= 0;
    if (scored) {
      loss += nll[i];
      valid += 1;
    }
    if (args.nll.defined()) args.nll.ptr<float>()[i] = scored ? static_cast<float>(nll[i]) : NAN;
  }
  *args.loss_sum.ptr<double>() += loss;
  *args.valid_count.ptr<double>() += valid;
}

}  // namespace farspan::cpu
