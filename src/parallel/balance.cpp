#include "parallel/balance.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/error.h"
#include "parallel/balance_items.h"
#include "parallel/balance_repair.h"
#include "parallel/balance_sweep.h"

namespace farspan {
namespace {

using balance::Choice;
using balance::Item;
using balance::Outcome;
using balance::Piece;
using balance::Problem;
using balance::Sweeper;

// Passes are counted, not timed: one costs about 40 ns per item and 1.6 us per place. More are made
// as long as no pass has reached the aims (balance.h).
constexpr double kWork = 240'000, kWorkForAims = 600'000;
constexpr int kFewestPasses = 24, kMostPasses = 400;
constexpr double kTileLoss = 32;  // rows of work lost per run: half a tile of attention kernels
constexpr double kRunCost = 0.1 * kTileLoss;  // in traffic, as shares of all rows
constexpr double kAreaTarget = kAreaCap - 0.001, kTokenTarget = kTokenCap - 0.001;

// SplitMix64 (Steele, Lea & Flood 2014): the same everywhere, unlike the standard's distributions.
class Random {
 public:
  std::size_t below(std::size_t n) {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return static_cast<std::size_t>((z ^ (z >> 31)) % n);
  }
  template <typename T, std::size_t N>
  T pick(const T (&values)[N]) {
    return values[below(N)];
  }

 private:
  std::uint64_t state_ = 1;
};

// Cuts the global index where the sum of tokens (share 1), of area (0) or of both passes the mean;
// at the border of an item where there is one within a percent.
Outcome contiguous(const Problem& problem, double share) {
  Outcome out;
  double done = 0, area = 0, tokens = 0;
  int place = 0;
  const auto next_place = [&] {
    out.area = std::max(out.area, area);
    out.tokens = std::max(out.tokens, tokens);
    area = tokens = 0;
    ++place;
  };
  std::vector<Piece> of_item;
  for (int i = 0; i < static_cast<int>(problem.items.size()); ++i) {
    const Item& item = problem.items[static_cast<std::size_t>(i)];
    const auto weight = [&](int cell) {
      return share * problem.tokens_to(item, cell) + (1 - share) * problem.area_to(item, cell);
    };
    of_item.clear();
    for (int lo = 0; lo < item.cells;) {
      while (place + 1 < problem.places && done + weight(lo) >= place + 1 - 0.01) next_place();
      int hi = item.cells;
      if (place + 1 < problem.places && done + weight(hi) > place + 1 + 0.01) {
        int low = lo + 1, high = item.cells;  // the first cut at which the place is full
        while (low < high) {
          const int middle = (low + high) / 2;
          if (done + weight(middle) >= place + 1 - 0.01)
            high = middle;
          else
            low = middle + 1;
        }
        hi = low;
      }
      area += problem.area_to(item, hi) - problem.area_to(item, lo);
      tokens += problem.tokens_to(item, hi) - problem.tokens_to(item, lo);
      of_item.push_back({i, lo, hi, place});
      lo = hi;
    }
    out.rows += balance::traffic(problem, of_item);
    out.pieces.insert(out.pieces.end(), of_item.begin(), of_item.end());
    done += weight(item.cells);
  }
  next_place();
  return out;
}

class Search {
 public:
  Search(const Problem& problem, double bound)
      : problem_(problem),
        sweeper_(problem),
        ring_(static_cast<double>(problem.tokens) * (problem.places - 1)) {
    good_enough_ = 1.1 * bound / ring_ + 0.002;
    aim_ = 1.5 * bound / ring_ + 0.04;
  }

  std::vector<Piece> run() {
    for (const double share : {1.0, 0.0, 0.5}) keep(contiguous(problem_, share));
    if (done()) return std::move(best_.pieces);
    const double work = static_cast<double>(problem_.items.size()) + 40.0 * problem_.places;
    const auto passes = [&] {
      return std::clamp(
          static_cast<int>((fits(best_) && best_.rows <= aim_ * ring_ ? kWork : kWorkForAims) /
                           work),
          kFewestPasses, kMostPasses);
    };
    int tried = 0;
    for (const Choice& choice : first_choices()) {
      if (done()) break;
      attempt(choice);
      ++tried;
    }
    for (; tried < passes() && !done(); ++tried) {
      Choice choice = best_choice_;
      do vary(choice);
      while (random_.below(2) == 0);
      attempt(choice);
    }
    if (best_.area > kAreaTarget || best_.tokens > kTokenTarget)
      balance::repair(problem_, kAreaTarget, kTokenTarget, best_.pieces);
    return std::move(best_.pieces);
  }

 private:
  bool done() const {
    return fits(best_) && best_.rows <= good_enough_ * ring_ &&
           kTileLoss * static_cast<double>(runs(best_)) <
               0.004 * static_cast<double>(problem_.tokens);
  }
  static bool fits(const Outcome& o) { return o.area <= kAreaTarget && o.tokens <= kTokenTarget; }
  // Share of a full ring's traffic; being over a cap costs far more; a run a little.
  double score(const Outcome& o) const {
    return o.rows / ring_ + 20 * std::max(0.0, o.area - kAreaTarget) +
           20 * std::max(0.0, o.tokens - kTokenTarget) +
           kRunCost * static_cast<double>(runs(o)) / static_cast<double>(problem_.tokens);
  }
  // Runs of the global index: pieces, less those that touch at a place.
  std::size_t runs(const Outcome& o) const {
    tail_.assign(problem_.items.size(), -1);
    head_.assign(problem_.items.size(), -1);
    for (const Piece& p : o.pieces) {
      const auto i = static_cast<std::size_t>(p.item);
      if (p.lo == 0) head_[i] = p.place;
      if (p.hi == problem_.items[i].cells) tail_[i] = p.place;
    }
    std::size_t count = o.pieces.size();
    for (std::size_t i = 1; i < head_.size(); ++i) count -= tail_[i - 1] == head_[i] ? 1 : 0;
    return count;
  }
  bool keep(const Outcome& o) {
    const double s = score(o);
    if (s >= best_score_) return false;
    best_score_ = s;
    best_ = o;
    return true;
  }
  void attempt(const Choice& choice) {
    // A pass that forwards more than the best score's worth cannot win.
    if (sweeper_.run(choice, best_score_ * ring_) &&
        (keep(sweeper_.outcome()) || best_choice_.documents.empty()))
      best_choice_ = choice;
    else if (best_choice_.documents.empty())
      best_choice_ = choice;
  }

  std::vector<Choice> first_choices() {
    const std::vector<int>& longest_first = sweeper_.documents();
    std::vector<std::vector<int>> orders{longest_first,
                                         {longest_first.rbegin(), longest_first.rend()}};
    std::vector<int> alternating;
    for (std::size_t i = 0; i < longest_first.size(); ++i)
      alternating.push_back(longest_first[i % 2 == 0 ? i / 2 : longest_first.size() - 1 - i / 2]);
    orders.push_back(alternating);
    std::vector<int> shuffled = longest_first;
    for (int i = 0; i < 2; ++i) {
      for (std::size_t n = shuffled.size(); n > 1; --n)
        std::swap(shuffled[n - 1], shuffled[random_.below(n)]);
      orders.push_back(shuffled);
    }
    if (all_alike()) orders.resize(1);
    std::vector<Choice> choices;
    for (auto& order : orders)
      for (const double head : {0.0, 0.85})
        choices.push_back({.documents = order, .light_order = 1, .head = head});
    return choices;
  }

  bool all_alike() const {  // the order does not matter
    const std::vector<int>& d = sweeper_.documents();
    const auto tokens = [&](int i) { return problem_.items[static_cast<std::size_t>(i)].tokens; };
    return d.size() < 2 || tokens(d.front()) == tokens(d.back());
  }

  void vary(Choice& c) {
    const std::size_t n = c.documents.size();
    const std::size_t kind = random_.below(all_alike() ? 6 : 10);
    switch (kind) {
      case 0:
        c.pace = random_.pick({0.0, 0.01, 0.02, 0.03, 0.035});
        break;
      case 1:
        c.head = random_.pick({0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0});
        break;
      case 2:
        c.patience = random_.pick({0.0, 0.015, 0.03, 0.045});
        break;
      case 3:
        c.lag = random_.pick({0.03, 0.08, 0.15, 0.25});
        break;
      case 4:
        c.light_order = static_cast<int>(random_.below(balance::Grain::kLightOrders));
        break;
      case 5:
        c.grain = static_cast<int>(random_.below(Sweeper::kGrains));
        break;
      case 6: {  // one document elsewhere in the order
        const std::size_t from = random_.below(n), to = random_.below(n);
        const int moved = c.documents[from];
        c.documents.erase(c.documents.begin() + static_cast<std::ptrdiff_t>(from));
        c.documents.insert(c.documents.begin() + static_cast<std::ptrdiff_t>(to), moved);
        break;
      }
      default:
        std::swap(c.documents[random_.below(n)], c.documents[random_.below(n)]);
    }
  }

  const Problem& problem_;
  Sweeper sweeper_;
  double ring_ = 1, good_enough_ = 0, aim_ = 0;
  Random random_;
  Outcome best_;
  double best_score_ = 1e300;
  Choice best_choice_;
  mutable std::vector<int> tail_, head_;  // places of an item's last and first cell
};

SequenceLayout layout_of(const Problem& problem, const std::vector<Piece>& pieces) {
  std::vector<std::vector<IndexRange>> ranges(static_cast<std::size_t>(problem.places));
  for (const Piece& p : pieces) {
    const Item& item = problem.items[static_cast<std::size_t>(p.item)];
    ranges[static_cast<std::size_t>(p.place)].push_back(
        {item.begin + Problem::rows_to(item, p.lo), item.begin + Problem::rows_to(item, p.hi), 1});
  }
  for (auto& of_place : ranges) {
    std::sort(of_place.begin(), of_place.end(),
              [](const IndexRange& a, const IndexRange& b) { return a.begin < b.begin; });
    std::size_t kept = 0;
    for (std::size_t i = 0; i < of_place.size(); ++i) {
      if (kept > 0 && of_place[kept - 1].end == of_place[i].begin)
        of_place[kept - 1].end = of_place[i].end;
      else
        of_place[kept++] = of_place[i];
    }
    of_place.resize(kept);
  }
  return SequenceLayout(std::move(ranges));
}

}  // namespace

SequenceLayout balanced_layout(const BalanceRequest& request) {
  const Problem problem = balance::make_problem(request);
  if (problem.places == 1 || problem.tokens == 0) {
    std::vector<Piece> all;
    for (int i = 0; i < static_cast<int>(problem.items.size()); ++i)
      all.push_back({i, 0, problem.items[static_cast<std::size_t>(i)].cells, 0});
    return layout_of(problem, all);
  }
  return layout_of(problem, Search(problem, traffic_lower_bound(request)).run());
}

}  // namespace farspan
