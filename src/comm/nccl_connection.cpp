#include "comm/nccl_connection.h"

#include <utility>

#include "comm/agree.h"

namespace farspan::nccl {
namespace {

constexpr std::chrono::milliseconds kWatchInterval{200};
// Host calls of NCCL are short unless they wait for a rank that is gone. Then they end by an abort,
// which NCCL allows beside them.
constexpr std::chrono::seconds kCallPatience{2};

void abort_in_thread(std::vector<std::thread>& threads, std::shared_ptr<Channel> channel) noexcept {
  try {
    threads.emplace_back([channel] { channel->abort(); });
  } catch (const std::exception&) {  // no memory for a thread
    channel->abort();
  }
}

}  // namespace

void fail(const std::string& reason, const char* call) {
  throw Error(ExitCode::kCommunication,
              {.what = fmt::format("NCCL: {}", reason),
               .where = call,
               .fix = "run with NCCL_DEBUG=INFO to see more; every rank needs a GPU of its own"});
}

void check(ncclResult_t status, const char* call) {
  if (status == ncclSuccess) return;
  const char* detail = ncclGetLastError(nullptr);
  const bool more = detail != nullptr && *detail != '\0';
  fail(fmt::format("{}{}{}", ncclGetErrorString(status), more ? ": " : "", more ? detail : ""),
       call);
}

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // else the next kernel's launch would report it
  fail(cudaGetErrorString(status), call);
}

Channel::Channel(int rank, int size, const ncclUniqueId& id) {
  ncclComm_t comm = nullptr;
  FARSPAN_NCCL(ncclCommInitRank(&comm, size, id, rank));
  comm_ = comm;
}

void Channel::check_state(ncclComm_t comm) {
  ncclResult_t state = ncclSuccess;
  FARSPAN_NCCL(ncclCommGetAsyncError(comm, &state));
  if (state != ncclInProgress) check(state, "ncclCommGetAsyncError");
}

std::string Channel::trouble() noexcept {
  const std::unique_lock lock(calls_, std::try_to_lock);
  ncclComm_t comm = comm_.load();
  if (!lock || comm == nullptr) return {};
  try {
    check_state(comm);
    return {};
  } catch (const Error& error) {
    return error.text().what;
  } catch (const std::exception&) {  // no memory for the text
    return "NCCL: error";
  }
}

void Channel::close() noexcept {
  const std::lock_guard lock(calls_);
  if (ncclComm_t comm = comm_.exchange(nullptr)) ncclCommDestroy(comm);
}

void Channel::abort() noexcept {
  const std::unique_lock lock(calls_, kCallPatience);
  if (ncclComm_t comm = comm_.exchange(nullptr)) ncclCommAbort(comm);
}

Family::Family(Communicator& bootstrap) : bootstrap_(bootstrap) {
  watcher_ = std::thread([this] { watch(); });
}

Family::~Family() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  watcher_.join();
}

void Family::add(const std::shared_ptr<Channel>& channel) {
  const std::lock_guard lock(mutex_);
  if (aborted_) fail(reason_, "split");
  std::erase_if(channels_, [](const auto& known) { return known.expired(); });
  channels_.push_back(channel);
}

void Family::check() const {
  if (!aborted()) return;
  const std::lock_guard lock(mutex_);
  fail(reason_, "NCCL operation");
}

void Family::abort(const std::string& reason) noexcept {
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    if (!aborted_) reason_ = reason;
    aborted_ = true;
    // Side by side: a kernel of one may wait on this GPU for one of another.
    for (const std::weak_ptr<Channel>& known : channels_)
      if (auto channel = known.lock()) abort_in_thread(threads, std::move(channel));
  }
  for (std::thread& thread : threads) thread.join();
}

std::string Family::trouble() {
  if (bootstrap_.failed()) return "another rank has failed";
  std::vector<std::shared_ptr<Channel>> channels;
  {
    const std::lock_guard lock(mutex_);
    for (const std::weak_ptr<Channel>& known : channels_)
      if (auto channel = known.lock()) channels.push_back(std::move(channel));
  }
  for (const auto& channel : channels)
    if (std::string text = channel->trouble(); !text.empty()) return text;
  return {};
}

void Family::watch() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kWatchInterval, [&] { return stop_; })) {
    if (aborted_) continue;
    lock.unlock();
    const std::string text = trouble();
    if (!text.empty()) {
      // The others first: NCCL's abort waits for this GPU's kernels to see it. What this rank's
      // step leaves behind is worth nothing, and must not be saved.
      if (!bootstrap_.failed()) bootstrap_.abort(ExitCode::kCommunication, text);
      abort(text);
    }
    lock.lock();
  }
}

Connection connect(Communicator& bootstrap, int device, std::shared_ptr<Family> family) {
  Connection made{.device = device, .family = std::move(family)};
  ncclUniqueId id{};
  together(bootstrap, [&] {
    FARSPAN_NCCL(cudaSetDevice(device));
    made.queue = std::make_unique<Queue>();
    if (bootstrap.rank() == 0) FARSPAN_NCCL(ncclGetUniqueId(&id));
  });
  Stream host;
  auto* const bytes = reinterpret_cast<std::uint8_t*>(&id);
  bootstrap.broadcast(host_tensor(bytes, {static_cast<std::int64_t>(sizeof id)}), 0, host).wait();
  together(bootstrap, [&] {
    made.channel = std::make_shared<Channel>(bootstrap.rank(), bootstrap.size(), id);
    made.family->add(made.channel);
  });
  return made;
}

}  // namespace farspan::nccl
