#include "train/generate.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <numeric>

#include "comm/agree.h"
#include "comm/factory.h"
#include "core/rng.h"
#include "train/engine.h"

namespace farspan {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

CachedModelOptions cached_options(std::size_t prompt, const GenerateOptions& options) {
  const auto first = static_cast<std::int64_t>(prompt);
  return {.prompt = first,
          .tokens = first + options.max_new_tokens,
          .chunk = options.chunk,
          .long_attention = options.long_attention};
}

// What rank 0 has decided about one token.
struct Decision {
  std::int32_t token = 0;
  bool keep = true;   // it belongs to the text
  bool go_on = true;  // after it
};

// Rank 0's decision on every rank. Collective.
Decision agree(const ModelOnRank& on, const Decision& mine) {
  if (on.mesh.world().size() == 1) return mine;
  auto scope = on.scratch.scope();
  const Tensor t = on.scratch.take(DType::kI32, {3}, "generate.decision");
  std::array<std::int32_t, 3> host{mine.token, mine.keep ? 1 : 0, mine.go_on ? 1 : 0};
  Stream& stream = on.backend.stream();
  Device& device = on.backend.device();
  device.copy(t.data, reinterpret_cast<const std::byte*>(host.data()), t.bytes(), stream);
  on.mesh.world().broadcast(t, 0, stream).wait();
  device.copy(reinterpret_cast<std::byte*>(host.data()), t.data, t.bytes(), stream);
  stream.synchronize();
  return {.token = host[0], .keep = host[1] != 0, .go_on = host[2] != 0};
}

// Takes from the arena what generate_on takes: the prompt's passes, and one of a later token.
void rehearse(const ModelOnRank& on, std::size_t prompt, const GenerateOptions& options) {
  CachedModel cached(on, cached_options(prompt, options));
  cached.logits_after(std::vector<std::int32_t>(prompt, 0));
  agree(on, {});
  const std::array<std::int32_t, 1> next{0};
  cached.logits_after(next);
}

void check_prompt(std::span<const std::int32_t> prompt, std::int64_t vocab_size) {
  FARSPAN_CHECK(!prompt.empty());
  for (const std::int32_t id : prompt)
    if (id < 0 || id >= vocab_size)
      throw Error(ExitCode::kUsage,
                  {.what = fmt::format("token id {} of the prompt is outside the model's "
                                       "vocabulary of {}",
                                       id, vocab_size),
                   .where = "--prompt",
                   .fix = "use the tokenizer that the model was trained with"});
}

void check_mesh(const Mesh& mesh) {
  if (mesh.data_size() == 1) return;
  throw Error(ExitCode::kUsage,
              {.what = fmt::format("generation shares one text out among all ranks, and "
                                   "parallel.data is {}",
                                   mesh.data_size()),
               .where = "parallel.data",
               .fix = "leave parallel.data out"});
}

// Known to every rank, which all have the same logits.
void check_logits(const std::vector<float>& logits, bool report) {
  if (std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) return;
  throw SharedError(
      Error(ExitCode::kNumeric, {.what = "the model's logits are not finite",
                                 .fix = "use an earlier checkpoint, or train.precision=fp32"}),
      0, report);
}

Generated generate_on(const ModelOnRank& on, std::span<const std::int32_t> prompt,
                      const GenerateOptions& options, const OnToken& on_token) {
  const auto begin = std::chrono::steady_clock::now();
  CachedModel cached(on, cached_options(prompt.size(), options));
  const CounterRng rng(options.seed, stream_id("generate"));
  const bool lead = on.mesh.world().rank() == 0;
  Generated out;
  std::vector<float> logits = cached.logits_after(prompt);
  out.seconds_prefill = seconds_since(begin);
  const auto decoding = std::chrono::steady_clock::now();
  for (std::int64_t left = options.max_new_tokens; left > 0; --left) {
    check_logits(logits, lead);
    Decision mine;
    if (lead) {
      mine.token = sample_token(logits, options.temperature, options.top_p,
                                rng.uniform(static_cast<std::uint64_t>(cached.length())));
      mine.keep = mine.token != options.stop_token;
      mine.go_on = mine.keep && left > 1;
      if (mine.keep && on_token && !on_token(mine.token)) mine.go_on = false;
    }
    const Decision next = agree(on, mine);
    if (next.keep) out.tokens.push_back(next.token);
    if (!next.go_on) break;
    logits = cached.logits_after({&next.token, 1});
  }
  out.seconds_decode = seconds_since(decoding);
  return out;
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

Generated generate(InferenceModel& model, std::span<const std::int32_t> prompt,
                   const GenerateOptions& options, const OnToken& on_token) {
  together(model.world(), [&] {
    check_prompt(prompt, model.config().model().vocab_size());
    check_mesh(model.mesh());
    model.reserve(
        [&](ForwardEngine& engine) { rehearse(on_rank(engine), prompt.size(), options); });
  });
  return generate_on(on_rank(model.engine()), prompt, options, on_token);
}

Generated generate(const config::RunConfig& config, const Transformer& model, Backend& backend,
                   std::span<const std::int32_t> prompt, const GenerateOptions& options) {
  check_prompt(prompt, config.model().vocab_size());
  const auto comm = make_self_communicator();
  const Mesh mesh(*comm, 1, 1);
  Trace trace;
  std::size_t bytes = 0;
  {
    const auto dry = make_backend({.kind = DeviceKind::kDry, .dry_target = backend.target()});
    ForwardEngine engine(config, *dry, mesh, {}, trace);
    rehearse(on_rank(engine), prompt.size(), options);
    bytes = engine.scratch().high_water();
  }
  Arena scratch(backend.device(), bytes, "generate");
  return generate_on({.config = config,
                      .model = model,
                      .backend = backend,
                      .mesh = mesh,
                      .scratch = scratch,
                      .trace = trace},
                     prompt, options, {});
}

}  // namespace farspan
