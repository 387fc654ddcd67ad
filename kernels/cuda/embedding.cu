#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/floats.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/token_order.h"

namespace farspan::cuda {
namespace {

// ---- forward --------------------------------------------------------------------------------

// Rows of `cols` items of one size; all bits set, a NaN of every dtype, where there is no row.
template <typename Item>
__global__ void __launch_bounds__(kBlock)
    gather_kernel(const std::int32_t* ids, const Item* table, Item* out, std::int64_t tokens,
                  std::int64_t vocab, std::int64_t cols, Item none) {
  for (std::int64_t t = first_row(); t < tokens; t += row_stride()) {
    const std::int64_t id = ids[t];
    const bool present = id >= 0 && id < vocab;
    for (std::int64_t col = first_col(); col < cols; col += col_stride())
      out[t * cols + col] = present ? table[id * cols + col] : none;
  }
}

template <typename Item>
bool gathered_as(const EmbeddingForwardArgs& args, Item none, cudaStream_t stream) {
  const std::int64_t tokens = args.ids.numel(), vocab = args.table.shape[0];
  const std::int64_t row_bytes =
      args.table.shape[1] * static_cast<std::int64_t>(size_of(args.table.dtype));
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(Item));
  if (row_bytes % kSize != 0 || !aligned_to(kSize, {args.table.data, args.out.data})) return false;
  launch(gather_kernel<Item>, by_rows(tokens, row_bytes / kSize, stream),
         data<std::int32_t>(args.ids), data<Item>(args.table), data<Item>(args.out), tokens, vocab,
         row_bytes / kSize, none);
  return true;
}

// ---- backward -------------------------------------------------------------------------------

// Tokens of one id that one thread adds one after the other.
constexpr std::int32_t kRun = 256;

// Consecutive places of the ordered tokens that have one id. slot: the row of partial sums that it
// goes to, or -1: it is all of its id's tokens and goes to the table.
struct Run {
  std::int32_t begin, end, id, slot;
};

// What embedding_backward keeps in its workspace.
struct Runs {
  TokenOrder order;
  Run* runs;               // (n), in any order: each is added by itself
  Run* ids_of_many;        // ids of more than kRun tokens, all their places
  std::int32_t* num_runs;  // (2): of runs, of ids_of_many
  float* partials;         // (slots, c)
  std::int32_t n, vocab;
};

// The first place in [begin, end) whose id is not below `id`.
__device__ __forceinline__ std::int32_t first_not_below(const std::int32_t* ids, std::int32_t begin,
                                                        std::int32_t end, std::int32_t id) {
  while (begin < end) {
    const std::int32_t middle = begin + (end - begin) / 2;
    if (ids[middle] < id)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// Runs of one id begin kRun places apart, so in any kRun consecutive places at most one begins an
// id of many tokens, and at most one continues it: two slots for each.
__device__ __forceinline__ std::int32_t slot_of(std::int32_t place, bool first) {
  return 2 * (place / kRun) + (first ? 0 : 1);
}

std::int64_t num_slots(std::int64_t n) { return 2 * (n / kRun + 1); }

// Appends the items of the lanes that have one: one atomic for the warp. The list's order means
// nothing.
__device__ __forceinline__ void append(bool has, const Run& item, Run* list, std::int32_t* count) {
  const unsigned lanes = __ballot_sync(kAllLanes, has);
  if (lanes == 0) return;
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned before = __popc(lanes & ((1u << lane) - 1));
  std::int32_t begin = 0;
  if (has && before == 0) begin = atomicAdd(count, __popc(lanes));
  begin = __shfl_sync(kAllLanes, begin, __ffs(static_cast<int>(lanes)) - 1);
  if (has) list[begin + static_cast<std::int32_t>(before)] = item;
}

// All lanes of a warp stay together: a warp's places are consecutive, from a multiple of 32.
__global__ void __launch_bounds__(kBlock) find_runs_kernel(Runs r) {
  const std::int32_t* const ids = r.order.ids;
  const std::int64_t lane = threadIdx.x % kWarp;
  for (std::int64_t first = first_index() - lane; first < r.n; first += stride()) {
    const bool present = first + lane < r.n;
    const auto place = static_cast<std::int32_t>(present ? first + lane : 0);
    const std::int32_t id = ids[place];
    const bool continues = place > 0 && ids[place - 1] == id;
    const std::int32_t begin = continues ? first_not_below(ids, 0, place, id) : place;
    const bool begins = present && id < r.vocab && (place - begin) % kRun == 0;
    const bool many = begins && r.n - begin > kRun && ids[begin + kRun] == id;
    Run run{place, place, id, many ? slot_of(place, !continues) : -1};
    if (begins) {
      const std::int32_t most = r.n - place < kRun ? r.n : place + kRun;
      run.end = first_not_below(ids, place, most, id + 1);
    }
    append(begins, run, r.runs, &r.num_runs[0]);
    if (many && !continues) run.end = first_not_below(ids, place, r.n, id + 1);
    append(many && !continues, run, r.ids_of_many, &r.num_runs[1]);
  }
}

// N columns of each thread; several rows are on their way at once, added in order.
template <typename T, int N>
__global__ void __launch_bounds__(kBlock)
    add_runs_kernel(Runs r, const T* dout, float* dtable, std::int64_t c) {
  constexpr int kDeep = 4;
  const std::int64_t count = r.num_runs[0];
  for (std::int64_t i = first_row(); i < count; i += row_stride()) {
    const Run run = r.runs[i];
    for (std::int64_t col = first_col() * N; col < c; col += col_stride() * N) {
      float* const to = run.slot < 0 ? dtable + run.id * c + col : r.partials + run.slot * c + col;
      Floats<N> sum = {};
      if (run.slot < 0) sum = load_floats<N>(to);
      for (std::int32_t place = run.begin; place < run.end; place += kDeep) {
        Floats<N> rows[kDeep];
#pragma unroll
        for (int j = 0; j < kDeep; ++j)
          if (place + j < run.end)
            rows[j] = load_floats<N>(dout + r.order.tokens[place + j] * c + col);
#pragma unroll
        for (int j = 0; j < kDeep; ++j)
          if (place + j < run.end)
#pragma unroll
            for (int k = 0; k < N; ++k) sum.at[k] += rows[j].at[k];
      }
      store_floats(to, sum);
    }
  }
}

template <int N>
__global__ void __launch_bounds__(kBlock)
    add_partials_kernel(Runs r, float* dtable, std::int64_t c) {
  const std::int64_t count = r.num_runs[1];
  for (std::int64_t i = first_row(); i < count; i += row_stride()) {
    const Run all = r.ids_of_many[i];
    for (std::int64_t col = first_col() * N; col < c; col += col_stride() * N) {
      float* const to = dtable + all.id * c + col;
      Floats<N> sum = load_floats<N>(to);
#pragma unroll 4
      for (std::int32_t place = all.begin; place < all.end; place += kRun) {
        const std::int32_t slot = slot_of(place, place == all.begin);
        const Floats<N> partial = load_floats<N>(r.partials + slot * c + col);
#pragma unroll
        for (int k = 0; k < N; ++k) sum.at[k] += partial.at[k];
      }
      store_floats(to, sum);
    }
  }
}

template <typename T>
void launch_add(const EmbeddingBackwardArgs& args, const Runs& runs, cudaStream_t stream) {
  const std::int64_t c = args.dtable.shape[1];
  const auto* dout = data<T>(args.dout);
  auto* dtable = data<float>(args.dtable);
  const auto with_width = [&]<int N>() {
    launch(add_runs_kernel<T, N>, by_rows(runs.n, ceil_div(c, N), stream), runs, dout, dtable, c);
    launch(add_partials_kernel<N>, by_rows(ceil_div(runs.n, kRun), ceil_div(c, N), stream), runs,
           dtable, c);
  };
  constexpr int kWide = kPackWidth<T>;
  if (c % kWide == 0 && aligned_to(16, {dout, dtable}))
    with_width.template operator()<kWide>();
  else
    with_width.template operator()<1>();
}

}  // namespace

void embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) {
  if (args.out.numel() == 0) return;
  const cudaStream_t queue = native(stream);
  constexpr std::uint32_t kAll = 0xffffffffu;
  FARSPAN_CHECK(gathered_as<uint4>(args, make_uint4(kAll, kAll, kAll, kAll), queue) ||
                gathered_as<std::uint32_t>(args, kAll, queue) ||
                gathered_as<std::uint16_t>(args, std::uint16_t{0xffff}, queue));
}

void embedding_backward(const EmbeddingBackwardArgs& args, Workspace& space, Stream& stream) {
  const std::int64_t n = args.ids.numel(), c = args.dtable.shape[1];
  if (n == 0 || args.dtable.numel() == 0) return;
  const cudaStream_t queue = native(stream);
  WorkspaceLayout layout;
  const std::size_t order = layout.add<std::byte>(static_cast<std::int64_t>(order_tokens_bytes(n)));
  const std::size_t runs = layout.add<Run>(n), many = layout.add<Run>(n / kRun + 1);
  const std::size_t counts = layout.add<std::int32_t>(2);
  const std::size_t partials = layout.add<float>(num_slots(n) * c);
  std::byte* const base = space.at_least(layout.bytes(), stream);
  const std::int64_t vocab = args.dtable.shape[0];
  const Runs r{.order = order_tokens(data<std::int32_t>(args.ids), n, vocab, base + order, queue),
               .runs = reinterpret_cast<Run*>(base + runs),
               .ids_of_many = reinterpret_cast<Run*>(base + many),
               .num_runs = reinterpret_cast<std::int32_t*>(base + counts),
               .partials = reinterpret_cast<float*>(base + partials),
               .n = static_cast<std::int32_t>(n),
               .vocab = static_cast<std::int32_t>(vocab)};
  FARSPAN_CUDA(cudaMemsetAsync(r.num_runs, 0, 2 * sizeof(std::int32_t), queue));
  launch(find_runs_kernel, linear(n, queue), r);
  with_compute_type(args.dout.dtype, [&]<typename T>() { launch_add<T>(args, r, queue); });
}

}  // namespace farspan::cuda
