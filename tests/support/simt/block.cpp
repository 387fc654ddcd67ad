#include "support/simt/block.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "support/simt/block_scheduler.h"
#include "support/simt/kernel_view.h"
#include "support/simt/memory.h"
#include "support/simt/sanitizers.h"
#include "support/simt/symbols.h"

namespace farspan::simt {
namespace {

// Of dynamic shared memory; what TMA and swizzles by address need.
constexpr std::size_t kSharedAlignment = 1024;

}  // namespace

void fail(const std::string& what) {
  throw Error(ExitCode::kInternal, {.what = fmt::format("{}: {}", running_place(), what)});
}

int block_barrier(int predicate) { return the_block.barrier(predicate); }

void warp_call(const char* name, std::uint32_t mask, void* args, Complete complete,
               bool needs_all) {
  the_block.warp_call({name, mask, args, complete, needs_all});
}

void copy_async(void* smem, const void* gmem, bool valid) {
  require_shared(smem, 16, 16, "cp.async");
  if (reinterpret_cast<std::uintptr_t>(gmem) % 16 != 0)
    fail(fmt::format("cp.async from {}, which is not a multiple of 16", gmem));
  if (valid) require_readable(gmem, 16, "cp.async");
  the_block.running().copies.issue(smem, gmem, valid, the_block.disorder());
}
void copy_async_commit() { the_block.running().copies.commit(); }
void copy_async_wait(int pending_groups) {
  the_block.running().copies.wait(pending_groups, the_block.disorder());
}

void require_shared(const void* address, std::size_t bytes, std::size_t alignment,
                    const char* instruction) {
  const auto* const a = static_cast<const std::byte*>(address);
  const std::byte* const shared = running_block.shared;
  const auto offset = a - shared;
  const auto size = static_cast<std::ptrdiff_t>(running_block.shared_bytes);
  constexpr std::ptrdiff_t kBeside = 1 << 20;
  const bool dynamic = offset > -kBeside && offset < size + kBeside;
  if (reinterpret_cast<std::uintptr_t>(address) % alignment != 0)
    fail(fmt::format("{} at {}, which is not a multiple of {}", instruction, address, alignment));
  if (dynamic && (offset < 0 || offset + static_cast<std::ptrdiff_t>(bytes) > size))
    fail(fmt::format("{} of {} bytes at byte {} of {} of shared memory", instruction, bytes, offset,
                     size));
  if (!dynamic && (memory().where(address) != Where::kPageable || in_running_stack(address)))
    fail(fmt::format("{} at {}, which is not shared memory", instruction, address));
  if (poisoned(address, bytes) != nullptr)
    fail(fmt::format("{} of {} bytes at {}, beyond its variable", instruction, bytes, address));
}

void run_kernel(const KernelRun& run, Disorder& disorder) {
  const std::uint64_t num_blocks = volume(run.grid), seed = disorder.next();
  const GuardedPages shared(run.shared_bytes, kSharedAlignment);
  running_block.shared = shared.data();
  running_block.shared_bytes = run.shared_bytes;
  std::vector<std::uint32_t> order(num_blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[disorder.below(i)]);
  for (const std::uint32_t block : order) {
    std::memset(shared.data(), kGarbage, shared.bytes());
    the_block.run(run, block, seed);
    if (const auto damage = shared.damage())
      throw Error(ExitCode::kInternal,
                  {.what = fmt::format("kernel {}: block {} wrote to byte {} of its {} bytes of "
                                       "shared memory",
                                       symbol_name(run.kernel), text_of(running_block.index),
                                       *damage, shared.bytes())});
  }
}

bool kernel_is_running() { return this_thread_runs_a_kernel(); }
std::string running_place() {
  return kernel_is_running() ? the_block.place() : std::string("outside kernels");
}
bool in_running_stack(const void* address) { return the_block.fiber()->holds(address); }
void abandon(const std::string& what) { the_block.abandon(what); }
void* top_of_running_stack() {
  const Context& c = the_block.fiber()->context;
  return const_cast<std::byte*>(c.bottom) + c.size;
}

}  // namespace farspan::simt
