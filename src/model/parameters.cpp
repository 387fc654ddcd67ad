#include "model/parameters.h"

#include <algorithm>
#include <vector>

#include "core/rng.h"

namespace farspan {
namespace {

Tensor slice(const Tensor& flat, const Parameter& p) {
  return flat.rows(p.offset, p.numel()).view(p.shape);
}

}  // namespace

Parameter& ParameterStore::add(std::string name, Shape shape, ParameterInit init) {
  for (const Parameter& p : parameters_) FARSPAN_CHECK(p.name != name, "{} added twice", name);
  Parameter p;
  p.name = std::move(name);
  p.shape = shape;
  p.init = init;
  p.decays = shape.num_dims() >= 2;
  p.offset = padded_;
  padded_ += (shape.numel() + kPadding - 1) / kPadding * kPadding;
  return parameters_.emplace_back(std::move(p));
}

void ParameterStore::allocate(const ParameterArenas& arenas, DType compute) {
  const Tensor master = arenas.weights.take(DType::kF32, {padded_}, "weights.master");
  const Tensor working =
      compute == DType::kF32 ? master : arenas.weights.take(compute, {padded_}, "weights.working");
  flat_grad_ = arenas.gradients.take(DType::kF32, {padded_}, "gradients");
  Tensor m, v;
  if (arenas.optimizer != nullptr) {
    m = arenas.optimizer->take(DType::kF32, {padded_}, "adamw.m");
    v = arenas.optimizer->take(DType::kF32, {padded_}, "adamw.v");
  }
  for (Parameter& p : parameters_) {
    p.master = slice(master, p);
    p.working = slice(working, p);
    p.grad = slice(flat_grad_, p);
    if (arenas.optimizer != nullptr) {
      p.m = slice(m, p);
      p.v = slice(v, p);
    }
  }
}

void ParameterStore::allocate_working(Arena& weights, DType compute) {
  const Tensor working = weights.take(compute, {padded_}, "weights.working");
  for (Parameter& p : parameters_) p.working = slice(working, p);
}

void ParameterStore::initialize(std::uint64_t seed, Backend& backend) {
  Kernels& k = backend.kernels();
  std::vector<float> host;
  k.fill({.dst = flat_grad_, .value = 0}, backend.stream());
  for (Parameter& p : parameters_) {
    for (const Tensor& t : {p.m, p.v})
      if (t.defined()) k.fill({.dst = t, .value = 0}, backend.stream());
    if (p.init.ones) {
      k.fill({.dst = p.master, .value = 1}, backend.stream());
      continue;
    }
    const CounterRng rng(seed, stream_id("weights." + p.name));
    host.resize(static_cast<std::size_t>(p.numel()));
    for (std::size_t i = 0; i < host.size(); ++i)
      host[i] = static_cast<float>(rng.normal(i) * p.init.deviation);
    backend.device().copy(p.master.data, reinterpret_cast<const std::byte*>(host.data()),
                          p.master.bytes(), backend.stream());
    backend.stream().synchronize();
  }
  refresh_working(backend);
}

void ParameterStore::refresh_working(Backend& backend) {
  for (Parameter& p : parameters_)
    if (p.working.data != p.master.data)
      backend.kernels().copy({.src = p.master, .dst = p.working}, backend.stream());
}

std::int64_t ParameterStore::num_elements() const {
  std::int64_t n = 0;
  for (const Parameter& p : parameters_) n += p.numel();
  return n;
}

}  // namespace farspan
