// What the reader and the writer of token stores share: HDF5's identifiers as owners, its errors as
// ours. Private to token_store*.cpp, the only files of this module that see HDF5.
#pragma once

#include <hdf5.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "data/files.h"

namespace farspan::store {

namespace fs = std::filesystem;

inline constexpr std::string_view kFormat = "farspan.tokens";
inline constexpr std::int64_t kChunk = 65536;       // elements; the unit of checksum and of reading
inline constexpr std::size_t kBuffer = 4 * kChunk;  // elements gathered before they are written
inline constexpr std::size_t kCacheBytes = 16u << 20u;  // of chunks, per column being read
inline constexpr std::size_t kReserve =
    4u << 20u;  // bytes of disk held ready for metadata and part-filled chunks
inline constexpr std::int64_t kMaxId = std::numeric_limits<std::int32_t>::max();
inline constexpr std::string_view kReimport =
    "make the store again with `farspan data import --force`, or copy it with its manifest again "
    "from where it is intact";

enum Column : std::size_t { kTokens, kLabels, kPositionIds, kSegmentIds, kNumColumns };
inline constexpr std::array<const char*, kNumColumns> kColumnNames = {
    "tokens", "labels", "position_ids", "segment_ids"};

// Owner of an HDF5 identifier.
class Handle {
 public:
  Handle() = default;
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this == &other) return *this;
    reset();
    id_ = std::exchange(other.id_, -1);
    close_ = other.close_;
    return *this;
  }
  ~Handle() { reset(); }
  // False when HDF5 could not close it (a flush that failed).
  bool reset() { return id_ < 0 || close_(std::exchange(id_, -1)) >= 0; }
  hid_t get() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }

 private:
  hid_t id_ = -1;
  herr_t (*close_)(hid_t) = nullptr;
};

// HDF5 prints its error stack to standard error unless told not to, per thread.
class QuietErrors {
 public:
  QuietErrors() {
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  QuietErrors(const QuietErrors&) = delete;
  QuietErrors& operator=(const QuietErrors&) = delete;
  ~QuietErrors() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

// The descriptions on the error stack of the last failed call, innermost last.
inline std::vector<std::string> error_stack() {
  std::vector<std::string> out;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_DOWNWARD,
      [](unsigned, const H5E_error2_t* error, void* data) -> herr_t {
        if (error->desc != nullptr)
          static_cast<std::vector<std::string>*>(data)->emplace_back(error->desc);
        return 0;
      },
      &out);
  return out;
}

inline std::string innermost_error() {
  const auto stack = error_stack();
  return stack.empty() ? "no details" : stack.back();
}

// A failed write. HDF5 keeps errno only in the text of its stack ("errno = 28, ...").
[[noreturn]] inline void throw_write_error(const fs::path& path) {
  for (const std::string& text : error_stack()) {
    const auto at = text.find("errno = ");
    if (at == std::string::npos) continue;
    const int number = std::atoi(text.c_str() + at + std::strlen("errno = "));
    if (number != 0) throw system_error(number, "write", path);
  }
  throw Error(ExitCode::kExhausted, {.what = "cannot write the token store: " + innermost_error(),
                                     .where = path.string(),
                                     .fix = "check the disk, or write to another one"});
}

[[noreturn]] inline void bad(const fs::path& path, std::string what,
                             std::string fix = std::string(kReimport)) {
  throw Error(ExitCode::kBadData,
              {.what = std::move(what), .where = path.string(), .fix = std::move(fix)});
}

// Elements [begin, begin + count) of a dataset; false when HDF5 could not read them.
inline bool read_range(hid_t dataset, hid_t memory_type, std::int64_t begin, std::size_t count,
                       void* out) {
  if (count == 0) return true;
  const Handle file_space(H5Dget_space(dataset), H5Sclose);
  const hsize_t start = static_cast<hsize_t>(begin), size = count;
  const Handle memory_space(H5Screate_simple(1, &size, nullptr), H5Sclose);
  return H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &start, nullptr, &size, nullptr) >=
             0 &&
         H5Dread(dataset, memory_type, memory_space.get(), file_space.get(), H5P_DEFAULT, out) >= 0;
}

inline bool write_range(hid_t dataset, hid_t memory_type, std::int64_t begin, std::size_t count,
                        const void* data) {
  const hsize_t start = static_cast<hsize_t>(begin), size = count, end = start + size;
  if (H5Dset_extent(dataset, &end) < 0) return false;
  const Handle file_space(H5Dget_space(dataset), H5Sclose);
  const Handle memory_space(H5Screate_simple(1, &size, nullptr), H5Sclose);
  return H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &start, nullptr, &size, nullptr) >=
             0 &&
         H5Dwrite(dataset, memory_type, memory_space.get(), file_space.get(), H5P_DEFAULT, data) >=
             0;
}

// An empty, extensible, checksummed 1-D dataset.
inline Handle create_dataset(hid_t file, const char* name, hid_t type, std::int64_t chunk) {
  const hsize_t zero = 0, unlimited = H5S_UNLIMITED;
  const auto chunk_size = static_cast<hsize_t>(chunk);
  const Handle space(H5Screate_simple(1, &zero, &unlimited), H5Sclose);
  const Handle plist(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_chunk(plist.get(), 1, &chunk_size);
  H5Pset_fletcher32(plist.get());
  H5Pset_obj_track_times(plist.get(), false);  // equal content gives equal files
  return {H5Dcreate2(file, name, type, space.get(), H5P_DEFAULT, plist.get(), H5P_DEFAULT),
          H5Dclose};
}

inline bool write_attribute(hid_t file, const char* name, std::int64_t value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(
      H5Acreate2(file, name, H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  return attribute && H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value) >= 0;
}

inline bool write_attribute(hid_t file, const char* name, const std::string& value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), value.size() + 1);
  const Handle attribute(H5Acreate2(file, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose);
  return attribute && H5Awrite(attribute.get(), type.get(), value.c_str()) >= 0;
}

inline std::optional<std::int64_t> read_integer(hid_t file, const char* name) {
  const Handle attribute(H5Aopen(file, name, H5P_DEFAULT), H5Aclose);
  std::int64_t value = 0;
  if (!attribute || H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) return std::nullopt;
  return value;
}

inline std::optional<std::string> read_string(hid_t file, const char* name) {
  const Handle attribute(H5Aopen(file, name, H5P_DEFAULT), H5Aclose);
  if (!attribute) return std::nullopt;
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  const std::size_t size = H5Tget_size(type.get());
  if (H5Tget_class(type.get()) != H5T_STRING || H5Tis_variable_str(type.get()) > 0 || size > 4096)
    return std::nullopt;
  std::string value(size, '\0');
  if (H5Aread(attribute.get(), type.get(), value.data()) < 0) return std::nullopt;
  return value.substr(0, value.find('\0'));
}

}  // namespace farspan::store
