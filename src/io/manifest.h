// The manifest: what makes a folder a checkpoint.
//
//   std::string bytes = encode_manifest(manifest);            // fills self_xxh3_128
//   io::Manifest m = decode_manifest(bytes, path);            // throws unless all of it verifies
//
// manifest.pb is one protobuf message whose last field is the XXH3-128 of all bytes before that
// field. The hash is therefore over bytes of the file, not over a re-serialisation: it stays valid
// for readers that know fewer fields, and every byte of the file is covered.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "core/tensor.h"
#include "io/manifest.pb.h"

namespace farspan::io {

inline constexpr int kManifestVersion = 1;
inline constexpr const char* kManifestFile = "manifest.pb";
inline constexpr const char* kManifestJson = "manifest.json";

std::string encode_manifest(Manifest& manifest);
// Throws Error(kBadData) naming `path` when the bytes do not verify or describe no checkpoint.
Manifest decode_manifest(std::string_view bytes, const std::filesystem::path& path);

// What is wrong with the description, if anything: versions, names, types, hashes, and that the
// pieces of every tensor cover each of its elements exactly once. Pieces must be in ascending
// order.
std::optional<std::string> manifest_problem(const Manifest& manifest);

std::optional<DType> dtype_named(std::string_view name);
// Elements of a tensor; nullopt when the shape is impossible (negative, overflowing, too deep).
std::optional<std::int64_t> num_elements(const TensorEntry& tensor);
// Optimizer state is named "<optimizer>.<slot>/<weight>", weights have no slash.
bool is_optimizer_state(std::string_view tensor_name);

// For people; nothing reads it back.
std::string manifest_json(const Manifest& manifest);

}  // namespace farspan::io
