// Which keys and values other ranks need, and how far round the ring they must travel for that.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/plan_pieces.h"

namespace farspan {

// Local rows [begin, end) of an owner, and the distance along the ring to the farthest rank that
// needs them.
struct KvJourney {
  std::int64_t begin = 0, end = 0;
  int farthest = 0;
};

// For each owner, ascending; rows that stay at home are left out.
std::vector<std::vector<KvJourney>> kv_journeys(const ShardedDocuments& documents, int num_ranks);

// For each rank, the rows of `owner` that its queries see, ascending.
std::vector<std::vector<IndexRange>> kv_needs(const ShardedDocuments& documents, int owner,
                                              int num_ranks);

// Sorts and joins ranges that touch or overlap.
void normalize(std::vector<IndexRange>& ranges);

}  // namespace farspan
