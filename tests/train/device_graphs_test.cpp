// Passes as CUDA graphs on a GPU, or on the emulated one: optimizer steps whose passes are started
// as graphs give the bits of steps whose passes run.
#include <gtest/gtest.h>

#include <list>

#include "comm/factory.h"
#include "support/engine_runs.h"
#include "support/tiny_config.h"
#include "train/dry_run.h"
#include "train/engine.h"

namespace farspan {
namespace {

constexpr int kSteps = 3;

struct Outcome {
  std::vector<double> losses;
  std::vector<float> weights;
  std::int64_t recorded = 0, started = 0;
  std::string refusal;
};

Outcome train(Backend& backend, config::RunConfig config, const std::string& use) {
  config.set_device("cuda");
  config.mutable_train()->set_cuda_graphs(use);
  const auto hosts = make_self_communicator();
  const auto world = make_staged_communicator(*hosts, backend.device());
  const Mesh mesh = make_mesh(config, *world);
  Trace trace;
  trace.attach(backend.make_trace_sink(true));
  Engine engine(config, backend, mesh, dry_run(config, 0, 1).sizes, trace);
  engine.initialize();
  Sharder sharder(Sharding::from(config, mesh.place()));
  Outcome out;
  for (std::uint64_t s = 0; s < kSteps; ++s) {
    std::vector<MicroBatch> step;
    for (std::uint64_t j = 0; j < 2; ++j)
      step.push_back(sharder(testing::random_batch(10 * s + j, 1, config.train().sequence_length(),
                                                   config.model().vocab_size(), 0)));
    engine.train_step(step, 1e-2, {});
    out.losses.push_back(engine.read_step().loss());
    trace.collect();
  }
  EXPECT_GT(trace.sums().at("optimizer").calls, 0);
  for (const Parameter& p : engine.parameters().parameters()) {
    std::vector<float> w(static_cast<std::size_t>(p.numel()));
    backend.device().copy(reinterpret_cast<std::byte*>(w.data()), p.master.data, p.master.bytes(),
                          backend.stream());
    backend.stream().synchronize();
    out.weights.insert(out.weights.end(), w.begin(), w.end());
  }
  out.recorded = engine.graphs().recorded();
  out.started = engine.graphs().started();
  out.refusal = engine.graphs().refusal();
  return out;
}

TEST(DeviceGraphs, StartedPassesGiveTheBitsOfPassesThatRun) {
  std::unique_ptr<Backend> backend;
  try {
    backend = make_backend({.kind = DeviceKind::kCuda});
  } catch (const Error& error) {
    if (error.code() != ExitCode::kUsage) throw;
    GTEST_SKIP() << error.what();
  }
  for (const char* precision : {"fp32", "bf16"}) {
    config::RunConfig config = testing::tiny_config(precision);
    config.mutable_train()->set_recompute("selective");
    if (std::string_view(precision) == "fp32") {  // two tables of rotations
      auto& model = *config.mutable_model();
      model.set_sliding_window(9);
      for (const char* type : {"sliding_attention", "full_attention"}) model.add_layer_types(type);
      auto& scaling = *model.mutable_rope()->mutable_scaling();
      scaling.set_type("linear");
      scaling.set_factor(4);
      scaling.set_layers("full_attention");
    }
    const Outcome run = train(*backend, config, "off");
    const Outcome started = train(*backend, config, "auto");
    EXPECT_EQ(started.refusal, "");
    EXPECT_EQ(started.recorded, 1) << precision;
    EXPECT_EQ(started.started, 2 * kSteps - 1) << precision;
    EXPECT_EQ(started.losses, run.losses) << precision;
    EXPECT_EQ(started.weights, run.weights) << precision;
    EXPECT_NE(run.losses.front(), run.losses.back());
  }
}

// What is not allowed while a queue records is refused, and the queue works on.
TEST(DeviceGraphs, AnAllocationEndsTheRecording) {
  std::unique_ptr<Backend> backend;
  try {
    backend = make_backend({.kind = DeviceKind::kCuda});
  } catch (const Error& error) {
    if (error.code() != ExitCode::kUsage) throw;
    GTEST_SKIP() << error.what();
  }
  const Buffer memory = backend->device().allocate(4);
  const Tensor x = memory.tensor(DType::kF32, {1});
  Stream& stream = backend->stream();
  backend->kernels().fill({.dst = x, .value = 1}, stream);
  stream.begin_recording();
  EXPECT_TRUE(stream.is_recording());
  EXPECT_THROW(backend->device().allocate(16), Error);
  stream.abandon_recording();
  EXPECT_FALSE(stream.is_recording());
  // A recording of two operations, started twice.
  stream.begin_recording();
  backend->kernels().add({.a = x, .b = x, .out = x}, stream);
  backend->kernels().add({.a = x, .b = x, .out = x}, stream);
  const std::unique_ptr<Graph> graph = stream.end_recording();
  graph->launch(stream);
  graph->launch(stream);
  float value = 0;
  backend->device().copy(reinterpret_cast<std::byte*>(&value), x.data, 4, stream);
  stream.synchronize();
  EXPECT_EQ(value, 16.0F);
}

}  // namespace
}  // namespace farspan
