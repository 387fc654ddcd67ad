#include "io/hdf5_driver.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

namespace farspan::io {
namespace {

constexpr haddr_t kMaxAddress = (haddr_t{1} << 62) - 1;

// What H5Pset_driver carries to open().
struct DriverInfo {
  DriverState* state;
};

struct DriverFile {
  H5FD_t header;  // must stand first: HDF5 casts between the two
  DriverState* state;
  haddr_t end_of_allocation;
  haddr_t end_of_file;
};

DriverFile& of(H5FD_t* file) { return *reinterpret_cast<DriverFile*>(file); }
const DriverFile& of(const H5FD_t* file) { return *reinterpret_cast<const DriverFile*>(file); }

H5FD_t* open(const char*, unsigned flags, hid_t fapl, haddr_t) {
  const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(fapl));
  struct stat status {};
  if (info == nullptr || ::fstat(info->state->fd, &status) != 0) return nullptr;
  if ((flags & H5F_ACC_TRUNC) != 0 && status.st_size != 0) return nullptr;  // we make new files
  auto* file = static_cast<DriverFile*>(std::calloc(1, sizeof(DriverFile)));
  if (file == nullptr) return nullptr;
  file->state = info->state;
  file->end_of_file = static_cast<haddr_t>(status.st_size);
  return &file->header;
}

herr_t close(H5FD_t* file) {
  std::free(&of(file));
  return 0;
}

herr_t query(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t get_eoa(const H5FD_t* file, H5FD_mem_t) { return of(file).end_of_allocation; }

herr_t set_eoa(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  of(file).end_of_allocation = address;
  return 0;
}

haddr_t get_eof(const H5FD_t* file, H5FD_mem_t) { return of(file).end_of_file; }

herr_t get_handle(H5FD_t* file, hid_t, void** handle) {
  *handle = &of(file).state->fd;
  return 0;
}

void apply_dropped(const DriverState& state, haddr_t address, std::size_t size,
                   unsigned char* out) {
  for (const auto& [at, bytes] : state.dropped) {
    const haddr_t begin = std::max<haddr_t>(address, at);
    const haddr_t end = std::min<haddr_t>(address + size, at + bytes.size());
    if (begin < end) std::memcpy(out + (begin - address), bytes.data() + (begin - at), end - begin);
  }
}

herr_t read(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* buffer) {
  DriverState& state = *of(file).state;
  auto* out = static_cast<unsigned char*>(buffer);
  if (address > kMaxAddress || size > kMaxAddress - address) return -1;
  for (std::size_t done = 0; done < size;) {
    const ssize_t n =
        ::pread(state.fd, out + done, size - done, static_cast<off_t>(address + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      if (state.first_errno == 0) state.first_errno = errno;
      return -1;
    }
    if (n == 0) {  // past the end of the file: zeros, as HDF5 expects of a driver
      std::memset(out + done, 0, size - done);
      break;
    }
    done += static_cast<std::size_t>(n);
  }
  apply_dropped(state, address, size, out);
  return 0;
}

// True to HDF5 in every case; see the head of the header.
herr_t write(H5FD_t* file, H5FD_mem_t type, hid_t, haddr_t address, size_t size,
             const void* buffer) {
  DriverState& state = *of(file).state;
  const auto* bytes = static_cast<const unsigned char*>(buffer);
  for (std::size_t done = 0; state.first_errno == 0 && done < size;) {
    const ssize_t n =
        ::pwrite(state.fd, bytes + done, size - done, static_cast<off_t>(address + done));
    if (n >= 0) {
      done += static_cast<std::size_t>(n);
    } else if (errno != EINTR) {
      state.first_errno = errno;
    }
  }
  if (state.first_errno != 0 && type != H5FD_MEM_DRAW) {
    try {
      state.dropped.emplace_back(address, std::vector<unsigned char>(bytes, bytes + size));
    } catch (const std::bad_alloc&) {
      return -1;
    }
  }
  of(file).end_of_file = std::max<haddr_t>(of(file).end_of_file, address + size);
  return 0;
}

herr_t truncate(H5FD_t* file, hid_t, hbool_t) {
  DriverFile& f = of(file);
  if (f.end_of_file == f.end_of_allocation) return 0;
  if (f.state->first_errno == 0 &&
      ::ftruncate(f.state->fd, static_cast<off_t>(f.end_of_allocation)) != 0)
    f.state->first_errno = errno;
  f.end_of_file = f.end_of_allocation;
  return 0;
}

H5FD_class_t driver_class() {
  H5FD_class_t c{};
  c.name = "farspan";
  c.maxaddr = kMaxAddress;
  c.fc_degree = H5F_CLOSE_STRONG;
  c.fapl_size = sizeof(DriverInfo);
  c.open = open;
  c.close = close;
  c.query = query;
  c.get_eoa = get_eoa;
  c.set_eoa = set_eoa;
  c.get_eof = get_eof;
  c.get_handle = get_handle;
  c.read = read;
  c.write = write;
  c.truncate = truncate;
  const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
  static_assert(sizeof(map) == sizeof(c.fl_map));
  std::memcpy(c.fl_map, map, sizeof(map));
  return c;
}

}  // namespace

hid_t register_driver() {
  const H5FD_class_t c = driver_class();
  return H5FDregister(&c);
}

bool use_driver(hid_t fapl, hid_t driver, DriverState& state) {
  const DriverInfo info{.state = &state};
  return H5Pset_driver(fapl, driver, &info) >= 0;
}

}  // namespace farspan::io
