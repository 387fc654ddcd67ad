// The stateless loader: sample i is a pure function of (seed, stage table, i) and nothing else, so
// the sequence of samples is the same under any number of ranks and after any resume.
//
//   SampleReader reader({{store, 1.0}}, {.seed = 1, .vocab_size = 260});
//   StageStart stage = reader.first_stage();
//   Batch b = reader.make_batch(first_sample, 4, 2048, stage);     // rows first_sample .. +3
//   stage = reader.next_stage(stage, samples_drawn, 2048);         // another length from here on
//   stage.weights = {0.0, 1.0};                                    // and another mixture
//
// Each source is an endless token stream: epoch 0 of its documents in an order drawn from (seed,
// source, 0), then epoch 1 in its own order, and so on. `concat` packing cuts this stream into
// windows: the n-th sample that a source gives in a stage covers S tokens from (the stage's start
// offset + n * S), so every token of an epoch is seen exactly once, also when S changes between
// stages. Weights decide which source a sample comes from (data/mixture.h). With a source window of
// W > S tokens a sample covers W, of which all but S are skipped (data/source_window.h).
//
// Not thread-safe (it caches the order of recent epochs): one reader per thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "data/batch.h"
#include "data/mixture.h"
#include "data/packing.h"
#include "data/token_store.h"

namespace farspan {

struct WeightedStore {
  std::shared_ptr<const TokenStore> store;
  double weight = 1.0;  // share of samples, relative, > 0
};

struct SampleOptions {
  std::uint64_t seed = 1;
  PackingOptions packing{};     // documents masked or joined, positions
  std::int64_t vocab_size = 0;  // of the model; 0: not checked
};

// Where a stage of the curriculum begins, and what it reads differently.
struct StageStart {
  std::int64_t first_sample = 0;              // global number of its first sample
  std::vector<std::int64_t> source_tokens{};  // per source, stream tokens consumed before it
  std::vector<double> weights{};              // per source, >= 0; empty: the sources' own
  std::optional<PackingOptions> packing{};    // instead of the reader's
};

class SampleReader {
 public:
  // Throws Error(kBadData) when a store's vocabulary exceeds the model's.
  SampleReader(std::vector<WeightedStore> sources, SampleOptions options);
  ~SampleReader();
  SampleReader(SampleReader&&) noexcept;
  SampleReader& operator=(SampleReader&&) noexcept;

  StageStart first_stage() const;
  // The stage that follows `samples` samples of `sequence_length` tokens of `stage`, with weights
  // and packing of the reader.
  StageStart next_stage(const StageStart& stage, std::int64_t samples,
                        std::int64_t sequence_length) const;

  // Rows `first_sample` .. `first_sample + count - 1` (global numbers, >= stage.first_sample).
  // Throws Error(kBadData) when a store turns out damaged.
  Batch make_batch(std::int64_t first_sample, std::int64_t count, std::int64_t sequence_length,
                   const StageStart& stage);

  // Tokens of the stream that a sample of `sequence_length` tokens covers in a stage; those beyond
  // it are skipped.
  std::int64_t stream_tokens(std::int64_t sequence_length, const StageStart& stage) const;

  const std::vector<WeightedStore>& sources() const { return sources_; }
  std::int64_t epoch_tokens(std::size_t source) const;  // tokens of one epoch
  // data_fingerprint of the first `count` sources, or of all.
  std::string fingerprint(std::size_t count) const;
  std::string fingerprint() const { return fingerprint(sources_.size()); }

 private:
  struct Stream;
  // Of the stage, or of the sources.
  Mixture mixture_of(const StageStart& stage) const;

  std::vector<WeightedStore> sources_;
  SampleOptions options_;
  Mixture mixture_;
  std::vector<Stream> streams_;
};

// Held-out text in stored order, without shuffling or repetition: every token is seen once and
// every target scored once. The last window is padded (label -100, a segment of its own).
class EvaluationReader {
 public:
  EvaluationReader(std::shared_ptr<const TokenStore> store, PackingOptions packing,
                   std::int64_t vocab_size);

  // Windows that cover the first `token_limit` tokens (0: all).
  std::int64_t num_samples(std::int64_t sequence_length, std::int64_t token_limit) const;
  // Rows first_sample .. first_sample + count - 1; rows past the end hold padding only, so that
  // ranks with nothing left can still take part.
  Batch make_batch(std::int64_t first_sample, std::int64_t count, std::int64_t sequence_length,
                   std::int64_t token_limit) const;

  // Windows of any place: tokens [begin, end) of the store, of which those from `scored` on have
  // their label. One row each; begin = end: padding only.
  struct Window {
    std::int64_t begin = 0, end = 0, scored = 0;
  };
  Batch make_windows(std::span<const Window> windows, std::int64_t sequence_length) const;
  // Tokens from `begin` to `token`, both included, that lie in the token's document; all of them
  // where documents are joined.
  std::int64_t context_within(std::int64_t begin, std::int64_t token) const;

  const TokenStore& store() const { return *store_; }
  const PackingOptions& packing() const { return packing_; }

 private:
  // The documents' parts of tokens [begin, end).
  std::vector<Piece> pieces(std::int64_t begin, std::int64_t end) const;

  std::shared_ptr<const TokenStore> store_;
  PackingOptions packing_;
};

// The global number of the first sample of one rank group's micro-batch. A step's samples are
// numbered by (accumulation, data rank, row): the same set whatever the mesh.
struct BatchPlace {
  std::int64_t step_first_sample = 0;  // stage.first_sample + steps done in the stage * batch
  std::int64_t accumulation = 0;       // which micro-batch of the step
  std::int64_t data_rank = 0;
  std::int64_t data_ranks = 1;
  std::int64_t micro_batch = 1;  // sequences
};
constexpr std::int64_t first_sample_of(const BatchPlace& p) {
  return p.step_first_sample + (p.accumulation * p.data_ranks + p.data_rank) * p.micro_batch;
}

}  // namespace farspan
