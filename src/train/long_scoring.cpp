#include "train/long_scoring.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace farspan {
namespace {

// Tokens [begin, end) of a micro-batch: a document up to the last of its tokens that is asked for.
struct Part {
  std::int64_t begin, end;
};

class LongScoring final : public ScoringModel {
 public:
  LongScoring(InferenceModel& model, const LongAttentionOptions& attention, std::int64_t chunk)
      : model_(model), plain_(scoring_model(model)), attention_(attention), chunk_(chunk) {
    check_long_attention(model.config(), attention, model.mesh().context_size());
  }
  const config::RunConfig& config() const override { return model_.config(); }
  const Mesh& mesh() const override { return model_.mesh(); }
  Communicator& hosts() const override { return model_.world(); }
  std::int64_t pass_tokens() const override { return plain_->pass_tokens(); }

  // Attention here counts tokens: other distances would be silently replaced.
  void check(const Pass& pass) const override {
    const std::vector<std::int32_t>& positions = pass.micro.positions;
    std::size_t begin = 0;
    for (const std::int64_t length : pass.documents) {
      const std::size_t end = begin + static_cast<std::size_t>(length);
      for (std::size_t t = begin + 1; t < end; ++t)
        if (positions[t] != positions[t - 1] + 1) refuse(positions[t - 1], positions[t]);
      begin = end;
    }
  }

  void reserve(const Pass& pass) override {
    if (fits_context(pass)) return plain_->reserve(pass);
    std::int64_t longest = 0;
    for (const Part& part : parts_of(pass)) longest = std::max(longest, part.end - part.begin);
    const auto rows = static_cast<std::int64_t>(pass.rows.size());
    Reserved& reserved = pass.nll ? for_nll_ : for_logits_;
    if (longest <= reserved.tokens && rows <= reserved.rows) return;
    reserved = {std::max(longest, reserved.tokens), std::max(rows, reserved.rows)};
    model_.reserve([&](ForwardEngine& engine) { rehearse(engine, reserved); });
  }
  std::vector<float> nll(const Pass& pass) override {
    return fits_context(pass) ? plain_->nll(pass) : nll_on(model_.engine(), pass);
  }
  void logits(const Pass& pass, const TakeRowLogits& take) override {
    if (fits_context(pass)) return plain_->logits(pass, take);
    logits_on(model_.engine(), pass, take);
  }

 private:
  // Of the largest pass so far: tokens of its longest document, rows whose logits were asked for.
  struct Reserved {
    std::int64_t tokens = 0, rows = 0;
  };

  [[noreturn]] static void refuse(std::int32_t from, std::int32_t to) {
    throw Error(ExitCode::kBadData,
                {.what = fmt::format("lm_infinite and dca count the tokens of a document, and "
                                     "positions go from {} to {} inside one",
                                     from, to),
                 .where = "positions of the text (position_ids of its store, or documents that are "
                          "joined while positions.reset_per_document is true)",
                 .fix = "use a text without position_ids, with --documents masked or joined, or "
                        "leave --attention out"});
  }

  // Documents within the context are what the model's own attention sees.
  bool fits_context(const Pass& pass) const {
    return std::all_of(pass.documents.begin(), pass.documents.end(),
                       [&](std::int64_t length) { return length <= attention_.context; });
  }

  // On one rank rows are in the order of their tokens, document by document.
  static std::vector<Part> parts_of(const Pass& pass) {
    std::vector<Part> out;
    std::int64_t begin = 0;
    auto row = pass.rows.begin();
    for (const std::int64_t length : pass.documents) {
      const std::int64_t next = begin + length;
      std::int64_t end = begin;
      for (std::int64_t t = begin; pass.nll && t < next; ++t)
        if (pass.micro.labels[static_cast<std::size_t>(t)] >= 0) end = t + 1;
      for (; row != pass.rows.end() && *row < next; ++row) end = *row + 1;
      if (end > begin) out.push_back({begin, end});
      begin = next;
    }
    FARSPAN_CHECK(begin == static_cast<std::int64_t>(pass.micro.tokens.size()),
                  "documents of {} tokens, and {} rows", begin, pass.micro.tokens.size());
    return out;
  }

  CachedModel cached_model(ForwardEngine& engine, std::int64_t tokens) const {
    return {on_rank(engine), {.tokens = tokens, .chunk = chunk_, .long_attention = attention_}};
  }

  static std::vector<float> nll_of(ForwardEngine& engine, const CachedModel::Pass& pass,
                                   std::span<const std::int32_t> labels) {
    auto scope = engine.scratch().scope();
    TokenTensors batch = pass.batch;
    batch.labels = engine.put(labels, "batch.labels");
    return nll_pass(engine.model(), batch, pass.ctx);
  }

  // A document of this length, with as many rows asked for as can be in one of its passes.
  void rehearse(ForwardEngine& engine, const Reserved& reserved) const {
    CachedModel cached = cached_model(engine, reserved.tokens);
    const std::vector<std::int32_t> zeros(static_cast<std::size_t>(reserved.tokens), 0);
    cached.extend(zeros, [&](const CachedModel::Pass& pass) {
      const auto tokens = static_cast<std::int64_t>(pass.order.size());
      if (reserved.rows == 0) {
        nll_of(engine, pass, std::span(zeros).first(pass.order.size()));
        return;
      }
      const std::vector<std::int64_t> rows(
          static_cast<std::size_t>(std::min(tokens, reserved.rows)), 0);
      logits_pass(
          engine.model(), pass.batch, rows, [](std::int64_t, std::span<const float>) {}, pass.ctx);
    });
  }

  // Calls compute(first, pass) for each pass over each document; `first`: the micro-batch's row of
  // the pass's first token.
  template <typename Compute>
  void over_documents(ForwardEngine& engine, const Pass& asked, Compute compute) const {
    for (const Part& part : parts_of(asked)) {
      const std::int64_t length = part.end - part.begin;
      CachedModel cached = cached_model(engine, length);
      cached.extend(
          std::span(asked.micro.tokens)
              .subspan(static_cast<std::size_t>(part.begin), static_cast<std::size_t>(length)),
          [&](const CachedModel::Pass& pass) {
            compute(part.begin + std::int64_t{pass.order.front()}, pass);
          });
    }
  }

  std::vector<float> nll_on(ForwardEngine& engine, const Pass& asked) const {
    const std::span<const std::int32_t> labels(asked.micro.labels);
    std::vector<float> out(labels.size(), std::numeric_limits<float>::quiet_NaN());
    over_documents(engine, asked, [&](std::int64_t first, const CachedModel::Pass& pass) {
      const std::vector<float> part =
          nll_of(engine, pass, labels.subspan(static_cast<std::size_t>(first), pass.order.size()));
      std::copy(part.begin(), part.end(), out.begin() + first);
    });
    return out;
  }

  void logits_on(ForwardEngine& engine, const Pass& asked, const TakeRowLogits& take) const {
    over_documents(engine, asked, [&](std::int64_t first, const CachedModel::Pass& pass) {
      const std::int64_t end = first + static_cast<std::int64_t>(pass.order.size());
      std::vector<std::int64_t> rows;
      for (const std::int64_t row : asked.rows)
        if (row >= first && row < end) rows.push_back(row - first);
      logits_pass(
          engine.model(), pass.batch, rows,
          [&](std::int64_t row, std::span<const float> logits) { take(first + row, logits); },
          pass.ctx);
    });
  }

  InferenceModel& model_;
  std::unique_ptr<ScoringModel> plain_;
  LongAttentionOptions attention_;
  std::int64_t chunk_;
  Reserved for_nll_, for_logits_;
};

}  // namespace

std::unique_ptr<ScoringModel> long_scoring_model(InferenceModel& model,
                                                 const LongAttentionOptions& attention,
                                                 std::int64_t chunk) {
  return std::make_unique<LongScoring>(model, attention, chunk);
}

}  // namespace farspan
