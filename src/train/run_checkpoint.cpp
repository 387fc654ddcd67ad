#include "train/run_checkpoint.h"

#include <array>
#include <utility>

namespace farspan {
namespace {

struct Named {
  std::string name;
  Tensor tensor;
};

std::array<Named, 3> tensors_of(const Parameter& p) {
  return {{{p.name, p.master}, {"adamw.m/" + p.name, p.m}, {"adamw.v/" + p.name, p.v}}};
}

void check_shape(const io::TensorEntry& entry, const Shape& shape, const std::string& where) {
  bool same = entry.shape_size() == shape.num_dims();
  for (int i = 0; same && i < entry.shape_size(); ++i) same = entry.shape(i) == shape[i];
  if (same) return;
  std::string saved;
  for (const std::int64_t extent : entry.shape()) saved += fmt::format("{} ", extent);
  throw Error(
      ExitCode::kBadData,
      {.what = fmt::format("tensor {} has shape ( {}) in the checkpoint and {} in the model",
                           entry.name(), saved, shape.to_string()),
       .where = where,
       .fix = "use the model keys that the checkpoint was made with"});
}

// By way of `host`, which grows to the largest tensor.
void load_tensor(const Named& t, Engine& engine, const CheckpointReader& reader,
                 std::vector<float>& host) {
  host.resize(static_cast<std::size_t>(t.tensor.numel()));
  read_tensor(reader, t.name, t.tensor.shape, host.data());
  Backend& backend = engine.backend();
  backend.device().copy(t.tensor.data, reinterpret_cast<const std::byte*>(host.data()),
                        t.tensor.bytes(), backend.stream());
  backend.stream().synchronize();
}

}  // namespace

Snapshot::Snapshot(Engine& engine, const Communicator& world)
    : rank_(world.rank()),
      size_(world.size()),
      copies_(engine.backend().device().make_stream()),
      begun_(engine.backend().device().make_event()),
      done_(engine.backend().device().make_event()) {
  std::int64_t elements = 0;
  for (const Parameter& p : engine.parameters().parameters()) {
    const Share share = share_of(p.numel());
    elements += 3 * (share.end - share.begin);
  }
  buffer_ = engine.backend().device().allocate_host(static_cast<std::size_t>(elements) * 4);
}

Snapshot::Share Snapshot::share_of(std::int64_t numel) const {
  return {numel * rank_ / size_, numel * (rank_ + 1) / size_};
}

std::vector<TensorPiece> Snapshot::take(Engine& engine) {
  std::vector<TensorPiece> pieces;
  std::byte* next = buffer_.data();
  begun_->record(engine.backend().stream());
  begun_->order_before(*copies_);
  for (const Parameter& p : engine.parameters().parameters()) {
    const Share share = share_of(p.numel());
    const std::int64_t count = share.end - share.begin;
    if (count == 0) continue;
    for (const Named& t : tensors_of(p)) {
      const Tensor from = t.tensor.view({p.numel()}).rows(share.begin, count);
      engine.backend().device().copy(next, from.data, from.bytes(), *copies_);
      pieces.push_back({.name = t.name,
                        .global_shape = p.shape,
                        .offset = share.begin,
                        .data = host_tensor(reinterpret_cast<float*>(next), {count})});
      next += from.bytes();
    }
  }
  done_->record(*copies_);
  engine.update_after(*done_);
  return pieces;
}

void read_tensor(const CheckpointReader& reader, const std::string& name, const Shape& shape,
                 float* host) {
  const std::string where = fmt::format("checkpoint of step {}", reader.manifest().step());
  const io::TensorEntry* entry = reader.find(name);
  if (entry == nullptr)
    throw Error(ExitCode::kBadData,
                {.what = fmt::format("the checkpoint holds no tensor {}", name),
                 .where = where,
                 .fix = "use the model keys that the checkpoint was made with"});
  check_shape(*entry, shape, where);
  reader.read(name, 0, host_tensor(host, {shape.numel()}));
}

void restore_weights(Engine& engine, const CheckpointReader& reader) {
  std::vector<float> host;
  for (const Parameter& p : engine.parameters().parameters())
    load_tensor({p.name, p.master}, engine, reader, host);
  engine.parameters().refresh_working(engine.backend());
}

void restore(Engine& engine, const CheckpointReader& reader) {
  std::vector<float> host;
  for (const Parameter& p : engine.parameters().parameters())
    for (const Named& t : tensors_of(p)) load_tensor(t, engine, reader, host);
  const io::TrainState& state = reader.manifest().state();
  engine.optimizer().set_counters(state.applied_steps(), state.skipped_steps(), engine.backend());
  engine.parameters().refresh_working(engine.backend());
}

}  // namespace farspan
