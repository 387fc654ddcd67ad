// One-dimensional datasets in an HDF5 file: chunked, every dataset with Fletcher32, in the 1.10
// format (its metadata carries checksums too).
//
//   Hdf5Writer out(folder / "shard_00000.h5", payload_bytes);
//   out.write("tensors/model.norm.weight", parts);   // parts are concatenated
//   std::int64_t bytes = out.close();                // flushed and fsynced
//
//   Hdf5Reader in(folder / "shard_00000.h5");
//   in.read("tensors/model.norm.weight", first, out_tensor);
//
// HDF5's error stack is never printed; what went wrong is the text of the Error thrown. An object
// belongs to one thread at a time. Any number may live in different threads (HDF5 takes one lock).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "core/tensor.h"

namespace farspan::io {

class Hdf5Writer {
 public:
  // Creates the file and sets `payload_bytes` aside on the disk. Throws Error(kExhausted) when the
  // disk is full, Error(kUsage) when the file cannot be created.
  Hdf5Writer(std::filesystem::path path, std::int64_t payload_bytes);
  ~Hdf5Writer();  // without close(): gives the file up, never throws
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  // A new dataset of all `parts` (host tensors of one type) one after another. `name` may hold
  // slashes: groups are made as needed. At least one element.
  void write(const std::string& name, std::span<const Tensor> parts);
  // Everything to the disk. Returns the size of the file in bytes.
  std::int64_t close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

class Hdf5Reader {
 public:
  explicit Hdf5Reader(std::filesystem::path path);  // Error(kBadData) when it is no HDF5 file
  ~Hdf5Reader();
  Hdf5Reader(const Hdf5Reader&) = delete;
  Hdf5Reader& operator=(const Hdf5Reader&) = delete;

  // Elements [offset, offset + out.numel()) of dataset `name` into host memory. Throws
  // Error(kBadData) when the dataset is absent, shorter, of another type, or fails its checksum.
  void read(const std::string& name, std::int64_t offset, const Tensor& out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace farspan::io
