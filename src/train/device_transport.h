// How a run's device tensors travel between ranks: NCCL where each rank has a GPU of its own, else
// through pinned host memory (or straight, where MPI reads device memory itself).
//
//   DeviceTransport transport = connect_devices(config, hosts, backend->device(), host_id);
//   Mesh mesh = make_mesh(config, transport.world(hosts));
//   log.info("{}", transport.description);
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "comm/communicator.h"
#include "config/run_config.pb.h"
#include "core/device.h"

namespace farspan {

struct DeviceTransport {
  std::unique_ptr<Communicator> devices;  // none where tensors are the host's
  std::string description;                // for the log; "" likewise
  int ranks_on_device = 1;                // that share this rank's device

  Communicator& world(Communicator& hosts) const { return devices ? *devices : hosts; }
};

// Collective over `hosts`, which, like `device`, must outlive the result. `host_id` names this
// rank's machine as NCCL tells machines apart. Throws Error(kUsage) where parallel.transport asks
// for what cannot be.
DeviceTransport connect_devices(const config::RunConfig& config, Communicator& hosts,
                                Device& device, std::string_view host_id);

// One rank's device: its machine, and Device::hardware_id().
struct RankDevice {
  std::string host, hardware;
};

struct TransportChoice {
  bool nccl = false;
  std::string why;
};

// `wanted`: parallel.transport. NCCL refuses two ranks on one GPU of one machine. Throws
// Error(kUsage).
TransportChoice choose_transport(std::string_view wanted, std::span<const RankDevice> ranks,
                                 bool nccl_is_built);

}  // namespace farspan
