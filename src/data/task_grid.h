// Retrieval tasks over lengths and depths, numbered: every document is a pure function of (seed,
// task, length, depth, sample), the same on every rank.
//
//   const TaskGrid grid{.task = find_task("passkey"), .lengths = {256, 512}, .depths = 10,
//                       .samples = 4, .vocabulary = TaskVocabulary::bytes()};
//   for (std::int64_t i = 0; i < grid.size(); ++i) TaskDocument d = grid.document(i);
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/task_document.h"

namespace farspan {

// By the names of data/ruler_tasks.h, passkey and kv. Throws Error(kUsage).
TaskKind parse_task(std::string_view name);
std::string_view name_of(TaskKind task);
// Those of RULER, in the order above.
std::vector<TaskKind> ruler_tasks();
// Whether the answer stands in one place of the text.
bool has_depth(TaskKind task);

struct TaskGrid {
  TaskKind task = TaskKind::kPasskey;
  std::vector<std::int64_t> lengths;  // tokens, the answer and the end included
  std::int64_t depths = 10;           // places of the needle, evenly from 0 to 1; one: the middle
  std::int64_t samples = 4;           // documents for each length and depth
  std::int64_t distractors = 0;       // of passkey
  std::uint64_t seed = 1;
  TaskVocabulary vocabulary{};

  struct Place {
    std::size_t length;  // of `lengths`
    std::int64_t depth, sample;
  };
  // Depths that a length has: 1 for a task without a needle.
  std::int64_t num_depths() const { return has_depth(task) ? depths : 1; }
  std::int64_t per_length() const { return num_depths() * samples; }
  std::int64_t size() const { return static_cast<std::int64_t>(lengths.size()) * per_length(); }
  Place place(std::int64_t number) const;
  double depth(std::int64_t index) const;  // 0 to 1
  // Throws Error(kUsage) where the task cannot be of this length.
  TaskDocument document(std::int64_t number) const;
};

}  // namespace farspan
