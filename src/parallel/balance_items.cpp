#include "parallel/balance_items.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace farspan::balance {
namespace {

constexpr double kCellsPerPlace = 128;    // a cell is at most this part of a place's share
constexpr double kBundle = 1.0 / 48;      // tokens up to which short documents are bundled
constexpr double kBundleArea = 1.0 / 24;  // and their area
constexpr std::size_t kRemembered = 2048;

double triangle(std::int64_t rows) {
  return 0.5 * static_cast<double>(rows) * static_cast<double>(rows + 1);
}

// Documents snapped to the grid of cuts: [begin, end) of the global index.
struct Span {
  std::int64_t begin = 0, end = 0;
};

// Area of any run of the global index; runs are asked for in ascending order.
class RunArea {
 public:
  RunArea(const BalanceRequest& request, MeanArea& area)
      : documents_(request.documents), area_(&area) {}
  void skip_document() { ++document_; }  // between documents
  // Of [at, at + tokens), where `at` is the end of the run asked for before.
  double next(std::int64_t tokens) {
    double sum = 0;
    while (tokens > 0) {
      const std::int64_t length = documents_[document_];
      const std::int64_t take = std::min(tokens, length - row_);
      sum +=
          take == length ? area_->of_document(length) : area_->of_rows(row_, row_ + take, length);
      row_ += take;
      tokens -= take;
      if (row_ == length) {
        ++document_;
        row_ = 0;
      }
    }
    return sum;
  }

 private:
  std::span<const std::int64_t> documents_;
  MeanArea* area_;
  std::size_t document_ = 0;
  std::int64_t row_ = 0;
};

// The cut nearest to `at`: a multiple of `block` from its sequence's start, or the sequence's end.
std::int64_t nearest_cut(const BalanceRequest& request, std::int64_t at) {
  if (request.block <= 1) return at;
  const std::int64_t length = request.sequence_length;
  const std::int64_t start = at / length * length;
  const std::int64_t down = (at - start) / request.block * request.block;
  const std::int64_t up = std::min(down + request.block, length);
  return start + (at - start - down <= start + up - at ? down : up);
}

class ProblemMaker {
 public:
  explicit ProblemMaker(const BalanceRequest& request)
      : request_(request), area_(request), runs_(request, area_) {}

  Problem make() {
    find_means();
    const auto reaches = request_.areas;
    for (std::size_t l = 0; l < reaches.size(); ++l) add_reach(reaches[l], area_.weights()[l]);
    std::int64_t at = 0, begin = 0;
    for (const std::int64_t length : request_.documents) {
      if (request_.block <= 1 && length <= short_) {  // the common case, without looking ahead
        const double area = area_.of_document(length) / area_per_place_;
        if (area <= kBundleArea) {
          add_short({at, at + length}, area);
          runs_.skip_document();
          begin = at += length;
          continue;
        }
      }
      at += length;
      const std::int64_t cut = nearest_cut(request_, at);
      if (cut > begin) add_span({begin, cut});
      begin = std::max(begin, cut);
    }
    flush();
    for (Item& item : problem_.items) classify(item);
    return std::move(problem_);
  }

 private:
  void find_means() {
    double area = 0;
    for (const std::int64_t length : request_.documents) {
      FARSPAN_CHECK(length > 0, "a document of {} tokens", length);
      problem_.tokens += length;
      area += area_.of_document(length);
    }
    problem_.places = request_.ranks;
    problem_.tokens_per_place =
        static_cast<double>(std::max<std::int64_t>(problem_.tokens, 1)) / request_.ranks;
    area_per_place_ = std::max(area, 1.0) / request_.ranks;
    short_ = static_cast<std::int64_t>(kBundle * problem_.tokens_per_place);
  }

  void add_reach(const RowArea& area, double weight) {
    if (!area.pattern().causal) problem_.bidirectional += weight;
    const auto found = std::find(problem_.reach.begin(), problem_.reach.end(), area.reach());
    if (found != problem_.reach.end()) {
      problem_.weight[static_cast<std::size_t>(found - problem_.reach.begin())] += weight;
      return;
    }
    problem_.reach.push_back(area.reach());
    problem_.weight.push_back(weight);
  }

  void add_span(Span span) {
    const std::int64_t tokens = span.end - span.begin;
    const double share = static_cast<double>(tokens) / problem_.tokens_per_place;
    if (share > kBundle) return add_document(span);
    RunArea ahead = runs_;
    const double area = ahead.next(tokens) / area_per_place_;
    if (area > kBundleArea) return add_document(span);
    runs_ = ahead;
    add_short(span, area);
  }

  void add_short(Span span, double area) {
    const std::int64_t tokens = span.end - span.begin;
    const double share = static_cast<double>(tokens) / problem_.tokens_per_place;
    if (bundle_.tokens > 0 &&
        (bundle_.share + share > kBundle || bundle_.area + area > kBundleArea))
      flush();
    if (bundle_.tokens == 0) bundle_.begin = span.begin;
    bundle_.tokens += tokens;
    bundle_.share += share;
    bundle_.area += area;
  }

  // Cut into cells fine enough for a place to be filled to about a percent.
  void add_document(Span span) {
    flush();
    const std::int64_t tokens = span.end - span.begin;
    const double densest =  // area per token, at most, in the last tokens of a causal document
        std::max(area_.of_rows(tokens - 1, tokens, tokens), area_.of_rows(0, 1, tokens));
    const double most = std::min(problem_.tokens_per_place, area_per_place_ / densest);
    std::int64_t grid = std::max<std::int64_t>(request_.block, 1);
    while (static_cast<double>(2 * grid) <= most / kCellsPerPlace) grid *= 2;
    std::vector<double> before{0};
    for (std::int64_t at = 0; at < tokens; at += grid)
      before.push_back(before.back() + runs_.next(std::min(grid, tokens - at)) / area_per_place_);
    add_cells(span, before, grid);
  }

  void add_cells(Span span, const std::vector<double>& before, std::int64_t grid) {
    Item item{.begin = span.begin, .tokens = span.end - span.begin, .grid = grid};
    item.cells = static_cast<int>(before.size()) - 1;
    item.first_area = static_cast<int>(problem_.area_before.size());
    item.share = static_cast<double>(item.tokens) / problem_.tokens_per_place;
    item.area = before.back();
    problem_.area_before.insert(problem_.area_before.end(), before.begin(), before.end());
    problem_.items.push_back(item);
  }

  void flush() {
    if (bundle_.tokens > 0)
      add_cells({bundle_.begin, bundle_.begin + bundle_.tokens}, {0, bundle_.area}, bundle_.tokens);
    bundle_ = {};
  }

  void classify(Item& item) {
    for (int c = 1; c <= item.cells; ++c) {
      const double tokens = problem_.tokens_to(item, c) - problem_.tokens_to(item, c - 1);
      const double area = problem_.area_to(item, c) - problem_.area_to(item, c - 1);
      problem_.largest_cell_tokens = std::max(problem_.largest_cell_tokens, tokens);
      problem_.largest_cell_area = std::max(problem_.largest_cell_area, area);
    }
    while (item.light < item.cells && problem_.density(item, item.light + 1) < 1) ++item.light;
  }

  const BalanceRequest& request_;
  MeanArea area_;
  RunArea runs_;
  Problem problem_;
  double area_per_place_ = 1;
  std::int64_t short_ = 0;  // tokens of documents that are bundled
  Item bundle_;
};

}  // namespace

MeanArea::MeanArea(const BalanceRequest& request)
    : areas_(request.areas.begin(), request.areas.end()),
      weights_(request.weights.begin(), request.weights.end()) {
  FARSPAN_CHECK(!areas_.empty(), "no pattern to balance");
  if (weights_.empty()) weights_.assign(areas_.size(), 1.0);
  FARSPAN_CHECK(weights_.size() == areas_.size(), "{} weights for {} patterns", weights_.size(),
                areas_.size());
  const double sum = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  FARSPAN_CHECK(sum > 0, "weights that sum to {}", sum);
  for (double& w : weights_) w /= sum;
  triangle_ = std::all_of(areas_.begin(), areas_.end(),
                          [](const RowArea& a) { return a.pattern() == AttentionPattern{}; });
  if (!triangle_) short_.assign(kRemembered, -1);
}

double MeanArea::of_rows(std::int64_t begin, std::int64_t end, std::int64_t length) const {
  if (triangle_) return triangle(end) - triangle(begin);
  double sum = 0;
  for (std::size_t l = 0; l < areas_.size(); ++l)
    sum += weights_[l] * areas_[l].of_rows(begin, end, length);
  return sum;
}

double MeanArea::of_document(std::int64_t length) {
  if (triangle_) return triangle(length);
  if (length >= static_cast<std::int64_t>(kRemembered)) return of_rows(0, length, length);
  double& known = short_[static_cast<std::size_t>(length)];
  if (known < 0) known = of_rows(0, length, length);
  return known;
}

double Problem::crossing(const Item& item, int cell) const {
  const auto upstream = static_cast<double>(rows_to(item, cell));
  double rows = 0;
  for (std::size_t l = 0; l < reach.size(); ++l)
    rows += weight[l] * std::min(upstream, static_cast<double>(reach[l] - 1));
  // Without causality the rows behind the cut must go all the way round: avoid cuts.
  return rows + bidirectional * static_cast<double>(item.tokens);
}

Problem make_problem(const BalanceRequest& request) {
  FARSPAN_CHECK(request.ranks > 0, "{} ranks", request.ranks);
  FARSPAN_CHECK(request.block <= 1 || request.sequence_length > 0, "blocks without sequences");
  return ProblemMaker(request).make();
}

double traffic(const Problem& problem, const std::vector<Piece>& pieces) {
  double sum = 0;
  for (std::size_t l = 0; l < problem.reach.size(); ++l) {
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const Item& item = problem.items[static_cast<std::size_t>(pieces[i].item)];
      const std::int64_t begin = Problem::rows_to(item, pieces[i].lo);
      const std::int64_t end = Problem::rows_to(item, pieces[i].hi);
      std::int64_t hops = 0;
      for (std::size_t k = i + 1; k < pieces.size() && hops < problem.places - 1; ++k) {
        // Rows from `first` on are still needed by piece k.
        const std::int64_t first = Problem::rows_to(item, pieces[k].lo) - problem.reach[l] + 1;
        if (first >= end) break;
        const std::int64_t far =
            (pieces[k].place - pieces[i].place + problem.places) % problem.places;
        if (far <= hops) continue;
        rows += (far - hops) * (end - std::max(begin, first));
        hops = far;
      }
    }
    sum += problem.weight[l] * static_cast<double>(rows);
  }
  return sum;
}

}  // namespace farspan::balance
