// Optimizer steps on P thread ranks, with everything that tests compare.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "comm/factory.h"
#include "train/dry_run.h"
#include "train/engine.h"

namespace farspan::testing {

// `count` sequences of random tokens in documents of random length up to `longest` (0: each
// sequence is one document), labels shifted, some not scored.
inline Batch random_batch(std::uint64_t seed, std::int64_t count, std::int64_t length,
                          std::int64_t vocab, std::int64_t longest) {
  std::mt19937_64 rng(seed);
  Batch b;
  b.sequences = count;
  b.sequence_length = length;
  std::int32_t segment = -1;
  std::int64_t left = 0, position = 0;
  for (std::int64_t t = 0; t < count * length; ++t) {
    if (left == 0 || t % length == 0) {
      left = longest == 0
                 ? length
                 : static_cast<std::int64_t>(1 + rng() % static_cast<std::uint64_t>(longest));
      position = 0;
      ++segment;
    }
    b.tokens.push_back(static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(vocab)));
    b.labels.push_back(
        left == 1 ? -100 : static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(vocab)));
    b.positions.push_back(static_cast<std::int32_t>(position++));
    b.segments.push_back(segment);
    --left;
  }
  return b;
}

struct StepRecord {
  double loss = 0, grad_norm = 0, valid_tokens = 0;
};

struct EngineRun {
  std::vector<StepRecord> steps;
  std::map<std::string, std::vector<float>> gradients;  // of the last step
  std::map<std::string, std::vector<float>> weights;    // after it
};

// Makes a rank's backend. Device tensors of what is not the CPU are staged between ranks.
using MakeBackend = std::function<std::unique_ptr<Backend>(int rank)>;

inline std::vector<float> values_of(Engine& engine, const Tensor& t) {
  std::vector<float> out(static_cast<std::size_t>(t.numel()));
  FARSPAN_CHECK(t.dtype == DType::kF32, "{}", t.to_string());
  engine.backend().device().copy(reinterpret_cast<std::byte*>(out.data()), t.data, t.bytes(),
                                 engine.backend().stream());
  engine.backend().stream().synchronize();
  return out;
}

// Runs config.train.steps optimizer steps on the mesh of `config`; step s trains on the sequences
// of random_batch(1000 + s). Micro-batches and ranks share out the same sequences whatever the
// mesh. `after_step` is called on every rank.
inline EngineRun run_engine_on(
    const config::RunConfig& config, const MakeBackend& make, std::int64_t longest = 30,
    const std::function<void(Engine&, Communicator&, std::int64_t)>& after_step = {}) {
  EngineRun out;
  const int data = static_cast<int>(config.parallel().data());
  const int context = static_cast<int>(config.parallel().context());
  const auto& train = config.train();
  run_local_ranks(data * context, [&](Communicator& hosts) {
    const auto backend = make(hosts.rank());
    std::unique_ptr<Communicator> devices;
    if (backend->device().id().kind != DeviceKind::kCpu)
      devices = make_staged_communicator(hosts, backend->device());
    Communicator& world = devices ? *devices : hosts;
    const Mesh mesh = make_mesh(config, world);
    Trace trace;
    const ArenaSizes sizes = dry_run(config, world.rank(), world.size()).sizes;
    Engine engine(config, *backend, mesh, sizes, trace);
    engine.initialize();
    const std::int64_t rows = train.micro_batch(), length = train.sequence_length();
    Sharder sharder(Sharding::from(config, mesh.place()));
    MemoryProbe probe(config, world.rank(), world.size(), sizes);
    const std::int64_t micro_batches = train.batch_tokens() / (length * rows * data);
    for (std::int64_t s = 0; s < train.steps(); ++s) {
      const Batch all =
          random_batch(static_cast<std::uint64_t>(1000 + s), train.batch_tokens() / length, length,
                       config.model().vocab_size(), longest);
      std::vector<MicroBatch> mine;
      for (std::int64_t j = 0; j < micro_batches; ++j) {
        const std::int64_t first = (j * data + mesh.data_rank()) * rows * length;
        const auto cut = [&](const std::vector<std::int32_t>& v) {
          return std::vector<std::int32_t>(v.begin() + first, v.begin() + first + rows * length);
        };
        Batch b;
        b.sequences = rows;
        b.sequence_length = length;
        b.tokens = cut(all.tokens);
        b.labels = cut(all.labels);
        b.positions = cut(all.positions);
        b.segments = cut(all.segments);
        mine.push_back(sharder(b));
        engine.reserve(probe.train(mine.back()));
      }
      engine.train_step(mine, 1e-2, {});
      const StepResult r = engine.read_step();
      if (world.rank() == 0) out.steps.push_back({r.loss(), r.grad_norm, r.valid_tokens});
      if (after_step) after_step(engine, hosts, s);
    }
    if (world.rank() != 0) return;
    for (const Parameter& p : engine.parameters().parameters()) {
      out.gradients[p.name] = values_of(engine, p.grad);
      out.weights[p.name] = values_of(engine, p.master);
    }
  });
  return out;
}

inline EngineRun run_engine(const config::RunConfig& config, std::int64_t longest = 30,
                            int num_threads = 1, DeviceKind device = DeviceKind::kCpu) {
  return run_engine_on(
      config, [&](int) { return make_backend({.kind = device, .num_threads = num_threads}); },
      longest);
}

inline double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
  double diff = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    diff += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
    norm += double{b[i]} * double{b[i]};
  }
  return norm == 0 ? std::sqrt(diff) : std::sqrt(diff / norm);
}

}  // namespace farspan::testing
