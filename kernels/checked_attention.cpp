// The rules of args.h for attention.
#include "kernels/checked_kernels.h"
#include "kernels/visible_pairs.h"

namespace farspan {
namespace {

// Slopes (Hq) and decay (D / 2). xPos shrinks what is far by products that grow what lies ahead:
// those would overflow, so every visible key must lie at its query or before.
void check_bias(const Contract& rule, const PositionBias& bias, const Tensor& q,
                std::span<const AttentionSlice> slices) {
  if (!bias.any()) return;
  rule.require(bias.position_stride >= 1, "the position stride is below 1");
  if (bias.slopes.defined()) rule.shaped(bias.slopes, "slopes", DType::kF32, {q.shape[1]});
  if (!bias.decay.defined()) return;
  rule.require(q.shape[2] % 2 == 0, "xPos needs an even head dimension");
  rule.shaped(bias.decay, "decay", DType::kF32, {q.shape[2] / 2});
  for (const AttentionSlice& s : slices) {
    if (visible_pairs(s) == 0) continue;
    const std::int64_t shortest = shortest_distance(s, bias.position_stride);
    if (shortest < 0)
      rule.fail(
          fmt::format("slice q [{}, +{}) k [{}, +{}) shows keys {} positions after a query, where "
                      "the decay of xPos would grow without bound; use a causal mask",
                      s.q_begin, s.q_len, s.k_begin, s.k_len, -shortest));
  }
}

void check_slices(const Contract& rule, std::span<const AttentionSlice> slices, const Tensor& q,
                  const Tensor& k, const PositionBias& bias) {
  const std::int64_t tq = q.shape[0], tk = k.shape[0], heads = k.shape[1];
  for (const AttentionSlice& s : slices) {
    const bool inside = s.q_begin >= 0 && s.q_len >= 0 && s.q_begin + s.q_len <= tq &&
                        s.k_begin >= 0 && s.k_len >= 0 && s.k_begin + s.k_len <= tk;
    const bool windowed = s.kind == MaskKind::kBand || s.kind == MaskKind::kInverseCausal;
    if (!inside || (windowed && s.window <= 0))
      rule.fail(
          fmt::format("slice q [{}, +{}) k [{}, +{}) window {} does not fit {} queries and {} keys",
                      s.q_begin, s.q_len, s.k_begin, s.k_len, s.window, tq, tk));
    const HeadRange& range = s.kv_heads;
    if (range.begin < 0 || range.begin >= heads || range.end <= range.begin)
      rule.fail(fmt::format("slice q [{}, +{}) k [{}, +{}) is for KV heads [{}, {}) of {}",
                            s.q_begin, s.q_len, s.k_begin, s.k_len, range.begin, range.end, heads));
  }
  check_bias(rule, bias, q, slices);
}

// q (Tq, Hq, D), k and v (Tk, Hkv, D) of one compute dtype, which is returned.
DType check_qkv(const Contract& rule, const Tensor& q, const Tensor& k, const Tensor& v) {
  rule.dims(q, "q", 3);
  rule.dims(k, "k", 3);
  const DType dtype = rule.compute(q, "q");
  const std::int64_t kv_heads = k.shape[1];
  rule.present(q, "q");
  rule.shaped(k, "k", dtype, {k.shape[0], kv_heads, q.shape[2]});
  rule.shaped(v, "v", dtype, k.shape);
  rule.require(kv_heads > 0 && q.shape[1] % kv_heads == 0,
               "the KV heads do not divide the query heads");
  return dtype;
}

}  // namespace

void Checked::attention_forward(const AttentionForwardArgs& args, Stream& stream) {
  const Contract rule = contract("attention_forward");
  const DType dtype = check_qkv(rule, args.q, args.k, args.v);
  const Shape rows{args.q.shape[1], args.q.shape[0]};
  rule.shaped(args.acc, "acc", DType::kF32, args.q.shape);
  rule.shaped(args.row_max, "row_max", DType::kF32, rows);
  rule.shaped(args.row_sum, "row_sum", DType::kF32, rows);
  const std::initializer_list<NamedTensor> inputs{{args.q, "q"}, {args.k, "k"}, {args.v, "v"}};
  rule.apart(args.acc, "acc", inputs);
  rule.apart(args.acc, "acc", {{args.row_max, "row_max"}, {args.row_sum, "row_sum"}});
  rule.apart(args.row_max, "row_max", {{args.row_sum, "row_sum"}});
  if (args.last) {
    rule.shaped(args.out, "out", dtype, args.q.shape);
    rule.shaped(args.lse, "lse", DType::kF32, rows);
    rule.apart(args.out, "out", inputs);
    rule.apart(args.out, "out", {{args.acc, "acc"}, {args.lse, "lse"}});
    rule.apart(args.lse, "lse", inputs);
    rule.apart(args.lse, "lse", {{args.acc, "acc"}});
  }
  check_slices(rule, args.slices, args.q, args.k, args.bias);
  inner_->attention_forward(args, stream);
}

void Checked::attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  const Contract rule = contract("attention_delta");
  rule.dims(args.out, "out", 3);
  rule.present(args.out, "out");
  rule.shaped(args.dout, "dout", rule.compute(args.out, "out"), args.out.shape);
  rule.shaped(args.delta, "delta", DType::kF32, {args.out.shape[1], args.out.shape[0]});
  rule.apart(args.delta, "delta", {{args.out, "out"}, {args.dout, "dout"}});
  inner_->attention_delta(args, stream);
}

void Checked::attention_backward(const AttentionBackwardArgs& args, Stream& stream) {
  const Contract rule = contract("attention_backward");
  const DType dtype = check_qkv(rule, args.q, args.k, args.v);
  const Shape rows{args.q.shape[1], args.q.shape[0]};
  rule.shaped(args.dout, "dout", dtype, args.q.shape);
  rule.shaped(args.lse, "lse", DType::kF32, rows);
  rule.shaped(args.delta, "delta", DType::kF32, rows);
  if (args.out.defined()) rule.shaped(args.out, "out", dtype, args.q.shape);
  rule.shaped(args.dq, "dq", DType::kF32, args.q.shape);
  rule.shaped(args.dk, "dk", DType::kF32, args.k.shape);
  rule.shaped(args.dv, "dv", DType::kF32, args.k.shape);
  const std::initializer_list<NamedTensor> inputs{
      {args.q, "q"},     {args.k, "k"},         {args.v, "v"},    {args.dout, "dout"},
      {args.lse, "lse"}, {args.delta, "delta"}, {args.out, "out"}};
  rule.apart(args.dq, "dq", inputs);
  rule.apart(args.dk, "dk", inputs);
  rule.apart(args.dv, "dv", inputs);
  rule.apart(args.dq, "dq", {{args.dk, "dk"}, {args.dv, "dv"}});
  rule.apart(args.dk, "dk", {{args.dv, "dv"}});
  check_slices(rule, args.slices, args.q, args.k, args.bias);
  inner_->attention_backward(args, stream);
}

}  // namespace farspan
