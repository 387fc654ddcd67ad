#include "kernels/cuda/attention/schedule_cache.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {
namespace {

constexpr std::size_t kLeastBytes = std::size_t{16} << 10;

// Thousands of slices are hashed at each call: one multiplication a word.
class Hash {
 public:
  void add(std::int64_t x) {
    constexpr std::uint64_t kMix = 0x9e3779b97f4a7c15;
    value_ = (std::rotl(value_, 23) ^ static_cast<std::uint64_t>(x)) * kMix;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0;
};

std::uint64_t hash_of(std::span<const AttentionSlice> slices, const ScheduleShape& shape) {
  Hash hash;
  for (const std::int64_t x :
       {static_cast<std::int64_t>(shape.stationary), shape.num_q, shape.num_k, shape.num_kv_heads,
        std::int64_t{shape.tile}, std::int64_t{shape.moving_tile},
        static_cast<std::int64_t>(slices.size())})
    hash.add(x);
  for (const AttentionSlice& s : slices)
    for (const std::int64_t x : {s.q_begin, s.q_len, s.k_begin, s.k_len, s.diagonal, s.window,
                                 s.position_diagonal, static_cast<std::int64_t>(s.kind),
                                 (std::int64_t{s.kv_heads.begin} << 32) ^ s.kv_heads.end})
      hash.add(x);
  return hash.value();
}

}  // namespace

struct ScheduleCache::Entry {
  std::uint64_t hash = 0;
  void* queue = nullptr;
  ScheduleShape shape;
  std::vector<AttentionSlice> slices;

  Buffer device, staging;  // of one size; items, then tiles
  std::unique_ptr<Event> uploaded;
  DeviceSchedule schedule;
  std::uint64_t last_use = 0;
  bool captured = false;
};

ScheduleCache::ScheduleCache(Device& device, Limits limits) : device_(device), limits_(limits) {}
ScheduleCache::~ScheduleCache() = default;

DeviceSchedule ScheduleCache::get(std::span<const AttentionSlice> slices,
                                  const ScheduleShape& shape, Stream& stream) {
  const Key key{hash_of(slices, shape), stream.native_handle(), shape, slices};
  const bool capturing = is_capturing(stream);
  Entry* entry = find(key);
  FARSPAN_CHECK(entry != nullptr || !capturing,
                "a CUDA graph is captured from attention whose slices were never run before");
  if (entry == nullptr) entry = &add(key, stream);
  entry->last_use = ++clock_;
  entry->captured |= capturing;
  return entry->schedule;
}

void ScheduleCache::release_captured() {
  for (const auto& entry : entries_) entry->captured = false;
}

ScheduleCache::Entry* ScheduleCache::find(const Key& key) {
  for (const auto& entry : entries_)
    if (entry->hash == key.hash && entry->queue == key.queue && entry->shape == key.shape &&
        std::equal(entry->slices.begin(), entry->slices.end(), key.slices.begin(),
                   key.slices.end()))
      return entry.get();
  return nullptr;
}

ScheduleCache::Entry& ScheduleCache::add(const Key& key, Stream& stream) {
  const SliceSchedule built = build_schedule(key.slices, key.shape);
  const std::size_t item_bytes = built.items.size() * sizeof(SliceItem);
  const std::size_t tile_bytes = built.tiles.size() * sizeof(StationaryTile);
  Entry& entry = room_for(item_bytes + tile_bytes, key.queue);
  entry.slices.assign(key.slices.begin(), key.slices.end());
  entry.hash = key.hash;
  entry.queue = key.queue;
  entry.shape = key.shape;
  if (item_bytes > 0) std::memcpy(entry.staging.data(), built.items.data(), item_bytes);
  if (tile_bytes > 0)
    std::memcpy(entry.staging.data() + item_bytes, built.tiles.data(), tile_bytes);
  device_.copy(entry.device.data(), entry.staging.data(), item_bytes + tile_bytes, stream);
  entry.uploaded->record(stream);
  entry.schedule = {
      .tiles = reinterpret_cast<const StationaryTile*>(entry.device.data() + item_bytes),
      .items = reinterpret_cast<const SliceItem*>(entry.device.data()),
      .num_tiles = static_cast<std::int32_t>(built.tiles.size())};
  return entry;
}

ScheduleCache::Entry& ScheduleCache::room_for(std::size_t bytes, void* queue) {
  const std::size_t capacity = std::bit_ceil(std::max(bytes, kLeastBytes));
  const auto full = [&] {
    return entries_.size() >= limits_.entries || bytes_ + capacity > limits_.bytes;
  };
  if (full()) {
    // Device memory is overwritten in the order of its stream; staging only once it was copied.
    Entry* oldest = nullptr;
    for (const auto& entry : entries_)
      if (entry->queue == queue && !entry->captured && entry->device.bytes() >= bytes &&
          (oldest == nullptr || entry->last_use < oldest->last_use) && entry->uploaded->reached())
        oldest = entry.get();
    if (oldest != nullptr) return *oldest;
  }
  const auto may_go = [](const auto& entry) { return !entry->captured; };
  while (full() && std::any_of(entries_.begin(), entries_.end(), may_go)) drop_oldest();
  auto entry = std::make_unique<Entry>();
  entry->device = device_.allocate(capacity);
  entry->staging = device_.allocate_host(capacity);
  entry->uploaded = device_.make_event();
  bytes_ += capacity;
  entries_.push_back(std::move(entry));
  return *entries_.back();
}

// Rare: another size or stream needs the room. Freeing device memory waits for the work that may
// use it (cudaFree), pinned memory is freed behind its copy.
void ScheduleCache::drop_oldest() {
  auto oldest = entries_.end();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
    if (!(*entry)->captured &&
        (oldest == entries_.end() || (*entry)->last_use < (*oldest)->last_use))
      oldest = entry;
  (*oldest)->uploaded->synchronize();
  bytes_ -= (*oldest)->device.bytes();
  entries_.erase(oldest);
}

}  // namespace farspan::cuda
