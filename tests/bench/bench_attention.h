// What the parts of bench_attention share: options, problems to time, clocks, tables.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/attention.h"
#include "parallel/attention_plan.h"

namespace farspan::bench {

struct Options {
  // 0 or empty: the mode's own default.
  std::int64_t q_heads = 0, kv_heads = 0, head_dim = 0;
  std::vector<std::int64_t> tokens;
  int repeat = 0, ranks = 0, threads = 0;
  std::vector<std::string> masks, layouts, documents;
  std::string dtype = "bf16", isa = "auto", strategy = "ring";
  std::int64_t window = 1024, sinks = 4;
  int ulysses = 1;
  std::uint64_t seed = 1;
  std::string device = "cpu";
  std::vector<std::string> kernels;  // of a GPU: auto, own, cudnn
  bool deterministic = true;         // of a GPU's gradients
  bool json = false, overlap = false, whole = false, mpi = false, no_progress = false;

  DType compute() const { return dtype == "fp32" ? DType::kF32 : DType::kBF16; }
  CpuIsa cpu_isa() const;
  HeadShape heads() const {
    return {
        .num_heads = q_heads, .num_kv_heads = kv_heads, .head_dim = head_dim, .compute = compute()};
  }
};

// The things that this program measures. Each prints its own table or JSON lines.
void run_masks(const Options& options);
void run_on_device(const Options& options);
void run_emulated(const Options& options);
void run_overlap(const Options& options, Communicator& world);

// ---- Problems -------------------------------------------------------------------------------

// A sequence with its mask. Segments ascend.
struct Problem {
  std::string name;  // of the mask, or of the documents' lengths
  AttentionPattern pattern;
  std::vector<std::int32_t> segments;
  std::vector<std::int32_t> positions;  // with a bias; else empty
  bool alibi = false, xpos = false;
  std::int64_t tokens() const { return static_cast<std::int64_t>(segments.size()); }
};

// Masks that make_problem knows, in the order of the table.
std::vector<std::string> mask_names();
Problem make_problem(std::string_view mask, std::int64_t tokens, const Options& options);

// Lengths that add up to `tokens`, the last document cut. `documents`: "one", "equal:N",
// "uniform:LOW:HIGH", "lognormal:MEDIAN:SIGMA", "pareto:ALPHA:LEAST", "bimodal:SHARE:LONG:LOW:HIGH"
// (SHARE of the documents are LONG), or a file with one length a line, read again from its start
// when it is used up. Throws Error(kUsage).
std::vector<std::int64_t> document_lengths(const std::string& documents, std::int64_t tokens,
                                           std::uint64_t seed);
// One number per token, ascending.
std::vector<std::int32_t> segments_of(const std::vector<std::int64_t>& lengths);

SequenceLayout make_layout(std::string_view kind, const Problem& problem, const HeadShape& heads,
                           int ranks);

// Plans of the places of the ring, for rank `ulysses_rank` of the `ulysses` ranks that hold a place
// together.
AttentionPlanner make_planner(const Problem& problem, const SequenceLayout& layout,
                              const HeadShape& heads, bool gather, int ulysses_rank = 0,
                              int ulysses = 1);
// Of one rank alone.
AttentionPlan single_plan(const Problem& problem, const HeadShape& heads, bool gather);

// FLOPs of one pass: 4 D forward and 10 D backward per visible (query head, key) pair.
inline double forward_flops(double pairs, const HeadShape& h) {
  return 4.0 * pairs * static_cast<double>(h.num_heads * h.head_dim);
}
inline double backward_flops(double pairs, const HeadShape& h) {
  return 10.0 * pairs * static_cast<double>(h.num_heads * h.head_dim);
}

// ---- Memory ---------------------------------------------------------------------------------

// Normal numbers of either dtype: `n` elements. Long arrays repeat themselves.
std::vector<std::byte> random_bytes(DType dtype, std::int64_t n, std::uint64_t stream);

// Tensors that live as long as the pool.
class TensorPool {
 public:
  Tensor random(DType dtype, Shape shape) {
    memory_.push_back(random_bytes(dtype, shape.numel(), memory_.size()));
    return {.data = memory_.back().data(), .dtype = dtype, .shape = shape, .device = {}};
  }

 private:
  std::vector<std::vector<std::byte>> memory_;
};

// Tables of the problem's bias (undefined without one): ALiBi's slopes 2^(-8 (h + 1) / Hq) and
// xPos's log2(zeta) / 512 with zeta_c = (2 c / D + 0.4) / 1.4.
BiasTables bias_tables(const Problem& problem, const HeadShape& heads, TensorPool& pool);

// ---- Clocks ---------------------------------------------------------------------------------

// Seconds of each call, ascending. The fastest is what the machine can do; the median is what it
// did, beside whatever else was running.
class Timing {
 public:
  void add(double seconds) {
    seconds_.insert(std::upper_bound(seconds_.begin(), seconds_.end(), seconds), seconds);
  }
  double fastest() const { return seconds_.front(); }
  double median() const { return seconds_[seconds_.size() / 2]; }

 private:
  std::vector<double> seconds_;
};

inline double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds that the calling thread has run: other programs on the machine do not count.
inline double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <double (*clock)(), typename Body>
double seconds_of(const Body& body) {
  const double begin = clock();
  body();
  return clock() - begin;
}

}  // namespace farspan::bench
