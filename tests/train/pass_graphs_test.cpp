#include "train/pass_graphs.h"

#include <gtest/gtest.h>

#include "comm/factory.h"
#include "support/engine_runs.h"
#include "support/recording_backend.h"
#include "support/tiny_config.h"
#include "train/dry_run.h"
#include "train/engine.h"

namespace farspan {
namespace {

using testing::RecordingBackend;
using testing::tiny_config;

constexpr int kSteps = 5;

struct Outcome {
  std::vector<double> losses;
  std::vector<float> weights;
  std::int64_t recorded = 0, started = 0;
  std::string refusal;
};

// kSteps steps of two micro-batches each. `longest` as random_batch has it: 0 gives every batch the
// same plan.
Outcome train(config::RunConfig config, std::int64_t longest, const std::string& use) {
  config.mutable_train()->set_cuda_graphs(use);
  RecordingBackend backend;
  const auto world = make_self_communicator();
  const Mesh mesh = make_mesh(config, *world);
  Trace trace;
  const ArenaSizes sizes = dry_run(config, 0, 1).sizes;
  Engine engine(config, backend, mesh, sizes, trace);
  engine.initialize();
  Sharder sharder(Sharding::from(config, mesh.place()));
  MemoryProbe probe(config, 0, 1, sizes);
  // Recorded calls refer to the plans of the batches that they were recorded from.
  std::list<std::vector<MicroBatch>> kept;
  Outcome out;
  for (std::uint64_t s = 0; s < kSteps; ++s) {
    std::vector<MicroBatch>& step = kept.emplace_back();
    for (std::uint64_t j = 0; j < 2; ++j) {
      step.push_back(sharder(testing::random_batch(10 * s + j, 1, config.train().sequence_length(),
                                                   config.model().vocab_size(), longest)));
      engine.reserve(probe.train(step.back()));
    }
    engine.train_step(step, 1e-2, {});
    out.losses.push_back(engine.read_step().loss());
  }
  for (const Parameter& p : engine.parameters().parameters()) {
    const auto* w = p.master.ptr<float>();
    out.weights.insert(out.weights.end(), w, w + p.numel());
  }
  out.recorded = engine.graphs().recorded();
  out.started = engine.graphs().started();
  out.refusal = engine.graphs().refusal();
  return out;
}

TEST(PassGraphs, StartedPassesGiveTheBitsOfPassesThatRun) {
  for (const char* recompute : {"none", "selective", "full", "full+attention"}) {
    for (const char* precision : {"fp32", "bf16"}) {
      config::RunConfig config = tiny_config(precision);
      config.mutable_train()->set_recompute(recompute);
      const Outcome run = train(config, 0, "off"), started = train(config, 0, "on");
      EXPECT_EQ(run.recorded, 0);
      EXPECT_EQ(started.recorded, 1);
      EXPECT_EQ(started.started, 2 * kSteps - 1) << "all but the first pass";
      EXPECT_EQ(started.losses, run.losses) << recompute << ' ' << precision;
      EXPECT_EQ(started.weights, run.weights) << recompute << ' ' << precision;
      EXPECT_NE(run.losses.front(), run.losses.back());
    }
  }
}

TEST(PassGraphs, OtherDocumentsAreAnotherPass) {
  const config::RunConfig config = tiny_config();
  const Outcome run = train(config, 20, "off"), started = train(config, 20, "auto");
  EXPECT_EQ(started.recorded, 0) << "no plan came twice";
  EXPECT_EQ(started.losses, run.losses);
  EXPECT_EQ(started.weights, run.weights);
}

TEST(PassGraphs, AutoLeavesTheInvariantModeAlone) {
  config::RunConfig config = tiny_config();
  config.mutable_parallel()->set_invariant(true);
  config.mutable_parallel()->set_attention("allgather");
  EXPECT_EQ(train(config, 0, "auto").recorded, 0);
}

// ---- the rules, on passes of one operation

class PassRules : public ::testing::Test {
 protected:
  PassRules() : value_(backend_.device().allocate(sizeof(float))) { fill(0); }
  void fill(double value) {
    backend_.kernels().fill({.dst = tensor(), .value = value}, backend_.stream());
  }
  Tensor tensor() const { return value_.tensor(DType::kF32, {1}); }
  float value() const { return *tensor().ptr<float>(); }
  // A pass that adds 1.
  void pass(PassGraphs& graphs, std::uint64_t plan, std::int64_t tokens = 8) {
    graphs.run({.plan = plan, .tokens = tokens}, backend_, [this] {
      ++calls_;
      one_.assign(1, 1.0F);
      const Tensor one = host_tensor(one_.data(), {1});
      backend_.kernels().add({.a = tensor(), .b = one, .out = tensor()}, backend_.stream());
    });
  }

  RecordingBackend backend_;
  Buffer value_;
  std::vector<float> one_;
  int calls_ = 0;
};

TEST_F(PassRules, FirstRunsThenRecordsThenStarts) {
  PassGraphs graphs(PassGraphs::Use::kAuto);
  for (int i = 1; i <= 5; ++i) {
    pass(graphs, 1);
    EXPECT_EQ(value(), static_cast<float>(i));
    EXPECT_EQ(calls_, std::min(i, 2));
  }
  EXPECT_EQ(graphs.recorded(), 1);
  EXPECT_EQ(graphs.started(), 4);
}

TEST_F(PassRules, AutoLeavesLongPassesAlone) {
  PassGraphs automatic(PassGraphs::Use::kAuto), on(PassGraphs::Use::kOn);
  for (int i = 0; i < 3; ++i) pass(automatic, 1, PassGraphs::kShortPass + 1);
  EXPECT_EQ(automatic.recorded(), 0);
  for (int i = 0; i < 3; ++i) pass(on, 1, PassGraphs::kShortPass + 1);
  EXPECT_EQ(on.recorded(), 1);
}

TEST_F(PassRules, WhatIsKeptIsBounded) {
  PassGraphs graphs(PassGraphs::Use::kAuto);
  float expected = 0;
  for (std::uint64_t plan = 1; plan <= 3 * PassGraphs::kMostGraphs; ++plan)
    for (int i = 0; i < 3; ++i) {
      pass(graphs, plan);
      EXPECT_EQ(value(), ++expected);
    }
  EXPECT_GT(backend_.kernels().released(), 0) << "kernels hear that graphs are gone";
  graphs.forget(backend_);
  pass(graphs, 1);
  EXPECT_EQ(value(), ++expected);
}

TEST_F(PassRules, APassThatAllocatesRunsAsItIs) {
  const auto allocating = [&](PassGraphs& graphs) {
    graphs.run({.plan = 7, .tokens = 8}, backend_, [this] {
      backend_.kernels().add({.a = tensor(), .b = tensor(), .out = tensor()}, backend_.stream());
      backend_.device().allocate(16);
    });
  };
  fill(1);
  PassGraphs automatic(PassGraphs::Use::kAuto);
  for (int i = 0; i < 3; ++i) allocating(automatic);
  EXPECT_EQ(value(), 8.0F) << "each pass ran once";
  EXPECT_NE(automatic.refusal().find("allocation"), std::string::npos) << automatic.refusal();
  EXPECT_FALSE(backend_.stream().is_recording());

  PassGraphs on(PassGraphs::Use::kOn);
  allocating(on);
  try {
    allocating(on);
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
  }
  EXPECT_FALSE(backend_.stream().is_recording());
}

TEST(PassGraphs, DevicesThatCannotRecordRunPassesAsTheyAre) {
  const auto backend = make_backend({.kind = DeviceKind::kCpu});
  PassGraphs graphs(PassGraphs::Use::kAuto);
  int calls = 0;
  for (int i = 0; i < 4; ++i) graphs.run({.plan = 1, .tokens = 8}, *backend, [&] { ++calls; });
  EXPECT_EQ(calls, 4);
  EXPECT_EQ(graphs.recorded(), 0);
}

}  // namespace
}  // namespace farspan
