// ldmatrix and mma.sync as what the lanes of a warp do together. Which lane holds which element is
// said in kernels/cuda/ptx.cuh.
#pragma once

#include <cstdint>

namespace farspan::simt {

void ldmatrix(std::uint32_t (&r)[4], const void* row, bool transposed);

// Products are exact; sums are in f32, k ascending. (Hardware adds the products of a step at once
// and rounds otherwise: same size of error, other bits.)
void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

}  // namespace farspan::simt
