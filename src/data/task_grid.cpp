#include "data/task_grid.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "data/retrieval_tasks.h"
#include "data/ruler_tasks.h"

namespace farspan {
namespace {

struct Named {
  TaskKind task;
  std::string_view name;
};
constexpr std::array<Named, 8> kTasks = {{{TaskKind::kPasskey, "passkey"},
                                          {TaskKind::kKv, "kv"},
                                          {TaskKind::kMultiKey, "multikey"},
                                          {TaskKind::kMultiValue, "multivalue"},
                                          {TaskKind::kMultiQuery, "multiquery"},
                                          {TaskKind::kVariables, "vt"},
                                          {TaskKind::kCommonWords, "cwe"},
                                          {TaskKind::kFrequentWords, "fwe"}}};

bool of_ruler(TaskKind task) { return task != TaskKind::kPasskey && task != TaskKind::kKv; }

}  // namespace

TaskKind parse_task(std::string_view name) {
  std::string names;
  for (const Named& task : kTasks) {
    if (task.name == name) return task.task;
    names += (names.empty() ? "" : ", ") + std::string(task.name);
  }
  throw Error(ExitCode::kUsage, {.what = fmt::format("the task `{}` is not known", name),
                                 .where = "--tasks",
                                 .fix = "tasks: " + names});
}

std::string_view name_of(TaskKind task) {
  return std::find_if(kTasks.begin(), kTasks.end(),
                      [&](const Named& named) { return named.task == task; })
      ->name;
}

std::vector<TaskKind> ruler_tasks() {
  std::vector<TaskKind> out;
  for (const Named& named : kTasks)
    if (of_ruler(named.task)) out.push_back(named.task);
  return out;
}

bool has_depth(TaskKind task) {
  return task != TaskKind::kCommonWords && task != TaskKind::kFrequentWords;
}

TaskGrid::Place TaskGrid::place(std::int64_t number) const {
  const std::int64_t rest = number % per_length();
  return {.length = static_cast<std::size_t>(number / per_length()),
          .depth = rest / samples,
          .sample = rest % samples};
}

double TaskGrid::depth(std::int64_t index) const {
  const std::int64_t count = num_depths();
  return count == 1 ? 0.5 : static_cast<double>(index) / static_cast<double>(count - 1);
}

TaskDocument TaskGrid::document(std::int64_t number) const {
  FARSPAN_CHECK(number >= 0 && number < size(), "document {} of {}", number, size());
  const Place at = place(number);
  const std::int64_t length = lengths[at.length];
  const std::uint64_t cell = stream_id(name_of(task), static_cast<std::uint64_t>(length),
                                       static_cast<std::uint64_t>(at.depth));
  const auto sample = static_cast<std::uint64_t>(at.sample);
  Draws draws(seed, stream_id("eval.task", cell, sample));
  const TaskShape shape{.length = length, .depth = depth(at.depth), .distractors = distractors};
  if (task == TaskKind::kPasskey) return passkey_document(vocabulary, shape, draws);
  if (task == TaskKind::kKv)
    return kv_document(vocabulary, shape, draws, seed, stream_id("eval.kv.keys", cell, sample));
  return ruler_document(task, vocabulary, shape, draws);
}

}  // namespace farspan
