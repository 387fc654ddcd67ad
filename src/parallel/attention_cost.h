// What attention costs under a layout and a strategy before anything runs: work and tokens per
// rank, bytes per hop, time; and the choice that follows (parallel.layout: auto). All figures come
// from the plans that training executes, so they cannot drift from it.
//
//   AttentionCase c{.documents = {4096, 1000, 3096}, .layout = LayoutKind::kBalanced, .ranks = 8};
//   AttentionSummary s = summarize(c);
//   PredictedTime t = predict(s, nominal_speeds("cuda", DType::kBF16, c.ranks));
//   fmt::print("{:.2f} of the mean area, {} bytes\n", s.area_max_over_mean, s.bytes_forward);
//
// "Area" is the number of visible (query, key) pairs that a rank computes, as a share of the query
// heads: pairs x (its query heads) / (all query heads), mean over the layers. "Row" is one token's
// keys and values of one layer: 2 Hkv d values.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/attention.h"
#include "parallel/attention_pattern.h"
#include "parallel/sequence_layout.h"

namespace farspan {

struct AttentionSpeeds {
  double flops_per_second = 0;           // of one rank, attention forward
  double backward_flops_per_second = 0;  // 0: flops_per_second
  double bytes_per_second = 0;           // from a rank to the next one of the ring
  double inside_bytes_per_second = 0;    // inside a Ulysses group; 0: bytes_per_second
  int inside_ranks =
      0;  // of a Ulysses group that is so fast at most; larger ones: bytes_per_second
  double seconds_per_message = 0;
  std::string name{};  // for people: whose figures, and where from

  double backward_flops() const {
    return backward_flops_per_second > 0 ? backward_flops_per_second : flops_per_second;
  }
  double inside_bytes(int ulysses) const {
    const bool near = inside_bytes_per_second > 0 && (inside_ranks == 0 || ulysses <= inside_ranks);
    return near ? inside_bytes_per_second : bytes_per_second;
  }
};

// What to assume where nothing was measured. "cuda": H200 (design/attention.md, sections 4 and 8),
// NVLink among up to 8 ranks, beyond that one 400 Gbit/s card per GPU for the ring; "cpu": one core
// with AVX-512 BF16 (docs/benchmarks/attention_cpu.md) and copies through shared memory.
// Throws Error(kUsage) for another device.
AttentionSpeeds nominal_speeds(std::string_view device, DType compute, int ranks);

// Lengths of the documents that a batch's segments tell apart, in order.
std::vector<std::int64_t> document_lengths(std::span<const std::int32_t> segments);

// "contiguous", "zigzag", "striped", "balanced": what layout_kind() reads.
std::string_view layout_name(LayoutKind kind);

struct AttentionCase {
  std::vector<std::int64_t> documents;  // lengths in order, each inside one sequence
  std::int64_t sequences = 1;           // of equal length, laid end to end
  std::vector<AttentionPattern> patterns{AttentionPattern{}};
  std::vector<double> weights{};  // layers that have each pattern; empty: one each
  LayoutKind layout = LayoutKind::kZigzag;
  std::string attention = "ring";
  int ranks = 1;    // that share the sequences: ring places x ulysses
  int ulysses = 1;  // ranks of an all-to-all group
  HeadShape heads{};
  // Forward FLOPs per token and layer of everything but attention: what uneven tokens cost.
  double dense_flops_per_token = 0;
  // Invariant mode: tokens of a block, all-gather only (PlanRequest::block); 0: off.
  std::int64_t block = 0;

  std::int64_t num_tokens() const;
};

// The layout that the case asks for, over the places of its ring, as training makes it.
SequenceLayout attention_layout(const AttentionCase& problem);

// A resolved configuration's model, ranks, layout and strategy (auto: zigzag, ring). Of the
// invariant mode the caller sets AttentionCase::block.
AttentionCase attention_case(const config::RunConfig& config, std::vector<std::int64_t> documents,
                             std::int64_t sequences);

// Forward FLOPs per token and layer of a model's projections, MLP and share of the output head.
double dense_flops_per_token(const config::Model& model);

// Whether the strategy exists and its groups fit ranks and heads (validate() says what to do).
bool is_legal(const AttentionCase& problem);

// One layer of one pattern on one rank. Bytes as the communicator counts what this rank sends.
struct RankCost {
  std::vector<double> area;                  // [hop]: keys of the place `hop` before this one
  std::vector<std::int64_t> forward_bytes;   // [hop]: K/V sent on (ring) or to the rank `hop` after
                                             // this one (all-gather)
  std::vector<std::int64_t> gradient_bytes;  // [hop], ring: dK/dV sent on or home after this hop
  AttentionBytes total;                      // with everything outside the ring
};

struct PatternCost {
  std::string description;  // "causal, window 4096"
  double weight = 0;        // share of the layers
  std::vector<RankCost> ranks;
};

// Figures of one hop over all ranks, mean over the layers.
struct HopCost {
  double slices = 0;
  double area_max = 0, area_mean = 0;  // per rank
  double bytes = 0;                    // K/V of the forward pass, all ranks
};

// Totals count all ranks and are means over the layers, of one layer.
struct AttentionSummary {
  LayoutKind layout = LayoutKind::kZigzag;
  std::string attention;
  int ranks = 1, ring = 1, ulysses = 1;  // ranks = ring x ulysses
  HeadShape heads{};
  double dense_flops_per_token = 0;
  bool invariant = false;
  std::int64_t num_documents = 0, sequences = 1, num_tokens = 0;

  std::vector<std::int64_t> tokens;              // [rank]
  std::vector<double> area;                      // [rank]
  std::vector<std::vector<double>> area_by_hop;  // [rank][hop]
  std::vector<HopCost> hops;
  double tokens_max_over_mean = 1, area_max_over_mean = 1;

  double bytes_forward = 0, bytes_backward = 0;
  // For comparison, of a ring over all ranks in this layout:
  double bytes_ring_total = 0;  // every row visits every rank: S (P - 1) rows
  double bytes_unique = 0;      // each rank gets once what it needs and does not hold
  double bytes_bound = 0;       // traffic_lower_bound(), parallel/balance.h

  std::vector<PatternCost> patterns;
};

struct SummaryOptions {
  bool references = true;  // fill bytes_unique and bytes_bound: they cost another plan
};

// CHECKs that the case is legal and that documents and sequences fit together.
AttentionSummary summarize(const AttentionCase& problem, const SummaryOptions& options = {});

// Seconds of one layer (mean over the layers). A hop takes max(compute, transfer) on each rank, and
// the slowest rank decides: the sum over hops, then the maximum over ranks.
struct PredictedTime {
  double forward = 0, backward = 0;                  // attention with its communication
  double exposed_forward = 0, exposed_backward = 0;  // of that, what computing does not hide:
                                                     // the rank that waits longest
  double total = 0;  // forward, backward and the dense work of the slowest rank
  double ideal = 0;  // the same work dealt out evenly, no communication
  std::vector<double> exposed_forward_by_hop, exposed_backward_by_hop;  // maximum over ranks
};

PredictedTime predict(const AttentionSummary& summary, const AttentionSpeeds& speeds);
double predicted_seconds(const AttentionSummary& summary, const AttentionSpeeds& speeds);

// ---- parallel.layout: auto, parallel.attention: auto
// ---------------------------------------------

struct ParallelRequest {
  AttentionCase problem;  // layout, attention and ulysses are what stays where it is not free
  bool free_layout = true;
  bool free_attention = true;
  bool free_ulysses = true;  // of a hybrid
  AttentionSpeeds speeds{};
};

struct ParallelCandidate {
  LayoutKind layout = LayoutKind::kZigzag;
  std::string attention;
  int ulysses = 1;
  double area_max_over_mean = 1, tokens_max_over_mean = 1;
  double bytes_forward = 0;
  double ring_share = 0;     // bytes_forward as a part of the full ring's
  double seconds = 0;        // predicted, one layer
  std::string name() const;  // "balanced ring", "zigzag hybrid with ulysses 4"
};

struct ParallelChoice {
  LayoutKind layout = LayoutKind::kZigzag;
  std::string attention = "ring";
  int ulysses = 1;
  // "balanced ring: area 1.03 (zigzag 2.60), 12% of the ring's bytes (zigzag 33%)"
  std::string why;
  std::vector<ParallelCandidate> candidates;  // simplest first
};

// The choice that a resolved configuration leaves free (auto), for a batch like this one, at the
// nominal speeds of its device.
ParallelRequest parallel_request(const config::RunConfig& config,
                                 std::span<const std::int32_t> segments, std::int64_t sequences);

// Deterministic and pure: every rank chooses alike. The simplest candidate (zigzag ring first)
// whose predicted time is within 2% of the best one's. All-gather is not chosen where it would keep
// much more than a rank's share of the keys in memory. Throws Error(kUsage) when nothing is legal.
ParallelChoice choose_parallel(const ParallelRequest& request);

}  // namespace farspan
