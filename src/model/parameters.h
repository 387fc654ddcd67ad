// The weights of a model and everything that belongs to each: one flat f32 buffer each for master
// weights, gradients and the two AdamW moments, and one in the compute dtype for the kernels.
//
//   ParameterStore store;
//   Parameter& w = store.add("model.norm.weight", {hidden}, {.ones = true});
//   store.allocate(arenas..., DType::kBF16);      // every Tensor of w is valid from here on
//   store.initialize(seed, backend);
//
// Names and shapes are Hugging Face's. Order of addition is the order of the flat buffers.
#pragma once

#include <deque>
#include <string>
#include <string_view>

#include "core/arena.h"
#include "kernels/backend.h"

namespace farspan {

struct ParameterInit {
  bool ones = false;     // norm gains
  double deviation = 0;  // else normal(0, deviation)
};

struct Parameter {
  std::string name;
  Shape shape;
  ParameterInit init;
  bool decays = false;      // weight decay: matrices yes, gains no
  std::int64_t offset = 0;  // first element in the flat buffers
  Tensor master;            // f32
  Tensor working;           // compute dtype; the master itself when that is f32
  Tensor grad;              // f32, gradient of the summed loss
  Tensor m, v;              // f32

  std::int64_t numel() const { return shape.numel(); }
};

struct ParameterArenas {
  Arena& weights;  // master and working copy
  Arena& gradients;
  Arena* optimizer;  // absent for evaluation
};

class ParameterStore {
 public:
  static constexpr std::int64_t kPadding = 64;  // elements: each starts at 256 bytes of f32

  // References stay valid. A name is added once.
  Parameter& add(std::string name, Shape shape, ParameterInit init);
  void allocate(const ParameterArenas& arenas, DType compute);
  // Working copies alone, for passes without gradients: what trains a parameter stays undefined.
  void allocate_working(Arena& weights, DType compute);

  // Fills masters from a counter RNG of (seed, name, element): the same on every rank and for any
  // sharding; moments and gradients become zero. Device memory is written through `staging`-free
  // host copies, one parameter at a time.
  void initialize(std::uint64_t seed, Backend& backend);
  // working = master, after masters were loaded or initialised.
  void refresh_working(Backend& backend);

  std::deque<Parameter>& parameters() { return parameters_; }
  const std::deque<Parameter>& parameters() const { return parameters_; }
  Tensor flat_gradients() const { return flat_grad_; }  // (n) f32, padding included and zero
  std::int64_t num_elements() const;                    // without padding

 private:
  std::deque<Parameter> parameters_;
  std::int64_t padded_ = 0;
  Tensor flat_grad_;
};

}  // namespace farspan
