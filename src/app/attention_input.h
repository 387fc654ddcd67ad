// What `farspan inspect attention` is asked about, from a configuration or from options alone. Both
// become a resolved configuration, so that the rules of what goes together are validate()'s.
//
//   AttentionQuestion q = read_question({.sequence_length = "1M", .ranks = "32"});
//   AttentionSummary s = summarize(q.problem);
//
// Throws Error(kUsage) for options and lengths that cannot be, kBadData for damaged token stores.
#pragma once

#include <string>
#include <vector>

#include "parallel/attention_cost.h"

namespace farspan::app {

// As typed; empty: not given.
struct AttentionOptions {
  std::string config{};
  std::vector<std::string> overrides{};
  std::string sequence_length{}, doc_lengths{}, window{}, sinks{};
  std::string ranks{}, layout{}, attention{}, ulysses{};
  std::string heads{}, kv_heads{}, head_dim{}, dtype{}, device{};
  std::string bandwidth{}, flops{};  // GB/s, TFLOP/s
  bool non_causal = false;
};

struct AttentionQuestion {
  AttentionCase problem{};
  AttentionSpeeds speeds{};
  bool choose_layout = false, choose_attention = false, choose_ulysses = false;  // auto
  std::vector<std::string> assumed{};  // what was not given, for people
  std::vector<std::string> notes{};    // what was done with what was given
};

AttentionQuestion read_question(const AttentionOptions& options);

// Document lengths, one integer a line; blank lines and lines that begin with # are skipped. Cut or
// repeated to fill `length` tokens; what was done is appended to `notes`.
std::vector<std::int64_t> read_document_lengths(const std::string& path, std::int64_t length,
                                                std::vector<std::string>& notes);

}  // namespace farspan::app
