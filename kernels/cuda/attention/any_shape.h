// Attention of every shape that kernels/args.h allows, in f32 arithmetic: f32 and bf16 tensors, any
// head dim, ALiBi and xPos. It is what parity runs in f32 use, and what does the shapes that the
// tensor-core kernels refuse. Forward and backward repeat bit for bit, and depend on what
// `invariant` names only.
//
//   attention_forward_any_shape(args, schedules, stream);
//
// Own and moving: a block keeps a tile of its own rows (queries, or keys) and the rows of the other
// side move past it, slice by slice. Scores lie in registers, 4 x 4 a thread. Head dims are taken
// kDepth at a time for scores and up to 128 at a time for sums (a head dim above 128 computes its
// scores once per 128).
//
// xPos: products of dim c count 2^(decay[c] p), p being the distance. With a reference row r at or
// before query i, 2^(decay p(i, j)) = 2^(decay (i - r) stride) 2^(decay p(r, j)): a factor of the
// query, at most 1, and one of the key, at most 2^24, because a run of queries that share a
// reference is cut short where decays are steep. Far keys underflow to 0, as they should.
//
// ALiBi: no score is formed as slope p_i minus slope p_j. What all scores of a row have in common,
// slope times the distance of its nearest key in the tile, is kept apart in f64; the rest are
// distances inside the tile, exact integers.
#pragma once

#include "core/device.h"
#include "kernels/args.h"
#include "kernels/cuda/attention/schedule_cache.h"

namespace farspan::cuda {

void attention_forward_any_shape(const AttentionForwardArgs& args, ScheduleCache& schedules,
                                 Stream& stream);
void attention_backward_any_shape(const AttentionBackwardArgs& args, ScheduleCache& schedules,
                                  Stream& stream);

}  // namespace farspan::cuda
