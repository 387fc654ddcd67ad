// Matrix products through oneDNN: one primitive per shape and one workspace, kept, so that a
// training step makes none of them after its first pass. (oneDNN 2.6.3 itself makes six or seven
// small objects in each call.)
//
//   Matmul matmul({.num_threads = 2, .native_bf16 = true}, row_ops_avx512());
//   matmul.run({.a = x, .b = w, .out = y, .trans_b = true});
//
// bf16 products sum in f32 and round once to nearest even. Where the processor (or oneDNN) has no
// fast bf16 product, operands are widened tile by tile and multiplied in f32, with the same
// rounding of the result; memory for that is three f32 tiles, whatever the shape.
//
// Repeatable bit for bit with a given number of threads. Not the same for every number of threads:
// oneDNN splits a long K over threads when M * N is small (seen at M, N <= 128, K >= 4096). With
// row_blocks it is: blocks, and parts of large ones, are products of one thread each.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/args.h"
#include "kernels/cpu/rows/rows.h"

namespace farspan::cpu {

struct MatmulConfig {
  int num_threads = 1;
  bool native_bf16 = false;  // hand bf16 operands to oneDNN as they are
  std::int64_t tile = 1024;  // extent of a widened tile in M, N and K; tests make it small
};

class Matmul {
 public:
  Matmul(MatmulConfig config, const RowOps& rows);
  ~Matmul();
  // Shapes and dtypes as args.h says (checked before). Any extent may be 0. Throws
  // Error(kExhausted) when workspace cannot be allocated.
  void run(const MatmulArgs& args);
  void run(const ExactMatmulArgs& args);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// True when oneDNN multiplies bf16 by bf16 instructions here. Below AVX-512 BF16 it emulates them
// (94 GFLOP/s a core against 250 in f32 on a Zen 5) or, on AVX2, refuses.
bool onednn_has_native_bf16();

// "2.6.3", of the library that is loaded.
std::string onednn_version();

}  // namespace farspan::cpu
