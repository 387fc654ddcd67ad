// What surrounds cuDNN's calls: where pieces begin, what is merged, added and left alone. cuDNN
// itself and the three device functions in between are stood in for by plain loops over host
// memory, so this needs neither a GPU nor cuDNN.
#include "kernels/cuda/attention/cudnn_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/rng.h"
#include "kernels/cuda/attention/cudnn_merge.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/elementwise.h"
#include "support/reference_attention.h"

namespace farspan::cuda {

cudaStream_t native(const Stream&) { return nullptr; }
bool is_capturing(const Stream&) { return false; }

namespace {
double read(const Tensor& t, std::int64_t i) {
  return t.dtype == DType::kF32 ? static_cast<double>(t.ptr<float>()[i])
                                : static_cast<double>(static_cast<float>(t.ptr<BFloat16>()[i]));
}
}  // namespace

void copy_2d(const Copy2dArgs& a, cudaStream_t) {
  for (std::int64_t r = 0; r < a.rows; ++r)
    for (std::int64_t c = 0; c < a.cols; ++c) {
      ASSERT_LT(a.dst_begin + r * a.dst_stride + c, a.dst.numel());
      ASSERT_LT(a.src_begin + r * a.src_stride + c, a.src.numel());
      float& to = a.dst.ptr<float>()[a.dst_begin + r * a.dst_stride + c];
      const double x = read(a.src, a.src_begin + r * a.src_stride + c);
      to = static_cast<float>(a.mode == GradMode::kAccumulate ? static_cast<double>(to) + x : x);
    }
}

void merge_partial(const Tensor& out, const Tensor& lse, const PartialRows& rows,
                   const AttentionForwardArgs& state, cudaStream_t) {
  const std::int64_t heads = state.q.shape[1], dim = state.q.shape[2], tokens = state.q.shape[0];
  for (std::int64_t b = 0; b < rows.batch; ++b)
    for (std::int64_t i = 0; i < rows.q_len; ++i)
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t t = rows.q_begin + b * rows.q_step + i;
        float& m = state.row_max.ptr<float>()[h * tokens + t];
        float& l = state.row_sum.ptr<float>()[h * tokens + t];
        const double fresh = read(lse, (b * heads + h) * rows.q_len + i) / std::log(2.0);
        const double top = std::max(static_cast<double>(m), fresh);
        const double keep = std::exp2(static_cast<double>(m) - top), take = std::exp2(fresh - top);
        for (std::int64_t d = 0; d < dim; ++d) {
          float& acc = state.acc.ptr<float>()[(t * heads + h) * dim + d];
          acc = static_cast<float>(static_cast<double>(acc) * keep +
                                   take * read(out, ((b * rows.q_len + i) * heads + h) * dim + d));
        }
        m = static_cast<float>(top);
        l = static_cast<float>(static_cast<double>(l) * keep + take);
      }
}

namespace {

using testing::AttentionProblem;
using testing::AttentionResult;
using Slices = std::vector<AttentionSlice>;

// cuDNN's formulas over the strides that it is given.
class PlainEngine final : public SdpaEngine {
 public:
  explicit PlainEngine(bool plans = true) : plans_(plans) {}
  std::size_t workspace(const SdpaShape& s) override {
    if (!plans_) throw Error(ExitCode::kUsage, {.what = "cuDNN cannot plan attention"});
    return s.backward ? 1000 : 100;
  }
  void run(const SdpaShape& s, const SdpaTensors& t, void* space, cudaStream_t) override {
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(space) % 64, 0u);
    std::fill_n(static_cast<std::byte*>(space), workspace(s), std::byte{0xff});
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (std::int64_t h = 0; h < s.q_heads; ++h) head(s, t, b, h);
    if (s.backward) finish(s, t);
  }

 private:
  static double at(const void* x, std::int64_t i) {
    return static_cast<double>(static_cast<float>(static_cast<const BFloat16*>(x)[i]));
  }
  static bool visible(const SdpaShape& s, std::int64_t i, std::int64_t j) {
    if (s.mask == CudnnMask::kFull) return true;
    const std::int64_t delta = i - j + (s.mask == CudnnMask::kCausalToEnd ? s.k_len - s.q_len : 0);
    return delta >= 0 && (s.window == 0 || delta < s.window);
  }
  void head(const SdpaShape& s, const SdpaTensors& t, std::int64_t b, std::int64_t h) {
    const std::int64_t kv = h / (s.q_heads / s.kv_heads), d = s.head_dim;
    float* const stats = static_cast<float*>(t.stats) + (b * s.q_heads + h) * s.q_len;
    for (std::int64_t i = 0; i < s.q_len; ++i) {
      const std::int64_t q = b * s.q_sequence + i * s.q_row + h * d;
      const auto key = [&](std::int64_t j) { return b * s.k_sequence + j * s.k_row + kv * d; };
      std::vector<double> score(static_cast<std::size_t>(s.k_len), -INFINITY);
      double sum = 0;
      for (std::int64_t j = 0; j < s.k_len; ++j) {
        if (!visible(s, i, j)) continue;
        double dot = 0;
        for (std::int64_t c = 0; c < d; ++c) dot += at(t.q, q + c) * at(t.k, key(j) + c);
        score[static_cast<std::size_t>(j)] = dot * static_cast<double>(s.scale);
        sum += std::exp(score[static_cast<std::size_t>(j)]);
      }
      if (!s.backward) {
        stats[i] = static_cast<float>(std::log(sum));
        const std::int64_t out = b * s.out_sequence + i * s.out_row + h * d;
        for (std::int64_t c = 0; c < d; ++c) {
          double o = 0;
          for (std::int64_t j = 0; j < s.k_len; ++j)
            o += std::exp(score[static_cast<std::size_t>(j)]) / sum * at(t.v, key(j) + c);
          static_cast<BFloat16*>(t.out)[out + c] = BFloat16(static_cast<float>(o));
        }
        continue;
      }
      double delta = 0;
      for (std::int64_t c = 0; c < d; ++c) delta += at(t.out, q + c) * at(t.dout, q + c);
      dq_.resize(static_cast<std::size_t>(s.batch * s.q_len * s.q_heads * d));
      dk_.resize(static_cast<std::size_t>(s.batch * s.k_len * s.kv_heads * d));
      dv_.resize(dk_.size());
      for (std::int64_t j = 0; j < s.k_len; ++j) {
        const double p =
            std::exp(score[static_cast<std::size_t>(j)] - static_cast<double>(stats[i]));
        double dp = 0;
        for (std::int64_t c = 0; c < d; ++c) dp += at(t.dout, q + c) * at(t.v, key(j) + c);
        const double ds = p * (dp - delta) * static_cast<double>(s.scale);
        const auto to_q = static_cast<std::size_t>(((b * s.q_len + i) * s.q_heads + h) * d);
        const auto to_k = static_cast<std::size_t>(((b * s.k_len + j) * s.kv_heads + kv) * d);
        for (std::int64_t c = 0; c < d; ++c) {
          dq_[to_q + static_cast<std::size_t>(c)] += ds * at(t.k, key(j) + c);
          dk_[to_k + static_cast<std::size_t>(c)] += ds * at(t.q, q + c);
          dv_[to_k + static_cast<std::size_t>(c)] += p * at(t.dout, q + c);
        }
      }
    }
  }
  void finish(const SdpaShape&, const SdpaTensors& t) {
    for (const auto& [sums, to] : {std::pair{&dq_, t.dq}, {&dk_, t.dk}, {&dv_, t.dv}}) {
      for (std::size_t i = 0; i < sums->size(); ++i)
        static_cast<BFloat16*>(to)[i] = BFloat16(static_cast<float>((*sums)[i]));
      sums->clear();
    }
  }
  bool plans_;
  std::vector<double> dq_, dk_, dv_;
};

// Our kernels' part: rows' states begin and end.
void own_forward(const AttentionForwardArgs& a) {
  ASSERT_TRUE(a.slices.empty());
  const std::int64_t tokens = a.q.shape[0], heads = a.q.shape[1], dim = a.q.shape[2];
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t h = 0; h < heads; ++h) {
      float& m = a.row_max.ptr<float>()[h * tokens + t];
      float& l = a.row_sum.ptr<float>()[h * tokens + t];
      float* const acc = a.acc.ptr<float>() + (t * heads + h) * dim;
      if (a.first) {
        m = -INFINITY, l = 0;
        std::fill_n(acc, dim, 0.0f);
      }
      if (!a.last) continue;
      a.lse.ptr<float>()[h * tokens + t] = m * std::log(2.0f) + std::log(l);
      for (std::int64_t d = 0; d < dim; ++d)
        a.out.ptr<BFloat16>()[(t * heads + h) * dim + d] = BFloat16(l > 0 ? acc[d] / l : 0.0f);
    }
}

class CudnnAttentionTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kHeads = 4, kKvHeads = 2, kDim = 16;

  Tensor put(DType dtype, Shape shape, const std::vector<double>& values) {
    const std::size_t size = size_of(dtype);
    buffers_.push_back(device_->allocate(static_cast<std::size_t>(shape.numel()) * size));
    const Tensor t{buffers_.back().data(), dtype, shape, device_->id()};
    for (std::int64_t i = 0; i < shape.numel(); ++i) {
      const auto x =
          static_cast<float>(values.empty() ? 777.0 : values[static_cast<std::size_t>(i)]);
      if (dtype == DType::kF32)
        t.ptr<float>()[i] = x;
      else
        t.ptr<BFloat16>()[i] = BFloat16(x);
    }
    return t;
  }
  std::vector<double> get(const Tensor& t) {
    std::vector<double> values;
    for (std::int64_t i = 0; i < t.numel(); ++i) values.push_back(read(t, i));
    return values;
  }
  std::vector<double> draw(std::int64_t n, std::uint64_t seed) {
    const CounterRng rng(seed, stream_id("cudnn"));
    std::vector<double> x(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = static_cast<double>(static_cast<float>(BFloat16(static_cast<float>(rng.normal(i)))));
    return x;
  }
  static void expect_near(const std::vector<double>& got, const std::vector<double>& expected,
                          double relative, const char* name) {
    double error = 0, size = 0;
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::isinf(got[i]), std::isinf(expected[i])) << name << " " << i;
      if (std::isinf(expected[i])) continue;
      error += (got[i] - expected[i]) * (got[i] - expected[i]);
      size += expected[i] * expected[i];
    }
    EXPECT_LE(std::sqrt(error), relative * std::sqrt(size)) << name;
  }

  // Keys in hops of the given lengths; each hop's slices lie on its block.
  struct Hop {
    std::int64_t keys;
    Slices slices;
  };
  void check(std::int64_t num_q, const std::vector<Hop>& hops, bool in_one_call) {
    std::int64_t num_k = 0;
    AttentionProblem p{.num_q = num_q,
                       .num_q_heads = kHeads,
                       .num_kv_heads = kKvHeads,
                       .head_dim = kDim,
                       .scale = 0.25};
    for (const Hop& hop : hops) {
      for (AttentionSlice s : hop.slices) {
        s.k_begin += num_k;
        p.slices.push_back(s);
      }
      num_k += hop.keys;
    }
    p.num_k = num_k;
    p.q = draw(num_q * kHeads * kDim, 1), p.dout = draw(num_q * kHeads * kDim, 2);
    p.k = draw(num_k * kKvHeads * kDim, 3), p.v = draw(num_k * kKvHeads * kDim, 4);
    const AttentionResult expected = reference_attention(p);

    CudnnFacts facts{.version = 91900, .capability = 90, .workspace = 1};  // a head at a time
    CudnnAttention cudnn(*device_, AttentionKernel::kAuto, facts,
                         [] { return std::make_unique<PlainEngine>(); });
    const Shape q_shape{num_q, kHeads, kDim}, k_shape{num_k, kKvHeads, kDim}, stats{kHeads, num_q};
    const Tensor q = put(DType::kBF16, q_shape, p.q), dout = put(DType::kBF16, q_shape, p.dout);
    const Tensor k = put(DType::kBF16, k_shape, p.k), v = put(DType::kBF16, k_shape, p.v);
    const Tensor out = put(DType::kBF16, q_shape, {}), lse = put(DType::kF32, stats, {});
    const Tensor acc = put(DType::kF32, q_shape, {});
    const Tensor row_max = put(DType::kF32, stats, {}), row_sum = put(DType::kF32, stats, {});
    std::int64_t begin = 0;
    for (std::size_t h = 0; h < hops.size(); begin += hops[h].keys, ++h) {
      const AttentionForwardArgs args{.q = q,
                                      .k = k.rows(begin, hops[h].keys),
                                      .v = v.rows(begin, hops[h].keys),
                                      .acc = acc,
                                      .row_max = row_max,
                                      .row_sum = row_sum,
                                      .slices = hops[h].slices,
                                      .scale = 0.25f,
                                      .first = h == 0,
                                      .last = h + 1 == hops.size(),
                                      .out = out,
                                      .lse = lse};
      if (!cudnn.forward(args, *stream_, own_forward)) own_forward(args);
    }
    expect_near(get(out), expected.out, 6e-3, "out");
    expect_near(get(lse), expected.lse, 1e-5, "lse");
    const auto forward_notes = cudnn.take_notes();
    ASSERT_EQ(forward_notes.size(), 1u);
    EXPECT_THAT(forward_notes[0],
                ::testing::HasSubstr(in_one_call ? "the whole result in" : "merged in f32"));

    // Sums that hold something already.
    const std::vector<double> old_q = draw(q_shape.numel(), 5), old_k = draw(k_shape.numel(), 6);
    const Tensor dq = put(DType::kF32, q_shape, old_q), dk = put(DType::kF32, k_shape, old_k);
    const Tensor dv = put(DType::kF32, k_shape, old_k);
    begin = 0;
    for (std::size_t h = 0; h < hops.size(); begin += hops[h].keys, ++h) {
      const AttentionBackwardArgs args{.q = q,
                                       .k = k.rows(begin, hops[h].keys),
                                       .v = v.rows(begin, hops[h].keys),
                                       .dout = dout,
                                       .lse = lse,
                                       .delta = row_max,
                                       .dq = dq,
                                       .dk = dk.rows(begin, hops[h].keys),
                                       .dv = dv.rows(begin, hops[h].keys),
                                       .slices = hops[h].slices,
                                       .scale = 0.25f,
                                       .deterministic = false,
                                       .out = out};
      if (!hops[h].slices.empty()) {
        ASSERT_TRUE(cudnn.backward(args, *stream_));
      }
    }
    const auto with = [](std::vector<double> sum, const std::vector<double>& old) {
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += old[i];
      return sum;
    };
    expect_near(get(dq), with(expected.dq, old_q), 6e-3, "dq");
    expect_near(get(dk), with(expected.dk, old_k), 6e-3, "dk");
    expect_near(get(dv), with(expected.dv, old_k), 6e-3, "dv");
  }

  std::unique_ptr<Device> device_ = make_cpu_device();
  std::unique_ptr<Stream> stream_ = device_->make_stream();

 private:
  std::vector<Buffer> buffers_;
};

AttentionSlice causal(std::int64_t q, std::int64_t k, std::int64_t length,
                      std::int64_t diagonal = 0) {
  return {.q_begin = q,
          .q_len = length,
          .k_begin = k,
          .k_len = length + diagonal,
          .kind = MaskKind::kCausal,
          .diagonal = diagonal};
}

TEST_F(CudnnAttentionTest, OneSequence) { check(128, {{128, {causal(0, 0, 128)}}}, true); }

TEST_F(CudnnAttentionTest, ABatchOfSequences) {
  check(384, {{384, {causal(0, 0, 128), causal(128, 128, 128), causal(256, 256, 128)}}}, true);
}

TEST_F(CudnnAttentionTest, SequencesApartAndRowsThatSeeNothing) {
  check(400, {{420, {causal(8, 16, 128), causal(208, 272, 128)}}}, true);
}

TEST_F(CudnnAttentionTest, TwoLengths) {
  check(384, {{384, {causal(0, 0, 128), causal(128, 128, 256)}}}, true);
}

TEST_F(CudnnAttentionTest, WindowsAndKeysBeforeTheRows) {
  AttentionSlice band = causal(0, 0, 256);
  band.kind = MaskKind::kBand, band.window = 50;
  check(256, {{256, {band}}}, true);
  check(128, {{256, {causal(0, 0, 128, 128)}}}, true);
  band = causal(0, 0, 128, 128);
  band.kind = MaskKind::kBand, band.window = 200;
  check(128, {{256, {band}}}, true);
}

// Rank 1 of 4 of a causal zigzag ring, whose chunks are the 2nd and 7th of 8: its own keys, those
// of rank 0 (all rows see the first chunk, the later rows the last's none), then of ranks 3 and 2.
TEST_F(CudnnAttentionTest, ZigzagRing) {
  const std::int64_t c = 128;
  const AttentionSlice early{.q_len = 2 * c, .k_len = c};
  const AttentionSlice late{.q_begin = c, .q_len = c, .k_len = 2 * c};
  const Slices own{causal(0, 0, c), {.q_begin = c, .q_len = c, .k_len = c}, causal(c, c, c)};
  check(2 * c, {{2 * c, own}, {2 * c, {early}}, {2 * c, {late}}, {2 * c, {late}}}, false);
  check(2 * c, {{2 * c, own}, {2 * c, {early}}, {64, {}}}, false);
}

TEST_F(CudnnAttentionTest, RowsInTwoPieces) {
  check(128, {{384, {causal(0, 0, 128), {.q_len = 128, .k_begin = 256, .k_len = 128}}}}, false);
}

TEST_F(CudnnAttentionTest, WhoTakesACall) {
  const Slices slices{causal(0, 0, 128)};
  const Shape q{128, kHeads, kDim}, k{128, kKvHeads, kDim};
  AttentionForwardArgs args{.q = put(DType::kBF16, q, {}),
                            .k = put(DType::kBF16, k, {}),
                            .v = put(DType::kBF16, k, {}),
                            .acc = put(DType::kF32, q, {}),
                            .row_max = put(DType::kF32, {kHeads, 128}, {}),
                            .row_sum = put(DType::kF32, {kHeads, 128}, {}),
                            .slices = slices,
                            .first = true,
                            .last = true,
                            .out = put(DType::kBF16, q, {}),
                            .lse = put(DType::kF32, {kHeads, 128}, {})};
  const auto engine = [] { return std::make_unique<PlainEngine>(); };
  const CudnnFacts hopper{.version = 91900, .capability = 90};
  CudnnAttention own(*device_, AttentionKernel::kOwn, hopper, engine);
  EXPECT_FALSE(own.forward(args, *stream_, own_forward));
  EXPECT_TRUE(own.take_notes().empty());
  EXPECT_EQ(own.description(), "own kernels");

  CudnnFacts ampere = hopper;
  ampere.capability = 80;
  CudnnAttention on_ampere(*device_, AttentionKernel::kAuto, ampere, engine);
  EXPECT_FALSE(on_ampere.forward(args, *stream_, own_forward));
  EXPECT_FALSE(on_ampere.forward(args, *stream_, own_forward));
  EXPECT_THAT(on_ampere.take_notes(),
              ::testing::ElementsAre(::testing::HasSubstr("before Hopper")));  // said once
  CudnnAttention asked(*device_, AttentionKernel::kCudnn, ampere, engine);
  EXPECT_TRUE(asked.forward(args, *stream_, own_forward));

  // What cuDNN itself refuses goes to our kernels, and is an error where cuDNN was asked for.
  const auto without_plans = [] { return std::make_unique<PlainEngine>(false); };
  CudnnAttention falling_back(*device_, AttentionKernel::kAuto, hopper, without_plans);
  EXPECT_FALSE(falling_back.forward(args, *stream_, own_forward));
  EXPECT_FALSE(falling_back.forward(args, *stream_, own_forward));
  EXPECT_THAT(falling_back.take_notes(),
              ::testing::ElementsAre(::testing::HasSubstr("cannot plan")));
  CudnnAttention insisting(*device_, AttentionKernel::kCudnn, hopper, without_plans);
  EXPECT_THROW(insisting.forward(args, *stream_, own_forward), Error);

  args.bias.slopes = put(DType::kF32, {kHeads}, {});
  CudnnAttention choosing(*device_, AttentionKernel::kAuto, hopper, engine);
  EXPECT_FALSE(choosing.forward(args, *stream_, own_forward));
  EXPECT_THAT(choosing.take_notes(), ::testing::ElementsAre(::testing::HasSubstr("ALiBi")));
  EXPECT_EQ(choosing.description(), "cuDNN 9.19.0 where it can");
  try {
    asked.forward(args, *stream_, own_forward);
    FAIL() << "ALiBi was given to cuDNN";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_THAT(e.text().what, ::testing::HasSubstr("ALiBi"));
    EXPECT_THAT(e.text().fix, ::testing::HasSubstr("auto"));
  }
  // Where there is nothing to compute, nobody complains.
  args.bias = {};
  args.slices = {};
  EXPECT_FALSE(asked.forward(args, *stream_, own_forward));
}

}  // namespace
}  // namespace farspan::cuda
