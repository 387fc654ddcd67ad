// The one way in which contributions of ranks are added, for every CPU transport.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "comm/communicator.h"

namespace farspan {

// out[i] = sources[0][i] op sources[1][i] op ..., evaluated left to right, for i in [0, count).
// f32, f64, i32, i64 (sums wrap) in their own type; bf16 widened to f32 and rounded once, to
// nearest even. `out` may be one of the sources, exactly. CHECKs the dtype.
void reduce_in_order(DType dtype, ReduceOp op, std::span<const std::byte* const> sources,
                     std::byte* out, std::int64_t count);

// Whether reduce_in_order knows the type.
bool is_reducible(DType dtype);

}  // namespace farspan
