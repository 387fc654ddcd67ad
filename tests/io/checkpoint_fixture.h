// A small model's worth of tensors whose content is a function of (name, step, element), splits of
// it over ranks, and saving and checking it.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "comm/factory.h"
#include "core/rng.h"
#include "io/checkpoint.h"

namespace farspan::io_test {

// A folder that is removed at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "farspan_io_XXXXXX").string();
    const char* made = ::mkdtemp(pattern.data());
    if (made == nullptr) throw std::runtime_error("mkdtemp");
    path_ = made;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct TensorSpec {
  std::string name;
  Shape shape;
};

// Weights and Adam moments; `rows` scales the matrices. The first has more than one HDF5 chunk from
// rows = 600 on; one tensor is a scalar, one is empty.
inline std::vector<TensorSpec> model_tensors(std::int64_t rows) {
  const std::vector<TensorSpec> weights = {{"model.embed_tokens.weight", {rows, 1000}},
                                           {"model.layers.0.mlp.up_proj.weight", {33, 7, 5}},
                                           {"model.norm.weight", {77}},
                                           {"model.scale", {}},
                                           {"model.unused", {0, 4}}};
  std::vector<TensorSpec> all = weights;
  for (const auto& w : weights) {
    all.push_back({"adamw.m/" + w.name, w.shape});
    all.push_back({"adamw.v/" + w.name, w.shape});
  }
  return all;
}

inline float value_at(const std::string& name, std::int64_t step, std::int64_t element) {
  const std::uint64_t h =
      stream_id(name, static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(element));
  return static_cast<float>(h >> 40) * 0x1p-20f - 8.0f;
}

inline std::vector<float> values(const std::string& name, std::int64_t step, std::int64_t begin,
                                 std::int64_t end) {
  std::vector<float> out;
  for (std::int64_t i = begin; i < end; ++i) out.push_back(value_at(name, step, i));
  return out;
}

// How tensors are cut: even runs, whole tensors dealt out, or several irregular runs per rank.
enum class Split { kEven, kWhole, kIrregular };

// What `rank` of `ranks` holds, with its memory.
struct RankShare {
  std::vector<std::vector<float>> memory;
  std::vector<TensorPiece> pieces;

  void add(const TensorSpec& t, std::int64_t step, std::int64_t begin, std::int64_t end) {
    memory.push_back(values(t.name, step, begin, end));
    pieces.push_back({.name = t.name,
                      .global_shape = t.shape,
                      .offset = begin,
                      .data = host_tensor(memory.back().data(), {end - begin})});
  }
};

inline RankShare share_of(const std::vector<TensorSpec>& tensors, std::int64_t step, int rank,
                          int ranks, Split split) {
  RankShare share;
  int index = 0;
  for (const TensorSpec& t : tensors) {
    const std::int64_t n = t.shape.numel();
    if (n == 0 || split == Split::kWhole) {
      if (index % ranks == rank) share.add(t, step, 0, n);
    } else if (split == Split::kEven) {
      share.add(t, step, n * rank / ranks, n * (rank + 1) / ranks);
    } else {
      // Runs of random length to random ranks, and within a rank in descending order.
      const CounterRng rng(7, stream_id(t.name));
      std::vector<std::pair<std::int64_t, std::int64_t>> mine;
      std::uint64_t draw = 0;
      for (std::int64_t begin = 0; begin < n;) {
        const auto most = static_cast<std::uint64_t>(n / 3 + 1);
        const std::int64_t end =
            std::min(n, begin + 1 + static_cast<std::int64_t>(rng.below(draw++, most)));
        if (static_cast<int>(rng.below(draw++, static_cast<std::uint64_t>(ranks))) == rank)
          mine.emplace_back(begin, end);
        begin = end;
      }
      for (auto run = mine.rbegin(); run != mine.rend(); ++run)
        share.add(t, step, run->first, run->second);
    }
    ++index;
  }
  return share;
}

inline io::TrainState state_at(std::int64_t step) {
  io::TrainState state;
  state.set_step(step);
  state.set_applied_steps(step);
  state.set_skipped_steps(0);
  state.set_tokens(step * 2048);
  state.set_samples(step * 8);
  state.set_stage(0);
  state.set_stage_first_sample(0);
  state.set_seed(1);
  state.set_data_fingerprint("00112233445566778899aabbccddeeff");
  return state;
}

inline Log quiet_log() { return Log({.console = false}); }

// Saves the given steps, one after another, with `ranks` thread ranks. Throws what a rank throws.
inline void save_steps(int ranks, CheckpointWriter::Options options,
                       const std::vector<std::int64_t>& steps,
                       const std::vector<TensorSpec>& tensors, Split split = Split::kEven) {
  run_local_ranks(ranks, [&](Communicator& world) {
    Log log = quiet_log();
    CheckpointWriter writer(world, options, log);
    for (const std::int64_t step : steps) {
      const RankShare share = share_of(tensors, step, world.rank(), ranks, split);
      writer.save(step, share.pieces, state_at(step));
      const auto outcome = writer.wait();
      FARSPAN_CHECK(outcome && outcome->step == step);
    }
  });
}

// Every element of [offset, offset + count) as `reader` has it against value_at.
inline ::testing::AssertionResult holds(const CheckpointReader& reader, const TensorSpec& t,
                                        std::int64_t step, std::int64_t begin, std::int64_t end) {
  std::vector<float> got(static_cast<std::size_t>(end - begin) + 1);  // never null
  reader.read(t.name, begin, host_tensor(got.data(), {end - begin}));
  for (std::int64_t i = begin; i < end; ++i) {
    const float want = value_at(t.name, step, i);
    const float have = got[static_cast<std::size_t>(i - begin)];
    if (std::memcmp(&want, &have, sizeof(float)) != 0)
      return ::testing::AssertionFailure()
             << t.name << "[" << i << "] of step " << step << ": " << have << " against " << want;
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult holds_step(const std::filesystem::path& folder, std::int64_t step,
                                             const std::vector<TensorSpec>& tensors) {
  const CheckpointReader reader(folder);
  if (reader.manifest().step() != step ||
      reader.manifest().state().SerializeAsString() != state_at(step).SerializeAsString())
    return ::testing::AssertionFailure() << folder << ": step or state differ";
  if (reader.manifest().tensors_size() != static_cast<int>(tensors.size()))
    return ::testing::AssertionFailure() << reader.manifest().tensors_size() << " tensors";
  for (const TensorSpec& t : tensors)
    if (auto result = holds(reader, t, step, 0, t.shape.numel()); !result) return result;
  return ::testing::AssertionSuccess();
}

inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// The error that `body` throws; fails the test when it throws none.
inline Error error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "no Error was thrown";
  return Error(ExitCode::kOk, {.what = "nothing thrown"});
}

}  // namespace farspan::io_test
