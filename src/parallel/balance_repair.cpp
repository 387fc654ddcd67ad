#include "parallel/balance_repair.h"

#include <algorithm>

namespace farspan::balance {
namespace {

constexpr std::int64_t kMostWork = 4'000'000;  // pairs of pieces looked at: some 10 ms

class Repair {
 public:
  Repair(const Problem& problem, double area_limit, double token_limit,
         const std::vector<Piece>& pieces)
      : problem_(problem),
        area_limit_(area_limit),
        token_limit_(token_limit),
        of_item_(problem.items.size()),
        load_(static_cast<std::size_t>(problem.places)) {
    for (const Piece& p : pieces) of_item_[static_cast<std::size_t>(p.item)].push_back(p);
    for (auto& list : of_item_)
      std::sort(list.begin(), list.end(),
                [](const Piece& a, const Piece& b) { return a.lo < b.lo; });
    for (const Piece& p : pieces) add(p, 1);
  }

  void run() {
    while (work_ < kMostWork) {
      int worst = 0;
      for (int p = 1; p < problem_.places; ++p)
        if (excess(load(p)) > excess(load(worst))) worst = p;
      if (excess(load(worst)) <= 0 || !relieve(worst)) return;
    }
  }

  std::vector<Piece> pieces() const {
    std::vector<Piece> all;
    for (const auto& list : of_item_) all.insert(all.end(), list.begin(), list.end());
    return all;
  }

 private:
  struct Load {
    double area = 0, tokens = 0;
  };
  struct Move {
    std::vector<Piece> after;  // of the item
    double gain = 0;           // excess removed per row of traffic added
    int item = -1;
  };

  const Load& load(int place) const { return load_[static_cast<std::size_t>(place)]; }
  double excess(const Load& l) const {
    return std::max(0.0, l.area - area_limit_) + std::max(0.0, l.tokens - token_limit_);
  }
  Load size(const Piece& p) const {
    const Item& item = problem_.items[static_cast<std::size_t>(p.item)];
    return {problem_.area_to(item, p.hi) - problem_.area_to(item, p.lo),
            problem_.tokens_to(item, p.hi) - problem_.tokens_to(item, p.lo)};
  }
  void add(const Piece& p, double sign) {
    Load& l = load_[static_cast<std::size_t>(p.place)];
    l.area += sign * size(p).area;
    l.tokens += sign * size(p).tokens;
  }

  // Moves one part of a piece away from `place`; false when none makes things better.
  bool relieve(int place) {
    Move best;
    for (std::size_t i = 0; i < of_item_.size(); ++i)
      for (std::size_t k = 0; k < of_item_[i].size(); ++k)
        if (of_item_[i][k].place == place) consider(i, k, best);
    if (best.item < 0) return false;
    auto& list = of_item_[static_cast<std::size_t>(best.item)];
    for (const Piece& p : list) add(p, -1);
    list = std::move(best.after);
    for (const Piece& p : list) add(p, 1);
    return true;
  }

  // Some cells of a piece, from its head or its tail, to whichever place gains most.
  void consider(std::size_t item, std::size_t index, Move& best) {
    const Piece whole = of_item_[item][index];
    for (int cells = whole.hi - whole.lo; cells > 0; cells /= 2) {
      for (const bool head : {true, false}) {
        Piece part = whole;
        (head ? part.hi : part.lo) = head ? whole.lo + cells : whole.hi - cells;
        consider_part(item, index, part, best);
        if (cells == whole.hi - whole.lo) break;
      }
    }
  }

  void consider_part(std::size_t item, std::size_t index, const Piece& part, Move& best) {
    const Load moved = size(part);
    const Load& from = load(part.place);
    const double relief =
        excess(from) - excess({from.area - moved.area, from.tokens - moved.tokens});
    if (relief <= 1e-9) return;
    const double rows_before = traffic(problem_, of_item_[item]);
    const auto pieces = static_cast<std::int64_t>(of_item_[item].size());
    for (int to = 0; to < problem_.places; ++to) {
      if (to == part.place) continue;
      const Load& l = load(to);
      const double drop =
          relief - excess({l.area + moved.area, l.tokens + moved.tokens}) + excess(l);
      work_ += 4;
      if (drop <= 1e-9 || work_ > kMostWork) continue;
      work_ += 16 + pieces * pieces;
      std::vector<Piece> after = moved_to(item, index, part, to);
      const double rows = std::max(0.0, traffic(problem_, after) - rows_before);
      const double gain = drop / (rows + problem_.tokens_per_place);
      if (gain > best.gain)
        best = {.after = std::move(after), .gain = gain, .item = static_cast<int>(item)};
    }
  }

  std::vector<Piece> moved_to(std::size_t item, std::size_t index, const Piece& part,
                              int to) const {
    std::vector<Piece> after;
    const auto append = [&](Piece p) {
      if (p.lo == p.hi) return;
      if (!after.empty() && after.back().place == p.place)
        after.back().hi = p.hi;
      else
        after.push_back(p);
    };
    const std::vector<Piece>& list = of_item_[item];
    for (std::size_t k = 0; k < list.size(); ++k) {
      if (k != index) {
        append(list[k]);
        continue;
      }
      append({list[k].item, list[k].lo, part.lo, list[k].place});
      append({list[k].item, part.lo, part.hi, to});
      append({list[k].item, part.hi, list[k].hi, list[k].place});
    }
    return after;
  }

  const Problem& problem_;
  double area_limit_, token_limit_;
  std::int64_t work_ = 0;
  std::vector<std::vector<Piece>> of_item_;  // ascending
  std::vector<Load> load_;
};

}  // namespace

void repair(const Problem& problem, double area_limit, double token_limit,
            std::vector<Piece>& pieces) {
  Repair work(problem, area_limit, token_limit, pieces);
  work.run();
  pieces = work.pieces();
}

}  // namespace farspan::balance
