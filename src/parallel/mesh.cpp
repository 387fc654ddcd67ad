#include "parallel/mesh.h"

namespace farspan {

Mesh::Mesh(Communicator& world, int data_size, int context_size)
    : world_(&world), data_size_(data_size), context_size_(context_size) {
  FARSPAN_CHECK(data_size >= 1 && context_size >= 1 && data_size * context_size == world.size(),
                "mesh {} x {} of {} ranks", data_size, context_size, world.size());
  context_ = world.split_by([context_size](int rank) {
    return SplitPlace{.color = rank / context_size, .key = rank % context_size};
  });
}

}  // namespace farspan
