// How good a layout is, and how good one could be.
#include <algorithm>
#include <vector>

#include "core/error.h"
#include "parallel/balance.h"
#include "parallel/balance_items.h"

namespace farspan {
namespace {

using balance::MeanArea;

struct Run {  // tokens of a document, in the global index, held by one place
  std::int64_t begin = 0, end = 0;
  int place = 0;
};

// The places that hold some of the runs [from, to) of a document, and which is farthest.
class PlaceSet {
 public:
  explicit PlaceSet(int places)
      : places_(places), count_(static_cast<std::size_t>(places)), words_((places + 63) / 64) {}
  void add(int place) {
    if (count_[static_cast<std::size_t>(place)]++ == 0) word(place) |= bit(place);
  }
  void remove(int place) {
    if (--count_[static_cast<std::size_t>(place)] == 0) word(place) &= ~bit(place);
  }
  // Hops from `place` to the member that is farthest downstream, which is the nearest upstream.
  std::int64_t farthest(int place) const {
    int found = last_before(place);
    if (found < 0) found = last_before(places_);
    return found < 0 ? 0 : (found - place + places_) % places_;
  }

 private:
  std::uint64_t& word(int place) { return words_[static_cast<std::size_t>(place / 64)]; }
  static std::uint64_t bit(int place) { return std::uint64_t{1} << (place % 64); }
  int last_before(int place) const {  // the greatest member below `place`, -1: none
    for (int w = place / 64; w >= 0; --w) {
      if (w * 64 >= places_) continue;
      std::uint64_t members = words_[static_cast<std::size_t>(w)];
      if (w == place / 64) members &= bit(place) - 1;
      if (members != 0) return w * 64 + 63 - __builtin_clzll(members);
    }
    return -1;
  }

  int places_;
  std::vector<std::int64_t> count_;
  std::vector<std::uint64_t> words_;
};

// Rows x hops of rows [begin, end) of a document, whose runs are in order. Row j is needed by rows
// [j - back, j + ahead] of it.
class DocumentTraffic {
 public:
  DocumentTraffic(const std::vector<Run>& runs, int places) : runs_(runs), set_(places) {}

  std::int64_t rows(std::int64_t begin, std::int64_t end, std::int64_t back, std::int64_t ahead) {
    const std::int64_t first = runs_.front().begin, past = runs_.back().end;
    std::size_t own = run_of(begin);
    low_ = run_of(std::max(first, begin - back));
    high_ = low_;
    std::int64_t sum = 0;
    for (std::int64_t j = begin; j < end;) {
      while (runs_[own].end <= j) ++own;
      while (high_ < runs_.size() && runs_[high_].begin <= j + ahead)
        set_.add(runs_[high_++].place);
      while (runs_[low_].end <= j - back) set_.remove(runs_[low_++].place);
      // Until one of the three changes.
      std::int64_t until = std::min(end, runs_[own].end);
      if (high_ < runs_.size()) until = std::min(until, runs_[high_].begin - ahead);
      if (runs_[low_].end < past) until = std::min(until, runs_[low_].end + back);
      sum += (until - j) * set_.farthest(runs_[own].place);
      j = until;
    }
    while (low_ < high_) set_.remove(runs_[low_++].place);
    return sum;
  }

 private:
  std::size_t run_of(std::int64_t index) const {
    const auto found = std::upper_bound(runs_.begin(), runs_.end(), index,
                                        [](std::int64_t i, const Run& r) { return i < r.begin; });
    return static_cast<std::size_t>(found - runs_.begin()) - 1;
  }

  const std::vector<Run>& runs_;
  PlaceSet set_;
  std::size_t low_ = 0, high_ = 0;
};

// All runs of a layout in the order of the global index, joined where a place holds neighbours.
std::vector<Run> runs_in_order(const SequenceLayout& layout) {
  std::vector<Run> runs;
  for (int p = 0; p < layout.num_ranks(); ++p)
    for (const IndexRange& r : layout.ranges(p)) {
      if (r.stride == 1) runs.push_back({r.begin, r.end, p});
      for (std::int64_t i = r.begin; r.stride > 1 && i < r.end; i += r.stride)
        runs.push_back({i, i + 1, p});
    }
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
  return runs;
}

std::int64_t rows_of(DocumentTraffic& document, std::int64_t begin, std::int64_t end,
                     const RowArea& area) {
  const AttentionPattern& pattern = area.pattern();
  const std::int64_t length = end - begin;
  const std::int64_t ahead = std::min(area.reach(), length) - 1;
  const std::int64_t back = pattern.causal ? 0 : ahead;
  const std::int64_t sinks = pattern.window > 0 ? std::min(pattern.sinks, length) : 0;
  std::int64_t sum = 0;
  if (sinks > 0) sum += document.rows(begin, begin + sinks, back, length);
  if (sinks < length) sum += document.rows(begin + sinks, end, back, ahead);
  return sum;
}

// Sum over rows j of K(j) - 1 of one document and layer: see traffic_lower_bound().
class Bound {
 public:
  Bound(const BalanceRequest& request, MeanArea& area)
      : area_(area),
        places_(request.ranks),
        all_causal_(std::all_of(request.areas.begin(), request.areas.end(), [](const RowArea& a) {
          return a.pattern().causal && a.pattern().sparse == SparseKind::kNone;
        })) {
    double tokens = 0, total = 0;
    for (const std::int64_t length : request.documents) {
      tokens += static_cast<double>(length);
      total += area.of_document(length);
    }
    token_cap_ = kTokenCap * tokens / request.ranks;
    area_cap_ = kAreaCap * total / request.ranks;
  }

  double of_document(std::int64_t length, const RowArea& layer) const {
    const AttentionPattern& pattern = layer.pattern();
    if (pattern.sparse != SparseKind::kNone) return 0;
    const bool whole = !pattern.causal && pattern.window == 0;
    const Users users{.length = length,
                      .reach = std::min(layer.reach(), length),
                      .whole = whole,
                      .count_area = all_causal_ || whole};
    double sum = 0;
    for (int k = 1; k < places_; ++k) {
      const std::int64_t rows = rows_on_more_than(k, users);
      if (rows == 0) break;
      sum += static_cast<double>(rows);
    }
    return sum;
  }

 private:
  struct Users {  // of a row of a document
    std::int64_t length = 0, reach = 0;
    bool whole = false;       // the whole document, whichever the row
    bool count_area = false;  // area per row never falls: it is highest as `more` assumes
  };

  // Whether row j's users need more than k places.
  bool more(std::int64_t j, int k, const Users& u) const {
    const std::int64_t begin = u.whole ? 0 : j;
    const std::int64_t end = u.whole ? u.length : std::min(u.length, j + u.reach);
    if (static_cast<double>(end - begin) > k * token_cap_) return true;
    return u.count_area && area_.of_rows(begin, end, u.length) > k * area_cap_;
  }

  // Users weigh more and more up to the last row that has all its reach, then less and less.
  std::int64_t rows_on_more_than(int k, const Users& u) const {
    const std::int64_t peak = u.whole ? 0 : u.length - u.reach;
    if (!more(peak, k, u)) return 0;
    if (u.whole) return u.length;
    std::int64_t low = 0, high = peak;  // the first such row
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (more(middle, k, u))
        high = middle;
      else
        low = middle + 1;
    }
    const std::int64_t first = low;
    low = peak;
    high = u.length;  // the first row past them
    while (low + 1 < high) {
      const std::int64_t middle = (low + high) / 2;
      (more(middle, k, u) ? low : high) = middle;
    }
    return high - first;
  }

  const MeanArea& area_;
  int places_;
  bool all_causal_ = true;
  double token_cap_ = 0, area_cap_ = 0;
};

}  // namespace

LayoutQuality measure(const SequenceLayout& layout, const BalanceRequest& request) {
  const MeanArea area(request);
  const std::vector<Run> runs = runs_in_order(layout);
  std::vector<double> place_area(static_cast<std::size_t>(layout.num_ranks()));
  LayoutQuality quality;
  std::vector<Run> of_document;
  std::size_t next = 0;
  std::int64_t begin = 0;
  for (const std::int64_t length : request.documents) {
    const std::int64_t end = begin + length;
    of_document.clear();
    for (; next < runs.size() && runs[next].begin < end; ++next) {
      const Run part{std::max(begin, runs[next].begin), std::min(end, runs[next].end),
                     runs[next].place};
      place_area[static_cast<std::size_t>(part.place)] +=
          area.of_rows(part.begin - begin, part.end - begin, length);
      of_document.push_back(part);
      if (runs[next].end > end) break;  // it goes on in the next document
    }
    FARSPAN_CHECK(!of_document.empty() && of_document.back().end == end,
                  "documents of more tokens than the layout's {}", layout.num_tokens());
    if (of_document.size() > 1) {
      DocumentTraffic document(of_document, layout.num_ranks());
      for (std::size_t l = 0; l < request.areas.size(); ++l)
        quality.rows_forwarded += area.weights()[l] * static_cast<double>(rows_of(
                                                          document, begin, end, request.areas[l]));
    }
    begin = end;
  }
  FARSPAN_CHECK(begin == layout.num_tokens(), "documents of {} tokens, a layout of {}", begin,
                layout.num_tokens());
  double sum = 0, most = 0;
  for (const double a : place_area) {
    sum += a;
    most = std::max(most, a);
  }
  const double places = layout.num_ranks();
  if (begin > 0) {
    quality.area_max_over_mean = most * places / sum;
    quality.tokens_max_over_mean =
        static_cast<double>(layout.max_local_tokens()) * places / static_cast<double>(begin);
  }
  for (int p = 0; p < layout.num_ranks(); ++p) {
    const auto count = static_cast<std::int64_t>(layout.ranges(p).size());
    quality.runs += count;
    quality.max_runs_of_place = std::max(quality.max_runs_of_place, count);
    for (const IndexRange& r : layout.ranges(p))
      quality.shortest_run =
          quality.shortest_run == 0 ? r.size() : std::min(quality.shortest_run, r.size());
  }
  return quality;
}

double traffic_lower_bound(const BalanceRequest& request) {
  MeanArea area(request);
  const Bound bound(request, area);
  double sum = 0;
  for (const std::int64_t length : request.documents)
    for (std::size_t l = 0; l < request.areas.size(); ++l)
      sum += area.weights()[l] * bound.of_document(length, request.areas[l]);
  return sum;
}

double ring_rows(const BalanceRequest& request) {
  std::int64_t tokens = 0;
  for (const std::int64_t length : request.documents) tokens += length;
  return static_cast<double>(tokens) * (request.ranks - 1);
}

}  // namespace farspan
