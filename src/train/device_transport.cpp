#include "train/device_transport.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "comm/agree.h"
#include "comm/factory.h"
#include "comm/nccl.h"

namespace farspan {
namespace {

using Text = std::array<std::uint8_t, 256>;

std::vector<std::string> gather(Communicator& hosts, std::string_view mine) {
  Text text{};
  std::copy_n(mine.begin(), std::min(mine.size(), text.size() - 1), text.begin());
  std::vector<Text> all(static_cast<std::size_t>(hosts.size()));
  Stream stream;
  const auto bytes = static_cast<std::int64_t>(sizeof(Text));
  hosts
      .all_gather(host_tensor(text.data(), {bytes}),
                  host_tensor(all.front().data(), {bytes * hosts.size()}), stream)
      .wait();
  std::vector<std::string> out;
  for (const Text& t : all) out.emplace_back(reinterpret_cast<const char*>(t.data()));
  return out;
}

}  // namespace

TransportChoice choose_transport(std::string_view wanted, std::span<const RankDevice> ranks,
                                 bool nccl_is_built) {
  std::map<std::pair<std::string, std::string>, std::size_t> first_on;
  std::string shared;
  for (std::size_t r = 0; r < ranks.size() && shared.empty(); ++r) {
    const auto [it, is_new] = first_on.emplace(std::pair(ranks[r].host, ranks[r].hardware), r);
    if (!is_new) shared = fmt::format("ranks {} and {} share {}", it->second, r, ranks[r].hardware);
  }
  if (wanted == "mpi") return {.why = "parallel.transport asks for it"};
  const std::string problem = !nccl_is_built ? "this build has no NCCL" : shared;
  if (wanted == "nccl" && !problem.empty())
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("NCCL cannot connect these ranks: {}", problem),
                 .where = "parallel.transport",
                 .fix = shared.empty() ? "build with cmake --preset cuda, or leave "
                                         "parallel.transport out"
                                       : "start one rank for each GPU, or leave "
                                         "parallel.transport out"});
  if (wanted == "nccl") return {.nccl = true, .why = "parallel.transport asks for it"};
  if (ranks.size() == 1) return {.why = "one rank"};
  if (!problem.empty()) return {.why = problem};
  return {.nccl = true, .why = "each rank has a GPU of its own"};
}

DeviceTransport connect_devices(const config::RunConfig& config, Communicator& hosts,
                                Device& device, std::string_view host_id) {
  DeviceTransport made;
  if (device.id().kind == DeviceKind::kCpu) return made;
  const std::vector<std::string> machines = gather(hosts, host_id);
  const std::vector<std::string> hardware = gather(hosts, device.hardware_id());
  std::vector<RankDevice> ranks;
  for (std::size_t r = 0; r < machines.size(); ++r) ranks.push_back({machines[r], hardware[r]});
  const auto& mine = ranks[static_cast<std::size_t>(hosts.rank())];
  made.ranks_on_device =
      static_cast<int>(std::count(hardware.begin(), hardware.end(), mine.hardware));
  TransportChoice choice;
  together(hosts, [&] {
    choice = choose_transport(config.parallel().transport(), ranks, nccl_is_built());
  });
  if (choice.nccl) {
    made.devices = make_nccl_communicator(hosts, device.id().index);
    made.description = fmt::format("transport: NCCL {}: {}", nccl_version(), choice.why);
  } else {
    made.devices = make_staged_communicator(hosts, device);
    const char* how = moves_device_memory(hosts) ? "{} from GPU memory, sums in host memory: {}"
                                                 : "{} through pinned host memory: {}";
    made.description =
        "transport: " + fmt::format(fmt::runtime(how), hosts.transport(), choice.why);
  }
  return made;
}

}  // namespace farspan
