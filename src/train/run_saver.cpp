#include "train/run_saver.h"

#include <utility>

namespace farspan {

RunSaver::RunSaver(Communicator& world, CheckpointWriter::Options options, Log& log)
    : world_(world), log_(log), writer_(world, std::move(options), log) {}

void RunSaver::save(Engine& engine, const io::TrainState& state) {
  finish();  // the snapshot's memory must be free
  std::vector<TensorPiece> pieces = snapshot_->take(engine);
  writer_.save(state.step(), std::move(pieces), state, [this] { snapshot_->wait(); });
}

bool RunSaver::failed() {
  if (error_) return true;
  try {
    if (const auto outcome = writer_.poll()) announce(*outcome);
  } catch (const Error&) {
    error_ = std::current_exception();
  }
  return error_ != nullptr;
}

void RunSaver::finish() {
  if (error_) std::rethrow_exception(error_);
  if (const auto outcome = writer_.wait()) announce(*outcome);
}

void RunSaver::announce(const SaveOutcome& outcome) {
  newest_ = outcome.path;
  log_.info("saved {} ({:.1f} MiB in {:.2f} s)", outcome.path.string(),
            static_cast<double>(outcome.bytes) / (1 << 20), outcome.seconds);
}

}  // namespace farspan
