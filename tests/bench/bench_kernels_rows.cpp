#include <utility>

#include "bench_kernels.h"

namespace farspan::bench {
namespace {

Row matmul_row(std::string name, std::int64_t m, std::int64_t n, std::int64_t k, bool trans_a,
               bool trans_b, bool to_gradient) {
  return {fmt::format("matmul/{}/{}x{}x{}", name, m, n, k), [=](Tensors& arena, DType dtype) {
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

std::vector<Row> matmul_rows(const Sizes& sizes) {
  std::vector<Row> rows;
  for (const auto& [c, f] :
       {std::pair{sizes.hidden, sizes.ffn}, std::pair<std::int64_t, std::int64_t>{128, 352}}) {
    rows.push_back(matmul_row("y=x@W^T", sizes.tokens, f, c, false, true, false));
    rows.push_back(matmul_row("dx=dy@W", sizes.tokens, c, f, false, false, false));
    rows.push_back(matmul_row("dW+=dy^T@x", f, c, sizes.tokens, true, false, true));
  }
  return rows;
}

// The output layer with its loss and gradients, one chunk of tokens: three products and a softmax.
Row loss_row(const Sizes& sizes) {
  const std::int64_t n = sizes.loss_tokens, c = sizes.hidden, v = sizes.vocab;
  return {fmt::format("linear_cross_entropy/{}x{}x{}", n, c, v), [=](Tensors& a, DType t) {
            const Tensor x = a.take(t, {n, c}, "x"), weight = a.take(t, {v, c}, "w");
            const CrossEntropyArgs loss{.logits = a.take(DType::kF32, {n, v}, "logits"),
                                        .labels = a.take_integers(DType::kI32, {n}, "labels", v),
                                        .dlogits = a.take(t, {n, v}, "dlogits"),
                                        .loss_sum = a.take(DType::kF64, {1}, "loss"),
                                        .valid_count = a.take(DType::kF64, {1}, "valid")};
            const Tensor dx = a.take(t, {n, c}, "dx"), dw = a.take(DType::kF32, {v, c}, "dw");
            return [=](Kernels& k, Stream& s) {
              k.matmul({.a = x, .b = weight, .out = loss.logits, .trans_b = true}, s);
              k.cross_entropy(loss, s);
              k.matmul({.a = loss.dlogits, .b = weight, .out = dx}, s);
              k.matmul({.a = loss.dlogits,
                        .b = x,
                        .out = dw,
                        .trans_a = true,
                        .mode = GradMode::kAccumulate},
                       s);
            };
          }};
}

std::vector<Row> memory_rows(const Sizes& sizes) {
  const Shape hidden{sizes.tokens, sizes.hidden};
  const Shape ffn{sizes.tokens, sizes.ffn};
  std::vector<Row> rows;
  rows.push_back({"copy", [=](Tensors& a, DType t) {
                    const CopyArgs args{.src = a.take(DType::kF32, hidden, "x"),
                                        .dst = a.take(t, hidden, "y")};
                    return [args](Kernels& k, Stream& s) { k.copy(args, s); };
                  }});
  rows.push_back({"fill", [=](Tensors& a, DType t) {
                    const FillArgs args{.dst = a.take(t, hidden, "x"), .value = 0};
                    return [args](Kernels& k, Stream& s) { k.fill(args, s); };
                  }});
  rows.push_back({"add", [=](Tensors& a, DType t) {
                    const AddArgs args{.a = a.take(t, hidden, "a"),
                                       .b = a.take(t, hidden, "b"),
                                       .out = a.take(t, hidden, "out")};
                    return [args](Kernels& k, Stream& s) { k.add(args, s); };
                  }});
  rows.push_back({"rmsnorm_forward", [=](Tensors& a, DType t) {
                    const RmsNormForwardArgs args{.x = a.take(t, hidden, "x"),
                                                  .weight = a.take(t, {sizes.hidden}, "w"),
                                                  .y = a.take(t, hidden, "y"),
                                                  .rstd = a.take(DType::kF32, {sizes.tokens}, "r")};
                    return [args](Kernels& k, Stream& s) { k.rmsnorm_forward(args, s); };
                  }});
  rows.push_back({"rmsnorm_backward", [=](Tensors& a, DType t) {
                    const RmsNormBackwardArgs args{
                        .x = a.take(t, hidden, "x"),
                        .weight = a.take(t, {sizes.hidden}, "w"),
                        .rstd = a.take(DType::kF32, {sizes.tokens}, "r"),
                        .dy = a.take(t, hidden, "dy"),
                        .dx = a.take(t, hidden, "dx"),
                        .dweight = a.take(DType::kF32, {sizes.hidden}, "dw")};
                    return [args](Kernels& k, Stream& s) { k.rmsnorm_backward(args, s); };
                  }});
  rows.push_back({"rope_table", [=](Tensors& a, DType) {
                    const RopeTableArgs args{
                        .positions = a.take_integers(DType::kI32, {sizes.tokens}, "p", 1 << 17),
                        .inv_freq = a.take(DType::kF64, {32}, "f"),
                        .cos = a.take(DType::kF32, {sizes.tokens, 32}, "cos"),
                        .sin = a.take(DType::kF32, {sizes.tokens, 32}, "sin")};
                    return [args](Kernels& k, Stream& s) { k.rope_table(args, s); };
                  }});
  rows.push_back({"rope_apply", [=](Tensors& a, DType t) {
                    const RopeApplyArgs args{
                        .x = a.take(t, {sizes.tokens, sizes.hidden / 64, 64}, "x"),
                        .cos = a.take(DType::kF32, {sizes.tokens, 32}, "cos"),
                        .sin = a.take(DType::kF32, {sizes.tokens, 32}, "sin")};
                    return [args](Kernels& k, Stream& s) { k.rope_apply(args, s); };
                  }});
  rows.push_back({"swiglu_forward", [=](Tensors& a, DType t) {
                    const SwiGluForwardArgs args{.gate = a.take(t, ffn, "gate"),
                                                 .up = a.take(t, ffn, "up"),
                                                 .out = a.take(t, ffn, "out")};
                    return [args](Kernels& k, Stream& s) { k.swiglu_forward(args, s); };
                  }});
  rows.push_back({"swiglu_backward", [=](Tensors& a, DType t) {
                    const SwiGluBackwardArgs args{.gate = a.take(t, ffn, "gate"),
                                                  .up = a.take(t, ffn, "up"),
                                                  .dout = a.take(t, ffn, "dout"),
                                                  .dgate = a.take(t, ffn, "dgate"),
                                                  .dup = a.take(t, ffn, "dup")};
                    return [args](Kernels& k, Stream& s) { k.swiglu_backward(args, s); };
                  }});
  rows.push_back({"embedding_forward", [=](Tensors& a, DType t) {
                    const EmbeddingForwardArgs args{
                        .ids = a.take_integers(DType::kI32, {sizes.tokens}, "ids", sizes.vocab),
                        .table = a.take(t, {sizes.vocab, sizes.hidden}, "table"),
                        .out = a.take(t, hidden, "out")};
                    return [args](Kernels& k, Stream& s) { k.embedding_forward(args, s); };
                  }});
  rows.push_back({"embedding_backward", [=](Tensors& a, DType t) {
                    const EmbeddingBackwardArgs args{
                        .ids = a.take_integers(DType::kI32, {sizes.tokens}, "ids", sizes.vocab),
                        .dout = a.take(t, hidden, "dout"),
                        .dtable = a.take(DType::kF32, {sizes.vocab, sizes.hidden}, "dtable")};
                    return [args](Kernels& k, Stream& s) { k.embedding_backward(args, s); };
                  }});
  rows.push_back({"cross_entropy", [=](Tensors& a, DType t) {
                    const CrossEntropyArgs args{
                        .logits = a.take(DType::kF32, {sizes.tokens / 4, sizes.vocab}, "logits"),
                        .labels =
                            a.take_integers(DType::kI32, {sizes.tokens / 4}, "labels", sizes.vocab),
                        .dlogits = a.take(t, {sizes.tokens / 4, sizes.vocab}, "dlogits"),
                        .loss_sum = a.take(DType::kF64, {1}, "loss"),
                        .valid_count = a.take(DType::kF64, {1}, "valid")};
                    return [args](Kernels& k, Stream& s) { k.cross_entropy(args, s); };
                  }});
  rows.push_back({"squared_norm", [=](Tensors& a, DType) {
                    const SquaredNormArgs args{.x = a.take(DType::kF32, {sizes.parameters}, "x"),
                                               .sum = a.take(DType::kF64, {1}, "sum")};
                    return [args](Kernels& k, Stream& s) { k.squared_norm(args, s); };
                  }});
  rows.push_back({"adamw", [=](Tensors& a, DType t) {
                    const Shape n{sizes.parameters};
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
  rows.push_back({"copy_2d/heads", [=](Tensors& a, DType t) {
                    const Copy2dArgs args{.src = a.take(t, {sizes.tokens, sizes.hidden}, "x"),
                                          .dst = a.take(t, {sizes.tokens, sizes.hidden / 4}, "y"),
                                          .rows = sizes.tokens,
                                          .cols = sizes.hidden / 4,
                                          .src_begin = sizes.hidden / 4,
                                          .src_stride = sizes.hidden,
                                          .dst_stride = sizes.hidden / 4};
                    return [args](Kernels& k, Stream& s) { k.copy_2d(args, s); };
                  }});
  rows.push_back({"exact_add", [=](Tensors& a, DType t) {
                    const Shape n{sizes.parameters / 4};
                    const ExactAddArgs args{
                        .src = a.take(t, n, "x"),
                        .sum = {a.take(DType::kI64, n, "high"), a.take(DType::kI64, n, "low"),
                                a.take(DType::kI64, {1}, "invalid")}};
                    return [args](Kernels& k, Stream& s) { k.exact_add(args, s); };
                  }});
  rows.push_back({"exact_read", [=](Tensors& a, DType) {
                    const Shape n{sizes.parameters / 4};
                    const ExactReadArgs args{
                        .sum = {a.take(DType::kI64, n, "high"), a.take(DType::kI64, n, "low"),
                                a.take(DType::kI64, {1}, "invalid")},
                        .dst = a.take(DType::kF32, n, "y")};
                    return [args](Kernels& k, Stream& s) { k.exact_read(args, s); };
                  }});
  return rows;
}

}  // namespace

std::vector<Row> all_rows(const Sizes& sizes) {
  std::vector<Row> rows = matmul_rows(sizes);
  rows.push_back(loss_row(sizes));
  for (Row& row : memory_rows(sizes)) rows.push_back(std::move(row));
  return rows;
}

}  // namespace farspan::bench
