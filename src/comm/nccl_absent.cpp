#include "comm/nccl.h"

namespace farspan {

bool nccl_is_built() { return false; }

std::string nccl_version() { return {}; }

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, int) {
  throw Error(ExitCode::kUsage, {.what = "this build has no NCCL",
                                 .where = "parallel.transport",
                                 .fix = "build with cmake --preset cuda"});
}

}  // namespace farspan
