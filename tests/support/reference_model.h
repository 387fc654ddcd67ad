// A whole model in double precision, forward and backward, written as the formulas of model/block.h
// stand: the oracle of what layers do with one another. Which mask and which rotations each layer
// has is told to it layer by layer; nothing of that is taken from the model's configuration.
//
//   ReferenceModel m{.shape = config.model(), .layers = {{.window = 9, .rotary = plain}, {...}}};
//   m.weights = ...;                       // by the names of the model's parameters
//   ReferenceResult r = run_reference(m, batch);
//
// Legend: T tokens   C hidden   F MLP width   Hq, Hkv heads   D head dim
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "config/run_config.pb.h"
#include "data/batch.h"
#include "model/rotary.h"
#include "support/reference.h"
#include "support/reference_attention.h"

namespace farspan::testing {

struct ReferenceLayer {
  std::int64_t window = 0;  // tokens a query sees, itself included; 0: all of its document
  RotaryArgs rotary{};      // document_length is set for each document
};

struct ReferenceModel {
  config::Model shape;  // sizes and rms_norm_eps; embeddings are tied
  std::vector<ReferenceLayer> layers;
  std::vector<double> decay{};  // (D / 2) of xPos; empty: none
  std::map<std::string, reference::Values> weights{};
};

struct ReferenceResult {
  double loss_sum = 0, valid_tokens = 0;
  std::map<std::string, reference::Values> gradients;  // of loss_sum
};

namespace detail {

using reference::Values;

inline Values sum(const Values& a, const Values& b) {
  Values out(a);
  for (std::size_t i = 0; i < a.size(); ++i) out[i] += b[i];
  return out;
}

class ReferencePass {
 public:
  ReferencePass(const ReferenceModel& model, const Batch& batch)
      : model_(model), batch_(batch), tokens_(batch.num_tokens()) {}

  ReferenceResult run() {
    const auto& shape = model_.shape;
    const std::int64_t c = shape.hidden_size();
    const auto width = static_cast<std::size_t>(c);
    const Values ids(batch_.tokens.begin(), batch_.tokens.end());
    const Values& table = weight("model.embed_tokens.weight");
    Values x = reference::embedding_forward(ids, table, width);
    std::vector<Layer> layers;
    for (std::size_t i = 0; i < model_.layers.size(); ++i) layers.push_back(forward(i, x));
    const auto norm = normed(x, "model.norm.weight");
    const auto vocab = shape.vocab_size();
    const Values labels(batch_.labels.begin(), batch_.labels.end());
    const auto loss =
        reference::cross_entropy(reference::matmul(norm.y, table, tokens_, vocab, c, false, true),
                                 labels, static_cast<std::size_t>(vocab));
    out_.loss_sum = loss.loss_sum;
    out_.valid_tokens = loss.valid_count;
    add("model.embed_tokens.weight",
        reference::matmul(loss.dlogits, norm.y, vocab, c, tokens_, true));
    const Values dnorm = reference::matmul(loss.dlogits, table, tokens_, c, vocab);
    Values grad = norm_backward(x, "model.norm.weight", norm, dnorm);
    for (std::size_t i = layers.size(); i-- > 0;) grad = backward(i, layers[i], grad);
    reference::embedding_backward(ids, grad, out_.gradients["model.embed_tokens.weight"], width);
    return std::move(out_);
  }

 private:
  struct Layer {
    Values x, middle, gate, up, product;
    reference::RmsNorm norm1, norm2;
    reference::RopeTables rope;
    AttentionProblem problem;
    Values attention;
  };

  const Values& weight(const std::string& name) const { return model_.weights.at(name); }
  void add(const std::string& name, const Values& gradient) {
    Values& to = out_.gradients[name];
    to = to.empty() ? gradient : sum(to, gradient);
  }

  reference::RmsNorm normed(const Values& x, const std::string& gain) const {
    return reference::rmsnorm_forward(x, weight(gain), model_.shape.rms_norm_eps());
  }
  Values norm_backward(const Values& x, const std::string& gain, const reference::RmsNorm& norm,
                       const Values& dy) {
    auto gradients = reference::rmsnorm_backward(x, weight(gain), norm.rstd, dy);
    add(gain, gradients.dweight);
    return std::move(gradients.dx);
  }
  // y = x W^T, W (out, in).
  Values linear(const std::string& name, const Values& x, std::int64_t out) const {
    return reference::matmul(x, weight(name), tokens_, out, width_of(x), false, true);
  }
  Values linear_backward(const std::string& name, const Values& x, const Values& dy) {
    const std::int64_t in = width_of(x), out = width_of(dy);
    add(name, reference::matmul(dy, x, out, in, tokens_, true));
    return reference::matmul(dy, weight(name), tokens_, in, out);
  }
  std::int64_t width_of(const Values& x) const {
    return static_cast<std::int64_t>(x.size()) / tokens_;
  }

  // take(first, last, length) for each document; its length is its largest position + 1.
  template <typename Take>
  void each_document(Take take) const {
    for (std::int64_t first = 0, last = 0; first < tokens_; first = last) {
      std::int64_t length = 0;
      const auto same = [&](std::int64_t t) {
        return batch_.segments[static_cast<std::size_t>(t)] ==
               batch_.segments[static_cast<std::size_t>(first)];
      };
      for (last = first; last < tokens_ && same(last); ++last)
        length =
            std::max(length, std::int64_t{batch_.positions[static_cast<std::size_t>(last)]} + 1);
      take(first, last, length);
    }
  }

  reference::RopeTables rotations(const ReferenceLayer& layer) const {
    reference::RopeTables out;
    each_document([&](std::int64_t first, std::int64_t last, std::int64_t length) {
      RotaryArgs args = layer.rotary;
      args.document_length = length;
      const RotaryTable table = rotary_table(args);
      const Values positions(batch_.positions.begin() + first, batch_.positions.begin() + last);
      const auto part = reference::rope_tables(positions, table.inv_freq, table.attention_scale);
      out.cos.insert(out.cos.end(), part.cos.begin(), part.cos.end());
      out.sin.insert(out.sin.end(), part.sin.begin(), part.sin.end());
    });
    return out;
  }

  AttentionProblem problem_of(const ReferenceLayer& layer) const {
    const auto& shape = model_.shape;
    AttentionProblem p{.num_q = tokens_,
                       .num_k = tokens_,
                       .num_q_heads = shape.num_attention_heads(),
                       .num_kv_heads = shape.num_key_value_heads(),
                       .head_dim = shape.head_dim(),
                       .scale = 1 / std::sqrt(static_cast<double>(shape.head_dim()))};
    p.decay = model_.decay;
    each_document([&](std::int64_t first, std::int64_t last, std::int64_t) {
      p.slices.push_back({.q_begin = first,
                          .q_len = last - first,
                          .k_begin = first,
                          .k_len = last - first,
                          .kind = layer.window > 0 ? MaskKind::kBand : MaskKind::kCausal,
                          .window = layer.window});
    });
    return p;
  }

  static std::string prefix(std::size_t i) { return "model.layers." + std::to_string(i) + "."; }

  // x becomes the layer's output.
  Layer forward(std::size_t i, Values& x) const {
    const auto& shape = model_.shape;
    const std::string at = prefix(i);
    const std::int64_t d = shape.head_dim(), heads = shape.num_attention_heads(),
                       kv_heads = shape.num_key_value_heads(), ffn = shape.intermediate_size();
    Layer s;
    s.x = x;
    s.norm1 = normed(x, at + "input_layernorm.weight");
    s.rope = rotations(model_.layers[i]);
    s.problem = problem_of(model_.layers[i]);
    const auto project = [&](const char* name, std::int64_t n) {
      return linear(at + name, s.norm1.y, n * d);
    };
    s.problem.q =
        reference::rope_apply(project("self_attn.q_proj.weight", heads), s.rope, heads, d, false);
    s.problem.k = reference::rope_apply(project("self_attn.k_proj.weight", kv_heads), s.rope,
                                        kv_heads, d, false);
    s.problem.v = project("self_attn.v_proj.weight", kv_heads);
    s.attention = reference_attention(s.problem).out;
    s.middle = sum(x, linear(at + "self_attn.o_proj.weight", s.attention, shape.hidden_size()));
    s.norm2 = normed(s.middle, at + "post_attention_layernorm.weight");
    s.gate = linear(at + "mlp.gate_proj.weight", s.norm2.y, ffn);
    s.up = linear(at + "mlp.up_proj.weight", s.norm2.y, ffn);
    s.product = reference::swiglu_forward(s.gate, s.up);
    x = sum(s.middle, linear(at + "mlp.down_proj.weight", s.product, shape.hidden_size()));
    return s;
  }

  // From the gradient of the layer's output to that of its input.
  Values backward(std::size_t i, const Layer& s, const Values& grad) {
    const auto& shape = model_.shape;
    const std::string at = prefix(i);
    const Values dproduct = linear_backward(at + "mlp.down_proj.weight", s.product, grad);
    const auto mlp = reference::swiglu_backward(s.gate, s.up, dproduct);
    const Values dnorm2 = sum(linear_backward(at + "mlp.gate_proj.weight", s.norm2.y, mlp.dgate),
                              linear_backward(at + "mlp.up_proj.weight", s.norm2.y, mlp.dup));
    const Values dmiddle =
        sum(grad, norm_backward(s.middle, at + "post_attention_layernorm.weight", s.norm2, dnorm2));
    AttentionProblem p = s.problem;
    p.dout = linear_backward(at + "self_attn.o_proj.weight", s.attention, dmiddle);
    const AttentionResult a = reference_attention(p);
    const auto rotated_back = [&](const Values& d, std::int64_t heads) {
      return reference::rope_apply(d, s.rope, heads, shape.head_dim(), true);
    };
    const auto project = [&](const char* name, const Values& d) {
      return linear_backward(at + name, s.norm1.y, d);
    };
    Values dnorm1 =
        project("self_attn.q_proj.weight", rotated_back(a.dq, shape.num_attention_heads()));
    dnorm1 = sum(dnorm1, project("self_attn.k_proj.weight",
                                 rotated_back(a.dk, shape.num_key_value_heads())));
    dnorm1 = sum(dnorm1, project("self_attn.v_proj.weight", a.dv));
    return sum(dmiddle, norm_backward(s.x, at + "input_layernorm.weight", s.norm1, dnorm1));
  }

  const ReferenceModel& model_;
  const Batch& batch_;
  std::int64_t tokens_;
  ReferenceResult out_;
};

}  // namespace detail

inline ReferenceResult run_reference(const ReferenceModel& model, const Batch& batch) {
  return detail::ReferencePass(model, batch).run();
}

}  // namespace farspan::testing
