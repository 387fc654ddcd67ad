// Event files that TensorBoard reads: `tensorboard --logdir runs`.
//
//   TensorBoardFile board(run, /*first_step=*/resumed_step + 1);
//   board.write(train_row);                   // train/loss, train/lr, ...
//   board.text("sample", step, "In the beginning ...");
//
// Every object makes a new file, events.out.tfevents.<time>.<host>.<pid>, that sorts after those
// that the folder holds already. It begins with a session start at `first_step`: TensorBoard then
// hides what earlier files say about that step and later ones, so that a resumed run shows no step
// twice.
//
// Format: TFRecord framing (u64 length, masked CRC-32C of it, payload, masked CRC-32C of it; little
// endian) around protobuf events (train/tensorboard_event.proto). Each call writes one record with
// one write(2). Errors: as train/durable_file.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "train/durable_file.h"
#include "train/metrics.h"

namespace farspan {

class TensorBoardFile {
 public:
  // `folder` must exist. `first_step`: the first step that this file will show; 0 or 1: a new run.
  TensorBoardFile(const std::filesystem::path& folder, std::int64_t first_step);

  // All values in one record. Values that are not finite are shown by TensorBoard as such.
  void scalars(std::int64_t step, std::span<const std::pair<std::string, double>> values);
  void scalar(std::int64_t step, std::string_view tag, double value);
  // Shown in the Text tab, which reads Markdown. Bytes that are not UTF-8 appear as U+FFFD.
  void text(std::string_view tag, std::int64_t step, std::string_view content);

  // The row's numbers as train/<key> and eval/<name>; unknown (NaN) throughput is left out.
  void write(const TrainRow& row);
  void write(const EvalRow& row);

  const std::filesystem::path& path() const { return file_.path(); }

 private:
  AppendFile file_;
};

// CRC-32C (Castagnoli; RFC 3720, B.4) and the mask of the TFRecord format.
std::uint32_t crc32c(std::string_view bytes);
std::uint32_t masked_crc32c(std::string_view bytes);

}  // namespace farspan
