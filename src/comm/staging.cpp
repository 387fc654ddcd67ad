#include "comm/staging.h"

#include <algorithm>
#include <array>
#include <bit>
#include <exception>
#include <tuple>
#include <utility>

namespace farspan {
namespace {

constexpr std::size_t kNumSlots = 2;  // chunks under way at once

// Few different sizes, so that buffers fit again: steps of an eighth.
std::size_t rounded_size(std::size_t bytes) {
  const std::size_t grain = std::max(std::bit_floor(bytes) / 8, std::size_t{64} << 10);
  return (bytes + grain - 1) / grain * grain;
}

}  // namespace

// One collective in one or more parts, each with its copies before and after.
class StagedSchedule final : public Schedule {
 public:
  StagedSchedule(std::shared_ptr<Staging> staging, const Work& work, Stream& compute, bool direct)
      : staging_(std::move(staging)), compute_(compute) {
    for (Slot& slot : slots_) {
      slot.ready = staging_->device().make_event();
      slot.landed = staging_->device().make_event();
    }
    cut(work, direct);
    const auto start = staging_->device().make_event();
    start->record(compute);
    start->order_before(*staging_->out_);
    for (std::size_t p = 0; p < std::min(kNumSlots, parts_.size()); ++p) fetch(p);
  }

  ~StagedSchedule() override {
    const bool done = part_ == parts_.size();
    try {
      if (!done) {  // given up: copies may be under way in both directions
        staging_->out_->synchronize();
        staging_->in_->synchronize();
      }
      for (Slot& slot : slots_)
        for (Buffer& buffer : slot.buffers)
          if (buffer.data() != nullptr)
            staging_->give({std::move(buffer), done ? slot.landed : nullptr});
    } catch (const std::exception&) {  // the device has failed; whoever waits for it hears why
    }
  }

  std::size_t scratch_bytes() const override { return parts_.front().schedule->scratch_bytes(); }

  bool ready() override {
    if (!fetched_) fetched_ = slots_[part_ % kNumSlots].ready->reached();
    return fetched_;
  }

  bool begin_phase(int k, std::byte* scratch, std::vector<Transfer>& transfers) override {
    if (parts_[part_].schedule->begin_phase(k - first_phase_, scratch, transfers)) return true;
    deliver(part_);
    if (part_ + kNumSlots < parts_.size()) fetch(part_ + kNumSlots);
    ++part_;
    fetched_ = false;
    between_ =
        part_ < parts_.size();  // a phase without transfers, in which the next part is awaited
    return between_;
  }

  void end_phase(int k, std::byte* scratch) override {
    if (between_) {
      between_ = false;
      first_phase_ = k + 1;
    } else {
      parts_[part_].schedule->end_phase(k - first_phase_, scratch);
    }
  }

  void arrive() override { slots_[(parts_.size() - 1) % kNumSlots].landed->order_before(compute_); }

 private:
  struct Copy {
    std::byte* device;
    std::byte* host;
    std::size_t bytes;
  };
  struct Part {
    std::vector<Copy> reads, writes;
    std::unique_ptr<Schedule> schedule;
  };
  struct Slot {
    std::vector<Buffer> buffers;  // by use
    std::shared_ptr<Event> ready, landed;
  };

  void cut(const Work& work, bool direct) {
    if (work.grain == 0) return add_part(work, work.uses, direct);
    const Tensor& whole = work.uses.front().tensor;
    const auto fitting =
        static_cast<std::int64_t>(staging_->options().chunk_bytes / size_of(whole.dtype)) /
        work.grain * work.grain;
    const std::int64_t chunk = std::max(fitting, work.grain), all = whole.numel();
    std::int64_t begin = 0;
    do {
      std::vector<Work::Use> uses = work.uses;
      const std::int64_t count = std::min(chunk, all - begin);
      for (Work::Use& use : uses) use.tensor = use.tensor.view({all}).rows(begin, count);
      add_part(work, uses, direct);
      begin += count;
    } while (begin < all);
  }

  // The first parts are the largest: their buffers serve the later ones.
  void add_part(const Work& work, const std::vector<Work::Use>& uses, bool direct) {
    Slot& slot = slots_[parts_.size() % kNumSlots];
    slot.buffers.resize(uses.size());
    Part part;
    std::vector<Tensor> tensors;
    for (std::size_t i = 0; i < uses.size(); ++i) {
      Tensor tensor = uses[i].tensor;
      if (!direct && !tensor.empty() && tensor.device.kind != DeviceKind::kCpu) {
        if (slot.buffers[i].data() == nullptr) slot.buffers[i] = staging_->take(tensor.bytes());
        const Copy copy{tensor.data, slot.buffers[i].data(), tensor.bytes()};
        if (uses[i].reads) part.reads.push_back(copy);
        if (uses[i].writes) part.writes.push_back(copy);
        tensor.data = copy.host;
        tensor.device = {DeviceKind::kCpu, 0};
      }
      tensors.push_back(tensor);
    }
    part.schedule = work.schedule(tensors);
    parts_.push_back(std::move(part));
  }

  void fetch(std::size_t p) {
    Slot& slot = slots_[p % kNumSlots];
    Stream& out = *staging_->out_;
    if (p >= kNumSlots) slot.landed->order_before(out);  // the memory is read until then
    for (const Copy& c : parts_[p].reads) staging_->device().copy(c.host, c.device, c.bytes, out);
    slot.ready->record(out);
  }

  void deliver(std::size_t p) {
    Stream& in = *staging_->in_;
    for (const Copy& c : parts_[p].writes) staging_->device().copy(c.device, c.host, c.bytes, in);
    slots_[p % kNumSlots].landed->record(in);
  }

  const std::shared_ptr<Staging> staging_;
  Stream& compute_;
  std::array<Slot, kNumSlots> slots_;
  std::vector<Part> parts_;
  std::size_t part_ = 0;  // the one whose phases run
  int first_phase_ = 0;   // of that part
  bool fetched_ = false;  // its inputs are there
  bool between_ = false;
};

Staging::Staging(Device& device, StagingOptions options)
    : device_(device), options_(options), out_(device.make_stream()), in_(device.make_stream()) {}

Staging::~Staging() {
  try {
    in_->synchronize();  // copies from the memory that goes now
  } catch (const std::exception&) {
  }
}

std::unique_ptr<Schedule> Staging::schedule(const Work& work, Stream& compute, bool direct) {
  return std::make_unique<StagedSchedule>(shared_from_this(), work, compute, direct);
}

Buffer Staging::take(std::size_t bytes) {
  Pinned found;
  {
    const std::lock_guard lock(mutex_);
    // The smallest that fits, those at rest before those with a copy under way; else any, to be
    // replaced by a larger one.
    const auto rank = [&](const Pinned& p) {
      return std::tuple(p.buffer.bytes() < bytes, p.busy != nullptr && !p.busy->reached(),
                        p.buffer.bytes());
    };
    const auto best =
        std::min_element(free_.begin(), free_.end(),
                         [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
    if (best != free_.end()) {
      found = std::move(*best);
      free_.erase(best);
    }
  }
  // A copy into device memory, which waits for nobody.
  if (found.busy != nullptr) found.busy->synchronize();
  if (found.buffer.bytes() >= bytes) return std::move(found.buffer);
  found.buffer = {};
  return device_.allocate_host(rounded_size(bytes));
}

void Staging::give(Pinned pinned) {
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(pinned));
}

}  // namespace farspan
