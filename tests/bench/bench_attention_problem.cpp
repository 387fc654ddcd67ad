// Sequences, masks, documents and random tensors for bench_attention.
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>

#include "bench_attention.h"
#include "core/rng.h"
#include "kernels/cpu/isa.h"
#include "parallel/attention_cost.h"
#include "parallel/balance.h"

namespace farspan::bench {
namespace {

[[noreturn]] void refuse(std::string what, std::string where, std::string fix) {
  throw Error(ExitCode::kUsage,
              {.what = std::move(what), .where = std::move(where), .fix = std::move(fix)});
}

std::vector<std::int64_t> lengths_of_file(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    refuse("cannot open the list of document lengths", path,
           "name a file with one length a line, or a distribution such as lognormal:3000:1.2");
  std::vector<std::int64_t> lengths;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty() || line.front() == '#') continue;
    std::int64_t n = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), n);
    if (error != std::errc{} || end != line.data() + line.size() || n < 1)
      refuse(fmt::format("'{}' is not a document length", line), fmt::format("{}:{}", path, number),
             "write one integer >= 1 a line");
    lengths.push_back(n);
  }
  if (lengths.empty()) refuse("no document lengths", path, "write one integer >= 1 a line");
  return lengths;
}

// "lognormal:3000:1.2" as a function from a draw's number to a length.
class Distribution {
 public:
  Distribution(const std::string& text, std::uint64_t seed)
      : rng_(seed, stream_id("bench.documents")) {
    std::size_t begin = text.find(':');
    kind_ = text.substr(0, begin);
    while (begin != std::string::npos) {
      const std::size_t end = text.find(':', begin + 1);
      const std::string number = text.substr(begin + 1, end - begin - 1);
      char* rest = nullptr;
      values_.push_back(std::strtod(number.c_str(), &rest));
      if (number.empty() || *rest != 0 || !(values_.back() > 0))
        refuse(fmt::format("'{}' is not a number > 0", number), "--doc-lengths " + text, kForms);
      begin = end;
    }
    const std::size_t wanted = kind_ == "equal"     ? 1
                               : kind_ == "bimodal" ? 4
                               : kind_ == "uniform" || kind_ == "lognormal" || kind_ == "pareto"
                                   ? 2
                                   : 0;
    if (wanted == 0 || values_.size() != wanted)
      refuse("unknown distribution of document lengths", "--doc-lengths " + text, kForms);
    if (kind_ == "uniform" || kind_ == "bimodal") {
      const double low = values_[wanted - 2], high = values_[wanted - 1];
      if (low > high)
        refuse(fmt::format("LOW {} is above HIGH {}", low, high), "--doc-lengths " + text, kForms);
    }
  }

  std::int64_t draw(std::uint64_t i) const {
    const double u = rng_.uniform(2 * i);
    double n = values_[0];
    if (kind_ == "uniform") n = between(u, values_[0], values_[1]);
    if (kind_ == "lognormal") n = values_[0] * std::exp(values_[1] * rng_.normal(2 * i + 1));
    if (kind_ == "pareto") n = values_[1] * std::pow(1 - u, -1 / values_[0]);
    if (kind_ == "bimodal")
      n = u < values_[0] ? values_[1] : between(rng_.uniform(2 * i + 1), values_[2], values_[3]);
    return static_cast<std::int64_t>(std::clamp(std::round(n), 1.0, 1e12));
  }

 private:
  static constexpr const char* kForms =
      "write one, equal:N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, pareto:ALPHA:LEAST, "
      "bimodal:SHARE:LONG:LOW:HIGH, or name a file";
  static double between(double u, double low, double high) { return low + u * (high + 1 - low); }

  CounterRng rng_;
  std::string kind_;
  std::vector<double> values_;
};

// LongNet's geometric mixture for one sequence: a quarter of it densely, a half of it every second
// token, all of it every fourth.
std::vector<DilatedBranch> dilated_branches(std::int64_t tokens) {
  const std::int64_t quarter = std::max<std::int64_t>(4, (tokens / 4 + 3) / 4 * 4);
  return {{quarter, 1}, {2 * quarter, 2}, {4 * quarter, 4}};
}

}  // namespace

CpuIsa Options::cpu_isa() const {
  for (const CpuIsa candidate :
       {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx})
    if (isa == name_of(candidate)) return candidate;
  return CpuIsa::kAuto;
}

std::vector<std::string> mask_names() {
  return {"full",  "causal", "window",  "sinks",   "packed",
          "alibi", "xpos",   "dilated", "bigbird", "s2"};
}

Problem make_problem(std::string_view mask, std::int64_t tokens, const Options& options) {
  Problem p{.name = std::string(mask), .pattern = {}, .segments = {}, .positions = {}};
  AttentionPattern& pattern = p.pattern;
  pattern.causal = mask != "full";
  if (mask == "window" || mask == "sinks") pattern.window = options.window;
  if (mask == "sinks") pattern.sinks = options.sinks;
  if (mask == "dilated") {
    pattern.sparse = SparseKind::kDilated;
    pattern.branches = dilated_branches(tokens);
  }
  if (mask == "bigbird") pattern.sparse = SparseKind::kBigBird;
  if (mask == "s2") {
    pattern.sparse = SparseKind::kShifted;
    pattern.group = std::max<std::int64_t>(2, tokens / 8 * 2);
  }
  p.alibi = mask == "alibi";
  p.xpos = mask == "xpos";
  p.segments = segments_of(mask == "packed"
                               ? document_lengths(options.documents.front(), tokens, options.seed)
                               : std::vector<std::int64_t>{tokens});
  if (p.alibi || p.xpos) {
    p.positions.resize(p.segments.size());
    std::iota(p.positions.begin(), p.positions.end(), 0);
  }
  return p;
}

std::vector<std::int64_t> document_lengths(const std::string& documents, std::int64_t tokens,
                                           std::uint64_t seed) {
  if (documents == "one") return {tokens};
  std::vector<std::int64_t> lengths;
  std::int64_t room = tokens;
  const auto take = [&](std::int64_t n) {
    lengths.push_back(std::min(n, room));
    room -= lengths.back();
  };
  if (documents.find(':') == std::string::npos) {
    const std::vector<std::int64_t> list = lengths_of_file(documents);
    for (std::size_t i = 0; room > 0; ++i) take(list[i % list.size()]);
  } else {
    const Distribution distribution(documents, seed);
    for (std::uint64_t i = 0; room > 0; ++i) take(distribution.draw(i));
  }
  return lengths;
}

std::vector<std::int32_t> segments_of(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> segments;
  for (std::size_t d = 0; d < lengths.size(); ++d)
    segments.insert(segments.end(), static_cast<std::size_t>(lengths[d]),
                    static_cast<std::int32_t>(d));
  return segments;
}

SequenceLayout make_layout(std::string_view kind, const Problem& problem, const HeadShape& heads,
                           int ranks) {
  const std::int64_t stride = problem.pattern.row_stride();
  if (kind != "balanced")
    return SequenceLayout::make(layout_kind(kind), 1, problem.tokens(), ranks).fitted(stride);
  const RowArea area(problem.pattern, heads.num_kv_heads);
  const std::vector<std::int64_t> documents = farspan::document_lengths(problem.segments);
  return balanced_layout({.documents = documents, .ranks = ranks, .areas = {&area, 1}})
      .fitted(stride);
}

AttentionPlanner make_planner(const Problem& problem, const SequenceLayout& layout,
                              const HeadShape& heads, bool gather, int ulysses_rank, int ulysses) {
  const HeadShare share = ulysses_heads(heads.num_heads, heads.num_kv_heads, ulysses_rank, ulysses);
  return AttentionPlanner({.segments = problem.segments,
                           .positions = problem.positions,
                           .layout = layout,
                           .pattern = problem.pattern,
                           .local_kv_heads = share.kv_heads,
                           .num_kv_heads = heads.num_kv_heads,
                           .gather = gather});
}

AttentionPlan single_plan(const Problem& problem, const HeadShape& heads, bool gather) {
  return make_planner(problem, make_layout("contiguous", problem, heads, 1), heads, gather).plan(0);
}

std::vector<std::byte> random_bytes(DType dtype, std::int64_t n, std::uint64_t stream) {
  const CounterRng rng(1, stream);
  const std::size_t size = size_of(dtype), count = static_cast<std::size_t>(n);
  const std::size_t distinct = std::min<std::size_t>(count, std::size_t{1} << 20);
  std::vector<std::byte> bytes(count * size);
  for (std::size_t i = 0; i < distinct; ++i) {
    const auto x = static_cast<float>(rng.normal(i));
    if (dtype == DType::kF32)
      reinterpret_cast<float*>(bytes.data())[i] = x;
    else
      reinterpret_cast<BFloat16*>(bytes.data())[i] = BFloat16(x);
  }
  for (std::size_t i = distinct; i < count; i += distinct)
    std::memcpy(bytes.data() + i * size, bytes.data(), std::min(distinct, count - i) * size);
  return bytes;
}

BiasTables bias_tables(const Problem& problem, const HeadShape& heads, TensorPool& pool) {
  BiasTables tables;
  if (problem.alibi) {
    tables.slopes = pool.random(DType::kF32, {heads.num_heads});
    for (std::int64_t h = 0; h < heads.num_heads; ++h)
      tables.slopes.ptr<float>()[h] = static_cast<float>(
          std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads.num_heads)));
  }
  if (problem.xpos) {
    const std::int64_t half = heads.head_dim / 2;
    tables.decay = pool.random(DType::kF32, {half});
    for (std::int64_t c = 0; c < half; ++c)
      tables.decay.ptr<float>()[c] = static_cast<float>(
          std::log2((static_cast<double>(c) / static_cast<double>(half) + 0.4) / 1.4) / 512);
  }
  return tables;
}

}  // namespace farspan::bench
