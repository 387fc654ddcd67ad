#include "parallel/mesh.h"

namespace farspan {

Mesh::Mesh(Communicator& world, int data_size, int context_size, int ulysses_size)
    : world_(&world),
      data_size_(data_size),
      context_size_(context_size),
      ulysses_size_(ulysses_size) {
  FARSPAN_CHECK(data_size >= 1 && context_size >= 1 && data_size * context_size == world.size(),
                "mesh {} x {} of {} ranks", data_size, context_size, world.size());
  FARSPAN_CHECK(ulysses_size >= 1 && context_size % ulysses_size == 0, "{} Ulysses ranks of {}",
                ulysses_size, context_size);
  // Ranks that differ in their place in the ring only, and those that differ in their Ulysses rank.
  ring_ = world.split_by([=](int rank) {
    const int in_context = rank % context_size;
    return SplitPlace{.color = rank / context_size * ulysses_size + in_context % ulysses_size,
                      .key = in_context / ulysses_size};
  });
  ulysses_ = world.split_by([=](int rank) {
    return SplitPlace{.color = rank / ulysses_size, .key = rank % ulysses_size};
  });
}

ContextPlace Mesh::place() const {
  return {.ring_rank = context_rank() / ulysses_size_,
          .ring_size = context_size_ / ulysses_size_,
          .ulysses_rank = context_rank() % ulysses_size_,
          .ulysses_size = ulysses_size_};
}

CommCounters Mesh::context_counters() const {
  CommCounters sum = ring_->counters();
  const CommCounters other = ulysses_->counters();
  for (std::size_t i = 0; i < sum.by_collective.size(); ++i) {
    sum.by_collective[i].calls += other.by_collective[i].calls;
    sum.by_collective[i].bytes_sent += other.by_collective[i].bytes_sent;
  }
  return sum;
}

}  // namespace farspan
