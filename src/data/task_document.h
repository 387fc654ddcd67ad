// A document that asks something whose answer stands in it, and the vocabulary that such documents
// are written in.
//
//   TaskDocument d = passkey_document(TaskVocabulary::bytes(), {.length = 1024}, draws);
//   d.tokens[d.answer.begin] is the first token that answers, predicted from all before it
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/draws.h"
#include "data/tokenizer.h"

namespace farspan {

// What is asked: data/retrieval_tasks.h, data/ruler_tasks.h.
enum class TaskKind {
  kPasskey,
  kKv,
  kMultiKey,
  kMultiValue,
  kMultiQuery,
  kVariables,
  kCommonWords,
  kFrequentWords
};

// Text of bytes, or, for models of integers, symbols 0 .. size - 3, a separator size - 2 and an end
// size - 1 (as `data synth` has them).
struct TaskVocabulary {
  bool text = true;
  std::int64_t size = 260;
  std::int32_t separator = '|';
  std::int32_t end = 257;

  static TaskVocabulary bytes();
  static TaskVocabulary integers(std::int64_t size);
  // Of a store's tokenizer. Throws Error(kUsage) for one that is neither `bytes` nor `none`, whose
  // words nothing here can write yet.
  static TaskVocabulary of(const TokenizerInfo& tokenizer);
};

struct TokenRange {
  std::int64_t begin = 0, end = 0;  // [begin, end)
  std::int64_t size() const { return end - begin; }
  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

struct TaskDocument {
  std::vector<std::int32_t> tokens;  // the end of the document included
  TokenRange answer;                 // the tokens to get right; the end is none of them
  std::vector<TokenRange> items;     // parts of the answer that count one by one; at least one
  std::int64_t needle = -1;          // first token of what the answer is found in; -1: everywhere
};

// What a document is to look like.
struct TaskShape {
  std::int64_t length = 1024;     // tokens, exactly
  std::optional<double> depth{};  // place of the needle, 0 (start of the text) to 1; else uniform
  std::int64_t distractors = 0;   // passkey: other keys in the text that are not asked for
};

void append_text(std::vector<std::int32_t>& out, std::string_view text);

// English sentences without content, as many bytes as asked for, ending with a whole sentence.
std::string task_filler(std::size_t bytes);

// Text to stand before the sentence of the filler that byte `place` of it falls in.
struct HiddenText {
  std::int64_t place = 0;
  std::string text;
};
struct Haystack {
  std::string text;
  std::vector<std::int64_t> begins;  // of each hidden text
};
// Where several are hidden in one place they stand in their order.
Haystack hide(std::string_view filler, std::span<const HiddenText> hidden);

// The place that a depth names among 0 .. last: the nearest; without a depth, uniform.
std::int64_t place_at(const std::optional<double>& depth, std::int64_t last, Draws& draws);

// Ends a document whose last `answer` tokens answer: one item.
void end_with_answer(TaskDocument& document, const TaskVocabulary& vocabulary, std::size_t answer);

// Throws Error(kUsage): a document of `length` tokens cannot be of this kind.
[[noreturn]] void refuse_length(std::string what, std::string fix);
void require_length(std::int64_t length, std::int64_t least);

}  // namespace farspan
