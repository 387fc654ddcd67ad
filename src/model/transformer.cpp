#include "model/transformer.h"

#include <algorithm>
#include <utility>

namespace farspan {

Transformer::Transformer(const config::Model& model, DType compute, ParameterStore& parameters,
                         const Attention& attention)
    : compute_(compute) {
  set_positions(model);
  const Shape matrix{model.vocab_size(), model.hidden_size()};
  const ParameterInit init{.deviation = model.initializer_range()};
  embedding_ = &parameters.add("model.embed_tokens.weight", matrix, init);
  if (model.position() == "learned")
    positions_ = &parameters.add("model.embed_positions.weight",
                                 {model.max_position_embeddings(), model.hidden_size()}, init);
  blocks_.reserve(static_cast<std::size_t>(model.num_hidden_layers()));
  const LayerPatterns patterns = layer_patterns(model);
  for (int layer = 0; layer < model.num_hidden_layers(); ++layer)
    blocks_.emplace_back(model, layer, patterns.of_layer[static_cast<std::size_t>(layer)],
                         parameters, attention);
  Parameter& gain = parameters.add("model.norm.weight", {model.hidden_size()}, {.ones = true});
  Parameter& head =
      model.tie_word_embeddings() ? *embedding_ : parameters.add("lm_head.weight", matrix, init);
  head_ = std::make_unique<LossHead>(gain, head, static_cast<float>(model.rms_norm_eps()));
}

void Transformer::set_positions(const config::Model& model) {
  config_ = model;
  table_ = make_position_table(model);
  unscaled_ = unscaled_rotary(model);
  scaled_.clear();
  for (std::int64_t layer = 0; layer < model.num_hidden_layers(); ++layer)
    scaled_.push_back(layer_is_scaled(model, layer));
}

Rotary Transformer::rotary() const {
  FARSPAN_CHECK(std::find(scaled_.begin(), scaled_.end(), false) == scaled_.end(),
                "layers with two tables of rotations asked for one");
  return {.inv_freq = inv_freq_, .scale = table_.attention_scale};
}

void Transformer::allocate(Arena& arena, Backend& backend) {
  const auto take = [&](DType dtype, const std::vector<double>& table, std::string_view name) {
    if (table.empty()) return Tensor{};
    return arena.take(dtype, {static_cast<std::int64_t>(table.size())}, name);
  };
  inv_freq_ = take(DType::kF64, table_.inv_freq, "rope.inv_freq");
  // Whether or not layers read it now: a later stage may scale some of them.
  unscaled_inv_freq_ = take(DType::kF64, unscaled_.inv_freq, "rope.unscaled_inv_freq");
  sinusoid_ = take(DType::kF64, table_.sinusoid, "sinusoidal.inv_freq");
  bias_ = {.slopes = take(DType::kF32, table_.slopes, "alibi.slopes"),
           .decay = take(DType::kF32, table_.decay, "xpos.decay")};
  write_tables(backend);
}

void Transformer::write_tables(Backend& backend) {
  const auto put = [&](const Tensor& t, const auto& host) {
    FARSPAN_CHECK(t.defined() ? t.numel() == static_cast<std::int64_t>(host.size()) : host.empty(),
                  "a table of {} in {}", host.size(), t.to_string());
    if (!t.defined()) return;
    backend.device().copy(t.data, reinterpret_cast<const std::byte*>(host.data()), t.bytes(),
                          backend.stream());
  };
  const std::vector<float> slopes(table_.slopes.begin(), table_.slopes.end());
  const std::vector<float> decay(table_.decay.begin(), table_.decay.end());
  put(inv_freq_, table_.inv_freq);
  put(unscaled_inv_freq_, unscaled_.inv_freq);
  put(sinusoid_, table_.sinusoid);
  put(bias_.slopes, slopes);
  put(bias_.decay, decay);
  backend.stream().synchronize();
}

void Transformer::change(const config::Model& model, const Attention& attention, Backend& backend) {
  backend.stream().synchronize();  // what it still works on reads the tables
  set_positions(model);
  write_tables(backend);
  const LayerPatterns patterns = layer_patterns(model);
  for (std::size_t i = 0; i < blocks_.size(); ++i)
    blocks_[i].follow(patterns.of_layer[i], attention);
}

Tensor put_tables(Arena& arena, Backend& backend, const std::vector<double>& inv_freq,
                  std::int64_t num_tables) {
  const auto numbers = static_cast<std::int64_t>(inv_freq.size());
  const Tensor flat = arena.take(DType::kF64, {numbers}, "batch.inv_freq");
  backend.device().copy(flat.data, reinterpret_cast<const std::byte*>(inv_freq.data()),
                        flat.bytes(), backend.stream());
  backend.stream().synchronize();
  return num_tables == 0 ? flat : flat.view({num_tables, numbers / num_tables});
}

void Transformer::embed(const TokenTensors& batch, Tensor x, const StepContext& ctx) const {
  Kernels& k = ctx.kernels();
  Stream& stream = ctx.stream();
  k.embedding_forward({.ids = batch.tokens, .table = embedding_->working, .out = x}, stream);
  if (positions_ == nullptr && !sinusoid_.defined()) return;
  auto scope = ctx.scratch.scope();
  const Tensor places = ctx.scratch.take(compute_, x.shape, "embedding.positions");
  if (positions_ != nullptr) {
    k.embedding_forward({.ids = batch.positions, .table = positions_->working, .out = places},
                        stream);
  } else {
    const std::int64_t tokens = x.shape[0], half = x.shape[1] / 2;
    const Tensor cos = ctx.scratch.take(DType::kF32, {tokens, half}, "embedding.cos");
    const Tensor sin = ctx.scratch.take(DType::kF32, {tokens, half}, "embedding.sin");
    k.rope_table({.positions = batch.positions, .inv_freq = sinusoid_, .cos = cos, .sin = sin},
                 stream);
    const auto put_half = [&](const Tensor& from, std::int64_t begin) {
      k.copy_2d({.src = from,
                 .dst = places,
                 .rows = tokens,
                 .cols = half,
                 .src_stride = half,
                 .dst_begin = begin,
                 .dst_stride = 2 * half},
                stream);
    };
    put_half(sin, 0);
    put_half(cos, half);
  }
  k.add({.a = x, .b = places, .out = x}, stream);
}

void Transformer::embed_backward(const TokenTensors& batch, Tensor grad,
                                 const StepContext& ctx) const {
  ctx.kernels().embedding_backward({.ids = batch.tokens, .dout = grad, .dtable = embedding_->grad},
                                   ctx.stream());
  if (positions_ == nullptr) return;
  ctx.kernels().embedding_backward(
      {.ids = batch.positions, .dout = grad, .dtable = positions_->grad}, ctx.stream());
}

Transformer::LayerTables Transformer::layer_tables(const TokenTensors& batch, Arena& arena,
                                                   const StepContext& ctx) const {
  LayerTables tables;
  tables.scaled.bias = tables.unscaled.bias = bias_;
  if (table_.inv_freq.empty()) return tables;
  FARSPAN_CHECK(batch.inv_freq.defined() == length_dependent_rotary(config_).has_value(),
                "tables come with a batch exactly where they depend on its documents");
  const Shape shape{batch.tokens.shape[0], static_cast<std::int64_t>(table_.inv_freq.size())};
  const auto make = [&](RopeTables& rope, const Tensor& inv_freq, double scale,
                        const Tensor& table_ids) {
    rope.cos = arena.take(DType::kF32, shape, "rope.cos");
    rope.sin = arena.take(DType::kF32, shape, "rope.sin");
    ctx.kernels().rope_table({.positions = batch.positions,
                              .inv_freq = inv_freq,
                              .cos = rope.cos,
                              .sin = rope.sin,
                              .attention_scale = scale,
                              .table_ids = table_ids},
                             ctx.stream());
  };
  const auto read = [&](bool scaled) {
    return std::find(scaled_.begin(), scaled_.end(), scaled) != scaled_.end();
  };
  if (read(true))
    make(tables.scaled, batch.inv_freq.defined() ? batch.inv_freq : inv_freq_,
         table_.attention_scale, batch.table_ids);
  if (read(false)) make(tables.unscaled, unscaled_inv_freq_, unscaled_.attention_scale, {});
  return tables;
}

void Transformer::forward_backward(const TokenTensors& batch, const LossSums& sums,
                                   const RecomputePolicy& policy, const StepContext& ctx) const {
  auto saved_scope = ctx.saved.scope();
  auto scratch_scope = ctx.scratch.scope();
  const Shape stream{batch.tokens.shape[0], config_.hidden_size()};
  const LayerTables tables = layer_tables(batch, ctx.saved, ctx);
  const int num_layers = static_cast<int>(blocks_.size());
  HostStash* stash = policy.offloads() ? ctx.stash : nullptr;
  FARSPAN_CHECK(policy.offloads() == (stash != nullptr), "a policy that offloads, and no stash");
  if (stash != nullptr) stash->begin(num_layers + 1, ctx.saved, ctx.stream());
  // Layer i's input; that of layer num_layers is the loss head's.
  const bool input_offloaded = policy.of(Activation::kInput) == Keep::kOffload;
  constexpr const char* kInput = "block.input";
  const auto take_input = [&](int layer) {
    return input_offloaded ? stash->take(kInput, layer, compute_, stream)
                           : ctx.saved.take(compute_, stream, kInput);
  };
  const auto input_written = [&](int layer) {
    if (input_offloaded) stash->put(kInput, layer);
  };
  Tensor x = take_input(0);
  embed(batch, x, ctx);
  input_written(0);
  std::vector<Block::Saved> saved;
  saved.reserve(blocks_.size());
  for (int i = 0; i < num_layers; ++i) {
    const auto layer = static_cast<std::size_t>(i);
    const Tensor out = take_input(i + 1);
    auto section = ctx.trace.section("forward.blocks");
    saved.push_back(blocks_[layer].forward(x, out, of_layer(tables, layer), policy, ctx));
    input_written(i + 1);
    x = out;
  }
  const Tensor grad = ctx.scratch.take(compute_, stream, "block.grad");
  {
    auto section = ctx.trace.section("loss_head");
    head_->forward_backward(x, batch.labels, grad, sums, ctx);
  }
  if (stash != nullptr) stash->release(num_layers);
  for (int i = num_layers; i-- > 0;) {
    auto section = ctx.trace.section("backward.blocks");
    const auto layer = static_cast<std::size_t>(i);
    if (stash != nullptr) stash->arrive(i);
    blocks_[layer].backward(saved[layer], grad, of_layer(tables, layer), ctx);
    if (stash != nullptr) stash->release(i);
  }
  if (stash != nullptr) stash->end();
  embed_backward(batch, grad, ctx);
}

Tensor Transformer::forward_hidden(const TokenTensors& batch, const StepContext& ctx) const {
  const Shape stream{batch.tokens.shape[0], config_.hidden_size()};
  const LayerTables tables = layer_tables(batch, ctx.scratch, ctx);
  Tensor x = ctx.scratch.take(compute_, stream, "block.input");
  Tensor out = ctx.scratch.take(compute_, stream, "block.input");
  embed(batch, x, ctx);
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    blocks_[layer].forward(x, out, of_layer(tables, layer), RecomputePolicy::forward_only(), ctx);
    std::swap(x, out);
  }
  return x;
}

void Transformer::forward(const TokenTensors& batch, const LossSums& sums, Tensor nll,
                          const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  head_->forward(forward_hidden(batch, ctx), batch.labels, sums, nll, ctx);
}

void Transformer::logits(const TokenTensors& batch, std::int64_t row, Tensor logits,
                         const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  head_->logits(forward_hidden(batch, ctx).rows(row, 1), logits, ctx);
}

void Transformer::row_logits(const TokenTensors& batch, std::span<const std::int64_t> rows,
                             const TakeLogits& take, const StepContext& ctx) const {
  auto scope = ctx.scratch.scope();
  const Tensor x = forward_hidden(batch, ctx);
  // In invariant mode one at a time, so that none depends on which others are asked for.
  const std::int64_t most =
      ctx.row_blocks.empty() ? head_->chunk_rows(ctx.backend.target()) : std::int64_t{1};
  const auto count = static_cast<std::int64_t>(rows.size());
  for (std::int64_t first = 0; first < count; first += most) {
    auto chunk_scope = ctx.scratch.scope();
    const std::int64_t n = std::min(most, count - first);
    const Tensor picked = ctx.scratch.take(compute_, {n, config_.hidden_size()}, "picked.hidden");
    const Tensor logits = ctx.scratch.take(DType::kF32, {n, config_.vocab_size()}, "picked.logits");
    for (std::int64_t i = 0; i < n; ++i)
      ctx.kernels().copy(
          {.src = x.rows(rows[static_cast<std::size_t>(first + i)], 1), .dst = picked.rows(i, 1)},
          ctx.stream());
    head_->logits(picked, logits, ctx);
    take(first, logits);
  }
}

}  // namespace farspan
