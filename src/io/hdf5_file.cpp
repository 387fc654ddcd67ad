#include "io/hdf5_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "io/durable.h"
#include "io/hdf5_driver.h"

namespace farspan::io {
namespace {

// Small enough for HDF5's chunk cache (1 MiB per dataset), large enough to stream.
constexpr std::int64_t kChunkBytes = std::int64_t{1} << 20;

// An HDF5 identifier, closed by the function that fits its kind.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { reset(); }
  herr_t reset() {
    const herr_t rc = id_ >= 0 ? close_(id_) : 0;
    id_ = -1;
    return rc;
  }
  void set(hid_t id) {
    reset();
    id_ = id;
  }
  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// HDF5 prints its error stack unless told not to, thread by thread.
class QuietErrors {
 public:
  QuietErrors() {
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~QuietErrors() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }
  QuietErrors(const QuietErrors&) = delete;
  QuietErrors& operator=(const QuietErrors&) = delete;

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

// The innermost message of HDF5's error stack: the nearest to the cause.
std::string innermost_error() {
  std::string text = "no further detail";
  const auto take_first = [](unsigned n, const H5E_error2_t* error, void* data) -> herr_t {
    if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(data) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &text);
  return text;
}

// The types in the file are little-endian on every machine; bf16 is its 16 bits.
hid_t file_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return H5T_IEEE_F32LE;
    case DType::kF64:
      return H5T_IEEE_F64LE;
    case DType::kI32:
      return H5T_STD_I32LE;
    case DType::kI64:
      return H5T_STD_I64LE;
    case DType::kU8:
      return H5T_STD_U8LE;
    case DType::kU32:
      return H5T_STD_U32LE;
    case DType::kBF16:
    case DType::kU16:
      return H5T_STD_U16LE;
  }
  return H5I_INVALID_HID;
}

hid_t memory_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return H5T_NATIVE_FLOAT;
    case DType::kF64:
      return H5T_NATIVE_DOUBLE;
    case DType::kI32:
      return H5T_NATIVE_INT32;
    case DType::kI64:
      return H5T_NATIVE_INT64;
    case DType::kU8:
      return H5T_NATIVE_UINT8;
    case DType::kU32:
      return H5T_NATIVE_UINT32;
    case DType::kBF16:
    case DType::kU16:
      return H5T_NATIVE_UINT16;
  }
  return H5I_INVALID_HID;
}

hsize_t chunk_elements(std::int64_t elements, DType dtype) {
  // Chunks of equal size, because the last one is stored whole.
  const std::int64_t most = kChunkBytes / static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t chunks = (elements + most - 1) / most;
  return static_cast<hsize_t>((elements + chunks - 1) / chunks);
}

// The HDF5 side of one file. Members close in reverse order: file, access list, driver.
struct OpenFile {
  std::filesystem::path path;
  FileDescriptor descriptor;
  DriverState state;
  Handle driver{register_driver(), H5FDunregister};
  Handle access{H5Pcreate(H5P_FILE_ACCESS), H5Pclose};
  Handle file{H5I_INVALID_HID, H5Fclose};

  OpenFile(std::filesystem::path p, FileDescriptor d)
      : path(std::move(p)), descriptor(std::move(d)) {
    state.fd = descriptor.get();
    FARSPAN_CHECK(driver.valid() && access.valid());
    FARSPAN_CHECK(use_driver(access.get(), driver.get(), state));
    FARSPAN_CHECK(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0);
    FARSPAN_CHECK(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG) >= 0);
  }
};

}  // namespace

struct Hdf5Writer::Impl : OpenFile {
  std::int64_t payload_bytes;

  Impl(std::filesystem::path p, std::int64_t payload)
      : OpenFile(p, create_file(p)), payload_bytes(payload) {}

  // Throws the disk's own error when there is one, else what HDF5 says when `ok` is false.
  void require(bool ok, std::string_view action) const {
    if (state.first_errno != 0) {
      throw write_error(state.first_errno, fmt::format("write ({})", action), path, payload_bytes);
    }
    FARSPAN_CHECK(ok, "HDF5 cannot {} in {}: {}", action, path.string(), innermost_error());
  }
};

Hdf5Writer::Hdf5Writer(std::filesystem::path path, std::int64_t payload_bytes) {
  const QuietErrors quiet;
  impl_ = std::make_unique<Impl>(std::move(path), payload_bytes);
  reserve(impl_->descriptor, impl_->path, payload_bytes);
  impl_->file.set(H5Fcreate(impl_->path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, impl_->access.get()));
  impl_->require(impl_->file.valid(), "create the file");
}

Hdf5Writer::~Hdf5Writer() {
  const QuietErrors quiet;
  impl_.reset();
}

void Hdf5Writer::write(const std::string& name, std::span<const Tensor> parts) {
  const QuietErrors quiet;
  FARSPAN_CHECK(!parts.empty());
  const DType dtype = parts[0].dtype;
  std::int64_t elements = 0;
  for (const Tensor& part : parts) {
    FARSPAN_CHECK(part.dtype == dtype && part.device.kind == DeviceKind::kCpu, "{}", name);
    elements += part.numel();
  }
  FARSPAN_CHECK(elements > 0, "{} has no elements", name);

  const auto extent = static_cast<hsize_t>(elements);
  const hsize_t chunk = chunk_elements(elements, dtype);
  Handle space(H5Screate_simple(1, &extent, nullptr), H5Sclose);
  Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  impl_->require(space.valid() && links.valid() && layout.valid() &&
                     H5Pset_create_intermediate_group(links.get(), 1) >= 0 &&
                     H5Pset_chunk(layout.get(), 1, &chunk) >= 0 &&
                     H5Pset_fletcher32(layout.get()) >= 0 &&
                     // Every element is written below; filling first would write all twice.
                     H5Pset_fill_time(layout.get(), H5D_FILL_TIME_NEVER) >= 0,
                 "describe dataset " + name);
  Handle dataset(H5Dcreate2(impl_->file.get(), name.c_str(), file_type(dtype), space.get(),
                            links.get(), layout.get(), H5P_DEFAULT),
                 H5Dclose);
  impl_->require(dataset.valid(), "create dataset " + name);
  hsize_t start = 0;
  for (const Tensor& part : parts) {
    const auto count = static_cast<hsize_t>(part.numel());
    if (count == 0) continue;
    Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose);
    const bool selected =
        H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &start, nullptr, &count, nullptr) >= 0;
    impl_->require(memory.valid() && selected &&
                       H5Dwrite(dataset.get(), memory_type(dtype), memory.get(), space.get(),
                                H5P_DEFAULT, part.data) >= 0,
                   "write dataset " + name);
    start += count;
  }
  impl_->require(dataset.reset() >= 0, "write dataset " + name);
}

std::int64_t Hdf5Writer::close() {
  const QuietErrors quiet;
  impl_->require(impl_->file.reset() >= 0, "close the file");
  const std::int64_t bytes = size_of_file(impl_->descriptor, impl_->path);
  // Gives back what was set aside beyond the end.
  if (::ftruncate(impl_->descriptor.get(), bytes) != 0)
    throw write_error(errno, "set the file's size", impl_->path);
  sync_file(impl_->descriptor, impl_->path);
  return bytes;
}

struct Hdf5Reader::Impl : OpenFile {
  explicit Impl(const std::filesystem::path& p) : OpenFile(p, open_for_reading(p)) {}

  void require(bool ok, std::string_view what) const {
    if (ok) return;
    if (state.first_errno != 0) throw read_error(state.first_errno, what, path);
    throw Error(ExitCode::kBadData, {.what = fmt::format("cannot {}: {}", what, innermost_error()),
                                     .where = path.string(),
                                     .fix = "use another checkpoint, or restore this file"});
  }
};

Hdf5Reader::Hdf5Reader(std::filesystem::path path) {
  const QuietErrors quiet;
  impl_ = std::make_unique<Impl>(path);
  size_of_file(impl_->descriptor, impl_->path);  // refuses what is not a regular file
  impl_->file.set(H5Fopen(impl_->path.c_str(), H5F_ACC_RDONLY, impl_->access.get()));
  impl_->require(impl_->file.valid(), "open as HDF5");
}

Hdf5Reader::~Hdf5Reader() {
  const QuietErrors quiet;
  impl_.reset();
}

void Hdf5Reader::read(const std::string& name, std::int64_t offset, const Tensor& out) const {
  const QuietErrors quiet;
  FARSPAN_CHECK(out.device.kind == DeviceKind::kCpu && offset >= 0);
  const std::string action = "read dataset " + name;
  Handle dataset(H5Dopen2(impl_->file.get(), name.c_str(), H5P_DEFAULT), H5Dclose);
  impl_->require(dataset.valid(), "open dataset " + name);
  Handle type(H5Dget_type(dataset.get()), H5Tclose);
  Handle space(H5Dget_space(dataset.get()), H5Sclose);
  impl_->require(type.valid() && space.valid(), action);
  hsize_t extent = 0;
  const bool fits = H5Sget_simple_extent_ndims(space.get()) == 1 &&
                    H5Sget_simple_extent_dims(space.get(), &extent, nullptr) == 1 &&
                    static_cast<hsize_t>(offset) <= extent &&
                    static_cast<hsize_t>(out.numel()) <= extent - static_cast<hsize_t>(offset);
  if (!fits || H5Tequal(type.get(), file_type(out.dtype)) <= 0) {
    throw Error(
        ExitCode::kBadData,
        {.what = fmt::format("dataset {} does not hold {} elements of {} from element {} on", name,
                             out.numel(), name_of(out.dtype), offset),
         .where = impl_->path.string(),
         .fix = "use another checkpoint, or restore this file"});
  }
  if (out.numel() == 0) return;
  const auto start = static_cast<hsize_t>(offset);
  const auto count = static_cast<hsize_t>(out.numel());
  Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose);
  const bool selected =
      H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &start, nullptr, &count, nullptr) >= 0;
  impl_->require(memory.valid() && selected &&
                     H5Dread(dataset.get(), memory_type(out.dtype), memory.get(), space.get(),
                             H5P_DEFAULT, out.data) >= 0,
                 action);
}

}  // namespace farspan::io
