#include "train/cached_model.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "train/engine.h"

namespace farspan {
namespace {

// Below this many tokens a rank, sharing a prompt out costs more than it saves.
constexpr std::int64_t kFewTokens = 64;
// Later tokens go to the ranks in blocks of this many, so that their rows are runs.
constexpr std::int64_t kOwnedTokens = 64;

// Before the arena says so in its own words: it was made for this text, or on the dry backend for
// any that can be.
void check_cache(const KvCache::Sizes& sizes, LongAttentionKind attention, const Arena& arena) {
  const double bytes = 2.0 * static_cast<double>(size_of(sizes.dtype)) *
                       static_cast<double>(sizes.num_layers * sizes.num_kv_heads) *
                       static_cast<double>(sizes.head_dim) * static_cast<double>(sizes.capacity);
  if (bytes <= static_cast<double>(arena.capacity())) return;
  throw Error(ExitCode::kExhausted,
              {.what = fmt::format("keys and values of {} tokens take {:.0f} GiB of a rank",
                                   sizes.capacity, bytes / (1 << 30)),
               .fix = attention == LongAttentionKind::kNone ? "use a shorter text, or more ranks"
                      : attention == LongAttentionKind::kDualChunk
                          ? "use a shorter text, or --attention lm_infinite, which keeps a window"
                          : "use a lower --attention-context"});
}

// Tokens that are their indices: what sharding makes of them is the order of a rank's rows.
Batch numbered_batch(std::int64_t length) {
  Batch batch = blank_batch(1, length);
  std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
  return batch;
}

// Rows of `order` for which `kept` holds.
template <typename Kept>
std::vector<IndexRange> rows_where(const std::vector<std::int32_t>& order, Kept kept) {
  std::vector<IndexRange> rows;
  for (std::size_t row = 0; row < order.size(); ++row) {
    if (!kept(order[row])) continue;
    const auto at = static_cast<std::int64_t>(row);
    if (!rows.empty() && rows.back().end == at)
      ++rows.back().end;
    else
      rows.push_back({at, at + 1});
  }
  return rows;
}

struct Refusal {
  std::string what, fix;
};

// What of a model lm_infinite and dca cannot be used with.
std::optional<Refusal> long_attention_refusal(const config::Model& model) {
  if (model.position() != "rope")
    return Refusal{
        fmt::format("lm_infinite and dca replace rotary distances, and model.position is {}",
                    model.position()),
        "use them with a model of position: rope"};
  const std::string& scaling = model.rope().scaling().type();
  if (scaling == "dynamic" || scaling == "longrope")
    return Refusal{
        fmt::format("lm_infinite and dca keep distances as they were trained, and "
                    "model.rope.scaling.type {} stretches them in long texts",
                    scaling),
        "use one of the two: add model.rope.scaling.type=none, or leave --attention out"};
  const LayerPatterns patterns = layer_patterns(model);
  const auto masked =
      std::find_if(patterns.patterns.begin(), patterns.patterns.end(),
                   [](const AttentionPattern& p) { return p != AttentionPattern{}; });
  if (masked != patterns.patterns.end())
    return Refusal{
        fmt::format("lm_infinite and dca have masks of their own, and the model has {}",
                    masked->description()),
        fmt::format("use them with a model of full attention, or set model.sliding_window=0{}",
                    model.layer_types().empty() ? "" : " and model.layer_types=null")};
  return std::nullopt;
}

}  // namespace

void check_long_attention(const config::RunConfig& config, const LongAttentionOptions& options,
                          int context_ranks) {
  const config::Model& model = config.model();
  const auto refuse = [](std::string what, std::string fix) {
    throw Error(ExitCode::kUsage,
                {.what = std::move(what), .where = "--attention", .fix = std::move(fix)});
  };
  if (context_ranks > 1)
    refuse(fmt::format("lm_infinite and dca keep a document on one rank, and {} ranks share it",
                       context_ranks),
           fmt::format("run on one rank; the ranks of farspan eval can have documents of their "
                       "own: parallel.data={}",
                       context_ranks));
  if (const auto refusal = long_attention_refusal(model)) refuse(refusal->what, refusal->fix);
  if (options.context < 2 || options.chunk_tokens() < 1 ||
      options.chunk_tokens() >= options.context)
    refuse(fmt::format("a context of {} tokens has no chunks of {}", options.context,
                       options.chunk_tokens()),
           "chunks must be shorter than the context that the model was trained with");
}

bool takes_long_attention(const config::Model& model) {
  return !long_attention_refusal(model).has_value();
}

ModelOnRank on_rank(ForwardEngine& engine) {
  return {.config = engine.config(),
          .model = engine.model(),
          .backend = engine.backend(),
          .mesh = engine.mesh(),
          .scratch = engine.scratch(),
          .trace = engine.trace()};
}

CachedModel::CachedModel(const ModelOnRank& on, const CachedModelOptions& options)
    : on_(on),
      options_(options),
      patterns_(layer_patterns(on.config.model())),
      num_ranks_(on.mesh.context_size()),
      memory_(on.scratch.scope()) {
  FARSPAN_CHECK(options.tokens >= options.prompt && options.chunk >= 1, "{} of {} tokens, chunk {}",
                options.prompt, options.tokens, options.chunk);
  FARSPAN_CHECK(on.mesh.data_size() == 1 || num_ranks_ == 1, "{} data x {} context ranks",
                on.mesh.data_size(), num_ranks_);
  const config::Model& model = on.config.model();
  if (model.position() == "learned" && options.tokens > model.max_position_embeddings())
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("{} tokens, prompt and text, are more than the {} rows of the "
                                     "model's table of positions",
                                     options.tokens, model.max_position_embeddings()),
                 .where = "model.max_position_embeddings",
                 .fix = "use a shorter prompt or a lower --max-new-tokens"});
  for (const AttentionPattern& pattern : patterns_.patterns)
    stride_ = std::lcm(stride_, pattern.row_stride());
  if (options_.long_attention.kind != LongAttentionKind::kNone) {
    check_long_attention(on.config, options_.long_attention, num_ranks_);
    check_cache(cache_sizes(), options_.long_attention.kind, on.scratch);
    long_attention_.emplace(options_.long_attention, cache_sizes(), on.model.rotary(), on.scratch);
    return;
  }
  if (shares(options_.prompt)) plan_prompt();
  check_cache(cache_sizes(), options_.long_attention.kind, on.scratch);
  cache_.emplace(on.scratch, cache_sizes());
}

bool CachedModel::shares(std::int64_t prompt) const {
  return num_ranks_ > 1 && prompt >= kFewTokens * num_ranks_;
}

void CachedModel::plan_prompt() {
  const Sharding sharding = Sharding::from(on_.config, on_.mesh.place());
  const Batch batch = numbered_batch(options_.prompt);
  strategy_ = make_attention(on_.config.parallel().attention());
  shared_.emplace(Shared{
      .sharder = Sharder(sharding), .order = {}, .stride = make_layout(batch, sharding).stride()});
  shared_->order = shared_->sharder(batch).tokens;
  stride_ = shared_->stride;
}

KvCache::Sizes CachedModel::cache_sizes() const {
  constexpr std::int64_t kRounded = 64;
  const config::Model& model = on_.config.model();
  const std::int64_t prompt = shared_ ? options_.prompt : 0;
  const std::int64_t alike = options_.tokens - prompt;
  const std::int64_t blocks = (alike + kOwnedTokens * num_ranks_ - 1) / (kOwnedTokens * num_ranks_);
  const std::int64_t rows = options_.long_attention.kind != LongAttentionKind::kNone
                                ? options_.long_attention.room(options_.tokens, options_.chunk)
                                : (shared_ ? static_cast<std::int64_t>(shared_->order.size()) : 0) +
                                      std::min(alike, (blocks + 1) * kOwnedTokens);
  return {.num_layers = model.num_hidden_layers(),
          .capacity = (rows + kRounded - 1) / kRounded * kRounded,
          .num_kv_heads = model.num_key_value_heads(),
          .head_dim = model.head_dim(),
          .dtype = compute_dtype(on_.config)};
}

int CachedModel::owner_of(std::int64_t token) const {
  return static_cast<int>((stride_ == 1 ? token / kOwnedTokens : token) % num_ranks_);
}

StepContext CachedModel::context(std::span<const AttentionPlan> plans,
                                 const Attention& attention) const {
  return {.backend = on_.backend,
          .saved = on_.scratch,
          .scratch = on_.scratch,
          .mesh = on_.mesh,
          .plans = plans,
          .trace = on_.trace,
          .token_tile = on_.config.train().token_tile(),
          .attention = &attention};
}

Tensor CachedModel::put(std::span<const std::int32_t> values, std::string_view name) const {
  const Tensor t = on_.scratch.take(DType::kI32, {static_cast<std::int64_t>(values.size())}, name);
  on_.backend.device().copy(t.data, reinterpret_cast<const std::byte*>(values.data()), t.bytes(),
                            on_.backend.stream());
  on_.backend.stream().synchronize();
  return t;
}

// tokens[i]: the token of index length_ + i.
void CachedModel::run(std::span<const std::int32_t> tokens, std::vector<std::int32_t> order,
                      const StepContext& ctx, const Compute& compute) const {
  std::vector<std::int32_t> local;
  local.reserve(order.size());
  for (const std::int32_t index : order)
    local.push_back(tokens[static_cast<std::size_t>(index - length_)]);
  auto scope = on_.scratch.scope();
  TokenTensors batch{.tokens = put(local, "cached.tokens"),
                     .labels = {},
                     .positions = put(order, "cached.positions")};
  // One table for the whole document: prompt and all that may follow.
  if (length_dependent_rotary(on_.config.model()))
    batch.inv_freq =
        put_tables(on_.scratch, on_.backend,
                   make_position_table(on_.config.model(), options_.tokens).inv_freq, 0);
  compute({.order = std::move(order), .batch = batch, .ctx = ctx});
}

void CachedModel::shared_pass(std::span<const std::int32_t> tokens, const Compute& compute) {
  const MicroBatch micro = shared_->sharder(numbered_batch(options_.prompt));
  cache_->extend(pieces_of(shared_->order, stride_), stride_);
  const RecordingAttention attention(*strategy_, *cache_);
  run(tokens, shared_->order, context(micro.plans, attention), compute);
  shared_.reset();
}

void CachedModel::alike_pass(std::span<const std::int32_t> tokens, const Compute& compute) {
  const std::int64_t end = length_ + static_cast<std::int64_t>(tokens.size());
  std::vector<std::int32_t> order = token_order(length_, end, stride_);
  const int rank = on_.mesh.context_rank();
  const auto mine = [&](std::int32_t token) { return owner_of(token) == rank; };
  std::vector<std::int32_t> kept;
  std::copy_if(order.begin(), order.end(), std::back_inserter(kept), mine);
  cache_->extend(pieces_of(kept, stride_), stride_);
  const std::vector<TokenPiece> queries = pieces_of(order, stride_);
  std::vector<AttentionPlan> plans;
  for (const AttentionPattern& pattern : patterns_.patterns)
    plans.push_back(plan_over_cache({.queries = queries,
                                     .keys = cache_->pieces(),
                                     .pattern = pattern,
                                     .length = end,
                                     .num_kv_heads = on_.config.model().num_key_value_heads(),
                                     .stride = stride_}));
  const CachedAttention attention(*cache_, rows_where(order, mine),
                                  num_ranks_ > 1 ? &on_.mesh.world() : nullptr);
  const StepContext ctx = context(plans, attention);
  run(tokens, std::move(order), ctx, compute);
}

void CachedModel::long_pass(std::span<const std::int32_t> tokens, const Compute& compute) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  auto scope = on_.scratch.scope();
  const StepContext ctx = context({}, *long_attention_);
  long_attention_->begin(count, ctx);
  run(tokens, token_order(length_, length_ + count, 1), ctx, compute);
}

void CachedModel::extend(std::span<const std::int32_t> tokens, const Compute& compute) {
  if (shared_) {
    FARSPAN_CHECK(static_cast<std::int64_t>(tokens.size()) == options_.prompt,
                  "a prompt of {} tokens, and {} were announced", tokens.size(), options_.prompt);
    shared_pass(tokens, compute);
    length_ += options_.prompt;
    return;
  }
  while (!tokens.empty()) {
    const auto chunk =
        tokens.first(std::min(tokens.size(), static_cast<std::size_t>(options_.chunk)));
    if (long_attention_)
      long_pass(chunk, compute);
    else
      alike_pass(chunk, compute);
    length_ += static_cast<std::int64_t>(chunk.size());
    tokens = tokens.subspan(chunk.size());
  }
}

std::vector<float> CachedModel::logits_after(std::span<const std::int32_t> tokens) {
  FARSPAN_CHECK(!tokens.empty());
  const std::int64_t last = length_ + static_cast<std::int64_t>(tokens.size()) - 1;
  const bool shared = shared_.has_value();
  std::vector<float> host(static_cast<std::size_t>(on_.config.model().vocab_size()));
  extend(tokens, [&](const Pass& pass) {
    auto scope = on_.scratch.scope();
    const auto row = std::find(pass.order.begin(), pass.order.end(), last);
    const bool mine = row != pass.order.end();
    const Tensor logits =
        on_.scratch.take(DType::kF32, {1, on_.config.model().vocab_size()}, "cached.logits");
    on_.model.logits(pass.batch, mine ? row - pass.order.begin() : 0, logits, pass.ctx);
    if (shared) {  // the sum of one rank's and zeros
      Stream& stream = on_.backend.stream();
      if (!mine) on_.backend.kernels().fill({.dst = logits, .value = 0}, stream);
      on_.mesh.world().all_reduce(logits, ReduceOp::kSum, stream).wait();
    }
    if (!mine && !shared) return;
    on_.backend.device().copy(reinterpret_cast<std::byte*>(host.data()), logits.data,
                              logits.bytes(), on_.backend.stream());
    on_.backend.stream().synchronize();
  });
  return host;
}

}  // namespace farspan
