#include "data/task_document.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace farspan {

TaskVocabulary TaskVocabulary::bytes() {
  const TokenizerInfo info = byte_tokenizer_info();
  return {.text = true, .size = info.vocab_size, .separator = '|', .end = info.eos};
}

TaskVocabulary TaskVocabulary::integers(std::int64_t size) {
  const auto v = static_cast<std::int32_t>(size);
  return {.text = false, .size = size, .separator = v - 2, .end = v - 1};
}

TaskVocabulary TaskVocabulary::of(const TokenizerInfo& tokenizer) {
  if (tokenizer.name == "bytes") return bytes();
  if (tokenizer.name == "none" && tokenizer.vocab_size >= 6) return integers(tokenizer.vocab_size);
  if (tokenizer.name == "none")
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("a vocabulary of {} is too small for a retrieval task",
                                     tokenizer.vocab_size),
                 .where = "the model's tokenizer",
                 .fix = "use a model with at least 6 token ids: four symbols, a separator and an "
                        "end"});
  throw Error(ExitCode::kUsage,
              {.what = fmt::format("retrieval tasks cannot be written for the tokenizer `{}` yet",
                                   tokenizer.name),
               .where = "the model's tokenizer",
               .fix = "use a model of bytes (--tokenizer bytes) or of integers (data synth)"});
}

void append_text(std::vector<std::int32_t>& out, std::string_view text) {
  for (const char c : text) out.push_back(static_cast<std::uint8_t>(c));
}

std::string task_filler(std::size_t bytes) {
  constexpr std::string_view kFiller =
      "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
  std::string text;
  while (text.size() < bytes) text += kFiller;
  text.erase(0, text.size() - bytes);
  return text;
}

Haystack hide(std::string_view filler, std::span<const HiddenText> hidden) {
  std::vector<std::size_t> borders;
  for (const HiddenText& h : hidden) {
    const auto end = filler.rfind(". ", static_cast<std::size_t>(h.place));
    borders.push_back(end == std::string_view::npos ? 0 : end + 2);
  }
  std::vector<std::size_t> order(hidden.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return borders[a] < borders[b]; });
  Haystack out;
  out.begins.resize(hidden.size());
  std::size_t at = 0;
  for (const std::size_t i : order) {
    out.text += filler.substr(at, borders[i] - at);
    at = borders[i];
    out.begins[i] = static_cast<std::int64_t>(out.text.size());
    out.text += hidden[i].text;
  }
  out.text += filler.substr(at);
  return out;
}

std::int64_t place_at(const std::optional<double>& depth, std::int64_t last, Draws& draws) {
  if (!depth) return draws.below(last + 1);
  FARSPAN_CHECK(*depth >= 0 && *depth <= 1, "depth {}", *depth);
  return std::llround(*depth * static_cast<double>(last));
}

void end_with_answer(TaskDocument& document, const TaskVocabulary& vocabulary, std::size_t answer) {
  const auto end = static_cast<std::int64_t>(document.tokens.size());
  document.answer = {end - static_cast<std::int64_t>(answer), end};
  document.items = {document.answer};
  document.tokens.push_back(vocabulary.end);
}

void refuse_length(std::string what, std::string fix) {
  throw Error(ExitCode::kUsage,
              {.what = std::move(what), .where = "length of a document", .fix = std::move(fix)});
}

void require_length(std::int64_t length, std::int64_t least) {
  if (length < least)
    refuse_length(fmt::format("{} tokens are too few for this kind", length),
                  fmt::format("give at least {}", least));
}

}  // namespace farspan
