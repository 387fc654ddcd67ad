#include "train/scoring.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/agree.h"
#include "parallel/attention_cost.h"
#include "train/dry_run.h"
#include "train/scoring_pass.h"

namespace farspan {
namespace {

constexpr std::int64_t kTokensPerRank = 8192;  // of short rows: enough to keep matmuls busy

class LoadedScoring final : public ScoringModel {
 public:
  explicit LoadedScoring(InferenceModel& model) : model_(model) {}
  const config::RunConfig& config() const override { return model_.config(); }
  const Mesh& mesh() const override { return model_.mesh(); }
  Communicator& hosts() const override { return model_.world(); }
  std::int64_t pass_tokens() const override {
    return kTokensPerRank * model_.mesh().context_size();
  }
  void reserve(const Pass& pass) override {
    model_.reserve([&](ForwardEngine& engine) {
      if (pass.nll)
        nll_on(engine, pass);
      else
        logits_on(engine, pass, [](std::int64_t, std::span<const float>) {});
    });
  }
  std::vector<float> nll(const Pass& pass) override { return nll_on(model_.engine(), pass); }
  void logits(const Pass& pass, const TakeRowLogits& take) override {
    logits_on(model_.engine(), pass, take);
  }

 private:
  static std::vector<float> nll_on(ForwardEngine& engine, const Pass& pass) {
    auto scope = engine.scratch().scope();
    return nll_pass(engine.model(), engine.upload(pass.micro), engine.context(pass.micro));
  }
  static void logits_on(ForwardEngine& engine, const Pass& pass, const TakeRowLogits& take) {
    auto scope = engine.scratch().scope();
    logits_pass(engine.model(), engine.upload(pass.micro), pass.rows, take,
                engine.context(pass.micro));
  }

  InferenceModel& model_;
};

class LiveScoring final : public ScoringModel {
 public:
  explicit LiveScoring(const LiveModel& live)
      : live_(live), probe_(live.config, live.hosts.rank(), live.hosts.size(), live.sizes) {}
  const config::RunConfig& config() const override { return live_.config; }
  const Mesh& mesh() const override { return live_.mesh; }
  Communicator& hosts() const override { return live_.hosts; }
  std::int64_t pass_tokens() const override {
    return live_.config.train().micro_batch() * live_.config.train().sequence_length();
  }
  void reserve(const Pass& pass) override {
    live_.reserve(pass.nll ? probe_.score(pass.micro) : probe_.score(pass.micro, pass.rows));
  }
  std::vector<float> nll(const Pass& pass) override { return live_.engine.nll(pass.micro); }
  void logits(const Pass& pass, const TakeRowLogits& take) override {
    live_.engine.row_logits(pass.micro, pass.rows, take);
  }
  // Passes added to the sums of an evaluation that nobody asked for.
  void finish() override { live_.engine.read_evaluation(); }

 private:
  LiveModel live_;
  MemoryProbe probe_;
};

// One rank's part of a pass: its tokens, and where each comes from.
struct LocalPass {
  MicroBatch micro;
  std::vector<std::int32_t> index;      // of a local row: its token's place in the batch
  std::vector<std::int64_t> documents;  // lengths, of the batch

  ScoringModel::Pass nll() const {
    return {.micro = micro, .documents = documents, .rows = {}, .nll = true};
  }
  ScoringModel::Pass logits(std::span<const std::int64_t> rows) const {
    return {.micro = micro, .documents = documents, .rows = rows};
  }
};

// Of one data rank. No more than its share: the others' rows would be padding.
std::int64_t rows_per_pass(const ScoringModel& model, const ScoredRows& rows) {
  if (rows.one_by_one) return 1;
  const std::int64_t ranks = model.mesh().data_size();
  const std::int64_t share = (rows.count + ranks - 1) / ranks;
  return std::max<std::int64_t>(1, std::min(share, model.pass_tokens() / rows.length));
}

// The passes over all rows, one after the other.
class Passes {
 public:
  Passes(ScoringModel& model, const ScoredRows& rows)
      : model_(model),
        rows_(rows),
        per_pass_(rows_per_pass(model, rows)),
        sharder_(Sharding::from(model.config(), model.mesh().place())) {}

  std::int64_t count() const {
    const std::int64_t round = per_pass_ * model_.mesh().data_size();
    return (rows_.count + round - 1) / round;
  }
  // First row of this data rank's part.
  std::int64_t first_row(std::int64_t pass) const {
    return (pass * model_.mesh().data_size() + model_.mesh().data_rank()) * per_pass_;
  }
  LocalPass make(std::int64_t pass) {
    Batch batch = rows_.make(first_row(pass), per_pass_);
    LocalPass out{
        .micro = sharder_(batch), .index = {}, .documents = document_lengths(batch.segments)};
    reused_ = sharder_.reused();
    std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
    out.index = sharder_(batch).tokens;
    return out;
  }
  // Whether the last pass is laid out like the one before it.
  bool reused() const { return reused_; }

 private:
  ScoringModel& model_;
  const ScoredRows& rows_;
  std::int64_t per_pass_;
  Sharder sharder_;
  bool reused_ = false;
};

LabelScore look_at(std::span<const float> logits, std::int32_t label) {
  const auto best = std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float l : logits) sum += std::exp(double{l} - double{*best});
  return {.label = label,
          .best = static_cast<std::int32_t>(best - logits.begin()),
          .nll = std::log(sum) + double{*best} - double{logits[static_cast<std::size_t>(label)]}};
}

}  // namespace

std::unique_ptr<ScoringModel> scoring_model(InferenceModel& model) {
  return std::make_unique<LoadedScoring>(model);
}

std::unique_ptr<ScoringModel> scoring_model(const LiveModel& model) {
  return std::make_unique<LiveScoring>(model);
}

void score_nll(ScoringModel& model, const ScoredRows& rows,
               const std::function<void(std::int64_t, std::int64_t, double)>& visit) {
  Passes passes(model, rows);
  for (std::int64_t p = 0; p < passes.count(); ++p) {
    LocalPass local;
    together(model.hosts(), [&] {
      local = passes.make(p);
      model.check(local.nll());
      if (!passes.reused()) model.reserve(local.nll());
    });
    const std::vector<float> nll = model.nll(local.nll());
    for (std::size_t i = 0; i < nll.size(); ++i)
      if (local.micro.labels[i] >= 0)
        visit(passes.first_row(p) + local.index[i] / rows.length, local.index[i] % rows.length,
              double{nll[i]});
  }
  model.finish();
}

void score_labels(ScoringModel& model, const ScoredRows& rows,
                  const std::function<void(const LabelScore&)>& visit) {
  Passes passes(model, rows);
  std::size_t most = 0;
  for (std::int64_t p = 0; p < passes.count(); ++p) {
    LocalPass local;
    std::vector<std::int64_t> asked;
    together(model.hosts(), [&] {
      local = passes.make(p);
      for (std::size_t i = 0; i < local.micro.labels.size(); ++i)
        if (local.micro.labels[i] >= 0) asked.push_back(static_cast<std::int64_t>(i));
      model.check(local.logits(asked));
      if (!passes.reused() || asked.size() > most) model.reserve(local.logits(asked));
      most = std::max(most, asked.size());
    });
    model.logits(local.logits(asked), [&](std::int64_t row, std::span<const float> logits) {
      const auto i = static_cast<std::size_t>(row);
      LabelScore score = look_at(logits, local.micro.labels[i]);
      score.row = passes.first_row(p) + local.index[i] / rows.length;
      score.token = local.index[i] % rows.length;
      visit(score);
    });
  }
  model.finish();
}

void sum_over_ranks(ScoringModel& model, std::vector<double>& values) {
  if (model.hosts().size() == 1 || values.empty()) return;
  Stream stream;
  model.hosts()
      .all_reduce(host_tensor(values.data(), {static_cast<std::int64_t>(values.size())}),
                  ReduceOp::kSum, stream)
      .wait();
}

}  // namespace farspan
