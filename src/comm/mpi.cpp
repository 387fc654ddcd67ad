// Ranks as MPI processes: point-to-point messages only, so that the collectives are ours and their
// results and byte counts those of every other transport.
//
// Beside the groups' messages there is one control communicator with a receive always open. On it a
// rank tells all others that it has ended, or that the job has failed and why: MPI itself would let
// them wait for ever in a receive or in MPI_Finalize.
// clang-format off
#include <mpi.h>
#include <mpi-ext.h>  // after mpi.h
// clang-format on
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "comm/factory.h"
#include "comm/fate.h"
#include "comm/scheduled_communicator.h"

namespace farspan {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

// Between two polls of the progress thread while operations are under way (ADR 0003).
constexpr microseconds kProgressInterval{50};
// The progress thread keeps polling this long after the last operation: waking it costs more.
constexpr milliseconds kProgressLinger{5};
// Polls of a waiter (about 1 us each) before it begins to sleep now and then, as its core may be
// another rank's; and between two looks at the control communicator.
constexpr std::int64_t kYieldRounds = 2048;
constexpr std::int64_t kRoundsPerLook = 64;
constexpr microseconds kWaiterSleep{50};
constexpr milliseconds kControlInterval{5};
// A rank that says that it has ended may have messages on their way still.
constexpr milliseconds kLostGrace{2000};
// Several ranks may see one failure: time for them to agree on the lowest, which reports it.
constexpr milliseconds kReportGrace{100};
// For the rank that reports a failure to print and end the job before another rank does.
constexpr milliseconds kAbortGrace{2000};
constexpr milliseconds kOutputGrace{100};
// How long a rank that unwinds waits for the others to do the same (comm/agree.h).
constexpr milliseconds kUnwindingGrace{1500};
// MPI counts are int: larger transfers go in pieces of this many bytes.
constexpr std::size_t kMaxPiece = std::size_t{1} << 30;
constexpr int kControlTag = 1;

void check_mpi(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error(ExitCode::kCommunication,
              {.what = fmt::format("{} failed: {}", what, text),
               .fix = "see what the other ranks and mpirun printed; `farspan doctor` checks the "
                      "MPI installation"});
}

std::int64_t now_ns() { return Clock::now().time_since_epoch().count(); }

struct Notice {
  enum Kind : std::int32_t { kEnded, kFailed };
  std::int32_t kind = kEnded;
  std::int32_t rank = 0;
  std::array<char, 1000> reason{};
};

class MpiJob;

// Moves messages from a thread of its own while operations are under way and nobody waits: Open
// MPI moves large ones only inside its calls.
class MpiEngine final : public Engine {
 public:
  MpiEngine(MpiJob& job, bool progress_thread) : job_(job) {
    if (progress_thread) thread_ = std::thread([this] { run(); });
  }
  ~MpiEngine() override { stop(); }
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

 protected:
  void rest(std::uint64_t ticket, std::int64_t round, bool device) override;
  void added() override {
    if (blocked_) wake_.notify_one();
  }

 private:
  void run();

  MpiJob& job_;
  std::condition_variable wake_;
  bool blocked_ = false;   // guarded by mutex_
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

class MpiJob {
 public:
  explicit MpiJob(MpiOptions options) {
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &control_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(control_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(control_, &rank_);
    MPI_Comm_size(control_, &size_);
    ended_at_ = std::vector<std::atomic<std::int64_t>>(static_cast<std::size_t>(size_));
    open_receive();
    engine_ = std::make_unique<MpiEngine>(*this, options.progress_thread);
  }

  int rank() const { return rank_; }
  int size() const { return size_; }
  MpiEngine& engine() { return *engine_; }
  bool finalized() const { return finalized_.load(); }

  bool any_ended() const { return num_ended_.load() != 0; }
  bool is_lost(int rank) const {
    const std::int64_t at = ended_at_[static_cast<std::size_t>(rank)].load();
    return at != 0 && now_ns() - at > std::chrono::nanoseconds(kLostGrace).count();
  }
  Fate& fate() { return fate_; }

  // Reads what the control communicator has received, if the last look is old enough.
  void poll_control(milliseconds interval) noexcept {
    const std::unique_lock lock(control_mutex_, std::try_to_lock);
    if (!lock || Clock::now() - control_polled_ < interval) return;
    control_polled_ = Clock::now();
    int flag = 1;
    while (flag != 0) {
      if (MPI_Test(&receive_, &flag, MPI_STATUS_IGNORE) != MPI_SUCCESS) return;
      if (flag == 0) return;
      take(incoming_);
      open_receive();
    }
  }

  // Fails the job and tells everybody. Waits a moment, so that of several ranks that see one
  // failure the lowest reports it.
  void fail(const Error& error, bool report) noexcept {
    if (!fate_.fail(rank_, error.text(), error.code(), report)) return;
    Notice notice{.kind = Notice::kFailed, .rank = rank_};
    std::strncpy(notice.reason.data(), error.text().what.c_str(), notice.reason.size() - 1);
    tell_others(notice);
    for (const auto end = Clock::now() + kReportGrace; report && size_ > 1 && Clock::now() < end;) {
      poll_control(milliseconds{0});
      std::this_thread::sleep_for(microseconds{200});
    }
  }

  [[noreturn]] void abort(ExitCode code, std::string_view reason) noexcept {
    wait_for_reporter();
    if (!reason.empty()) fmt::print(stderr, "farspan: rank {} ends the job: {}\n", rank_, reason);
    std::fflush(nullptr);
    // mpirun drops output that it has not read when it learns of the abort.
    if (size_ > 1) std::this_thread::sleep_for(kOutputGrace);
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
    std::_Exit(static_cast<int>(code));
  }

  // Ends this process's part. True when MPI may be finalized: all ranks have come here and nothing
  // has failed. Otherwise MPI_Finalize could wait for ever; without it mpirun ends the job when
  // this process exits. While an error unwinds, the other ranks may not be coming.
  bool end(bool unwinding) noexcept {
    tell_others({.kind = Notice::kEnded, .rank = rank_});
    const auto latest = Clock::now() + kUnwindingGrace;
    while (!fate_.failed() && num_ended_ != size_ - 1 && !(unwinding && Clock::now() > latest)) {
      poll_control(milliseconds{0});
      if (num_ended_ != size_ - 1) std::this_thread::sleep_for(microseconds{200});
    }
    engine_->stop();
    wait_for_reporter();
    if (fate_.failed() || num_ended_ != size_ - 1) return false;
    for (Outgoing& out : outgoing_) MPI_Wait(&out.request, MPI_STATUS_IGNORE);
    MPI_Cancel(&receive_);
    MPI_Wait(&receive_, MPI_STATUS_IGNORE);
    MPI_Comm_free(&control_);
    finalized_ = true;
    return true;
  }

 private:
  struct Outgoing {
    Notice notice;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  // After another rank's failure: that rank prints it and ends this process, with its exit code.
  void wait_for_reporter() const noexcept {
    if (fate_.failed() && fate_.rank() != rank_) std::this_thread::sleep_for(kAbortGrace);
  }
  void open_receive() noexcept {
    MPI_Irecv(&incoming_, sizeof(Notice), MPI_BYTE, MPI_ANY_SOURCE, kControlTag, control_,
              &receive_);
  }
  void take(const Notice& notice) noexcept {
    if (notice.kind == Notice::kEnded) {
      ended_at_[static_cast<std::size_t>(notice.rank)] = now_ns();
      ++num_ended_;
      return;
    }
    fate_.hear(notice.rank, notice.reason.data());
  }
  void tell_others(const Notice& notice) noexcept {
    const std::lock_guard lock(outgoing_mutex_);
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      Outgoing& out = outgoing_.emplace_back(Outgoing{.notice = notice});
      MPI_Isend(&out.notice, sizeof(Notice), MPI_BYTE, peer, kControlTag, control_, &out.request);
    }
  }

  int rank_ = 0, size_ = 1;
  MPI_Comm control_ = MPI_COMM_NULL;
  std::mutex control_mutex_;  // guards the four below
  Notice incoming_;
  MPI_Request receive_ = MPI_REQUEST_NULL;
  Clock::time_point control_polled_{};
  std::mutex outgoing_mutex_;
  std::deque<Outgoing> outgoing_;  // kept until the end: their buffers are being sent

  std::vector<std::atomic<std::int64_t>> ended_at_;  // 0: has not
  std::atomic<int> num_ended_{0};
  Fate fate_;
  std::atomic<bool> finalized_{false};
  std::unique_ptr<MpiEngine> engine_;
};

void MpiEngine::rest(std::uint64_t, std::int64_t round, bool) {
  if (round % kRoundsPerLook == kRoundsPerLook - 1) {
    job_.poll_control(kControlInterval);
    if (round > kYieldRounds) std::this_thread::sleep_for(kWaiterSleep);
  }
  sched_yield();
}

void MpiEngine::run() {
  Clock::time_point last_active = Clock::now();
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (!active_.empty()) {
      last_active = Clock::now();
    } else if (Clock::now() - last_active > kProgressLinger) {
      blocked_ = true;
      wake_.wait(lock, [&] { return stopping_ || !active_.empty(); });
      blocked_ = false;
      continue;
    }
    const bool idle = active_.empty() || num_waiters_.load() != 0;  // waiters poll themselves
    lock.unlock();
    if (!idle) {
      poll();
      job_.poll_control(kControlInterval);
    }
    std::this_thread::sleep_for(kProgressInterval);
    lock.lock();
  }
}

// 31 bits: channel, 14 of the sequence (operations that far apart are never under way together), 16
// of the size. Sizes are in it because Open MPI 4.1.4 crashes when a large message meets a smaller
// receive: ranks that disagree shall not meet at all, their headers tell.
int tag_of(Channel channel, std::uint64_t sequence, std::size_t bytes) {
  const std::uint64_t size_bits =
      bytes < 0x8000 ? bytes : 0x8000 | (bytes * 0x9e3779b97f4a7c15u >> 49);
  return static_cast<int>((size_bits << 15) | (sequence & 0x3fff) << 1 |
                          (channel == Channel::kData ? 1 : 0));
}

class MpiFlight final : public Flight {
 public:
  MpiFlight(std::shared_ptr<MpiJob> job, MPI_Comm comm, Channel channel, std::uint64_t sequence,
            const std::vector<int>& job_ranks, std::span<const Transfer> transfers)
      : job_(std::move(job)), job_ranks_(job_ranks), pieces_left_(transfers.size(), 0) {
    for (std::size_t i = 0; i < transfers.size(); ++i) {
      const Transfer& t = transfers[i];
      std::size_t done = 0;
      do {
        const std::size_t bytes = std::min(kMaxPiece, t.bytes - done);
        start(comm, tag_of(channel, sequence, bytes), t, i, done, static_cast<int>(bytes));
        done += bytes;
      } while (done < t.bytes);
    }
    indices_.resize(requests_.size());
    statuses_.resize(requests_.size());
  }

  bool poll() override {
    if (num_open_ == 0) return true;
    int num_done = 0;
    const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &num_done,
                                  indices_.data(), statuses_.data());
    if (code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Testsome");
    for (int k = 0; k < num_done && num_done != MPI_UNDEFINED; ++k) {
      const auto index = static_cast<std::size_t>(indices_[static_cast<std::size_t>(k)]);
      const MPI_Status& status = statuses_[static_cast<std::size_t>(k)];
      if (code == MPI_ERR_IN_STATUS && status.MPI_ERROR != MPI_ERR_PENDING)
        check_mpi(status.MPI_ERROR, pieces_[index].send ? "a send by MPI" : "a receive by MPI");
      take(pieces_[index], status);
    }
    return num_open_ == 0;
  }
  bool landed(std::size_t i) const override { return pieces_left_[i] == 0; }

  std::optional<int> lost_peer() override {
    if (!job_->any_ended()) return std::nullopt;
    for (const Piece& piece : pieces_)
      if (pieces_left_[piece.transfer] != 0 &&
          job_->is_lost(job_ranks_[static_cast<std::size_t>(piece.peer)]))
        return piece.peer;
    return std::nullopt;
  }

  // Receives are cancelled, or completed where their message has begun to arrive. A send cannot be
  // cancelled: the request is left to MPI, and the peer may still read the buffer. That is harmless
  // only because the job has failed.
  void cancel() noexcept override {
    if (num_open_ == 0) return;
    for (std::size_t i = 0; i < requests_.size(); ++i)
      if (!pieces_[i].send && requests_[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests_[i]);
    const auto end = Clock::now() + milliseconds{500};
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      int flag = 0;
      while (!pieces_[i].send && requests_[i] != MPI_REQUEST_NULL && Clock::now() < end)
        MPI_Test(&requests_[i], &flag, MPI_STATUS_IGNORE);
      if (requests_[i] != MPI_REQUEST_NULL) MPI_Request_free(&requests_[i]);
    }
    num_open_ = 0;
  }

 private:
  struct Piece {
    std::size_t transfer;
    int peer;
    int bytes;
    bool send;
  };

  void start(MPI_Comm comm, int tag, const Transfer& t, std::size_t index, std::size_t offset,
             int bytes) {
    MPI_Request request = MPI_REQUEST_NULL;
    std::byte* data = t.data + offset;
    if (t.send)
      check_mpi(MPI_Isend(data, bytes, MPI_BYTE, t.peer, tag, comm, &request), "MPI_Isend");
    else
      check_mpi(MPI_Irecv(data, bytes, MPI_BYTE, t.peer, tag, comm, &request), "MPI_Irecv");
    requests_.push_back(request);
    pieces_.push_back({.transfer = index, .peer = t.peer, .bytes = bytes, .send = t.send});
    ++pieces_left_[index];
    ++num_open_;
  }
  void take(const Piece& piece, const MPI_Status& status) {
    --pieces_left_[piece.transfer];
    --num_open_;
    if (piece.send) return;
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (bytes != piece.bytes)
      throw Error(ExitCode::kCommunication,
                  {.what = fmt::format("a message of {} bytes from rank {} where {} were expected",
                                       bytes, piece.peer, piece.bytes)});
  }

  std::shared_ptr<MpiJob> job_;
  const std::vector<int>& job_ranks_;
  std::vector<MPI_Request> requests_;
  std::vector<Piece> pieces_;     // by request
  std::vector<int> pieces_left_;  // by transfer
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  std::size_t num_open_ = 0;
};

class MpiLink final : public Link {
 public:
  // Owns `comm`. `job_ranks`: every member's rank in the world.
  MpiLink(std::shared_ptr<MpiJob> job, MPI_Comm comm, std::vector<int> job_ranks)
      : job_(std::move(job)), comm_(comm), job_ranks_(std::move(job_ranks)) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
  }
  ~MpiLink() override {
    // After a failure the group's messages may still be under way: the group is left to MPI.
    if (!job_->finalized() && !job_->fate().failed()) MPI_Comm_free(&comm_);
  }
  MpiLink(const MpiLink&) = delete;
  MpiLink& operator=(const MpiLink&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(job_ranks_.size()); }
  std::string_view transport() const override { return "mpi"; }
  Engine& engine() override { return job_->engine(); }
  int job_rank() const override { return job_->rank(); }

  std::unique_ptr<Flight> start(Channel channel, std::uint64_t sequence,
                                std::span<const Transfer> transfers) override {
    return std::make_unique<MpiFlight>(job_, comm_, channel, sequence, job_ranks_, transfers);
  }

  std::unique_ptr<Link> split(std::span<const SplitPlace> places, std::uint64_t) override {
    const std::vector<int> members = split_members(places, rank_);
    const auto place = std::find(members.begin(), members.end(), rank_) - members.begin();
    MPI_Comm part = MPI_COMM_NULL;
    // The lowest member as color: MPI allows no negative ones.
    check_mpi(MPI_Comm_split(comm_, *std::min_element(members.begin(), members.end()),
                             static_cast<int>(place), &part),
              "MPI_Comm_split");
    std::vector<int> job_ranks;
    for (const int member : members)
      job_ranks.push_back(job_ranks_[static_cast<std::size_t>(member)]);
    return std::make_unique<MpiLink>(job_, part, std::move(job_ranks));
  }

  // A message from a GPU's memory or into it: known at run time only.
  bool moves_device_memory() const override { return MPIX_Query_cuda_support() == 1; }
  bool failed() const override { return job_->fate().failed(); }
  void check_job() const override { job_->fate().check(); }
  void announce(const Error& error, bool report) noexcept override { job_->fail(error, report); }
  [[noreturn]] void raise(const SharedError& error) override {
    job_->fate().raise(job_->rank(), error);
  }
  void abort(ExitCode code, std::string_view reason) noexcept override {
    job_->abort(code, reason);
  }

 private:
  std::shared_ptr<MpiJob> job_;
  MPI_Comm comm_;
  std::vector<int> job_ranks_;
  int rank_ = 0;
};

}  // namespace

struct MpiSession::Impl {
  std::shared_ptr<MpiJob> job;
  std::unique_ptr<Communicator> world;
  int local_size = 1;
  int local_rank = 0;
  int unwinding = std::uncaught_exceptions();
};

MpiSession::MpiSession(int* argc, char*** argv, MpiOptions options)
    : impl_(std::make_unique<Impl>()) {
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_MULTIPLE)
    throw Error(ExitCode::kCommunication,
                {.what = "this MPI library does not serve several threads (MPI_THREAD_MULTIPLE)",
                 .fix = "install Debian's Open MPI: scripts/setup.sh"});
  impl_->job = std::make_shared<MpiJob>(options);
  MPI_Comm comm = MPI_COMM_NULL, local = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  std::vector<int> job_ranks;
  for (int r = 0; r < impl_->job->size(); ++r) job_ranks.push_back(r);
  impl_->world = std::make_unique<LinkedCommunicator>(
      std::make_shared<MpiLink>(impl_->job, comm, std::move(job_ranks)));
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local),
            "MPI_Comm_split_type");
  MPI_Comm_size(local, &impl_->local_size);
  MPI_Comm_rank(local, &impl_->local_rank);
  MPI_Comm_free(&local);
}

MpiSession::~MpiSession() {
  const bool unwinding = std::uncaught_exceptions() > impl_->unwinding;
  impl_->world.reset();
  if (impl_->job->end(unwinding)) MPI_Finalize();
}

Communicator& MpiSession::world() { return *impl_->world; }
int MpiSession::local_size() const { return impl_->local_size; }
int MpiSession::local_rank() const { return impl_->local_rank; }

}  // namespace farspan
