// Work lists of the attention kernels on the device, kept by content: every layer of a step asks
// for the lists of the same slices.
//
//   ScheduleCache cache(device);
//   const DeviceSchedule s = cache.get(args.slices, shape, stream);
//   launch(kernel, {.grid = s.num_tiles * heads, ...}, s, ...);        // on the same stream
//
// A list that is not there yet is built on the host and copied through pinned memory of its own,
// without waiting. The lists of one stream are its own: whatever overwrites a list is ordered by
// the stream behind all that read it. What is kept is bounded (ScheduleCache::Limits); the longest
// unused goes first. A list's address does not change while it is kept.
//
// CUDA graphs: a stream that is being captured must find its lists here, so the same call runs once
// before capture; lists handed out during capture stay until release_captured().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/device.h"
#include "kernels/cuda/attention/slice_schedule.h"

namespace farspan::cuda {

// A SliceSchedule in device memory. Passed to kernels by value.
struct DeviceSchedule {
  const StationaryTile* tiles = nullptr;
  const SliceItem* items = nullptr;
  std::int32_t num_tiles = 0;
};

class ScheduleCache {
 public:
  struct Limits {
    std::size_t entries = 1024;
    std::size_t bytes = std::size_t{64} << 20;  // on the device, and as much pinned host memory
  };

  // `device` must outlive this object.
  explicit ScheduleCache(Device& device) : ScheduleCache(device, Limits{}) {}
  ScheduleCache(Device& device, Limits limits);
  ~ScheduleCache();
  ScheduleCache(const ScheduleCache&) = delete;
  ScheduleCache& operator=(const ScheduleCache&) = delete;

  // Valid for work put on `stream` before the next call of get() for that stream. CHECKs the slices
  // as build_schedule does.
  DeviceSchedule get(std::span<const AttentionSlice> slices, const ScheduleShape& shape,
                     Stream& stream);

  // Lists that graphs refer to may go from now on: no graph captured so far will run again.
  void release_captured();

  std::size_t num_entries() const { return entries_.size(); }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Key {
    std::uint64_t hash;
    void* queue;
    ScheduleShape shape;
    std::span<const AttentionSlice> slices;
  };
  struct Entry;
  Entry* find(const Key& key);
  Entry& add(const Key& key, Stream& stream);
  Entry& room_for(std::size_t bytes, void* queue);
  void drop_oldest();

  Device& device_;
  Limits limits_;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::size_t bytes_ = 0;
  std::uint64_t clock_ = 0;
};

}  // namespace farspan::cuda
