// Least significant digit first, kDigitBits a pass; a pass counts the digits of each tile, finds
// where each tile's keys of each digit begin, and moves the keys there in order.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/token_order.h"
#include "kernels/cuda/workspace.h"

namespace farspan::cuda {
namespace {

constexpr int kDigitBits = 9;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kThreads = kDigits;  // one digit each where digits are added up
constexpr int kWarps = kThreads / kWarp;
constexpr int kRounds = 8;                  // keys of one thread
constexpr int kWarpKeys = kRounds * kWarp;  // consecutive keys of one warp
constexpr int kTile = kThreads * kRounds;   // consecutive keys of one block
constexpr int kScanWarps = 8;

struct Pass {
  const std::int32_t* ids;     // keys as this pass finds them
  const std::int32_t* tokens;  // nullptr: key i is token i, and ids are not clamped yet
  std::int32_t *out_ids, *out_tokens;
  std::int32_t* counts;  // (digits, tiles): how many; then how many in the tiles before
  std::int32_t* totals;  // (digits)
  std::int32_t n, tiles, vocab;
  int shift;
};

__device__ __forceinline__ std::int32_t key_at(const Pass& pass, std::int32_t i) {
  const std::int32_t id = pass.ids[i];
  return id < 0 || id > pass.vocab ? pass.vocab : id;
}

__device__ __forceinline__ int digit_of(const Pass& pass, std::int32_t key) {
  return (key >> pass.shift) & (kDigits - 1);
}

__global__ void __launch_bounds__(kThreads) count_digits_kernel(Pass pass) {
  __shared__ std::int32_t counts[kDigits];
  counts[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kTile + threadIdx.x;
  for (int round = 0; round < kRounds; ++round)
    if (const std::int64_t i = begin + round * kThreads; i < pass.n)
      atomicAdd(&counts[digit_of(pass, key_at(pass, static_cast<std::int32_t>(i)))], 1);
  __syncthreads();
  pass.counts[static_cast<std::int64_t>(threadIdx.x) * pass.tiles + blockIdx.x] =
      counts[threadIdx.x];
}

// The sum of x over the lanes before this one.
__device__ __forceinline__ std::int32_t sum_before(std::int32_t x, std::int32_t lane,
                                                   std::int32_t* total) {
  std::int32_t sum = x;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const std::int32_t below = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(offset));
    if (lane >= offset) sum += below;
  }
  *total = __shfl_sync(kAllLanes, sum, kWarp - 1);
  return sum - x;
}

// A warp for each digit: counts become those of the tiles before.
__global__ void __launch_bounds__(kScanWarps* kWarp) add_tiles_kernel(Pass pass) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarp);
  const auto digit = static_cast<std::int64_t>(blockIdx.x * kScanWarps + threadIdx.x / kWarp);
  std::int32_t* const counts = pass.counts + digit * pass.tiles;
  std::int32_t before = 0;
  for (std::int32_t first = 0; first < pass.tiles; first += kWarp) {
    const std::int32_t tile = first + lane;
    const std::int32_t count = tile < pass.tiles ? counts[tile] : 0;
    std::int32_t total;
    const std::int32_t here = before + sum_before(count, lane, &total);
    if (tile < pass.tiles) counts[tile] = here;
    before += total;
  }
  if (lane == 0) pass.totals[digit] = before;
}

// The lanes of this warp that have this lane's digit; none for a lane without a key.
__device__ __forceinline__ unsigned lanes_of_digit(int digit, bool present) {
  unsigned lanes = __ballot_sync(kAllLanes, present);
#pragma unroll
  for (int bit = 0; bit < kDigitBits; ++bit) {
    const bool set = (digit >> bit & 1) != 0;
    const unsigned vote = __ballot_sync(kAllLanes, set);
    lanes &= set ? vote : ~vote;
  }
  return lanes;
}

// Where the keys of this thread's digit begin, of all tiles: the totals of the digits before.
__device__ __forceinline__ std::int32_t digit_begin(const Pass& pass, std::int32_t* warp_totals) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarp);
  const int warp = static_cast<int>(threadIdx.x / kWarp);
  std::int32_t total;
  std::int32_t begin = sum_before(pass.totals[threadIdx.x], lane, &total);
  if (lane == 0) warp_totals[warp] = total;
  __syncthreads();
  for (int w = 0; w < warp; ++w) begin += warp_totals[w];
  return begin;
}

__global__ void __launch_bounds__(kThreads) move_keys_kernel(Pass pass) {
  __shared__ std::int32_t counts[kWarps][kDigits];  // then: where a warp's keys of a digit go
  __shared__ std::int32_t warp_totals[kWarps];
  const auto lane = static_cast<unsigned>(threadIdx.x % kWarp);
  const int warp = static_cast<int>(threadIdx.x / kWarp);
  for (int w = 0; w < kWarps; ++w) counts[w][threadIdx.x] = 0;
  __syncthreads();

  // A key's rank among the keys of its digit in its warp, in the order of keys.
  const std::int64_t begin =
      static_cast<std::int64_t>(blockIdx.x) * kTile + warp * kWarpKeys + lane;
  std::int32_t keys[kRounds], ranks[kRounds];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t i = begin + round * kWarp;
    const bool present = i < pass.n;
    keys[round] = present ? key_at(pass, static_cast<std::int32_t>(i)) : 0;
    const int digit = digit_of(pass, keys[round]);
    const unsigned lanes = lanes_of_digit(digit, present);
    const unsigned before = lanes & ((1u << lane) - 1);
    const std::int32_t counted = counts[warp][digit];
    ranks[round] = counted + __popc(before);
    __syncwarp();  // all have read
    if (present && before == 0) counts[warp][digit] = counted + __popc(lanes);
    __syncwarp();
  }
  __syncthreads();

  std::int32_t to = digit_begin(pass, warp_totals) +
                    pass.counts[static_cast<std::int64_t>(threadIdx.x) * pass.tiles + blockIdx.x];
  for (int w = 0; w < kWarps; ++w) {
    const std::int32_t count = counts[w][threadIdx.x];
    counts[w][threadIdx.x] = to;
    to += count;
  }
  __syncthreads();

#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t i = begin + round * kWarp;
    if (i >= pass.n) continue;
    const std::int32_t at = counts[warp][digit_of(pass, keys[round])] + ranks[round];
    pass.out_ids[at] = keys[round];
    pass.out_tokens[at] = pass.tokens == nullptr ? static_cast<std::int32_t>(i) : pass.tokens[i];
  }
}

struct Places {
  std::size_t ids[2], tokens[2], counts, totals, bytes;
};

Places places_of(std::int64_t n) {
  WorkspaceLayout layout;
  Places p{};
  for (int i = 0; i < 2; ++i) p.ids[i] = layout.add<std::int32_t>(n);
  for (int i = 0; i < 2; ++i) p.tokens[i] = layout.add<std::int32_t>(n);
  p.counts = layout.add<std::int32_t>(kDigits * ceil_div(n, kTile));
  p.totals = layout.add<std::int32_t>(kDigits);
  p.bytes = layout.bytes();
  return p;
}

}  // namespace

std::size_t order_tokens_bytes(std::int64_t n) { return places_of(n).bytes; }

TokenOrder order_tokens(const std::int32_t* ids, std::int64_t n, std::int64_t vocab,
                        std::byte* space, cudaStream_t stream) {
  FARSPAN_CHECK(n > 0 && n <= std::numeric_limits<std::int32_t>::max() - kTile &&
                    vocab < std::numeric_limits<std::int32_t>::max(),
                "{} tokens of {} ids", n, vocab);
  const Places at = places_of(n);
  const auto array = [&](std::size_t place) {
    return reinterpret_cast<std::int32_t*>(space + place);
  };
  const std::int64_t tiles = ceil_div(n, kTile);
  Pass pass{.ids = ids,
            .tokens = nullptr,
            .out_ids = nullptr,
            .out_tokens = nullptr,
            .counts = array(at.counts),
            .totals = array(at.totals),
            .n = static_cast<std::int32_t>(n),
            .tiles = static_cast<std::int32_t>(tiles),
            .vocab = static_cast<std::int32_t>(vocab),
            .shift = 0};
  const int bits = std::bit_width(static_cast<std::uint64_t>(vocab));  // keys reach vocab itself
  const LaunchShape over_tiles{
      .grid = static_cast<unsigned>(tiles), .block = kThreads, .stream = stream};
  for (int i = 0; pass.shift == 0 || pass.shift < bits; ++i, pass.shift += kDigitBits) {
    pass.out_ids = array(at.ids[i % 2]);
    pass.out_tokens = array(at.tokens[i % 2]);
    launch(count_digits_kernel, over_tiles, pass);
    launch(add_tiles_kernel,
           {.grid = kDigits / kScanWarps, .block = kScanWarps * kWarp, .stream = stream}, pass);
    launch(move_keys_kernel, over_tiles, pass);
    pass.ids = pass.out_ids;
    pass.tokens = pass.out_tokens;
  }
  return {pass.ids, pass.tokens};
}

}  // namespace farspan::cuda
