// From the pieces that ranks hold to shards and back to one description of them all.
//
//   Manifest part = write_shard(folder, rank, pieces);        // on every rank
//   Manifest whole = merge_shards(parts, folder);             // on rank 0, parts in rank order
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/checkpoint.h"

namespace farspan::io {

std::string shard_file_name(int rank);  // "shard_00003.h5"
// Bytes of elements in `pieces`.
std::int64_t payload_bytes(std::span<const TensorPiece> pieces);

// Writes `pieces` as the shard of `rank` into `folder`, fsyncs file and folder, and reads the file
// back for its hash. All runs of one tensor share the dataset "tensors/<name>". Returns a manifest
// with this one shard (its pieces point at shard index `rank`) and its tensors only.
Manifest write_shard(const std::filesystem::path& folder, int rank,
                     std::span<const TensorPiece> pieces);

// Shards and tensors of all ranks in one manifest, tensors by name and pieces by offset. CHECKs
// that ranks agree on types and shapes; coverage is for manifest_problem().
Manifest merge_shards(std::span<const Manifest> parts);

}  // namespace farspan::io
