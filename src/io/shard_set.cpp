#include "io/shard_set.h"

#include <algorithm>
#include <map>

#include "io/content_hash.h"
#include "io/durable.h"
#include "io/hdf5_file.h"
#include "io/manifest.h"

namespace farspan::io {
namespace {

using ByName = std::map<std::string, std::vector<const TensorPiece*>>;

ByName group(std::span<const TensorPiece> pieces) {
  ByName by_name;
  for (const TensorPiece& piece : pieces) {
    FARSPAN_CHECK(!piece.name.empty() && piece.name.front() != '/' && piece.name.back() != '/',
                  "tensor name '{}'", piece.name);
    FARSPAN_CHECK(
        piece.offset >= 0 && piece.offset + piece.data.numel() <= piece.global_shape.numel(),
        "{}: {} elements at {} of {}", piece.name, piece.data.numel(), piece.offset,
        piece.global_shape.to_string());
    by_name[piece.name].push_back(&piece);
  }
  for (auto& [name, group] : by_name) {
    std::stable_sort(group.begin(), group.end(),
                     [](const auto* a, const auto* b) { return a->offset < b->offset; });
    for (const TensorPiece* piece : group)
      FARSPAN_CHECK(piece->global_shape == group[0]->global_shape &&
                        piece->data.dtype == group[0]->data.dtype,
                    "pieces of {} differ in shape or type", name);
  }
  return by_name;
}

void describe(const std::string& name, const TensorPiece& like, TensorEntry& entry) {
  entry.set_name(name);
  entry.set_dtype(std::string(name_of(like.data.dtype)));
  for (int i = 0; i < like.global_shape.num_dims(); ++i) entry.add_shape(like.global_shape[i]);
}

}  // namespace

std::string shard_file_name(int rank) { return fmt::format("shard_{:05d}.h5", rank); }

std::int64_t payload_bytes(std::span<const TensorPiece> pieces) {
  std::int64_t bytes = 0;
  for (const TensorPiece& piece : pieces) bytes += static_cast<std::int64_t>(piece.data.bytes());
  return bytes;
}

Manifest write_shard(const std::filesystem::path& folder, int rank,
                     std::span<const TensorPiece> pieces) {
  const auto path = folder / shard_file_name(rank);
  Manifest part;
  Hdf5Writer file(path, payload_bytes(pieces));
  for (const auto& [name, group] : group(pieces)) {
    TensorEntry& entry = *part.add_tensors();
    describe(name, *group[0], entry);
    std::vector<Tensor> data;
    std::int64_t in_dataset = 0;
    for (const TensorPiece* piece : group) {
      if (piece->data.numel() == 0) continue;
      TensorShard& run = *entry.add_pieces();
      run.set_offset(piece->offset);
      run.set_count(piece->data.numel());
      run.set_shard(rank);
      run.set_dataset("tensors/" + name);
      run.set_dataset_offset(in_dataset);
      in_dataset += piece->data.numel();
      data.push_back(piece->data);
    }
    if (!data.empty()) file.write("tensors/" + name, data);
  }
  const std::int64_t bytes = file.close();
  sync_directory(folder);
  const FileHash hash = hash_file(path);
  FARSPAN_CHECK(hash.bytes == bytes, "{} changed while it was written", path.string());
  ShardFile& shard = *part.add_shards();
  shard.set_file(path.filename().string());
  shard.set_bytes(bytes);
  shard.set_xxh3_128(hash.xxh3_128);
  return part;
}

Manifest merge_shards(std::span<const Manifest> parts) {
  Manifest whole;
  std::map<std::string, TensorEntry> tensors;
  for (const Manifest& part : parts) {
    FARSPAN_CHECK(part.shards_size() == 1);
    *whole.add_shards() = part.shards(0);
    for (const TensorEntry& tensor : part.tensors()) {
      const auto [it, fresh] = tensors.try_emplace(tensor.name(), tensor);
      if (fresh) continue;
      TensorEntry& entry = it->second;
      FARSPAN_CHECK(entry.dtype() == tensor.dtype() &&
                        std::equal(entry.shape().begin(), entry.shape().end(),
                                   tensor.shape().begin(), tensor.shape().end()),
                    "ranks differ in the shape or type of {}", tensor.name());
      entry.mutable_pieces()->MergeFrom(tensor.pieces());
    }
  }
  for (auto& [name, entry] : tensors) {
    std::stable_sort(entry.mutable_pieces()->begin(), entry.mutable_pieces()->end(),
                     [](const auto& a, const auto& b) { return a.offset() < b.offset(); });
    *whole.add_tensors() = std::move(entry);
  }
  return whole;
}

}  // namespace farspan::io
