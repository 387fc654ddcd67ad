// The predictions and the choice of parallel/attention_cost.h.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "parallel/attention_cost.h"

namespace farspan {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

constexpr double kForwardFlops = 4;    // per pair, query head and head dimension: Q K^T, P V
constexpr double kBackwardFlops = 10;  // five such products
constexpr double kDensePasses = 3;     // forward, and twice its FLOPs backward

constexpr double kTie = 0.02;  // a simpler choice may take so much longer

// What one rank spends in one pass over the hops.
struct Pass {
  double seconds = 0;
  double exposed = 0;
  std::vector<double> exposed_by_hop;

  void hop(double compute, double transfer) {
    const double waits = std::max(0.0, transfer - compute);
    seconds += compute + waits;
    exposed += waits;
    exposed_by_hop.push_back(waits);
  }
  // Communication with nothing beside it; it belongs to the hop at hand.
  void alone(double transfer) {
    seconds += transfer;
    exposed += transfer;
    if (exposed_by_hop.empty()) exposed_by_hop.push_back(0);
    exposed_by_hop.back() += transfer;
  }
};

class Predictor {
 public:
  Predictor(const AttentionSummary& summary, const PatternCost& pattern,
            const AttentionSpeeds& speeds)
      : s_(summary), pattern_(pattern), speeds_(speeds) {}

  Pass forward(int rank) const { return pass(rank, /*backward=*/false); }
  Pass backward(int rank) const { return pass(rank, /*backward=*/true); }

 private:
  const RankCost& cost(int rank) const { return pattern_.ranks[at(rank)]; }
  // The rank that sends to this one: one place before it.
  const RankCost& before(int rank, int places) const {
    return cost((rank - places * s_.ulysses % s_.ranks + s_.ranks) % s_.ranks);
  }
  double compute(int rank, std::size_t hop, bool backward) const {
    const double width = static_cast<double>(s_.heads.num_heads * s_.heads.head_dim);
    const double area = hop < cost(rank).area.size() ? cost(rank).area[hop] : 0;
    return backward ? area * width * kBackwardFlops / speeds_.backward_flops()
                    : area * width * kForwardFlops / speeds_.flops_per_second;
  }
  static double message(double bytes, double bytes_per_second, double latency) {
    return bytes > 0 ? latency + bytes / bytes_per_second : 0;
  }
  double link(double bytes) const {
    return message(bytes, speeds_.bytes_per_second, speeds_.seconds_per_message);
  }

  // Bytes of hop h, both ways at once: what this rank sends or what it gets, whichever is more.
  static double both(const std::vector<std::int64_t>& sent, const std::vector<std::int64_t>& got,
                     std::size_t h) {
    const std::int64_t a = h < sent.size() ? sent[h] : 0, b = h < got.size() ? got[h] : 0;
    return static_cast<double>(std::max(a, b));
  }

  Pass pass(int rank, bool backward) const {
    if (s_.attention == "allgather") return gathered(rank, backward);
    Pass out;
    const RankCost &mine = cost(rank), &previous = before(rank, 1);
    double gradients = 0;  // of the hop before, on their way while this one computes
    for (std::size_t h = 0; h < mine.area.size(); ++h) {
      out.hop(compute(rank, h, backward),
              link(both(mine.forward_bytes, previous.forward_bytes, h)) + gradients);
      if (backward) gradients = link(both(mine.gradient_bytes, previous.gradient_bytes, h));
    }
    if (gradients > 0) out.alone(gradients);
    // The all-to-all of a Ulysses group: everything that is not the ring's. Nothing hides it.
    const double ring =
        std::accumulate(mine.forward_bytes.begin(), mine.forward_bytes.end(), 0.0) +
        (backward ? std::accumulate(mine.gradient_bytes.begin(), mine.gradient_bytes.end(), 0.0)
                  : 0.0);
    const double rest = static_cast<double>(backward ? mine.total.backward : mine.total.forward);
    // Two exchanges in each pass: Q, K, V or dO one way, the results back.
    const double outside = rest - ring;
    if (outside > 0.5)
      out.alone(2 * speeds_.seconds_per_message + outside / speeds_.inside_bytes(s_.ulysses));
    return out;
  }

  // All-gather: the rank's own keys are computed meanwhile; the gradients go home at the end.
  Pass gathered(int rank, bool backward) const {
    const RankCost& mine = cost(rank);
    double sent = 0, got = 0;
    for (std::size_t h = 1; h < mine.forward_bytes.size(); ++h) {
      sent += static_cast<double>(mine.forward_bytes[h]);
      const auto& theirs = before(rank, static_cast<int>(h)).forward_bytes;
      got += h < theirs.size() ? static_cast<double>(theirs[h]) : 0;
    }
    Pass out;
    const double transfer = link(std::max(sent, got));
    if (s_.invariant) {  // its blocks wait for all keys
      out.hop(0, transfer);
      out.seconds += compute(rank, 0, backward);
    } else {
      out.hop(compute(rank, 0, backward), transfer);
    }
    double rest = 0;
    for (std::size_t h = 1; h < mine.area.size(); ++h) rest += compute(rank, h, backward);
    out.seconds += rest;
    if (backward) {
      const double home = static_cast<double>(mine.total.backward - mine.total.forward);
      const double to_me = sent * sizeof(float) / static_cast<double>(size_of(s_.heads.compute));
      out.alone(link(std::max(home, to_me)));
    }
    return out;
  }

  const AttentionSummary& s_;
  const PatternCost& pattern_;
  const AttentionSpeeds& speeds_;
};

void add_maximum(std::vector<double>& into, const std::vector<double>& values) {
  if (into.size() < values.size()) into.resize(values.size());
  for (std::size_t h = 0; h < values.size(); ++h) into[h] = std::max(into[h], values[h]);
}

void add_weighted(std::vector<double>& into, const std::vector<double>& values, double weight) {
  if (into.size() < values.size()) into.resize(values.size());
  for (std::size_t h = 0; h < values.size(); ++h) into[h] += weight * values[h];
}

// ---- the choice
// ----------------------------------------------------------------------------------

struct Strategy {
  std::string attention;
  int ulysses;
};

// Strategies in order of their simplicity, those that fit heads and ranks.
std::vector<Strategy> strategies_of(const ParallelRequest& request) {
  const AttentionCase& c = request.problem;
  std::vector<Strategy> all;
  const auto add = [&](const std::string& attention, int ulysses) {
    if (!request.free_attention && attention != c.attention) return;
    if (attention == "hybrid" && !request.free_ulysses && ulysses != c.ulysses) return;
    AttentionCase one = c;
    one.documents.clear();
    one.attention = attention;
    one.ulysses = ulysses;
    if (is_legal(one)) all.push_back({attention, ulysses});
  };
  add("ring", 1);
  if (c.ranks == 1 && request.free_attention) return all;
  add("ulysses", c.ranks);
  for (int u = 2; u < c.ranks; ++u)
    if (c.ranks % u == 0) add("hybrid", u);
  add("allgather", 1);
  return all;
}

// All-gather keeps every key that a rank's queries see: that may be the whole sequence.
bool keeps_too_much(const AttentionSummary& s) {
  constexpr double kShares = 4;
  if (s.attention != "allgather" || s.invariant) return false;
  const double row = 2.0 * static_cast<double>(s.heads.num_kv_heads * s.heads.head_dim) *
                     static_cast<double>(size_of(s.heads.compute));
  const double allowed = kShares * static_cast<double>(s.num_tokens) / s.ranks * row;
  for (const PatternCost& pattern : s.patterns)
    for (int r = 0; r < s.ranks; ++r) {
      double got = 0;
      for (int h = 1; h < s.ranks; ++h) {
        const auto& sent = pattern.ranks[at((r - h + s.ranks) % s.ranks)].forward_bytes;
        if (at(h) < sent.size()) got += static_cast<double>(sent[at(h)]);
      }
      if (got > allowed) return true;
    }
  return false;
}

// Dealing out single tokens cuts every document into pieces for every rank: with many ranks and
// many documents the plan itself, about as many slices as this, costs more than it could gain.
bool too_fine(const AttentionCase& c) {
  constexpr double kMostSlices = 2e6;
  if (c.layout != LayoutKind::kStriped) return false;
  const std::int64_t places = c.ranks / c.ulysses;
  double slices = 0;
  for (const std::int64_t length : c.documents) {
    const auto pieces = static_cast<double>(std::min(length, places));
    slices += pieces * (pieces + 1) / 2;
  }
  return slices > kMostSlices;
}

std::string percent(double share) {
  const double value = 100 * share;
  return value != 0 && value < 9.95 ? fmt::format("{:.1f}%", value) : fmt::format("{:.0f}%", value);
}

std::string duration(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.3g} us", seconds * 1e6);
  return seconds < 1 ? fmt::format("{:.3g} ms", seconds * 1e3) : fmt::format("{:.3g} s", seconds);
}

// One line with the figures that decided, beside those of the plain choice (zigzag ring) or, where
// that is what was chosen, of the next best.
std::string reason(const ParallelCandidate& chosen, const ParallelCandidate* other) {
  if (other == nullptr)
    return fmt::format("{}: area {:.2f}, {} of the ring's bytes; nothing else to choose from",
                       chosen.name(), chosen.area_max_over_mean, percent(chosen.ring_share));
  const bool same_strategy =
      other->attention == chosen.attention && other->ulysses == chosen.ulysses;
  const std::string name = same_strategy ? std::string(layout_name(other->layout)) : other->name();
  return fmt::format(
      "{}: area {:.2f} ({} {:.2f}), {} of the ring's bytes ({} {}), {} a layer ({} {})",
      chosen.name(), chosen.area_max_over_mean, name, other->area_max_over_mean,
      percent(chosen.ring_share), name, percent(other->ring_share), duration(chosen.seconds), name,
      duration(other->seconds));
}

// Every candidate's prediction, in order of simplicity: strategy by strategy, zigzag first.
std::vector<ParallelCandidate> candidates_of(const ParallelRequest& request) {
  std::vector<ParallelCandidate> out;
  for (const Strategy& strategy : strategies_of(request)) {
    for (const LayoutKind layout : {LayoutKind::kZigzag, LayoutKind::kContiguous,
                                    LayoutKind::kBalanced, LayoutKind::kStriped}) {
      if (!request.free_layout && layout != request.problem.layout) continue;
      // A ring of one place: all layouts are alike.
      const bool one_place = strategy.ulysses == request.problem.ranks;
      if (request.free_layout && one_place && layout != LayoutKind::kZigzag) continue;
      AttentionCase c = request.problem;
      c.layout = layout;
      c.attention = strategy.attention;
      c.ulysses = strategy.ulysses;
      if (request.free_layout && too_fine(c)) continue;
      const AttentionSummary s = summarize(c, {.references = false});
      if (request.free_attention && keeps_too_much(s)) continue;
      out.push_back(
          {.layout = layout,
           .attention = strategy.attention,
           .ulysses = strategy.ulysses,
           .area_max_over_mean = s.area_max_over_mean,
           .tokens_max_over_mean = s.tokens_max_over_mean,
           .bytes_forward = s.bytes_forward,
           .ring_share = s.bytes_ring_total > 0 ? s.bytes_forward / s.bytes_ring_total : 0,
           .seconds = predicted_seconds(s, request.speeds)});
    }
  }
  return out;
}

}  // namespace

AttentionSpeeds nominal_speeds(std::string_view device, DType compute, int ranks) {
  const bool bf16 = compute == DType::kBF16;
  if (device == "cuda") {
    constexpr int kRanksPerNode = 8;
    constexpr double kNvlink = 360e9, kNetwork = 45e9;  // bytes/s that rings reach
    const bool inside = ranks <= kRanksPerNode;
    // Attention in fp32 runs without tensor cores: 60% of the 67 TFLOP/s of the data sheet.
    return {.flops_per_second = bf16 ? 688e12 : 40e12,
            .backward_flops_per_second = bf16 ? 581e12 : 40e12,
            .bytes_per_second = inside ? kNvlink : kNetwork,
            .inside_bytes_per_second = kNvlink,
            .inside_ranks = kRanksPerNode,
            .seconds_per_message = 10e-6,
            .name = inside ? "H200, ranks on one NVLink node (nominal)"
                           : "H200, nodes of 8 with 45 GB/s per rank between them (nominal)"};
  }
  if (device == "cpu")
    return {.flops_per_second = bf16 ? 400e9 : 215e9,
            .backward_flops_per_second = bf16 ? 380e9 : 210e9,
            .bytes_per_second = 5e9,
            .inside_bytes_per_second = 5e9,
            .seconds_per_message = 20e-6,
            .name = "one AVX-512 core per rank, copies through memory at 5 GB/s (nominal)"};
  throw Error(ExitCode::kUsage, {.what = fmt::format("no speeds are known for device '{}'", device),
                                 .fix = "use cpu or cuda, or give bandwidth and FLOP/s"});
}

bool is_legal(const AttentionCase& c) {
  if (c.ranks < 1 || c.ulysses < 1) return false;
  const HeadShape& h = c.heads;
  if (h.num_heads < 1 || h.num_kv_heads < 1 || h.num_heads % h.num_kv_heads != 0) return false;
  if (c.block > 0 && c.attention != "allgather") return false;
  if (c.attention == "ring" || c.attention == "allgather") return c.ulysses == 1;
  if (c.attention == "ulysses" && c.ulysses != c.ranks) return false;
  if (c.attention != "ulysses" && c.attention != "hybrid") return false;
  return c.ranks % c.ulysses == 0 && h.num_heads % c.ulysses == 0;
}

PredictedTime predict(const AttentionSummary& s, const AttentionSpeeds& speeds) {
  FARSPAN_CHECK(speeds.flops_per_second > 0 && speeds.bytes_per_second > 0, "speeds are positive");
  PredictedTime out;
  const double dense = kDensePasses * s.dense_flops_per_token / speeds.flops_per_second;
  for (const PatternCost& pattern : s.patterns) {
    const Predictor predictor(s, pattern, speeds);
    PredictedTime one;
    for (int r = 0; r < s.ranks; ++r) {
      const Pass forward = predictor.forward(r), backward = predictor.backward(r);
      one.forward = std::max(one.forward, forward.seconds);
      one.backward = std::max(one.backward, backward.seconds);
      one.exposed_forward = std::max(one.exposed_forward, forward.exposed);
      one.exposed_backward = std::max(one.exposed_backward, backward.exposed);
      one.total = std::max(one.total, forward.seconds + backward.seconds +
                                          dense * static_cast<double>(s.tokens[at(r)]));
      add_maximum(one.exposed_forward_by_hop, forward.exposed_by_hop);
      add_maximum(one.exposed_backward_by_hop, backward.exposed_by_hop);
    }
    out.forward += pattern.weight * one.forward;
    out.backward += pattern.weight * one.backward;
    out.exposed_forward += pattern.weight * one.exposed_forward;
    out.exposed_backward += pattern.weight * one.exposed_backward;
    out.total += pattern.weight * one.total;
    add_weighted(out.exposed_forward_by_hop, one.exposed_forward_by_hop, pattern.weight);
    add_weighted(out.exposed_backward_by_hop, one.exposed_backward_by_hop, pattern.weight);
  }
  const double area = std::accumulate(s.area.begin(), s.area.end(), 0.0) / s.ranks;
  const double width = static_cast<double>(s.heads.num_heads * s.heads.head_dim);
  out.ideal =
      area * width *
          (kForwardFlops / speeds.flops_per_second + kBackwardFlops / speeds.backward_flops()) +
      dense * static_cast<double>(s.num_tokens) / s.ranks;
  return out;
}

double predicted_seconds(const AttentionSummary& summary, const AttentionSpeeds& speeds) {
  return predict(summary, speeds).total;
}

std::string ParallelCandidate::name() const {
  const std::string base = fmt::format("{} {}", layout_name(layout), attention);
  return attention == "hybrid" ? fmt::format("{} with ulysses {}", base, ulysses) : base;
}

ParallelRequest parallel_request(const config::RunConfig& config,
                                 std::span<const std::int32_t> segments, std::int64_t sequences) {
  ParallelRequest request;
  request.problem = attention_case(config, document_lengths(segments), sequences);
  request.free_layout = config.parallel().layout() == "auto";
  request.free_attention = config.parallel().attention() == "auto";
  request.free_ulysses = config.parallel().ulysses() == 0;
  request.speeds =
      nominal_speeds(config.device(), request.problem.heads.compute, request.problem.ranks);
  return request;
}

ParallelChoice choose_parallel(const ParallelRequest& request) {
  ParallelChoice out;
  out.candidates = candidates_of(request);
  if (out.candidates.empty())
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("no attention strategy fits {} ranks and {} query heads",
                                     request.problem.ranks, request.problem.heads.num_heads),
                 .where = "parallel.attention",
                 .fix = "use parallel.attention: auto or ring"});
  const auto faster = [](const ParallelCandidate& a, const ParallelCandidate& b) {
    return a.seconds < b.seconds;
  };
  const auto first = out.candidates.begin(), end = out.candidates.end();
  const double best = std::min_element(first, end, faster)->seconds;
  const auto chosen = std::find_if(
      first, end, [&](const ParallelCandidate& c) { return c.seconds <= best * (1 + kTie); });
  // What it is compared with: the plain choice; or, where that was chosen, the next best.
  auto other = first;
  if (chosen == first)
    for (auto c = other = first + 1; c != end; ++c)
      if (faster(*c, *other)) other = c;
  out.layout = chosen->layout;
  out.attention = chosen->attention;
  out.ulysses = chosen->ulysses;
  out.why = reason(*chosen, other == end ? nullptr : &*other);
  return out;
}

}  // namespace farspan
