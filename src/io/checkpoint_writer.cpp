// The commit protocol (io/checkpoint.h, docs/checkpoints.md), on one writer thread per rank.
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "comm/agree.h"
#include "io/checkpoint.h"
#include "io/checkpoint_folder.h"
#include "io/content_hash.h"
#include "io/durable.h"
#include "io/manifest.h"
#include "io/shard_set.h"

namespace farspan {
namespace {

// How long a new run waits for one that is just dying before it refuses a folder in use.
constexpr double kLockPatienceSeconds = 10;

struct Job {
  std::int64_t step = 0;
  std::vector<TensorPiece> pieces;
  io::TrainState state;
  std::function<void()> ready;
};

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

// `body`, its failures told as a failure of saving `step` on `rank`.
template <typename Body>
void saving(std::int64_t step, int rank, const Body& body) {
  const auto tell = [&](ExitCode code, const ErrorText& text) {
    return Error(code, {.what = fmt::format("checkpoint of step {} not saved: {}", step, text.what),
                        .where = fmt::format("{}{}rank {}", text.where,
                                             text.where.empty() ? "" : ", ", rank),
                        .fix = text.fix + "; earlier checkpoints are intact"});
  };
  try {
    body();
  } catch (const Error& e) {
    throw tell(e.code(), e.text());
  } catch (const std::bad_alloc&) {
    throw tell(ExitCode::kExhausted, {.what = "out of memory", .fix = "use fewer ranks per node"});
  } catch (const std::exception& e) {
    throw tell(ExitCode::kInternal, {.what = e.what(), .fix = "this is a bug in Farspan"});
  }
}

// Every rank's `mine`, in rank order, on rank 0; empty elsewhere.
std::vector<std::string> gather(Communicator& comm, std::string& mine) {
  Stream stream;
  const auto bytes_of = [](std::string& s) {
    return host_tensor(reinterpret_cast<std::uint8_t*>(s.data()),
                       {static_cast<std::int64_t>(s.size())});
  };
  auto size = static_cast<std::int64_t>(mine.size());
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(comm.size()));
  comm.all_gather(host_tensor(&size, {1}), host_tensor(sizes.data(), {comm.size()}), stream).wait();
  std::vector<std::string> all;
  std::vector<Message> sends, recvs;
  if (comm.rank() == 0) {
    for (const std::int64_t n : sizes) all.emplace_back(static_cast<std::size_t>(n), '\0');
    all[0] = mine;
    for (int peer = 1; peer < comm.size(); ++peer)
      recvs.push_back({.peer = peer, .buffer = bytes_of(all[static_cast<std::size_t>(peer)])});
  } else {
    sends.push_back({.peer = 0, .buffer = bytes_of(mine)});
  }
  comm.exchange(sends, recvs, stream).wait();
  return all;
}

}  // namespace

struct CheckpointWriter::Impl {
  std::unique_ptr<Communicator> comm;  // the writer thread's own
  Options options;
  Log& log;
  std::optional<io::FolderLock> lock;  // rank 0

  std::mutex mutex;
  std::condition_variable changed;
  std::optional<Job> next;  // handed to the thread
  bool busy = false;
  bool stop = false;
  std::deque<SaveOutcome> outcomes;
  std::exception_ptr error;
  std::thread thread;

  Impl(Communicator& world, Options o, Log& l)
      : comm(world.duplicate()), options(std::move(o)), log(l) {
    FARSPAN_CHECK(options.keep_last >= 1 && options.keep_every >= 0);
  }

  bool first() const { return comm->rank() == 0; }
  void point(std::string_view name) const {
    if (options.on_point) options.on_point(name);
  }

  void run();
  SaveOutcome save(Job& job);
  std::string begin(std::int64_t step);
  void commit(const Job& job, std::vector<std::string>& parts,
              const std::filesystem::path& temporary, const std::filesystem::path& target);
  void verify(const std::filesystem::path& target, const io::ShardFile& mine) const;
  void replace(const std::filesystem::path& temporary, const std::filesystem::path& target) const;
  std::int64_t sum(std::int64_t value);
  std::optional<SaveOutcome> take(std::unique_lock<std::mutex>& held);
};

CheckpointWriter::CheckpointWriter(Communicator& world, Options options, Log& log)
    : impl_(std::make_unique<Impl>(world, std::move(options), log)) {
  together(*impl_->comm, [&] {
    if (!impl_->first()) return;
    const auto& folder = impl_->options.folder;
    io::make_directories(folder);
    impl_->lock.emplace(folder, kLockPatienceSeconds, log);
    io::remove_stale(folder, log);
    // Found out now rather than at the first save: may we create anything here?
    const auto probe = folder / io::temporary_name(0, io::new_uuid());
    io::make_directory(probe);
    std::filesystem::remove(probe);
  });
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
}

CheckpointWriter::~CheckpointWriter() {
  {
    const std::lock_guard held(impl_->mutex);
    impl_->stop = true;
  }
  impl_->changed.notify_all();
  if (impl_->thread.joinable()) impl_->thread.join();
  if (!impl_->error || !impl_->first()) return;
  try {  // nobody asked for the outcome: at least it is not lost
    std::rethrow_exception(impl_->error);
  } catch (const std::exception& e) {
    impl_->log.error("{}", e.what());
  } catch (...) {
  }
}

void CheckpointWriter::save(std::int64_t step, std::vector<TensorPiece> pieces,
                            const io::TrainState& state, std::function<void()> ready) {
  FARSPAN_CHECK(step >= 0 && (!state.has_step() || state.step() == step), "step {} against {}",
                step, state.step());
  std::unique_lock held(impl_->mutex);
  impl_->changed.wait(held, [&] { return !impl_->busy; });
  if (impl_->error) std::rethrow_exception(std::exchange(impl_->error, nullptr));
  impl_->next =
      Job{.step = step, .pieces = std::move(pieces), .state = state, .ready = std::move(ready)};
  impl_->next->state.set_step(step);
  impl_->busy = true;
  impl_->changed.notify_all();
}

std::optional<SaveOutcome> CheckpointWriter::Impl::take(std::unique_lock<std::mutex>&) {
  if (!outcomes.empty()) {
    SaveOutcome outcome = std::move(outcomes.front());
    outcomes.pop_front();
    return outcome;
  }
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
  return std::nullopt;
}

std::optional<SaveOutcome> CheckpointWriter::poll() {
  std::unique_lock held(impl_->mutex);
  return impl_->take(held);
}

std::optional<SaveOutcome> CheckpointWriter::wait() {
  std::unique_lock held(impl_->mutex);
  impl_->changed.wait(held, [&] { return !impl_->busy; });
  return impl_->take(held);
}

bool CheckpointWriter::busy() const {
  const std::lock_guard held(impl_->mutex);
  return impl_->busy;
}

void CheckpointWriter::Impl::run() {
  for (;;) {
    Job job;
    {
      std::unique_lock held(mutex);
      changed.wait(held, [&] { return next.has_value() || stop; });
      if (!next) return;
      job = std::move(*next);
      next.reset();
    }
    std::optional<SaveOutcome> outcome;
    std::exception_ptr failure;
    try {
      outcome = save(job);
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::lock_guard held(mutex);
      if (outcome) outcomes.push_back(std::move(*outcome));
      if (failure) error = std::move(failure);  // the last reference: whoever takes it frees it
      busy = false;
    }
    changed.notify_all();
  }
}

std::int64_t CheckpointWriter::Impl::sum(std::int64_t value) {
  Stream stream;
  comm->all_reduce(host_tensor(&value, {1}), ReduceOp::kSum, stream).wait();
  return value;
}

// The name of this save's temporary folder, the same on every rank.
std::string CheckpointWriter::Impl::begin(std::int64_t step) {
  agree_on(*comm, "the step to be saved", std::to_string(step));
  std::string uuid = first() ? io::new_uuid() : std::string(32, '0');
  Stream stream;
  comm->broadcast(host_tensor(reinterpret_cast<std::uint8_t*>(uuid.data()),
                              {static_cast<std::int64_t>(uuid.size())}),
                  0, stream)
      .wait();
  return io::temporary_name(step, uuid);
}

SaveOutcome CheckpointWriter::Impl::save(Job& job) {
  const auto start = std::chrono::steady_clock::now();
  const int rank = comm->rank();
  const auto target = options.folder / io::step_folder_name(job.step);
  const auto temporary = options.folder / begin(job.step);
  // One phase: all ranks end it before any goes on, and if it fails on one it fails on all.
  const auto phase = [&](const auto& body) {
    together(*comm, [&] { saving(job.step, rank, body); });
  };
  std::int64_t bytes = 0;
  try {
    phase([&] {
      if (!first()) return;
      io::remove_stale(options.folder, log);
      io::make_directory(temporary);
    });
    point("begun");
    io::Manifest part;
    phase([&] {
      if (job.ready) job.ready();
      part = io::write_shard(temporary, rank, job.pieces);
    });
    point("shard_written");
    bytes = sum(part.shards(0).bytes());
    std::string mine = part.SerializeAsString();
    std::vector<std::string> parts = gather(*comm, mine);
    phase([&] {
      if (first()) commit(job, parts, temporary, target);
    });
    phase([&] { verify(target, part.shards(0)); });
  } catch (const SharedError&) {
    // All ranks have left the phase, so nobody writes there any more. Once renamed it is gone.
    std::error_code ignored;
    if (first()) std::filesystem::remove_all(temporary, ignored);
    throw;
  }
  together(*comm, [&] {
    if (!first()) return;
    try {
      io::prune(options.folder, job.step,
                {.keep_last = options.keep_last, .keep_every = options.keep_every},
                options.on_point, log);
    } catch (const Error& e) {  // the checkpoint stands; the next save prunes again
      log.warn("cannot prune old checkpoints: {}", e.what());
    }
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return {.step = job.step, .path = target, .seconds = seconds.count(), .bytes = bytes};
}

// Rank 0: the manifest, then the name.
void CheckpointWriter::Impl::commit(const Job& job, std::vector<std::string>& parts,
                                    const std::filesystem::path& temporary,
                                    const std::filesystem::path& target) {
  std::vector<io::Manifest> shards(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i)
    FARSPAN_CHECK(shards[i].ParseFromString(parts[i]), "report of rank {}", i);
  io::Manifest manifest = io::merge_shards(shards);
  manifest.set_format_version(io::kManifestVersion);
  manifest.set_code_version(options.code_version);
  manifest.set_created(utc_now());
  manifest.set_step(job.step);
  *manifest.mutable_state() = job.state;
  manifest.set_config_yaml(options.config_yaml);
  const auto problem = io::manifest_problem(manifest);
  FARSPAN_CHECK(!problem, "{}", *problem);

  const std::string bytes = io::encode_manifest(manifest);
  io::write_file(temporary / io::kManifestJson, io::manifest_json(manifest));
  io::write_file(temporary / io::kManifestFile, bytes);
  io::sync_directory(temporary);
  point("manifest_written");
  replace(temporary, target);
  io::sync_directory(options.folder);
  point("renamed");
}

void CheckpointWriter::Impl::replace(const std::filesystem::path& temporary,
                                     const std::filesystem::path& target) const {
  std::error_code ignored;
  if (!std::filesystem::exists(target, ignored)) {
    io::rename_path(temporary, target);
  } else if (io::exchange_paths(temporary, target)) {
    io::sync_directory(options.folder);
    std::filesystem::remove_all(temporary, ignored);  // now the old one; if it stays, it is stale
  } else {
    // This file system cannot exchange. A kill between the two renames loses this one step.
    io::remove_folder(target);
    io::rename_path(temporary, target);
  }
}

// Each rank reads its committed shard once more, so that pruning relies on what is on the disk.
void CheckpointWriter::Impl::verify(const std::filesystem::path& target,
                                    const io::ShardFile& mine) const {
  const io::FileHash actual = io::hash_file(target / mine.file());
  if (actual.bytes != mine.bytes() || actual.xxh3_128 != mine.xxh3_128()) {
    throw Error(ExitCode::kBadData, {.what = "the shard does not read back as it was written",
                                     .where = (target / mine.file()).string(),
                                     .fix = "check the disk"});
  }
  if (first()) const CheckpointReader reader(target, false);
}

}  // namespace farspan
