// Test data that needs no download: a pure function of (kind, seed, document number).
//
//   SinkReport r = synthesize({.kind = SynthKind::kPasskey, .tokens = 1 << 20, .length = 2048,
//                              .out = "data/passkey.h5"}, on_progress);
//
// passkey    English filler; a sentence with a five-digit key at a random depth; the question at
//            the end, answered. What a model that looks back far enough gets right.
// kv         lines `key: value` with random keys and values, then one key again; its value answers.
//            (Both: data/retrieval_tasks.h, also for what they look like as integers.)
// copy       random symbols, a separator, the same symbols again: an induction task.
// markov     a chain in which each symbol has four successors with chances 1/2, 1/4, 1/8, 1/8: no
//            model gets below 1.213 nats (1.75 bits) a token, and a good one gets there.
// documents  markov text in documents of very different lengths (length / 16 to length * 4, uniform
//            in the logarithm): exercises packing and document masks.
//
// The first three score the answer only (a `labels` column; the second half for copy), since the
// rest is noise that cannot be predicted; LabelMode::kAll scores everything. Documents end with
// the end-of-document token. With the vocabulary 260 ids are bytes (symbols a..z); with another,
// symbols are 0..V-3, the separator V-2, the end V-1.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "data/document_sink.h"

namespace farspan {

enum class SynthKind { kPasskey, kKv, kCopy, kMarkov, kDocuments };
enum class LabelMode { kAnswer, kAll };

// Throws Error(kUsage).
SynthKind parse_synth_kind(std::string_view text);

struct SynthOptions {
  SynthKind kind = SynthKind::kMarkov;
  std::int64_t tokens = std::int64_t{1} << 20;  // at least so many in all
  std::int64_t documents = 0;                   // 0: as many as `tokens` needs
  std::int64_t length = 1024;                   // tokens per document, the end included
  std::int64_t vocab_size = 260;
  std::uint64_t seed = 1;
  LabelMode labels = LabelMode::kAnswer;
  std::filesystem::path out;
  std::optional<Split> split{};
  bool overwrite = false;
};

struct SynthDocument {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> labels;  // aligned as in transformers; empty: all tokens scored
};

// Document number `index` of an endless series. Throws Error(kUsage) for impossible options (a
// length too short for the kind, a vocabulary that the kind cannot have).
SynthDocument make_synth_document(const SynthOptions& options, std::int64_t index);

// `on_progress(done, in all)`, in tokens or documents as asked for, is called from time to time.
SinkReport synthesize(const SynthOptions& options,
                      const std::function<void(std::int64_t, std::int64_t)>& on_progress = {});

}  // namespace farspan
