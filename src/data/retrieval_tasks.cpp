#include "data/retrieval_tasks.h"

#include <algorithm>
#include <array>
#include <string>

#include "core/error.h"
#include "data/permutation.h"

namespace farspan {
namespace {

constexpr int kKeyDigits = 5;
constexpr std::string_view kQuestion = "What is the pass key? The pass key is ";

std::string passkey_fact(std::string_view key) {
  return fmt::format("The pass key is {}. Remember it. ", key);
}

std::string distractor(std::int64_t number, std::string_view key) {
  constexpr std::array<std::string_view, 8> kThings = {"door", "bank", "mail", "gate",
                                                       "safe", "desk", "ship", "barn"};
  return fmt::format("The {} key is {}. Forget it. ",
                     kThings[static_cast<std::size_t>(number) % kThings.size()], key);
}

TaskDocument text_passkey(const TaskVocabulary& vocabulary, const TaskShape& shape, Draws& draws) {
  const std::string key = draws.digits(kKeyDigits);
  const std::int64_t filler = shape.length - least_passkey_length(vocabulary, shape.distractors);
  std::vector<HiddenText> hidden = {
      {.place = place_at(shape.depth, filler, draws), .text = passkey_fact(key)}};
  for (std::int64_t i = 0; i < shape.distractors; ++i) {
    const std::string other = draws.digits(kKeyDigits);
    hidden.push_back({.place = draws.below(filler + 1), .text = distractor(i, other)});
  }
  const Haystack haystack = hide(task_filler(static_cast<std::size_t>(filler)), hidden);
  TaskDocument out;
  out.needle = haystack.begins.front();
  append_text(out.tokens, haystack.text);
  append_text(out.tokens, kQuestion);
  append_text(out.tokens, key);
  end_with_answer(out, vocabulary, key.size());
  return out;
}

// Which symbols keys are made of, and which filler.
struct Symbols {
  std::int32_t filler, key;  // numbers of symbols: filler first, then keys
  explicit Symbols(const TaskVocabulary& vocabulary) {
    const auto all = static_cast<std::int32_t>(vocabulary.size - 2);
    key = std::min(all / 2, 10);
    filler = all - key;
  }
};

TaskDocument integer_passkey(const TaskVocabulary& vocabulary, const TaskShape& shape,
                             Draws& draws) {
  const Symbols symbols(vocabulary);
  const auto key = [&] {
    std::vector<std::int32_t> out;
    for (int i = 0; i < kKeyDigits; ++i)
      out.push_back(symbols.filler + static_cast<std::int32_t>(draws.below(symbols.key)));
    return out;
  };
  const std::vector<std::int32_t> asked = key();
  const auto filler = shape.length - least_passkey_length(vocabulary, shape.distractors);
  TaskDocument out;
  const std::int64_t place = place_at(shape.depth, filler, draws);
  for (std::int64_t i = 0; i <= filler; ++i) {
    if (i == place) {
      out.needle = i;
      out.tokens.push_back(vocabulary.separator);
      out.tokens.insert(out.tokens.end(), asked.begin(), asked.end());
    }
    if (i < filler) out.tokens.push_back(static_cast<std::int32_t>(draws.below(symbols.filler)));
  }
  out.tokens.push_back(vocabulary.separator);
  out.tokens.insert(out.tokens.end(), asked.begin(), asked.end());
  end_with_answer(out, vocabulary, asked.size());
  return out;
}

constexpr std::int64_t kLine = 11;           // "abcd: 1234\n"
constexpr std::int64_t kQuery = 12;          // "? abcd: 1234"
constexpr std::int64_t kTextKeys = 456976;   // 26^4
constexpr std::int64_t kPair = 4, kAsk = 5;  // of integers: k k v v, and | k k v v

[[noreturn]] void refuse_pairs(std::int64_t most) {
  refuse_length("there are not so many different keys", fmt::format("give at most {}", most));
}

TaskDocument text_kv(const TaskVocabulary& vocabulary, const TaskShape& shape, Draws& draws,
                     std::uint64_t seed, std::uint64_t stream) {
  const std::int64_t pairs = (shape.length - kQuery - 1) / kLine;
  if (pairs > kTextKeys) refuse_pairs(kTextKeys * kLine + kQuery + 1);
  const Permutation keys(kTextKeys, seed, stream);
  const std::int64_t asked = place_at(shape.depth, pairs - 1, draws);
  std::string text(static_cast<std::size_t>(shape.length - kQuery - 1 - pairs * kLine), '\n');
  std::string query, answer;
  TaskDocument out;
  for (std::int64_t i = 0; i < pairs; ++i) {
    std::string key(4, 'a');
    std::uint64_t number = keys(static_cast<std::uint64_t>(i));
    for (char& c : key) c = static_cast<char>('a' + number % 26), number /= 26;
    const std::string value = draws.digits(4);
    if (i == asked) {
      out.needle = static_cast<std::int64_t>(text.size());
      query = fmt::format("? {}: ", key);
      answer = value;
    }
    text += fmt::format("{}: {}\n", key, value);
  }
  append_text(out.tokens, text + query + answer);
  end_with_answer(out, vocabulary, answer.size());
  return out;
}

TaskDocument integer_kv(const TaskVocabulary& vocabulary, const TaskShape& shape, Draws& draws,
                        std::uint64_t seed, std::uint64_t stream) {
  const std::int64_t symbols = vocabulary.size - 2;
  const std::int64_t most = symbols < 4096 ? symbols * symbols : std::int64_t{4096} * 4096;
  const std::int64_t pairs = (shape.length - kAsk - 1) / kPair;
  if (pairs > most) refuse_pairs(most * kPair + kAsk + 1);
  const Permutation keys(static_cast<std::uint64_t>(most), seed, stream);
  const auto base = static_cast<std::uint64_t>(std::min<std::int64_t>(symbols, 4096));
  const std::int64_t asked = place_at(shape.depth, pairs - 1, draws);
  TaskDocument out;
  out.tokens.assign(static_cast<std::size_t>(shape.length - kAsk - 1 - pairs * kPair),
                    vocabulary.separator);
  std::array<std::int32_t, 4> chosen{};
  for (std::int64_t i = 0; i < pairs; ++i) {
    const std::uint64_t number = keys(static_cast<std::uint64_t>(i));
    const std::array<std::int32_t, 4> pair = {static_cast<std::int32_t>(number % base),
                                              static_cast<std::int32_t>(number / base),
                                              static_cast<std::int32_t>(draws.below(symbols)),
                                              static_cast<std::int32_t>(draws.below(symbols))};
    if (i == asked) {
      out.needle = static_cast<std::int64_t>(out.tokens.size());
      chosen = pair;
    }
    out.tokens.insert(out.tokens.end(), pair.begin(), pair.end());
  }
  out.tokens.push_back(vocabulary.separator);
  out.tokens.insert(out.tokens.end(), chosen.begin(), chosen.end());
  end_with_answer(out, vocabulary, 2);
  return out;
}

}  // namespace

std::int64_t least_passkey_length(const TaskVocabulary& vocabulary, std::int64_t distractors) {
  if (!vocabulary.text) return 2 * (1 + kKeyDigits) + 1;
  const std::string key(kKeyDigits, '0');
  std::size_t bytes = passkey_fact(key).size() + kQuestion.size() + key.size();
  for (std::int64_t i = 0; i < distractors; ++i) bytes += distractor(i, key).size();
  return static_cast<std::int64_t>(bytes) + 1;
}

std::int64_t least_kv_length(const TaskVocabulary& vocabulary) {
  return vocabulary.text ? kLine + kQuery + 1 : kPair + kAsk + 1;
}

TaskDocument passkey_document(const TaskVocabulary& vocabulary, const TaskShape& shape,
                              Draws& draws) {
  require_length(shape.length, least_passkey_length(vocabulary, shape.distractors));
  if (vocabulary.text) return text_passkey(vocabulary, shape, draws);
  if (shape.distractors > 0)
    throw Error(ExitCode::kUsage, {.what = "passkeys of integers have no distractors",
                                   .where = "--distractors",
                                   .fix = "leave it out, or use a model of bytes"});
  return integer_passkey(vocabulary, shape, draws);
}

TaskDocument kv_document(const TaskVocabulary& vocabulary, const TaskShape& shape, Draws& draws,
                         std::uint64_t seed, std::uint64_t keys) {
  require_length(shape.length, least_kv_length(vocabulary));
  return vocabulary.text ? text_kv(vocabulary, shape, draws, seed, keys)
                         : integer_kv(vocabulary, shape, draws, seed, keys);
}

}  // namespace farspan
