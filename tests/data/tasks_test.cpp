#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "config/validate.h"
#include "data/retrieval_tasks.h"
#include "data/ruler_tasks.h"
#include "data/task_grid.h"
#include "data_fixture.h"

namespace farspan::data_test {
namespace {

std::string text_of(const std::vector<std::int32_t>& tokens, TokenRange range) {
  std::string out;
  for (std::int64_t t = range.begin; t < range.end; ++t)
    out += static_cast<char>(tokens[static_cast<std::size_t>(t)]);
  return out;
}

std::string text_of(const TaskDocument& d) {
  return text_of(d.tokens, {0, static_cast<std::int64_t>(d.tokens.size()) - 1});
}

std::vector<std::string> items_of(const TaskDocument& d) {
  std::vector<std::string> out;
  for (const TokenRange& item : d.items) out.push_back(text_of(d.tokens, item));
  return out;
}

TaskGrid grid_of(TaskKind task, std::vector<std::int64_t> lengths, std::int64_t depths,
                 std::int64_t samples) {
  return {.task = task, .lengths = std::move(lengths), .depths = depths, .samples = samples};
}

// What holds of every document of every task.
TEST(Tasks, DocumentsHaveTheLengthAskedForAndEndWithTheirAnswer) {
  std::vector<TaskKind> tasks = ruler_tasks();
  tasks.push_back(TaskKind::kPasskey);
  tasks.push_back(TaskKind::kKv);
  for (const TaskKind task : tasks) {
    const TaskGrid grid = grid_of(task, {1024, 1500, 4096}, 3, 4);
    for (std::int64_t i = 0; i < grid.size(); ++i) {
      SCOPED_TRACE(fmt::format("{} document {}", name_of(task), i));
      const TaskDocument d = grid.document(i);
      const std::int64_t length = grid.lengths[grid.place(i).length];
      ASSERT_EQ(static_cast<std::int64_t>(d.tokens.size()), length);
      EXPECT_EQ(d.tokens.back(), 257);
      EXPECT_EQ(d.answer.end, length - 1);
      ASSERT_FALSE(d.items.empty());
      EXPECT_EQ(d.items.front().begin, d.answer.begin);
      EXPECT_EQ(d.items.back().end, d.answer.end);
      for (const std::string& item : items_of(d)) {
        const std::string text = text_of(d.tokens, {0, d.answer.begin});
        EXPECT_NE(text.find(item), std::string::npos) << item << " stands nowhere in\n" << text;
      }
      EXPECT_EQ(d.needle >= 0, has_depth(task));
      EXPECT_LT(d.needle, d.answer.begin);
      EXPECT_EQ(grid.document(i).tokens, d.tokens) << "a pure function";
    }
    std::set<std::vector<std::int32_t>> all;
    for (std::int64_t i = 0; i < grid.size(); ++i) all.insert(grid.document(i).tokens);
    EXPECT_EQ(static_cast<std::int64_t>(all.size()), grid.size()) << name_of(task);
  }
}

TEST(Tasks, ADocumentDoesNotDependOnTheRestOfTheGrid) {
  const TaskGrid one = grid_of(TaskKind::kPasskey, {512}, 5, 2);
  const TaskGrid more = grid_of(TaskKind::kPasskey, {256, 512, 1024}, 5, 7);
  for (std::int64_t depth = 0; depth < 5; ++depth)
    for (std::int64_t sample = 0; sample < 2; ++sample)
      EXPECT_EQ(one.document(depth * 2 + sample).tokens,
                more.document(35 + depth * 7 + sample).tokens);
  TaskGrid other = one;
  other.seed = 2;
  EXPECT_NE(other.document(0).tokens, one.document(0).tokens);
}

TEST(Tasks, PasskeyOfTheDepthAskedFor) {
  const TaskGrid grid = grid_of(TaskKind::kPasskey, {900}, 11, 3);
  const double text = 900 - 80;
  for (std::int64_t i = 0; i < grid.size(); ++i) {
    const TaskDocument d = grid.document(i);
    const std::string key = items_of(d).front();
    EXPECT_EQ(text_of(d).find("The pass key is " + key + ". Remember it. "),
              static_cast<std::size_t>(d.needle));
    // A needle stands before the sentence that its place falls in.
    const double place = grid.depth(grid.place(i).depth) * text;
    EXPECT_LE(static_cast<double>(d.needle), place + 1);
    EXPECT_GE(static_cast<double>(d.needle), place - 26);
  }
}

TEST(Tasks, DistractorsAreOtherKeysAndTheNeedleIsStillWhereItSays) {
  TaskGrid grid = grid_of(TaskKind::kPasskey, {1200}, 4, 5);
  grid.distractors = 6;
  for (std::int64_t i = 0; i < grid.size(); ++i) {
    const TaskDocument d = grid.document(i);
    const std::string text = text_of(d), key = items_of(d).front();
    EXPECT_EQ(text.find("The pass key is " + key + ". Remember it. "),
              static_cast<std::size_t>(d.needle));
    std::size_t found = 0;
    for (auto at = text.find("Forget it. "); at != std::string::npos;
         at = text.find("Forget it. ", at + 1))
      ++found;
    EXPECT_EQ(found, 6u) << text;
    EXPECT_EQ(text.find(" pass key is "), text.find(" pass key is " + key));
  }
}

// Where no depth is given, as in training data, the needle is anywhere: chi-square over ten equal
// parts of the text, against an exact count of how sentences fall into them.
TEST(Tasks, PasskeyDepthsAreUniformWhereNoneIsAskedFor) {
  constexpr std::int64_t kLength = 2000, kParts = 10, kDraws = 4000;
  const TaskVocabulary bytes = TaskVocabulary::bytes();
  const std::int64_t filler = kLength - least_passkey_length(bytes, 0);
  const std::string text = task_filler(static_cast<std::size_t>(filler));
  // The border for each place, found sentence by sentence from the front.
  std::vector<double> expected(kParts);
  std::int64_t border = 0;
  for (std::int64_t place = 0; place <= filler; ++place) {
    if (text.compare(static_cast<std::size_t>(place), 2, ". ") == 0) border = place + 2;
    expected[static_cast<std::size_t>(border * kParts / (filler + 1))] +=
        static_cast<double>(kDraws) / static_cast<double>(filler + 1);
  }
  std::vector<double> seen(kParts);
  for (std::int64_t i = 0; i < kDraws; ++i) {
    Draws draws(7, stream_id("test", static_cast<std::uint64_t>(i)));
    const TaskDocument d = passkey_document(bytes, {.length = kLength}, draws);
    seen[static_cast<std::size_t>(d.needle * kParts / (filler + 1))] += 1;
  }
  double chi = 0;
  for (std::size_t part = 0; part < kParts; ++part)
    chi += (seen[part] - expected[part]) * (seen[part] - expected[part]) / expected[part];
  EXPECT_LT(chi, 27.9) << "chance of more with 9 degrees of freedom: 0.001";
}

TEST(Tasks, KvAsksForThePairOfItsDepth) {
  const TaskGrid grid = grid_of(TaskKind::kKv, {600}, 6, 3);
  for (std::int64_t i = 0; i < grid.size(); ++i) {
    const TaskDocument d = grid.document(i);
    const std::string text = text_of(d);
    const std::string asked = text.substr(text.find("? ") + 2, 4);
    EXPECT_EQ(text.find(asked + ": " + items_of(d).front() + "\n"),
              static_cast<std::size_t>(d.needle));
    const std::int64_t pairs = (600 - 13) / 11;
    const auto pad = static_cast<std::int64_t>(text.find_first_not_of('\n'));
    EXPECT_EQ((d.needle - pad) / 11,
              std::lround(grid.depth(grid.place(i).depth) * static_cast<double>(pairs - 1)));
  }
}

TEST(Tasks, OfIntegers) {
  const TaskVocabulary small = TaskVocabulary::integers(40);
  for (std::int64_t i = 0; i < 40; ++i) {
    Draws draws(3, stream_id("test", static_cast<std::uint64_t>(i)));
    const TaskDocument key = passkey_document(small, {.length = 64}, draws);
    ASSERT_EQ(key.tokens.size(), 64u);
    EXPECT_EQ(key.tokens.back(), 39);
    EXPECT_EQ(key.answer, (TokenRange{58, 63}));
    EXPECT_EQ(key.tokens[57], 38);
    EXPECT_EQ(key.tokens[static_cast<std::size_t>(key.needle)], 38);
    EXPECT_TRUE(std::equal(key.tokens.begin() + 58, key.tokens.begin() + 63,
                           key.tokens.begin() + key.needle + 1));
    EXPECT_EQ(std::count(key.tokens.begin(), key.tokens.end(), 38), 2);
    const TaskDocument kv = kv_document(small, {.length = 63}, draws, 3, stream_id("keys"));
    ASSERT_EQ(kv.tokens.size(), 63u);
    EXPECT_EQ(kv.answer, (TokenRange{60, 62}));
    EXPECT_EQ(kv.tokens[57], 38);
    EXPECT_TRUE(
        std::equal(kv.tokens.begin() + 58, kv.tokens.begin() + 62, kv.tokens.begin() + kv.needle));
    std::set<std::pair<int, int>> keys;
    for (std::size_t t = 1; t < 57; t += 4) keys.emplace(kv.tokens[t], kv.tokens[t + 1]);
    EXPECT_EQ(keys.size(), 14u);
  }
}

TEST(Tasks, RulerNumbers) {
  for (const auto& [task, items, words] :
       {std::tuple{TaskKind::kMultiKey, 1u, 4u}, std::tuple{TaskKind::kMultiValue, 4u, 1u},
        std::tuple{TaskKind::kMultiQuery, 4u, 4u}}) {
    const TaskGrid grid = grid_of(task, {2048}, 5, 4);
    for (std::int64_t i = 0; i < grid.size(); ++i) {
      const TaskDocument d = grid.document(i);
      const std::string text = text_of(d.tokens, {0, d.answer.begin});
      std::multimap<std::string, std::string> numbers;
      std::vector<std::string> in_order;
      const std::string fact = "One of the special magic numbers for ";
      for (auto at = text.find(fact); at != std::string::npos; at = text.find(fact, at + 1)) {
        const std::string word = text.substr(at + fact.size(), 6);
        in_order.push_back(text.substr(at + fact.size() + 6 + 5, 7));
        numbers.emplace(word, in_order.back());
      }
      EXPECT_EQ(numbers.size(), 4u) << text;
      std::set<std::string> distinct;
      for (const auto& [word, number] : numbers) distinct.insert(word);
      EXPECT_EQ(distinct.size(), words);
      ASSERT_EQ(d.items.size(), items);
      EXPECT_TRUE(task != TaskKind::kMultiValue || items_of(d) == in_order);
      if (task == TaskKind::kMultiKey) {
        const std::string asked = text.substr(text.find("magic number for ") + 17, 6);
        EXPECT_EQ(numbers.find(asked)->second, items_of(d).front());
        EXPECT_EQ(text.find(fact + asked), static_cast<std::size_t>(d.needle));
      }
    }
  }
}

TEST(Tasks, RulerVariablesFollowTheChain) {
  const TaskGrid grid = grid_of(TaskKind::kVariables, {1500}, 4, 5);
  for (std::int64_t i = 0; i < grid.size(); ++i) {
    const TaskDocument d = grid.document(i);
    const std::string text = text_of(d.tokens, {0, d.answer.begin});
    std::vector<std::string> chain;
    for (auto at = text.find("VAR "); at != std::string::npos; at = text.find("VAR ", at + 1)) {
      if (text.compare(at + 10, 3, " = ") != 0) continue;
      const std::string value = text.substr(at + 13, 10);
      EXPECT_TRUE(chain.empty() || value == "VAR " + chain.back()) << value;
      chain.push_back(text.substr(at + 4, 6));
    }
    EXPECT_EQ(chain, items_of(d)) << text;
    EXPECT_EQ(chain.size(), 5u);
  }
}

TEST(Tasks, RulerWordsAreAsFrequentAsTheyShould) {
  for (const std::int64_t length : {1024, 16384}) {
    for (const TaskKind task : {TaskKind::kCommonWords, TaskKind::kFrequentWords}) {
      const TaskGrid grid = grid_of(task, {length}, 5, 3);
      EXPECT_EQ(grid.size(), 3);
      for (std::int64_t i = 0; i < grid.size(); ++i) {
        const TaskDocument d = grid.document(i);
        const std::string text = text_of(d.tokens, {0, d.answer.begin});
        std::istringstream list(text.substr(text.rfind('\n', text.rfind("\nQuestion") - 1)));
        std::map<std::string, int> counts;
        for (std::string word; list >> word && word != "Question:";)
          if (word.find_first_of("0123456789") == std::string::npos && word != "......")
            ++counts[word];
        int least = 1 << 30, most_of_others = 0;
        const std::vector<std::string> items = items_of(d);
        for (const std::string& item : items) least = std::min(least, counts[item]);
        for (const auto& [word, count] : counts)
          if (std::find(items.begin(), items.end(), word) == items.end())
            most_of_others = std::max(most_of_others, count);
        EXPECT_GT(least, most_of_others) << text;
        if (task == TaskKind::kCommonWords) {
          EXPECT_EQ(items.size(), length > 2048 ? 10u : 5u);
        } else {
          EXPECT_GT(counts[items[0]], counts[items[2]]);
        }
      }
    }
  }
}

TEST(Tasks, WhatCannotBe) {
  const auto first = [](TaskKind task, std::int64_t length, TaskVocabulary vocabulary) {
    TaskGrid grid = grid_of(task, {length}, 1, 1);
    grid.vocabulary = vocabulary;
    return grid.document(0);
  };
  const TaskVocabulary bytes = TaskVocabulary::bytes(), integers = TaskVocabulary::integers(64);
  EXPECT_ERROR(first(TaskKind::kPasskey, 79, bytes), ExitCode::kUsage, "at least 80");
  EXPECT_EQ(first(TaskKind::kPasskey, 80, bytes).tokens.size(), 80u);
  EXPECT_EQ(least_passkey_length(bytes, 0), kLeastPasskeyBytes) << "what validate() asks for";
  EXPECT_EQ(least_passkey_length(integers, 0), kLeastPasskeyTokens);
  EXPECT_ERROR(first(TaskKind::kKv, 23, bytes), ExitCode::kUsage, "at least 24");
  EXPECT_ERROR(first(TaskKind::kPasskey, 12, integers), ExitCode::kUsage, "at least 13");
  EXPECT_ERROR(first(TaskKind::kVariables, 1024, integers), ExitCode::kUsage, "text");
  for (const TaskKind task : ruler_tasks())
    EXPECT_ERROR(first(task, 200, bytes), ExitCode::kUsage, "too few");
  EXPECT_ERROR(parse_task("needle"), ExitCode::kUsage, "passkey, kv, multikey");
  EXPECT_ERROR(TaskVocabulary::of({.name = "llama", .vocab_size = 32000}), ExitCode::kUsage,
               "llama");
  EXPECT_TRUE(TaskVocabulary::of(byte_tokenizer_info()).text);
  EXPECT_EQ(TaskVocabulary::of({.name = "none", .vocab_size = 50}).end, 49);
}

}  // namespace
}  // namespace farspan::data_test
