#include "comm/operation.h"

#include <algorithm>
#include <utility>

namespace farspan {

void Ledger::began(const Call& call) {
  cells_[static_cast<std::size_t>(call.kind)].calls.fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  last_ = call;
}

void Ledger::sent(Collective kind, std::size_t bytes) {
  if (kind == Collective::kSplit) return;  // keys of the split, not payload
  cells_[static_cast<std::size_t>(kind)].bytes_sent.fetch_add(static_cast<std::int64_t>(bytes),
                                                              std::memory_order_relaxed);
}

CommCounters Ledger::counters() const {
  CommCounters counters;
  for (std::size_t i = 0; i < cells_.size(); ++i)
    counters.by_collective[i] = {
        .calls = cells_[i].calls.load(std::memory_order_relaxed),
        .bytes_sent = cells_[i].bytes_sent.load(std::memory_order_relaxed)};
  return counters;
}

void Ledger::reset_counters() {
  for (Cell& cell : cells_) {
    cell.calls.store(0, std::memory_order_relaxed);
    cell.bytes_sent.store(0, std::memory_order_relaxed);
  }
}

std::string Ledger::last_operation() const {
  const std::lock_guard lock(mutex_);
  if (last_.sequence == 0) return "none";
  return fmt::format("{} #{}, {} bytes", name_of(last_.kind), last_.sequence, last_.local_bytes);
}

std::vector<std::byte> Ledger::take_scratch(std::size_t bytes) {
  std::vector<std::byte> scratch;
  {
    const std::lock_guard lock(mutex_);
    if (!scratch_.empty()) {
      scratch = std::move(scratch_.back());
      scratch_.pop_back();
    }
  }
  if (scratch.size() < bytes) scratch.resize(bytes);
  return scratch;
}

void Ledger::give_scratch(std::vector<std::byte> scratch) {
  if (scratch.empty()) return;
  const std::lock_guard lock(mutex_);
  scratch_.push_back(std::move(scratch));
}

Operation::Operation(std::shared_ptr<Link> link, std::shared_ptr<Ledger> ledger, Plan plan)
    : link_(std::move(link)), ledger_(std::move(ledger)), plan_(std::move(plan)) {}

Operation::~Operation() { abandon(); }

bool Operation::advance() {
  // Whoever finds the mutex taken leaves word, so that the holder wakes it afterwards: what the
  // holder looked at may have been older than what woke the other.
  std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) {
    missed_ = true;
    if (!lock.try_lock()) return finished();
  }
  if (!finished()) {
    try {
      step();
    } catch (const SharedError& consequence) {
      fail(consequence);
    } catch (const Error& error) {
      link_->announce(error, true);
      fail(SharedError(error, link_->job_rank(), false));
    } catch (const std::exception& unexpected) {
      const Error error(
          ExitCode::kExhausted,
          {.what = fmt::format("{} failed: {}", plan_.call.describe(), unexpected.what())});
      link_->announce(error, true);
      fail(SharedError(error, link_->job_rank(), false));
    }
  }
  lock.unlock();
  if (missed_.exchange(false)) link_->engine().changed();
  return finished();
}

void Operation::step() {
  if (!opened_) open();
  const bool agreed = check_calls();
  advance_data();
  if (data_done_ && agreed) {
    close();
    finished_.store(true, std::memory_order_release);
    return;
  }
  link_->check_job();
  check_peers();
}

void Operation::advance_data() {
  while (!data_done_) {
    if (!phase_begun_) {
      const bool ready = plan_.schedule->ready();
      awaits_device_.store(!ready, std::memory_order_relaxed);
      if (!ready) return;
      data_done_ = !begin_phase();
      phase_begun_ = true;
      continue;
    }
    if (data_ != nullptr && !data_->poll()) return;
    plan_.schedule->end_phase(phase_, scratch_.data());
    ++phase_;
    phase_begun_ = false;
  }
}

// Sends this rank's call to its successor and to whom it states sizes.
void Operation::open() {
  opened_ = true;
  link_->check_job();
  const int rank = link_->rank(), size = link_->size();
  if (size > 1) {
    const auto add_ring = [](std::vector<Plan::Stated>& list, int peer) {
      for (const Plan::Stated& s : list)
        if (s.peer == peer) return;
      list.push_back({peer, Call::kUnstated});
    };
    add_ring(plan_.to, (rank + 1) % size);
    add_ring(plan_.from, (rank - 1 + size) % size);
    calls_out_.assign(plan_.to.size(), plan_.call);
    calls_in_.resize(plan_.from.size());
    calls_checked_.assign(plan_.from.size(), false);
    num_unchecked_ = plan_.from.size();
    std::vector<Transfer> headers;
    for (std::size_t i = 0; i < plan_.to.size(); ++i) {
      calls_out_[i].bytes_to_you = plan_.to[i].bytes;
      headers.push_back({.send = true,
                         .peer = plan_.to[i].peer,
                         .data = reinterpret_cast<std::byte*>(&calls_out_[i]),
                         .bytes = sizeof(Call)});
    }
    for (std::size_t i = 0; i < plan_.from.size(); ++i)
      headers.push_back({.send = false,
                         .peer = plan_.from[i].peer,
                         .data = reinterpret_cast<std::byte*>(&calls_in_[i]),
                         .bytes = sizeof(Call)});
    calls_ = link_->start(Channel::kCall, plan_.call.sequence, headers);
  }
  const std::size_t scratch = plan_.schedule->scratch_bytes();
  if (scratch != 0) scratch_ = ledger_->take_scratch(scratch);
}

// True when every header has come; throws at the first that differs.
bool Operation::check_calls() {
  if (calls_ == nullptr) return true;
  const bool all = calls_->poll();
  for (std::size_t i = 0; num_unchecked_ != 0 && i < calls_in_.size(); ++i) {
    if (calls_checked_[i] || !calls_->landed(plan_.to.size() + i)) continue;
    calls_checked_[i] = true;
    --num_unchecked_;
    const Call& theirs = calls_in_[i];
    const Plan::Stated& expected = plan_.from[i];
    if (!theirs.same_call(plan_.call))
      throw disagreement(link_->rank(), plan_.call, expected.peer, theirs);
    if (expected.bytes != Call::kUnstated && expected.bytes != theirs.bytes_to_you)
      throw size_disagreement(plan_.call, expected.peer, theirs.bytes_to_you, link_->rank(),
                              expected.bytes);
  }
  if (all) calls_.reset();
  return all;
}

void Operation::check_peers() {
  std::optional<int> lost;
  if (calls_ != nullptr) lost = calls_->lost_peer();
  if (!lost && data_ != nullptr && !data_done_) lost = data_->lost_peer();
  if (lost)
    throw Error(
        ExitCode::kCommunication,
        {.what = fmt::format("collective #{} ({}): rank {} waits for rank {}, which has "
                             "ended",
                             plan_.call.sequence, plan_.call.describe(), link_->rank(), *lost),
         .fix = "see what that rank printed before it ended"});
}

bool Operation::begin_phase() {
  data_.reset();
  transfers_.clear();
  if (!plan_.schedule->begin_phase(phase_, scratch_.data(), transfers_)) return false;
  for (const Transfer& t : transfers_)
    if (t.send) ledger_->sent(plan_.call.kind, t.bytes);
  if (!transfers_.empty()) data_ = link_->start(Channel::kData, plan_.call.sequence, transfers_);
  return true;
}

void Operation::close() noexcept {
  if (calls_ != nullptr) calls_->cancel();
  if (data_ != nullptr) data_->cancel();
  calls_.reset();
  data_.reset();
  ledger_->give_scratch(std::exchange(scratch_, {}));
}

void Operation::fail(const SharedError& error) noexcept {
  error_.emplace(error);
  close();
  plan_.schedule.reset();  // what it holds of a device must not outlive that
  finished_.store(true, std::memory_order_release);
}

void Operation::rethrow() const {
  if (error_) link_->raise(*error_);
}

void Operation::abandon() noexcept {
  const std::lock_guard lock(mutex_);
  if (finished() || !opened_) return;
  const Error error(ExitCode::kCommunication,
                    {.what = fmt::format("rank {} left collective #{} ({}) unfinished",
                                         link_->rank(), plan_.call.sequence, plan_.call.describe()),
                     .fix = "see the error of that rank"});
  link_->announce(error, false);  // the owner throws its own
  fail(SharedError(error, link_->job_rank(), false));
}

}  // namespace farspan
