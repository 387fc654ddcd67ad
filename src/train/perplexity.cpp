#include "train/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "comm/agree.h"

namespace farspan {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Window number `w`: which tokens of the store it holds, and which of them predict what is scored.
struct Window {
  std::int64_t begin, end;  // tokens in the store
  std::int64_t scored;      // from this one on the next token is scored
};

Window window(const Windows& windows, std::int64_t w) {
  const std::int64_t first = windows.first - 1 + w * windows.stride;  // predicts the first scored
  const std::int64_t last = windows.first - 1 + windows.tokens;
  const std::int64_t end = std::min(first + windows.stride, last);
  return {.begin = std::max<std::int64_t>(0, first + windows.stride - windows.length),
          .end = end,
          .scored = first};
}

}  // namespace

std::int64_t WindowScores::scored() const {
  return std::count_if(nll.begin(), nll.end(), [](double x) { return !std::isnan(x); });
}

double WindowScores::mean() const {
  double sum = 0;
  std::int64_t n = 0;
  for (const double x : nll)
    if (!std::isnan(x)) sum += x, ++n;
  return n == 0 ? kNan : sum / static_cast<double>(n);
}

double WindowScores::perplexity() const { return std::exp(mean()); }

WindowScores score_windows(ScoringModel& model, const EvaluationReader& reader,
                           const Windows& windows) {
  FARSPAN_CHECK(windows.first >= 1 && windows.stride >= 1 && windows.stride <= windows.length,
                "first {}, stride {}, length {}", windows.first, windows.stride, windows.length);
  const auto places = static_cast<std::size_t>(windows.tokens);
  // Per place: whether it was scored, its nll, its context.
  std::vector<double> values(3 * places);
  const ScoredRows rows{.count = (windows.tokens + windows.stride - 1) / windows.stride,
                        .length = windows.length,
                        .make = [&](std::int64_t first, std::int64_t n) {
                          std::vector<EvaluationReader::Window> cut;
                          for (std::int64_t row = first; row < first + n; ++row) {
                            const Window w = row * windows.stride < windows.tokens
                                                 ? window(windows, row)
                                                 : Window{0, 0, 0};
                            cut.push_back({.begin = w.begin, .end = w.end, .scored = w.scored});
                          }
                          return reader.make_windows(cut, windows.length);
                        }};
  const auto context_of = [&](std::int64_t row, std::int64_t token) {
    const Window w = window(windows, row);
    return std::min(token + 1, reader.context_within(w.begin, w.begin + token));
  };
  score_nll(model, rows, [&](std::int64_t row, std::int64_t token, double nll) {
    const Window w = window(windows, row);
    const auto place = static_cast<std::size_t>(w.begin + token + 1 - windows.first);
    values[place] = 1;
    values[places + place] = nll;
    values[2 * places + place] = static_cast<double>(context_of(row, token));
  });
  sum_over_ranks(model, values);
  WindowScores out{.windows = windows, .nll = {}, .context = {}};
  for (std::size_t i = 0; i < places; ++i) {
    out.nll.push_back(values[i] > 0 ? values[places + i] : kNan);
    out.context.push_back(static_cast<std::int64_t>(values[2 * places + i]));
  }
  return out;
}

ScoredSpan scored_span(const EvaluationReader& reader, std::span<const std::int64_t> lengths,
                       std::int64_t stride, std::int64_t limit) {
  const std::int64_t all = reader.store().info().num_tokens;
  const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  if (all <= longest)
    throw Error(ExitCode::kBadData,
                {.what = fmt::format("the text has {} tokens, and a window of {} needs {}", all,
                                     longest, longest + 1),
                 .where = reader.store().path().string(),
                 .fix = "use shorter lengths, or a longer text (eval: --lengths, --data; train: "
                        "evaluation.perplexity.lengths, data.validation)"});
  const bool slides = stride > 0 && stride < longest;
  const std::int64_t first = slides ? longest - stride + 1 : 1;
  const std::int64_t left = all - first;
  if (limit <= 0 || slides)
    return {.first = first, .tokens = limit > 0 ? std::min(limit, left) : left};
  const std::int64_t windows = std::min((limit + longest - 1) / longest, left / longest);
  return {.first = first, .tokens = windows * longest};
}

std::vector<ContextBucket> by_context(const WindowScores& scores) {
  constexpr std::int64_t kFirst = 16;
  std::vector<ContextBucket> out;
  for (std::int64_t begin = 0, end = kFirst; begin <= scores.windows.length;
       begin = end, end = 2 * end)
    out.push_back({.begin = begin, .end = end});
  for (std::size_t i = 0; i < scores.nll.size(); ++i) {
    if (std::isnan(scores.nll[i])) continue;
    auto bucket = std::find_if(out.begin(), out.end(),
                               [&](const ContextBucket& b) { return scores.context[i] < b.end; });
    FARSPAN_CHECK(bucket != out.end(), "a context of {}", scores.context[i]);
    ++bucket->tokens;
    bucket->nll_sum += scores.nll[i];
  }
  std::erase_if(out, [](const ContextBucket& b) { return b.tokens == 0; });
  return out;
}

double LongPerplexity::long_perplexity() const { return std::exp(key_nll); }

LongPerplexity long_perplexity(const WindowScores& with_long, const WindowScores& with_short,
                               const KeyTokenRule& rule) {
  FARSPAN_CHECK(with_long.nll.size() == with_short.nll.size() &&
                    with_long.windows.first == with_short.windows.first,
                "scores of different tokens");
  LongPerplexity out;
  double all = 0, key = 0;
  for (std::size_t i = 0; i < with_long.nll.size(); ++i) {
    if (std::isnan(with_long.nll[i]) || std::isnan(with_short.nll[i])) continue;
    const double l = -with_long.nll[i], s = -with_short.nll[i];
    ++out.tokens;
    all -= l;
    if (!(l - s > rule.alpha && l > rule.beta)) continue;
    ++out.key_tokens;
    key -= l;
  }
  out.all_nll = out.tokens == 0 ? kNan : all / static_cast<double>(out.tokens);
  out.key_nll = out.key_tokens == 0 ? kNan : key / static_cast<double>(out.key_tokens);
  return out;
}

}  // namespace farspan
