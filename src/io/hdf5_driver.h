// A file driver for HDF5 over a descriptor that we own, whose write errors are sticky.
//
// Why not HDF5's own: when a write fails (full disk), HDF5 1.10.8 cannot flush its caches, H5Fclose
// fails, and the half-closed file makes the library crash in its exit handler (measured: SIGSEGV in
// H5F__close_cb). This driver tells HDF5 that every write succeeded, remembers the first errno, and
// drops what follows; the owner looks at `first_errno` after each call and gives up cleanly, with
// the true cause in hand. Dropped metadata stays readable, so that closing finds what it wrote.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace farspan::io {

// One open file as the driver sees it. Outlives the HDF5 file opened with it.
struct DriverState {
  int fd = -1;          // not closed by the driver
  int first_errno = 0;  // of the first write or read that failed; 0: none
  std::vector<std::pair<std::uint64_t, std::vector<unsigned char>>> dropped{};  // metadata
};

// Registers the driver with HDF5; one registration per file, ended by H5FDunregister.
hid_t register_driver();
// Makes `fapl` open the file behind `state` with `driver`. The name given to H5Fopen is only a
// label.
bool use_driver(hid_t fapl, hid_t driver, DriverState& state);

}  // namespace farspan::io
