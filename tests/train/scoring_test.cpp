#include "train/scoring.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "data/packing.h"
#include "data/synth.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"
#include "temporary_folder.h"
#include "train/perplexity.h"
#include "train/retrieval.h"

namespace farspan::testing {
namespace {

struct Mesh4 {
  int data = 1, context = 1;
  std::string attention = "ring", layout = "zigzag";
};

config::RunConfig config_of(const Mesh4& mesh) {
  config::RunConfig config = tiny_config();
  auto& parallel = *config.mutable_parallel();
  parallel.set_data(mesh.data);
  parallel.set_context(mesh.context);
  parallel.set_attention(mesh.attention);
  parallel.set_layout(mesh.layout);
  parallel.set_ulysses(mesh.attention == "ulysses" ? mesh.context : 1);
  config.mutable_train()->set_batch_tokens(config.train().sequence_length() * mesh.data);
  return config;
}

// Calls body on every rank with a model of random weights; keeps what rank `shown` gives.
template <typename T>
T on_ranks(const config::RunConfig& config, int shown,
           const std::function<T(ScoringModel&, Engine&)>& body) {
  T out{};
  run_local_ranks(static_cast<int>(config.parallel().data() * config.parallel().context()),
                  [&](Communicator& world) {
                    const auto backend = make_backend({.kind = DeviceKind::kCpu, .num_threads = 1});
                    const Mesh mesh = make_mesh(config, world);
                    Trace trace;
                    const ArenaSizes sizes = dry_run(config, world.rank(), world.size()).sizes;
                    Engine engine(config, *backend, mesh, sizes, trace);
                    engine.initialize();
                    const auto model = scoring_model(
                        LiveModel{.config = config,
                                  .engine = engine,
                                  .mesh = mesh,
                                  .hosts = world,
                                  .sizes = sizes,
                                  .reserve = [&](const PassMemory& m) { engine.reserve(m); }});
                    T result = body(*model, engine);
                    if (world.rank() == shown) out = std::move(result);
                  });
  return out;
}

const std::vector<Mesh4>& meshes() {
  static const std::vector<Mesh4> kMeshes = {
      {}, {1, 4}, {4, 1}, {2, 2}, {1, 2, "ulysses", "contiguous"}, {1, 3, "allgather", "striped"}};
  return kMeshes;
}

TEST(Scoring, LabelsScoreAsInAPassOfTheirOwn) {
  const config::RunConfig config = config_of({});
  const Batch batch = random_batch(5, 3, 31, 40, 12);
  const ScoredRows rows{.count = 3, .length = 31, .make = [&](std::int64_t first, std::int64_t n) {
                          Batch out = empty_batch(n, 31);
                          for (std::int64_t t = 0; t < n * 31; ++t) {
                            const auto to = static_cast<std::size_t>(t);
                            const auto from = static_cast<std::size_t>(first * 31 + t);
                            out.tokens[to] = batch.tokens[from];
                            out.labels[to] = batch.labels[from];
                            out.positions[to] = batch.positions[from];
                            out.segments[to] = batch.segments[from];
                          }
                          return out;
                        }};
  on_ranks<int>(config, 0, [&](ScoringModel& model, Engine& engine) {
    std::map<std::pair<std::int64_t, std::int64_t>, double> nll;
    score_nll(model, rows, [&](std::int64_t row, std::int64_t token, double value) {
      nll[{row, token}] = value;
    });
    std::size_t labels = 0, hits = 0;
    score_labels(model, rows, [&](const LabelScore& score) {
      ++labels;
      hits += score.hit() ? 1 : 0;
      const auto at = static_cast<std::size_t>(score.row * 31 + score.token);
      EXPECT_EQ(score.label, batch.labels[at]);
      EXPECT_NEAR(score.nll, nll.at({score.row, score.token}), 1e-5);
      EXPECT_GE(score.nll, score.hit() ? 0 : 1e-9);
    });
    EXPECT_EQ(labels, nll.size());
    EXPECT_LT(hits, labels);
    // The same sum as an evaluation's.
    for (std::int64_t row = 0; row < 3; ++row)
      engine.evaluate(shard(rows.make(row, 1), Sharding::from(config, {})));
    const EvalResult all = engine.read_evaluation();
    double sum = 0;
    for (const auto& [_, value] : nll) sum += value;
    EXPECT_EQ(static_cast<double>(nll.size()), all.valid_tokens);
    EXPECT_NEAR(sum, all.loss_sum, 1e-4);
    return 0;
  });
}

// Passes on to a model, and counts labels and the rows of each pass.
class Counted final : public ScoringModel {
 public:
  Counted(ScoringModel& model, std::int64_t length) : model_(model), length_(length) {}
  const config::RunConfig& config() const override { return model_.config(); }
  const Mesh& mesh() const override { return model_.mesh(); }
  Communicator& hosts() const override { return model_.hosts(); }
  std::int64_t pass_tokens() const override { return model_.pass_tokens(); }
  void reserve(const Pass& pass) override { model_.reserve(pass); }
  void finish() override { model_.finish(); }
  std::vector<float> nll(const Pass& pass) override {
    const std::vector<std::int32_t>& labels = pass.micro.labels;
    rows.push_back(std::ssize(labels) / length_);
    scored += std::count_if(labels.begin(), labels.end(), [](auto l) { return l >= 0; });
    return model_.nll(pass);
  }
  void logits(const Pass& pass, const TakeRowLogits& take) override { model_.logits(pass, take); }

  std::vector<std::int64_t> rows;  // of each pass
  std::int64_t scored = 0;

 private:
  ScoringModel& model_;
  std::int64_t length_;
};

TEST(Scoring, FewRowsAreSharedOutOverDataRanks) {
  constexpr std::int64_t kLength = 12;  // four rows are a pass
  struct Case {
    std::int64_t count;
    bool one_by_one;
    std::int64_t of_pass;
    std::array<std::int64_t, 4> scored;  // rows, by rank
  };
  for (const Case& c : {Case{2, false, 1, {1, 1, 0, 0}}, Case{6, false, 2, {2, 2, 2, 0}},
                        Case{40, false, 4, {12, 12, 8, 8}}, Case{6, true, 1, {2, 2, 1, 1}}}) {
    const ScoredRows rows{.count = c.count,
                          .length = kLength,
                          .make =
                              [&](std::int64_t first, std::int64_t n) {
                                Batch out = empty_batch(n, kLength);
                                std::fill(out.labels.begin(), out.labels.end(), -100);
                                for (std::int64_t i = 0; i < n && first + i < c.count; ++i)
                                  out.labels[static_cast<std::size_t>(i * kLength)] = 1;
                                return out;
                              },
                          .one_by_one = c.one_by_one};
    on_ranks<int>(config_of({.data = 4}), 0, [&](ScoringModel& model, Engine&) {
      const int rank = model.hosts().rank();
      Counted counted(model, kLength);
      score_nll(counted, rows, [](std::int64_t, std::int64_t, double) {});
      for (const std::int64_t n : counted.rows) EXPECT_EQ(n, c.of_pass);
      EXPECT_EQ(counted.scored, c.scored[static_cast<std::size_t>(rank)])
          << c.count << " rows, rank " << rank;
      return 0;
    });
  }
}

TEST(Scoring, RetrievalIsTheSameOnAnyRanks) {
  TaskGrid grid{.task = TaskKind::kPasskey,
                .lengths = {20, 67},  // below and beyond train.sequence_length
                .depths = 3,
                .samples = 2,
                .vocabulary = TaskVocabulary::integers(40)};
  for (const TaskKind task : {TaskKind::kPasskey, TaskKind::kKv}) {
    grid.task = task;
    RetrievalResult one;
    for (const Mesh4& mesh : meshes()) {
      const int last = mesh.data * mesh.context - 1;
      const auto result = on_ranks<RetrievalResult>(
          config_of(mesh), last,
          [&](ScoringModel& model, Engine&) { return score_retrieval(model, grid); });
      if (one.cells.empty()) one = result;
      ASSERT_EQ(result.cells.size(), 6u);
      for (std::size_t i = 0; i < result.cells.size(); ++i) {
        SCOPED_TRACE(fmt::format("{} x {}, cell {}", mesh.data, mesh.context, i));
        EXPECT_EQ(result.cells[i].documents, 2);
        EXPECT_EQ(result.cells[i].right, one.cells[i].right);
        EXPECT_EQ(result.cells[i].tokens_right, one.cells[i].tokens_right);
        EXPECT_NEAR(result.cells[i].nll(), one.cells[i].nll(), 2e-5);
      }
      EXPECT_EQ(result.of_length(1).documents, 6);
      EXPECT_LT(result.of_length(1).accuracy(), 0.5) << "weights are random";
    }
  }
}

// Gives each label a logit of 1 and the rest 0, or for documents that it does not know nothing but
// zeros: of equals the lowest id counts, which no answer is.
class Oracle final : public ScoringModel {
 public:
  explicit Oracle(std::function<bool(std::int64_t)> knows)
      : config_(config_of({})),
        world_(make_self_communicator()),
        mesh_(*world_, 1, 1),
        knows_(std::move(knows)) {}
  const config::RunConfig& config() const override { return config_; }
  const Mesh& mesh() const override { return mesh_; }
  Communicator& hosts() const override { return *world_; }
  std::int64_t pass_tokens() const override { return 3 * 48; }
  void reserve(const Pass&) override {}
  std::vector<float> nll(const Pass&) override { return {}; }
  void logits(const Pass& pass, const TakeRowLogits& take) override {
    for (const std::int64_t row : pass.rows) {
      std::vector<float> out(40, 0.0f);
      const std::int32_t label = pass.micro.labels[static_cast<std::size_t>(row)];
      if (pass.micro.positions[static_cast<std::size_t>(row)] == 47 - 6) ++document_;
      if (knows_(document_)) out[static_cast<std::size_t>(label)] = 1;
      take(row, out);
    }
  }

 private:
  config::RunConfig config_;
  std::unique_ptr<Communicator> world_;
  Mesh mesh_;
  std::function<bool(std::int64_t)> knows_;
  std::int64_t document_ = -1;
};

TEST(Scoring, CountsWhatAModelKnows) {
  const TaskGrid grid{.task = TaskKind::kPasskey,
                      .lengths = {48},
                      .depths = 4,
                      .samples = 5,
                      .vocabulary = TaskVocabulary::integers(40)};
  Oracle first_depths([](std::int64_t document) { return document < 7; });
  const RetrievalResult r = score_retrieval(first_depths, grid);
  for (const auto& [depth, right] : {std::pair{0, 5}, {1, 2}, {2, 0}, {3, 0}}) {
    EXPECT_EQ(r.cell(0, depth).right, right) << depth;
    EXPECT_EQ(r.cell(0, depth).tokens_right, 5 * right);
    EXPECT_EQ(r.cell(0, depth).tokens, 25);
  }
  const double known = std::log(std::exp(1.0) + 39) - 1, unknown = std::log(40.0);
  EXPECT_NEAR(r.cell(0, 1).nll_sum, 10 * known + 15 * unknown, 1e-5);
  Oracle all([](std::int64_t) { return true; });
  EXPECT_EQ(passkey_accuracy(all, grid.vocabulary, 48, 4, 5, 1), 1.0);
}

// A window's context by a count from the front.
std::int64_t context_by_hand(const TokenStore& store, const Windows& w, std::int64_t target) {
  const std::int64_t number = (target - w.first) / w.stride;
  const std::int64_t end = w.first - 1 + (number + 1) * w.stride;
  std::int64_t begin = std::max<std::int64_t>(0, end - w.length);
  for (const std::uint64_t offset : store.doc_offsets())
    if (static_cast<std::int64_t>(offset) <= target - 1)
      begin = std::max(begin, static_cast<std::int64_t>(offset));
  return target - begin;
}

TEST(Scoring, WindowsScoreEachTokenOnceWithTheContextTheySay) {
  TemporaryFolder folder;
  synthesize({.kind = SynthKind::kDocuments,
              .tokens = 400,
              .length = 60,
              .vocab_size = 40,
              .out = folder / "text.h5"});
  const auto store = std::make_shared<const TokenStore>(folder / "text.h5");
  for (const Documents documents : {Documents::kMasked, Documents::kJoined}) {
    const bool joined = documents == Documents::kJoined;
    const EvaluationReader reader(store, {.documents = documents, .reset_positions = !joined}, 40);
    for (const Windows& w : {Windows{.length = 48, .stride = 48, .first = 1, .tokens = 150},
                             Windows{.length = 24, .stride = 7, .first = 1, .tokens = 150},
                             Windows{.length = 24, .stride = 7, .first = 18, .tokens = 130}}) {
      WindowScores one;
      for (const Mesh4& mesh : meshes()) {
        const auto scores = on_ranks<WindowScores>(
            config_of(mesh), mesh.data * mesh.context - 1,
            [&](ScoringModel& model, Engine&) { return score_windows(model, reader, w); });
        if (one.nll.empty()) one = scores;
        ASSERT_EQ(static_cast<std::int64_t>(scores.nll.size()), w.tokens);
        for (std::int64_t i = 0; i < w.tokens; ++i) {
          const auto at = static_cast<std::size_t>(i);
          const auto offsets = store->doc_offsets();
          const bool begins = std::count(offsets.begin(), offsets.end(),
                                         static_cast<std::uint64_t>(w.first + i)) > 0;
          ASSERT_EQ(std::isnan(scores.nll[at]), begins && !joined) << i;
          if (std::isnan(scores.nll[at])) continue;
          EXPECT_NEAR(scores.nll[at], one.nll[at], 2e-5);
          if (!joined) {
            EXPECT_EQ(scores.context[at], context_by_hand(*store, w, w.first + i)) << i;
          }
        }
      }
      std::int64_t bucketed = 0;
      double sum = 0;
      for (const ContextBucket& b : by_context(one)) bucketed += b.tokens, sum += b.nll_sum;
      EXPECT_EQ(bucketed, one.scored());
      EXPECT_NEAR(sum / static_cast<double>(bucketed), one.mean(), 1e-9);
    }
  }
}

TEST(Scoring, SpanOfComparableLengths) {
  TemporaryFolder folder;
  synthesize({.kind = SynthKind::kMarkov,
              .tokens = 300,
              .length = 300,
              .vocab_size = 40,
              .out = folder / "text.h5"});
  const EvaluationReader reader(std::make_shared<const TokenStore>(folder / "text.h5"), {}, 40);
  const std::vector<std::int64_t> lengths = {32, 128};
  EXPECT_EQ(scored_span(reader, lengths, 0, 0).first, 1);
  EXPECT_EQ(scored_span(reader, lengths, 0, 0).tokens, 299);
  // Whole windows of the longest, never a part of one.
  EXPECT_EQ(scored_span(reader, lengths, 0, 1).tokens, 128);
  EXPECT_EQ(scored_span(reader, lengths, 0, 128).tokens, 128);
  EXPECT_EQ(scored_span(reader, lengths, 0, 129).tokens, 256);
  EXPECT_EQ(scored_span(reader, lengths, 0, 290).tokens, 256);
  EXPECT_EQ(scored_span(reader, lengths, 16, 100).first, 113);
  EXPECT_EQ(scored_span(reader, lengths, 16, 100).tokens, 100);
  EXPECT_EQ(scored_span(reader, lengths, 16, 500).tokens, 187);
  EXPECT_THROW(scored_span(reader, std::vector<std::int64_t>{300}, 0, 0), Error);
}

TEST(Scoring, LongPerplexityByHand) {
  const double nan = std::nan("");
  // l = -nll with the long context, s with the short one.
  WindowScores with_long{.windows = {}, .nll = {0.5, 0.5, 2.5, nan, 1.0, 1.9}, .context = {}};
  WindowScores with_short{.windows = {}, .nll = {2.6, 2.4, 9.0, 5.0, 3.5, 4.0}, .context = {}};
  // l - s: 2.1 key, 1.9 not, 6.5 but l = -2.5 < -2, not scored, 2.5 key, 2.1 key.
  const LongPerplexity r = long_perplexity(with_long, with_short);
  EXPECT_EQ(r.tokens, 5);
  EXPECT_EQ(r.key_tokens, 3);
  EXPECT_NEAR(r.key_nll, (0.5 + 1.0 + 1.9) / 3, 1e-12);
  EXPECT_NEAR(r.long_perplexity(), std::exp(3.4 / 3), 1e-12);
  EXPECT_NEAR(r.all_nll, (0.5 + 0.5 + 2.5 + 1.0 + 1.9) / 5, 1e-12);
  EXPECT_TRUE(std::isnan(long_perplexity(with_long, with_long).long_perplexity()));
}

}  // namespace
}  // namespace farspan::testing
