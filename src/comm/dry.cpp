// The dry transport: the same schedules as the others, counted instead of executed.
#include <utility>
#include <vector>

#include "comm/factory.h"
#include "comm/scheduled_communicator.h"

namespace farspan {
namespace {

class DryCommunicator final : public ScheduledCommunicator {
 public:
  DryCommunicator(int rank, int size) : ScheduledCommunicator(rank, size) {}
  std::string_view transport() const override { return "dry"; }

  std::unique_ptr<Communicator> split(int color, int key) override {
    FARSPAN_CHECK(
        size() == 1,
        "split({}, {}) on a dry world of {} ranks, whose other ranks' colors are unknown: "
        "use split_by",
        color, key, size());
    return split_by([&](int) { return SplitPlace{.color = color, .key = key}; });
  }

  std::unique_ptr<Communicator> split_by(
      const std::function<SplitPlace(int rank)>& place) override {
    begin({.call = {.kind = Collective::kSplit}, .schedule = schedule_barrier(rank(), size())})
        .wait();
    std::vector<SplitPlace> places;
    for (int r = 0; r < size(); ++r) places.push_back(place(r));
    const std::vector<int> members = split_members(places, rank());
    for (std::size_t i = 0; i < members.size(); ++i)
      if (members[i] == rank())
        return std::make_unique<DryCommunicator>(static_cast<int>(i),
                                                 static_cast<int>(members.size()));
    FARSPAN_CHECK(false, "rank {} is not in its own group", rank());
  }

  // There are no other ranks to tell.
  void abort(ExitCode, std::string_view) noexcept override {}

 private:
  Pending launch(Plan plan) override {
    std::vector<Transfer> transfers;
    for (int k = 0; plan.schedule->begin_phase(k, nullptr, transfers); ++k) {
      for (const Transfer& t : transfers)
        if (t.send) ledger_->sent(plan.call.kind, t.bytes);
      transfers.clear();
    }
    return Pending([] {});
  }
  void check_device(const Tensor&) const override {}
};

}  // namespace

std::unique_ptr<Communicator> make_dry_communicator(int rank, int size) {
  return std::make_unique<DryCommunicator>(rank, size);
}

}  // namespace farspan
