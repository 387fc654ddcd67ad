#include "train/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/factory.h"
#include "core/rng.h"
#include "train/engine.h"
#include "train/micro_batch.h"

namespace farspan {
namespace {

// Runs logits() over a window of fixed length: causality makes what lies after a token
// irrelevant to it.
class Window {
 public:
  Window(const Transformer& model, Backend& backend, const Sharding& sharding, std::int64_t vocab,
         std::int64_t length, std::size_t scratch_bytes)
      : model_(model),
        backend_(backend),
        comm_(make_self_communicator()),
        mesh_(*comm_, 1, 1),
        scratch_(backend.device(), scratch_bytes, "generate"),
        micro_(shard(numbered_batch(length), sharding)),
        order_(micro_.tokens),
        tokens_(scratch_.take(DType::kI32, {length}, "tokens")),
        positions_(scratch_.take(DType::kI32, {length}, "positions")),
        logits_(scratch_.take(DType::kF32, {1, vocab}, "logits")) {
    put(positions_, micro_.positions);
  }

  // Logits after the token with this index.
  void run(const std::vector<std::int32_t>& tokens, std::int64_t index) {
    std::vector<std::int32_t> local;
    for (const std::int32_t i : order_) local.push_back(tokens[static_cast<std::size_t>(i)]);
    const std::int64_t row = std::find(order_.begin(), order_.end(), index) - order_.begin();
    put(tokens_, local);
    const StepContext ctx{.backend = backend_,
                          .saved = scratch_,
                          .scratch = scratch_,
                          .mesh = mesh_,
                          .plans = micro_.plans,
                          .trace = trace_,
                          .row_blocks = micro_.row_blocks};
    model_.logits({.tokens = tokens_, .labels = {}, .positions = positions_}, row, logits_, ctx);
  }

  std::vector<float> logits() {
    std::vector<float> host(static_cast<std::size_t>(logits_.numel()));
    backend_.device().copy(reinterpret_cast<std::byte*>(host.data()), logits_.data, logits_.bytes(),
                           backend_.stream());
    backend_.stream().synchronize();
    return host;
  }

  std::size_t high_water() const { return scratch_.high_water(); }

 private:
  // One document whose tokens are their indices.
  static Batch numbered_batch(std::int64_t length) {
    Batch batch = blank_batch(1, length);
    std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
    return batch;
  }

  void put(Tensor device, const std::vector<std::int32_t>& host) {
    backend_.device().copy(device.data, reinterpret_cast<const std::byte*>(host.data()),
                           device.bytes(), backend_.stream());
  }

  const Transformer& model_;
  Backend& backend_;
  std::unique_ptr<Communicator> comm_;
  Mesh mesh_;
  Trace trace_;
  Arena scratch_;
  MicroBatch micro_;
  std::vector<std::int32_t> order_;  // [row]: index of its token (a pattern may order rows anew)
  Tensor tokens_, positions_, logits_;
};

// The model's own patterns on one rank.
Sharding one_rank(const config::RunConfig& config) {
  Sharding sharding = Sharding::from(config, {});
  sharding.layout = LayoutKind::kContiguous;
  return sharding;
}

std::size_t scratch_bytes(const config::RunConfig& config, std::int64_t length) {
  const auto backend = make_backend({.kind = DeviceKind::kDry});
  Arena weights(backend->device(), kDryCapacity, "weights");
  Arena gradients(backend->device(), kDryCapacity, "gradients");
  const auto attention =
      make_attention(config.parallel().attention(), config.parallel().invariant());
  ParameterStore parameters;
  Transformer model(config.model(), compute_dtype(config), parameters, *attention);
  parameters.allocate({weights, gradients, nullptr}, compute_dtype(config));
  model.allocate(weights, *backend);
  Window window(model, *backend, one_rank(config), config.model().vocab_size(), length,
                kDryCapacity);
  window.run(std::vector<std::int32_t>(static_cast<std::size_t>(length)), length - 1);
  return window.high_water();
}

}  // namespace

std::int32_t sample_token(std::span<const float> logits, double temperature, double top_p,
                          double uniform) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (temperature <= 0) return static_cast<std::int32_t>(best - logits.begin());
  std::vector<double> p(logits.size());
  for (std::size_t i = 0; i < p.size(); ++i)
    p[i] = std::exp((static_cast<double>(logits[i]) - static_cast<double>(*best)) / temperature);
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  std::size_t kept = 0;
  double mass = 0;
  while (kept < order.size() && (kept == 0 || mass < top_p * total)) mass += p[order[kept++]];
  double left = uniform * mass;
  for (std::size_t i = 0; i < kept; ++i) {
    left -= p[order[i]];
    if (left < 0) return static_cast<std::int32_t>(order[i]);
  }
  return static_cast<std::int32_t>(order[kept - 1]);
}

std::vector<std::int32_t> generate(const config::RunConfig& config, const Transformer& model,
                                   Backend& backend, std::span<const std::int32_t> prompt,
                                   const GenerateOptions& options) {
  FARSPAN_CHECK(!prompt.empty());
  const auto start = static_cast<std::int64_t>(prompt.size());
  const std::int64_t length = start + options.max_new_tokens;
  Window window(model, backend, one_rank(config), config.model().vocab_size(), length,
                scratch_bytes(config, length));
  std::vector<std::int32_t> tokens(prompt.begin(), prompt.end());
  tokens.resize(static_cast<std::size_t>(length), 0);
  const CounterRng rng(options.seed, stream_id("generate"));
  std::vector<std::int32_t> out;
  for (std::int64_t t = start; t < length; ++t) {
    window.run(tokens, t - 1);
    const std::int32_t next = sample_token(window.logits(), options.temperature, options.top_p,
                                           rng.uniform(static_cast<std::uint64_t>(t)));
    if (next == options.stop_token) break;
    tokens[static_cast<std::size_t>(t)] = next;
    out.push_back(next);
  }
  return out;
}

}  // namespace farspan
