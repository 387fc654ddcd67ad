#include "train/engine.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace farspan {
namespace {

constexpr std::size_t kMostUploads = 64;  // micro-batches whose tokens are on their way

std::vector<OptimizerParameter> optimizer_parameters(ParameterStore& store) {
  std::vector<OptimizerParameter> out;
  for (Parameter& p : store.parameters())
    out.push_back({.master = p.master,
                   .working = p.working,
                   .grad = p.grad,
                   .m = p.m,
                   .v = p.v,
                   .decays = p.decays});
  return out;
}

// Exchanges between ranks, sums of the invariant mode and offloading have a host side of their own.
PassGraphs::Use use_of_graphs(const config::RunConfig& config, const Mesh& mesh,
                              const RecomputePolicy& policy) {
  const bool can = mesh.context_size() == 1 && !config.parallel().invariant() && !policy.offloads();
  return can ? graphs_use(config.train().cuda_graphs()) : PassGraphs::Use::kOff;
}

}  // namespace

Mesh make_mesh(const config::RunConfig& config, Communicator& world) {
  const config::Parallel& parallel = config.parallel();
  return {world, static_cast<int>(parallel.data()), static_cast<int>(parallel.context()),
          static_cast<int>(std::max<std::int64_t>(parallel.ulysses(), 1))};
}

DType compute_dtype(const config::RunConfig& config) {
  return config.train().precision() == "fp32" ? DType::kF32 : DType::kBF16;
}

AttentionKernel attention_kernel(const config::RunConfig& config) {
  const std::string& name = config.parallel().attention_kernel();
  return name == "own"     ? AttentionKernel::kOwn
         : name == "cudnn" ? AttentionKernel::kCudnn
                           : AttentionKernel::kAuto;
}

Engine::Engine(const config::RunConfig& config, Backend& backend, const Mesh& mesh,
               const ArenaSizes& sizes, Trace& trace)
    : backend_(backend),
      mesh_(&mesh),
      trace_(trace),
      compute_(compute_dtype(config)),
      policy_(RecomputePolicy::from(config.train().recompute())),
      token_tile_(config.train().token_tile()),
      graphs_(use_of_graphs(config, mesh, policy_)),
      seed_(config.seed()),
      deterministic_(config.parallel().deterministic()),
      weights_(backend.device(), sizes.weights, "weights"),
      gradients_(backend.device(), sizes.gradients, "gradients"),
      optimizer_states_(backend.device(), sizes.optimizer, "optimizer"),
      activations_(std::make_unique<Arena>(backend.device(), sizes.activations, "activations")),
      scratch_(std::make_unique<Arena>(backend.device(), sizes.scratch, "scratch")),
      batch_(std::make_unique<Arena>(backend.device(), sizes.batch, "batch")),
      attention_(make_attention(config.parallel().attention(), config.parallel().invariant())),
      model_(config.model(), compute_, parameters_, *attention_) {
  if (policy_.offloads()) stash_ = std::make_unique<HostStash>(backend.device(), sizes.host);
  parameters_.allocate({weights_, gradients_, &optimizer_states_}, compute_);
  model_.allocate(weights_, backend_);
  optimizer_ = std::make_unique<AdamW>(config.optimizer(), optimizer_parameters(parameters_));
  optimizer_->allocate(optimizer_states_, backend_);
  sums_ = optimizer_states_.take(DType::kF64, {kNumSums}, "step.sums");
  eval_sums_ = optimizer_states_.take(DType::kF64, {2}, "evaluation.sums");
  backend_.kernels().fill({.dst = eval_sums_, .value = 0}, backend_.stream());
  if (config.parallel().invariant())
    invariant_ = std::make_unique<InvariantStep>(backend_, gradients_, parameters_.flat_gradients(),
                                                 sum(kLoss), eval_sums_.rows(0, 1));
}

void Engine::initialize() { parameters_.initialize(seed_, backend_); }

void Engine::enter_stage(const config::RunConfig& config, const Mesh& mesh) {
  backend_.stream().synchronize();
  graphs_.forget(backend_);
  graphs_ = PassGraphs(use_of_graphs(config, mesh, policy_));
  mesh_ = &mesh;
  auto attention = make_attention(config.parallel().attention(), config.parallel().invariant());
  model_.change(config.model(), *attention, backend_);
  attention_ = std::move(attention);
}

bool Engine::reserve(const PassMemory& memory) {
  bool grown = false;
  const auto grow = [&](std::unique_ptr<Arena>& arena, std::size_t bytes) {
    if (bytes <= arena->capacity()) return;
    FARSPAN_CHECK(arena->used() == 0, "arena '{}' grows while in use", arena->name());
    if (!grown) backend_.stream().synchronize();  // what it still works on goes
    const std::string name = arena->name();
    arena.reset();  // first: both together may not fit
    arena = std::make_unique<Arena>(backend_.device(), bytes, name);
    grown = true;
  };
  grow(activations_, memory.activations);
  grow(scratch_, memory.scratch);
  grow(batch_, memory.batch);
  if (stash_ && memory.host > stash_->host().capacity()) {
    if (!grown) backend_.stream().synchronize();
    stash_.reset();
    stash_ = std::make_unique<HostStash>(backend_.device(), memory.host);
    grown = true;
  }
  if (grown) graphs_.forget(backend_);
  return grown;
}

std::size_t Engine::device_bytes_with(const PassMemory& memory) const {
  return weights_.capacity() + gradients_.capacity() + optimizer_states_.capacity() +
         std::max(activations_->capacity(), memory.activations) +
         std::max(scratch_->capacity(), memory.scratch) +
         std::max(batch_->capacity(), memory.batch);
}

PassMemory Engine::pass_memory() const {
  return {.activations = activations_->high_water(),
          .scratch = scratch_->high_water(),
          .batch = batch_->high_water(),
          .host = stash_ ? stash_->host().high_water() : 0};
}

StepContext Engine::context(const MicroBatch& micro_batch) const {
  if (invariant_) invariant_->begin_pass(micro_batch.row_blocks, *scratch_);
  return {.backend = invariant_ ? invariant_->backend() : backend_,
          .saved = *activations_,
          .scratch = *scratch_,
          .mesh = *mesh_,
          .plans = micro_batch.plans,
          .trace = trace_,
          .row_blocks = micro_batch.row_blocks,
          .token_tile = token_tile_,
          .stash = stash_.get(),
          .deterministic = deterministic_};
}

// Each micro-batch of a step has memory of its own, so that the host runs ahead of the device;
// after very many it waits for the first of them, which is long done.
std::byte* Engine::upload_memory(std::size_t bytes) {
  if (next_upload_ == uploads_.size() && uploads_.size() < kMostUploads) uploads_.emplace_back();
  next_upload_ %= uploads_.size();
  Upload& upload = uploads_[next_upload_];
  if (upload.done == nullptr) upload.done = backend_.device().make_event();
  upload.done->synchronize();
  if (upload.host.bytes() < bytes) upload.host = backend_.device().allocate_host(bytes);
  return upload.host.data();
}

TokenTensors Engine::upload(const MicroBatch& micro_batch) {
  const std::size_t tokens = micro_batch.tokens.size(), ids = micro_batch.table_ids.size();
  std::byte* pinned = nullptr;
  if (has_queue())
    pinned = upload_memory((3 * tokens + ids) * sizeof(std::int32_t) +
                           micro_batch.inv_freq.size() * sizeof(double));
  const auto put = [&](DType dtype, const auto& host, std::string_view name) {
    const Tensor t = batch_->take(dtype, {static_cast<std::int64_t>(host.size())}, name);
    const auto* from = reinterpret_cast<const std::byte*>(host.data());
    if (pinned != nullptr) {
      if (t.bytes() != 0) std::memcpy(pinned, from, t.bytes());
      from = std::exchange(pinned, pinned + t.bytes());
    }
    backend_.device().copy(t.data, from, t.bytes(), backend_.stream());
    return t;
  };
  TokenTensors tensors{.tokens = put(DType::kI32, micro_batch.tokens, "batch.tokens"),
                       .labels = put(DType::kI32, micro_batch.labels, "batch.labels"),
                       .positions = put(DType::kI32, micro_batch.positions, "batch.positions")};
  // Last, so that the number of tables moves nothing else: a pass recorded as a graph finds its
  // tensors where they were.
  if (const std::int64_t tables = micro_batch.num_tables; tables > 0) {
    tensors.table_ids = put(DType::kI32, micro_batch.table_ids, "batch.table_ids");
    const Tensor flat = put(DType::kF64, micro_batch.inv_freq, "batch.inv_freq");
    tensors.inv_freq = flat.view({tables, flat.numel() / tables});
  }
  if (pinned != nullptr) uploads_[next_upload_++].done->record(backend_.stream());
  return tensors;
}

void Engine::run_pass(const MicroBatch& micro_batch, const LossSums& losses) {
  const PassGraphs::Key key{.plan = micro_batch.plan_id,
                            .tokens = static_cast<std::int64_t>(micro_batch.tokens.size()),
                            .activations = activations_->used(),
                            .scratch = scratch_->used(),
                            .batch = batch_->used()};
  auto scope = batch_->scope();
  auto section = trace_.section("pass");
  const TokenTensors batch = upload(micro_batch);
  const auto pass = [&] { model_.forward_backward(batch, losses, policy_, context(micro_batch)); };
  if (micro_batch.plan_id == 0)
    pass();
  else
    graphs_.run(key, backend_, pass);
}

void Engine::train_step(std::span<const MicroBatch> micro_batches, double lr,
                        const HostFlags& flags) {
  Kernels& k = backend_.kernels();
  Stream& stream = backend_.stream();
  double pairs = 0;
  for (const MicroBatch& m : micro_batches) pairs += m.visible_pairs;
  // Each context rank brings its share, so that the sum over the world counts a sequence once.
  pairs /= mesh_->context_size();
  k.fill({.dst = parameters_.flat_gradients(), .value = 0}, stream);
  if (invariant_) invariant_->begin();
  k.fill({.dst = sums_, .value = 0}, stream);
  k.fill({.dst = sum(kPairs), .value = pairs}, stream);
  k.fill({.dst = sum(kStop), .value = flags.stop_requested ? 1.0 : 0.0}, stream);
  k.fill({.dst = sum(kSaveFailed), .value = flags.save_failed ? 1.0 : 0.0}, stream);

  const LossSums losses{.loss_sum = sum(kLoss), .valid_count = sum(kValid)};
  for (const MicroBatch& m : micro_batches) run_pass(m, losses);
  {
    auto section = trace_.section("gradients.all_reduce");
    mesh_->world().all_reduce(sums_, ReduceOp::kSum, stream).wait();
    if (invariant_)
      invariant_->reduce(mesh_->world());
    else
      mesh_->world().all_reduce(parameters_.flat_gradients(), ReduceOp::kSum, stream).wait();
  }
  if (update_after_ != nullptr) std::exchange(update_after_, nullptr)->order_before(stream);
  auto section = trace_.section("optimizer");
  optimizer_->step(lr, losses.loss_sum, losses.valid_count, parameters_.flat_gradients(), backend_);
}

void Engine::read(std::initializer_list<std::pair<Tensor, void*>> values) {
  const auto copy = [&](const Tensor& from, std::byte* to) {
    backend_.device().copy(to, from.data, from.bytes(), backend_.stream());
  };
  if (!has_queue()) {
    for (const auto& [from, to] : values) copy(from, static_cast<std::byte*>(to));
    return backend_.stream().synchronize();
  }
  std::size_t bytes = 0;
  for (const auto& value : values) bytes += value.first.bytes();
  if (results_.bytes() < bytes) results_ = backend_.device().allocate_host(bytes);
  std::byte* at = results_.data();
  for (const auto& value : values) {
    copy(value.first, at);
    at += value.first.bytes();
  }
  backend_.stream().synchronize();
  next_upload_ = 0;  // all of them are there
  at = results_.data();
  for (const auto& [from, to] : values) {
    std::memcpy(to, at, from.bytes());
    at += from.bytes();
  }
}

StepResult Engine::read_step() {
  std::array<double, kNumSums> sums{};
  StepResult r;
  const OptimizerScalars& scalars = optimizer_->scalars();
  read({{sums_, sums.data()},
        {scalars.grad_norm, &r.grad_norm},
        {scalars.applied_steps, &r.applied_steps},
        {scalars.skipped_steps, &r.skipped_steps}});
  r.loss_sum = sums[kLoss];
  r.valid_tokens = sums[kValid];
  r.visible_pairs = sums[kPairs];
  r.flags = {.stop_requested = sums[kStop] > 0, .save_failed = sums[kSaveFailed] > 0};
  return r;
}

void Engine::evaluate(const MicroBatch& micro_batch) {
  auto scope = batch_->scope();
  model_.forward(upload(micro_batch),
                 {.loss_sum = eval_sums_.rows(0, 1), .valid_count = eval_sums_.rows(1, 1)}, {},
                 context(micro_batch));
}

std::vector<float> Engine::nll(const MicroBatch& micro_batch) {
  auto scope = batch_->scope();
  return nll_pass(model_, upload(micro_batch),
                  {.loss_sum = eval_sums_.rows(0, 1), .valid_count = eval_sums_.rows(1, 1)},
                  context(micro_batch));
}

void Engine::row_logits(const MicroBatch& micro_batch, std::span<const std::int64_t> rows,
                        const TakeRowLogits& take) {
  auto scope = batch_->scope();
  logits_pass(model_, upload(micro_batch), rows, take, context(micro_batch));
}

EvalResult Engine::read_evaluation() {
  std::array<double, 2> sums{};
  mesh_->world().all_reduce(eval_sums_, ReduceOp::kSum, backend_.stream()).wait();
  if (invariant_) invariant_->reduce_evaluation(mesh_->world());
  read({{eval_sums_, sums.data()}});
  backend_.kernels().fill({.dst = eval_sums_, .value = 0}, backend_.stream());
  return {.loss_sum = sums[0], .valid_tokens = sums[1]};
}

std::vector<const Arena*> Engine::arenas() const {
  std::vector<const Arena*> out{&weights_,          &gradients_,    &optimizer_states_,
                                activations_.get(), scratch_.get(), batch_.get()};
  if (stash_) out.push_back(&stash_->host());
  return out;
}

}  // namespace farspan
