// Ranks as threads of one process. Of two transfers that meet, the thread that comes second copies
// straight from the sender's buffer into the receiver's: nothing is staged, and a rank that
// computes is not needed for its data to move.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "comm/factory.h"
#include "comm/fate.h"
#include "comm/scheduled_communicator.h"

namespace farspan {
namespace {

// Between two looks at a device that some operation waits for.
constexpr std::chrono::microseconds kDeviceInterval{20};

// Waiters sleep until something meets one of the rank's transfers.
class ThreadEngine final : public Engine {
 public:
  void changed() override {
    count_.fetch_add(1);
    if (num_sleepers_.load() == 0) return;
    { const std::lock_guard lock(sleep_mutex_); }
    wake_.notify_all();
  }

 protected:
  std::uint64_t ticket() const override { return count_.load(); }
  void rest(std::uint64_t seen, std::int64_t round, bool device) override {
    // Yielding first: where ranks share a core, the peer often needs just one turn.
    if (round < 16) {
      std::this_thread::yield();
      return;
    }
    ++num_sleepers_;
    std::unique_lock lock(sleep_mutex_);
    const auto woken = [&] { return count_.load() != seen; };
    if (device)
      wake_.wait_for(lock, kDeviceInterval, woken);
    else
      wake_.wait(lock, woken);
    --num_sleepers_;
  }

 private:
  std::atomic<std::uint64_t> count_{0};
  std::atomic<int> num_sleepers_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

// What all threads of one job share.
class ThreadJob {
 public:
  explicit ThreadJob(int size)
      : engines_(static_cast<std::size_t>(size)), ended_(engines_.size()) {}

  ThreadEngine& engine(int rank) { return engines_[static_cast<std::size_t>(rank)]; }

  bool has_ended(int rank) const { return ended_[static_cast<std::size_t>(rank)].load(); }
  bool any_ended() const { return any_ended_.load(); }
  void mark_ended(int rank) {
    ended_[static_cast<std::size_t>(rank)] = true;
    any_ended_ = true;
    wake_all();
  }

  Fate& fate() { return fate_; }
  void fail(int rank, const ErrorText& text, ExitCode code, bool report) {
    if (fate_.fail(rank, text, code, report)) wake_all();
  }

 private:
  void wake_all() {
    for (ThreadEngine& engine : engines_) engine.changed();
  }

  std::vector<ThreadEngine> engines_;
  std::vector<std::atomic<bool>> ended_;
  std::atomic<bool> any_ended_{false};
  Fate fate_;
};

// One side of a transfer, posted until the other side comes.
struct Record {
  enum State { kPosted, kCopying, kDone };
  Transfer transfer;
  Channel channel = Channel::kData;
  std::uint64_t sequence = 0;
  ThreadEngine* engine = nullptr;  // to wake its owner
  std::atomic<int> state{kPosted};
};

// Transfers from one rank to another that have not met yet.
struct Mailbox {
  std::mutex mutex;
  std::vector<Record*> posted;
};

// A group of ranks: where their transfers meet.
class Hub {
 public:
  Hub(std::shared_ptr<ThreadJob> job, std::vector<int> job_ranks)
      : job_(std::move(job)),
        job_ranks_(std::move(job_ranks)),
        mailboxes_(job_ranks_.size() * job_ranks_.size()) {}

  int size() const { return static_cast<int>(job_ranks_.size()); }
  ThreadJob& job() { return *job_; }
  int job_rank(int rank) const { return job_ranks_[static_cast<std::size_t>(rank)]; }

  void post(Record& record, int rank) {
    Record* other = nullptr;
    {
      Mailbox& box = mailbox(record, rank);
      const std::lock_guard lock(box.mutex);
      const auto met = std::find_if(box.posted.begin(), box.posted.end(), [&](const Record* r) {
        return r->transfer.send != record.transfer.send && r->channel == record.channel &&
               r->sequence == record.sequence && r->transfer.bytes == record.transfer.bytes;
      });
      if (met == box.posted.end()) {
        box.posted.push_back(&record);
        return;
      }
      other = *met;
      box.posted.erase(met);
      other->state.store(Record::kCopying);
    }
    finish(record, *other);
  }

  // Takes a posted record back, or waits until the copy that has begun is done.
  void withdraw(Record& record, int rank) noexcept {
    {
      Mailbox& box = mailbox(record, rank);
      const std::lock_guard lock(box.mutex);
      if (std::erase(box.posted, &record) != 0) record.state.store(Record::kDone);
    }
    while (record.state.load() != Record::kDone) std::this_thread::yield();
  }

  bool still_posted(Record& record, int rank) {
    Mailbox& box = mailbox(record, rank);
    const std::lock_guard lock(box.mutex);
    return std::find(box.posted.begin(), box.posted.end(), &record) != box.posted.end();
  }

  // The hub of `members` after the split `sequence`; the first of them to ask makes it.
  std::shared_ptr<Hub> child(std::uint64_t sequence, const std::vector<int>& members) {
    const std::lock_guard lock(children_mutex_);
    const auto key = std::pair(sequence, members.front());
    Child& child = children_[key];
    if (child.hub == nullptr) {
      std::vector<int> ranks;
      for (const int member : members) ranks.push_back(job_rank(member));
      child = {.hub = std::make_shared<Hub>(job_, std::move(ranks)), .to_come = members.size()};
    }
    std::shared_ptr<Hub> hub = child.hub;
    if (--child.to_come == 0) children_.erase(key);
    return hub;
  }

 private:
  struct Child {
    std::shared_ptr<Hub> hub;
    std::size_t to_come = 0;
  };

  Mailbox& mailbox(const Record& record, int rank) {
    const int from = record.transfer.send ? rank : record.transfer.peer;
    const int to = record.transfer.send ? record.transfer.peer : rank;
    return mailboxes_[static_cast<std::size_t>(from) * job_ranks_.size() +
                      static_cast<std::size_t>(to)];
  }

  static void finish(Record& mine, Record& other) {
    const Transfer& from = mine.transfer.send ? mine.transfer : other.transfer;
    const Transfer& to = mine.transfer.send ? other.transfer : mine.transfer;
    if (to.bytes != 0) std::memcpy(to.data, from.data, to.bytes);
    ThreadEngine& peer = *other.engine;  // `other` may be gone once it is done
    mine.state.store(Record::kDone);
    other.state.store(Record::kDone);
    peer.changed();
  }

  std::shared_ptr<ThreadJob> job_;
  std::vector<int> job_ranks_;
  std::vector<Mailbox> mailboxes_;
  std::mutex children_mutex_;
  std::map<std::pair<std::uint64_t, int>, Child> children_;
};

class ThreadFlight final : public Flight {
 public:
  ThreadFlight(std::shared_ptr<Hub> hub, int rank, Channel channel, std::uint64_t sequence,
               std::span<const Transfer> transfers)
      : hub_(std::move(hub)), rank_(rank), records_(transfers.size()) {
    for (std::size_t i = 0; i < transfers.size(); ++i) {
      Record& record = records_[i];
      record.transfer = transfers[i];
      record.channel = channel;
      record.sequence = sequence;
      record.engine = &hub_->job().engine(hub_->job_rank(rank_));
    }
    for (Record& record : records_) hub_->post(record, rank_);
  }

  bool poll() override {
    while (num_landed_ < records_.size() && landed(num_landed_)) ++num_landed_;
    return num_landed_ == records_.size();
  }
  bool landed(std::size_t i) const override { return records_[i].state.load() == Record::kDone; }

  std::optional<int> lost_peer() override {
    if (!hub_->job().any_ended()) return std::nullopt;
    // All that an ended rank ever posted has been posted: what has not met by now never will.
    for (Record& record : records_)
      if (!landed(static_cast<std::size_t>(&record - records_.data())) &&
          hub_->job().has_ended(hub_->job_rank(record.transfer.peer)) &&
          hub_->still_posted(record, rank_))
        return record.transfer.peer;
    return std::nullopt;
  }

  void cancel() noexcept override {
    for (Record& record : records_)
      if (record.state.load() != Record::kDone) hub_->withdraw(record, rank_);
  }

 private:
  std::shared_ptr<Hub> hub_;
  int rank_;
  std::vector<Record> records_;
  std::size_t num_landed_ = 0;
};

class ThreadLink final : public Link {
 public:
  ThreadLink(std::shared_ptr<Hub> hub, int rank, std::string_view transport)
      : hub_(std::move(hub)), rank_(rank), transport_(transport) {}
  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  std::string_view transport() const override { return transport_; }
  Engine& engine() override { return hub_->job().engine(job_rank()); }
  int job_rank() const override { return hub_->job_rank(rank_); }

  std::unique_ptr<Flight> start(Channel channel, std::uint64_t sequence,
                                std::span<const Transfer> transfers) override {
    return std::make_unique<ThreadFlight>(hub_, rank_, channel, sequence, transfers);
  }

  std::unique_ptr<Link> split(std::span<const SplitPlace> places, std::uint64_t sequence) override {
    const std::vector<int> members = split_members(places, rank_);
    const auto place = std::find(members.begin(), members.end(), rank_) - members.begin();
    return std::make_unique<ThreadLink>(hub_->child(sequence, members), static_cast<int>(place),
                                        transport_);
  }

  bool failed() const override { return hub_->job().fate().failed(); }
  void check_job() const override { hub_->job().fate().check(); }
  void announce(const Error& error, bool report) noexcept override {
    hub_->job().fail(job_rank(), error.text(), error.code(), report);
  }
  [[noreturn]] void raise(const SharedError& error) override {
    hub_->job().fate().raise(job_rank(), error);
  }
  void abort(ExitCode code, std::string_view reason) noexcept override {
    const ErrorText text{.what = fmt::format("rank {} ended the job{}{}", job_rank(),
                                             reason.empty() ? "" : ": ", reason)};
    hub_->job().fail(job_rank(), text, code, false);
  }

 private:
  std::shared_ptr<Hub> hub_;
  int rank_;
  std::string_view transport_;
};

std::shared_ptr<Hub> world_hub(const std::shared_ptr<ThreadJob>& job, int size) {
  std::vector<int> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(r);
  return std::make_shared<Hub>(job, std::move(ranks));
}

// The first error of a job that is to be shown: an error of a rank's own before one that only says
// that another rank has failed.
class FirstError {
 public:
  void add(const std::exception_ptr& error) noexcept {
    const std::lock_guard lock(mutex_);
    if (is_consequence(error)) {
      if (consequence_ == nullptr) consequence_ = error;
    } else if (own_ == nullptr) {
      own_ = error;
    }
  }
  void rethrow() const {
    if (own_ != nullptr) std::rethrow_exception(own_);
    if (consequence_ != nullptr) std::rethrow_exception(consequence_);
  }

 private:
  static bool is_consequence(const std::exception_ptr& error) {
    try {
      std::rethrow_exception(error);
    } catch (const SharedError& shared) {
      return !shared.report();
    } catch (...) {
      return false;
    }
  }
  std::mutex mutex_;
  std::exception_ptr own_, consequence_;
};

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return e.text().what;
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an unknown exception";
  }
}

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  const auto job = std::make_shared<ThreadJob>(1);
  return std::make_unique<LinkedCommunicator>(
      std::make_shared<ThreadLink>(world_hub(job, 1), 0, "self"));
}

void run_local_ranks(int size, const std::function<void(Communicator& world)>& body) {
  FARSPAN_CHECK(size >= 1, "{} ranks", size);
  const auto job = std::make_shared<ThreadJob>(size);
  const std::shared_ptr<Hub> hub = world_hub(job, size);
  FirstError first;
  std::vector<std::thread> threads;
  const auto run = [&](int rank) {
    try {
      LinkedCommunicator world(std::make_shared<ThreadLink>(hub, rank, "thread"));
      body(world);
    } catch (const SharedError&) {
      // The other ranks throw theirs: failing the job now could take it from a rank that is still
      // about to.
      first.add(std::current_exception());
    } catch (...) {
      const std::exception_ptr error = std::current_exception();
      first.add(error);
      job->fail(rank, {.what = text_of(error)}, ExitCode::kCommunication, false);
    }
    job->mark_ended(rank);
  };
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
  first.rethrow();
}

}  // namespace farspan
