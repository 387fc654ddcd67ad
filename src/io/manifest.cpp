#include "io/manifest.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "io/content_hash.h"

namespace farspan::io {
namespace {

// Field 9 (self_xxh3_128) on the wire: tag, length, 32 hex digits.
constexpr std::string_view kSelfTag = "\x4a\x20";
constexpr std::size_t kSelfBytes = 34;

Error bad_manifest(std::string what, const std::filesystem::path& path) {
  return Error(ExitCode::kBadData, {.what = std::move(what),
                                    .where = path.string(),
                                    .fix = "use another checkpoint, or restore this file"});
}

bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

std::optional<std::string> shard_problem(const Manifest& manifest) {
  std::set<std::string> files;
  for (const ShardFile& shard : manifest.shards()) {
    if (!is_plain_file_name(shard.file()))
      return fmt::format("shard file name '{}' is not a plain file name", shard.file());
    if (!files.insert(shard.file()).second)
      return fmt::format("shard file {} is listed twice", shard.file());
    if (!shard.has_bytes() || shard.bytes() <= 0 || !is_hash(shard.xxh3_128()))
      return fmt::format("shard {} has no size or hash", shard.file());
  }
  return std::nullopt;
}

std::optional<std::string> coverage_problem(const Manifest& manifest, const TensorEntry& tensor) {
  const std::optional<std::int64_t> elements = num_elements(tensor);
  if (!elements) return fmt::format("tensor {} has an impossible shape", tensor.name());
  std::int64_t next = 0;
  for (const TensorShard& piece : tensor.pieces()) {
    if (piece.shard() < 0 || piece.shard() >= manifest.shards_size() || piece.dataset().empty() ||
        piece.dataset_offset() < 0)
      return fmt::format("tensor {} has a piece in no shard", tensor.name());
    if (piece.count() <= 0 || piece.count() > *elements || piece.offset() < 0)
      return fmt::format("tensor {} has a piece of {} elements at {}", tensor.name(), piece.count(),
                         piece.offset());
    if (piece.offset() > next)
      return fmt::format("elements {} to {} of tensor {} are in no shard", next, piece.offset() - 1,
                         tensor.name());
    if (piece.offset() < next)
      return fmt::format("element {} of tensor {} is in two shards", piece.offset(), tensor.name());
    if (piece.count() > *elements - next)
      return fmt::format("tensor {} has {} elements, its pieces more", tensor.name(), *elements);
    next += piece.count();
  }
  if (next < *elements)
    return fmt::format("elements {} to {} of tensor {} are in no shard", next, *elements - 1,
                       tensor.name());
  return std::nullopt;
}

}  // namespace

std::string encode_manifest(Manifest& manifest) {
  manifest.clear_self_xxh3_128();
  std::string bytes;
  FARSPAN_CHECK(manifest.SerializeToString(&bytes));
  manifest.set_self_xxh3_128(hash_of(bytes));
  bytes += kSelfTag;
  bytes += manifest.self_xxh3_128();
  return bytes;
}

Manifest decode_manifest(std::string_view bytes, const std::filesystem::path& path) {
  if (bytes.size() < kSelfBytes)
    throw bad_manifest(fmt::format("truncated manifest: {} bytes", bytes.size()), path);
  const std::string_view content = bytes.substr(0, bytes.size() - kSelfBytes);
  const std::string_view self = bytes.substr(content.size());
  if (self.substr(0, 2) != kSelfTag)
    throw bad_manifest(
        fmt::format("truncated or overwritten manifest: no hash at offset {}", content.size()),
        path);
  const std::string actual = hash_of(content);
  if (self.substr(2) != actual)
    throw bad_manifest(fmt::format("corrupt manifest: its first {} bytes hash to {}, not to {}",
                                   content.size(), actual, self.substr(2)),
                       path);
  Manifest manifest;
  if (!manifest.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    throw bad_manifest("the manifest is no protobuf message of ours", path);
  if (const auto problem = manifest_problem(manifest)) throw bad_manifest(*problem, path);
  return manifest;
}

std::optional<std::string> manifest_problem(const Manifest& manifest) {
  if (manifest.format_version() != kManifestVersion)
    return fmt::format("checkpoint format {}, this build reads format {}",
                       manifest.format_version(), kManifestVersion);
  if (!manifest.has_step() || manifest.step() < 0 || !manifest.has_state())
    return "the manifest has no step or training state";
  if (auto problem = shard_problem(manifest)) return problem;
  std::set<std::string> names;
  for (const TensorEntry& tensor : manifest.tensors()) {
    if (tensor.name().empty() || !names.insert(tensor.name()).second)
      return fmt::format("tensor '{}' is listed twice or has no name", tensor.name());
    if (!dtype_named(tensor.dtype()))
      return fmt::format("tensor {} has the unknown type '{}'", tensor.name(), tensor.dtype());
    if (auto problem = coverage_problem(manifest, tensor)) return problem;
  }
  return std::nullopt;
}

std::optional<DType> dtype_named(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64,
                            DType::kU8, DType::kU16, DType::kU32})
    if (name == name_of(dtype)) return dtype;
  return std::nullopt;
}

std::optional<std::int64_t> num_elements(const TensorEntry& tensor) {
  if (tensor.shape_size() > Shape::kMaxDims) return std::nullopt;
  std::int64_t elements = 1;
  for (const std::int64_t extent : tensor.shape()) {
    // 2^56 elements leave room for eight bytes each within an int64.
    if (extent < 0 || (extent > 0 && elements > (std::int64_t{1} << 56) / extent))
      return std::nullopt;
    elements *= extent;
  }
  return elements;
}

bool is_optimizer_state(std::string_view tensor_name) {
  return tensor_name.find('/') != std::string_view::npos;
}

std::string manifest_json(const Manifest& manifest) {
  using nlohmann::ordered_json;
  const TrainState& s = manifest.state();
  ordered_json out;
  out["note"] = "for people; Farspan reads manifest.pb";
  out["format_version"] = manifest.format_version();
  out["code_version"] = manifest.code_version();
  out["created"] = manifest.created();
  out["step"] = manifest.step();
  out["state"] = {
      {"applied_steps", s.applied_steps()},
      {"skipped_steps", s.skipped_steps()},
      {"tokens", s.tokens()},
      {"samples", s.samples()},
      {"stage", s.stage()},
      {"stage_steps", std::vector<std::int64_t>(s.stage_steps().begin(), s.stage_steps().end())},
      {"seed", s.seed()},
      {"data_fingerprint", s.data_fingerprint()}};
  for (const ShardFile& shard : manifest.shards())
    out["shards"].push_back(
        {{"file", shard.file()}, {"bytes", shard.bytes()}, {"xxh3_128", shard.xxh3_128()}});
  for (const TensorEntry& tensor : manifest.tensors()) {
    ordered_json entry = {{"name", tensor.name()}, {"dtype", tensor.dtype()}};
    entry["shape"] = std::vector<std::int64_t>(tensor.shape().begin(), tensor.shape().end());
    entry["pieces"] = tensor.pieces_size();
    out["tensors"].push_back(std::move(entry));
  }
  out["config"] = manifest.config_yaml();
  // Names and texts may hold any bytes; JSON may not.
  return out.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace farspan::io
