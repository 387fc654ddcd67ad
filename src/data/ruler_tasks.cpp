#include "data/ruler_tasks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string>

#include "core/error.h"

namespace farspan {
namespace {

constexpr int kNeedles = 4;
constexpr int kValueDigits = 7;

// Words that can be said: consonant and vowel, three times.
std::string new_word(std::set<std::string>& taken, Draws& draws) {
  constexpr std::string_view kConsonants = "bdfgklmnprstvz", kVowels = "aeiou";
  const auto one_of = [&](std::string_view letters) {
    return letters[static_cast<std::size_t>(
        draws.below(static_cast<std::int64_t>(letters.size())))];
  };
  for (;;) {
    std::string word;
    for (int i = 0; i < 3; ++i) {
      word += one_of(kConsonants);
      word += one_of(kVowels);
    }
    if (taken.insert(word).second) return word;
  }
}

std::vector<std::string> new_words(std::int64_t count, Draws& draws) {
  std::set<std::string> taken;
  std::vector<std::string> out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(new_word(taken, draws));
  return out;
}

// "a, b, and c".
std::string listed(const std::vector<std::string>& words) {
  std::string out;
  for (std::size_t i = 0; i < words.size(); ++i)
    out += (i == 0 ? "" : i + 1 < words.size() ? ", " : ", and ") + words[i];
  return out;
}

// Answers as they stand at the end of a document: each after `before` it.
struct Answers {
  std::vector<std::string> items;
  std::string first = " ", between = ", ";

  std::size_t bytes() const {
    std::size_t n = 0;
    for (std::size_t i = 0; i < items.size(); ++i)
      n += (i == 0 ? first : between).size() + items[i].size();
    return n;
  }
};

void append_answers(TaskDocument& out, const Answers& answers, const TaskVocabulary& vocabulary) {
  std::vector<TokenRange> items;
  for (std::size_t i = 0; i < answers.items.size(); ++i) {
    append_text(out.tokens, i == 0 ? answers.first : answers.between);
    const auto begin = static_cast<std::int64_t>(out.tokens.size());
    append_text(out.tokens, answers.items[i]);
    items.push_back({begin, static_cast<std::int64_t>(out.tokens.size())});
  }
  end_with_answer(out, vocabulary, answers.bytes() - answers.first.size());
  out.items = std::move(items);
}

// What stands around a haystack.
struct Frame {
  std::string intro, question;
  Answers answers;

  // Bytes left for the haystack in a document of `length` tokens, the end included.
  std::int64_t room(std::int64_t length) const {
    return length - static_cast<std::int64_t>(intro.size() + question.size() + answers.bytes()) - 1;
  }
};

// Needles in filler. The first has the depth asked for, the others are anywhere; with `in_order`
// they stand in the order given, and the depth is that of the first.
TaskDocument haystack_document(const Frame& frame, std::vector<std::string> needles,
                               const TaskVocabulary& vocabulary, const TaskShape& shape,
                               Draws& draws, bool in_order) {
  std::int64_t bytes = 0;
  for (const std::string& needle : needles) bytes += static_cast<std::int64_t>(needle.size());
  require_length(shape.length, shape.length - frame.room(shape.length) + bytes);
  const std::int64_t filler = frame.room(shape.length) - bytes;
  std::vector<std::int64_t> places = {place_at(shape.depth, filler, draws)};
  while (places.size() < needles.size()) {
    const std::int64_t place = draws.below(filler + 1);
    // In order: behind the first, as far as there is text behind it.
    places.push_back(in_order ? places[0] +
                                    place * (filler - places[0]) / std::max<std::int64_t>(filler, 1)
                              : place);
  }
  if (in_order) std::sort(places.begin(), places.end());
  std::vector<HiddenText> hidden;
  for (std::size_t i = 0; i < needles.size(); ++i)
    hidden.push_back({.place = places[i], .text = std::move(needles[i])});
  const Haystack haystack = hide(task_filler(static_cast<std::size_t>(filler)), hidden);
  TaskDocument out;
  append_text(out.tokens, frame.intro);
  append_text(out.tokens, haystack.text);
  append_text(out.tokens, frame.question);
  append_answers(out, frame.answers, vocabulary);
  out.needle = haystack.begins.front() + static_cast<std::int64_t>(frame.intro.size());
  return out;
}

constexpr std::string_view kNumbersIntro =
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the numbers afterwards.\n";

std::string number_needle(std::string_view word, std::string_view value) {
  return fmt::format("One of the special magic numbers for {} is: {}. ", word, value);
}

std::vector<std::string> new_values(Draws& draws) {
  std::vector<std::string> out;
  for (int i = 0; i < kNeedles; ++i) out.push_back(draws.digits(kValueDigits));
  return out;
}

std::string number_question(bool several, const std::string& words) {
  const char* kind = several ? "all the special magic numbers" : "the special magic number";
  const char* verb = several ? "are" : "is";
  return fmt::format(
      "\nWhat {} {} for {} mentioned in the provided text? The special magic number{} for {} "
      "mentioned in the provided text {}",
      verb, kind, words, several ? "s" : "", words, verb);
}

TaskDocument numbers(TaskKind task, const TaskVocabulary& vocabulary, const TaskShape& shape,
                     Draws& draws) {
  const bool one_word = task == TaskKind::kMultiValue, one_value = task == TaskKind::kMultiKey;
  const std::vector<std::string> words = new_words(one_word ? 1 : kNeedles, draws);
  const std::vector<std::string> values = new_values(draws);
  std::vector<std::string> needles;
  for (std::size_t i = 0; i < values.size(); ++i)
    needles.push_back(number_needle(words[one_word ? 0 : i], values[i]));
  const Frame frame{.intro = std::string(kNumbersIntro),
                    .question = number_question(!one_value, one_value ? words[0] : listed(words)),
                    .answers = {.items = one_value ? std::vector{values[0]} : values}};
  return haystack_document(frame, std::move(needles), vocabulary, shape, draws,
                           /*in_order=*/one_word);
}

TaskDocument variables(const TaskVocabulary& vocabulary, const TaskShape& shape, Draws& draws) {
  constexpr int kHops = 4;
  const std::string value = draws.digits(5);
  std::vector<std::string> names, needles;
  for (std::string& word : new_words(kHops + 1, draws)) {
    for (char& c : word) c = static_cast<char>(c - 'a' + 'A');
    needles.push_back(names.empty() ? fmt::format("VAR {} = {}. ", word, value)
                                    : fmt::format("VAR {} = VAR {}. ", word, names.back()));
    names.push_back(std::move(word));
  }
  const Frame frame{
      .intro =
          "Memorize and track the chain(s) of variable assignment hidden in the following "
          "text.\n",
      .question = fmt::format(
          "\nQuestion: Find all variables that are assigned the value {} in the text above. "
          "Answer: "
          "According to the chain(s) of variable assignment in the text above, {} variables are "
          "assigned the value {}, they are:",
          value, kHops + 1, value),
      .answers = {.items = names, .between = " "}};
  return haystack_document(frame, std::move(needles), vocabulary, shape, draws, /*in_order=*/true);
}

template <typename T>
void shuffle(std::vector<T>& items, Draws& draws) {
  for (std::size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1],
              items[static_cast<std::size_t>(draws.below(static_cast<std::int64_t>(i)))]);
}

// Lines or words that fill the haystack from its end; what is left of it stays empty in front.
TaskDocument listed_document(const Frame& frame, const std::string& list,
                             const TaskVocabulary& vocabulary, const TaskShape& shape) {
  const auto empty = frame.room(shape.length) - static_cast<std::int64_t>(list.size());
  FARSPAN_CHECK(empty >= 0, "{} bytes too many", -empty);
  TaskDocument out;
  append_text(out.tokens, std::string(static_cast<std::size_t>(empty), '\n'));
  append_text(out.tokens, frame.intro);
  append_text(out.tokens, list);
  append_text(out.tokens, frame.question);
  append_answers(out, frame.answers, vocabulary);
  return out;
}

std::string numbered(const std::vector<std::string>& words) {
  std::string out;
  for (std::size_t i = 0; i < words.size(); ++i) out += fmt::format("{}. {} ", i + 1, words[i]);
  return out;
}

struct WordCounts {
  std::int64_t common, often, seldom;
};

TaskDocument common_words(const TaskVocabulary& vocabulary, const TaskShape& shape, Draws& draws) {
  constexpr WordCounts kLong{10, 30, 3}, kShort{5, 10, 1};
  constexpr std::int64_t kWord = 6;
  const auto frame_of = [](std::vector<std::string> answers) {
    const std::size_t n = answers.size();
    return Frame{
        .intro =
            "Below is a numbered list of words. In these words, some appear more often than "
            "others. Memorize the ones that appear most often.\n",
        .question = fmt::format("\nQuestion: What are the {} most common words in the above list? "
                                "Answer: The top {} words that appear most often in the list are:",
                                n, n),
        .answers = {.items = std::move(answers)}};
  };
  const auto entries = [](std::int64_t bytes) {  // that fit, with their numbers
    std::int64_t n = 0;
    while (bytes >= 0) bytes -= kWord + 3 + static_cast<std::int64_t>(std::to_string(++n).size());
    return n - 1;
  };
  const auto room = [&](const WordCounts& c) {
    return entries(frame_of(std::vector(static_cast<std::size_t>(c.common),
                                        std::string(static_cast<std::size_t>(kWord), 'a')))
                       .room(shape.length));
  };
  // As many others as common ones at least.
  const auto fits = [&](const WordCounts& c) { return room(c) >= c.common * (c.often + c.seldom); };
  const WordCounts counts = fits(kLong) ? kLong : kShort;
  if (!fits(counts))
    refuse_length(fmt::format("{} tokens are too few for a list of words", shape.length),
                  "give at least 1k");
  const std::int64_t others = (room(counts) - counts.common * counts.often) / counts.seldom;
  const std::vector<std::string> words = new_words(counts.common + others, draws);
  std::vector<std::string> list;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const bool common = static_cast<std::int64_t>(i) < counts.common;
    list.insert(list.end(), static_cast<std::size_t>(common ? counts.often : counts.seldom),
                words[i]);
  }
  shuffle(list, draws);
  std::vector<std::string> answers(words.begin(), words.begin() + counts.common);
  std::sort(answers.begin(), answers.end(), [&](const std::string& a, const std::string& b) {
    return std::find(list.begin(), list.end(), a) < std::find(list.begin(), list.end(), b);
  });
  return listed_document(frame_of(std::move(answers)), numbered(list), vocabulary, shape);
}

TaskDocument frequent_words(const TaskVocabulary& vocabulary, const TaskShape& shape,
                            Draws& draws) {
  constexpr double kExponent = 2;
  constexpr std::int64_t kAsked = 3, kWord = 7, kLeast = 50;
  std::vector<std::string> words = new_words(shape.length / kWord, draws);
  words[0] = "......";
  const Frame frame{
      .intro =
          "Read the following coded text and track the frequency of each coded word. Find the "
          "three most frequently appeared coded words.\n",
      .question =
          "\nQuestion: Do not provide any explanation. Please ignore the dots. What are "
          "the three most frequently appeared words in the above coded text? Answer: "
          "According to the coded text above, the three most frequently appeared words "
          "are:",
      .answers = {.items = {words.begin() + 1, words.begin() + 1 + kAsked}}};
  const std::int64_t all = std::max<std::int64_t>(frame.room(shape.length), 0) / kWord;
  if (all < kLeast)
    refuse_length(
        fmt::format("{} tokens are too few for words of different frequency", shape.length),
        "give at least 1k");
  double zeta = 0;
  for (std::size_t rank = 1; rank <= words.size(); ++rank)
    zeta += std::pow(static_cast<double>(rank), -kExponent);
  std::vector<std::string> text;
  for (std::size_t rank = 1; rank <= words.size(); ++rank) {
    const double share = std::pow(static_cast<double>(rank), -kExponent) / zeta;
    const auto count = static_cast<std::size_t>(share * static_cast<double>(all));
    text.insert(text.end(), count, words[rank - 1]);
  }
  // Whole numbers lose some: the dots take their places.
  text.insert(text.end(), static_cast<std::size_t>(all) - text.size(), words[0]);
  shuffle(text, draws);
  std::string joined;
  for (const std::string& word : text) joined += word + " ";
  return listed_document(frame, joined, vocabulary, shape);
}

}  // namespace

TaskDocument ruler_document(TaskKind task, const TaskVocabulary& vocabulary, const TaskShape& shape,
                            Draws& draws) {
  if (!vocabulary.text)
    throw Error(ExitCode::kUsage, {.what = "RULER's tasks are text",
                                   .where = "the model's vocabulary of integers",
                                   .fix = "use a model of bytes, or eval passkey and eval kv"});
  switch (task) {
    case TaskKind::kMultiKey:
    case TaskKind::kMultiValue:
    case TaskKind::kMultiQuery:
      return numbers(task, vocabulary, shape, draws);
    case TaskKind::kVariables:
      return variables(vocabulary, shape, draws);
    case TaskKind::kCommonWords:
      return common_words(vocabulary, shape, draws);
    case TaskKind::kFrequentWords:
      return frequent_words(vocabulary, shape, draws);
    case TaskKind::kPasskey:
    case TaskKind::kKv:
      break;
  }
  FARSPAN_CHECK(false, "task {} is none of RULER's", static_cast<int>(task));
}

}  // namespace farspan
