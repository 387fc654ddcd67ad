#include "train/trainer.h"

#include "train/training_run.h"

namespace farspan {

TrainOutcome train(const config::RunConfig& config, const TrainOptions& options,
                   Communicator& world) {
  return TrainingRun(config, options, world).run();
}

}  // namespace farspan
