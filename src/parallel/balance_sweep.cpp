#include "parallel/balance_sweep.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace farspan::balance {
namespace {

constexpr double kAreaLimit = kAreaCap - 0.005;
constexpr double kTokenLimit = kTokenCap - 0.005;
constexpr double kCatchUp = 0.02;  // what a place may take beyond its pace to make up for others
constexpr double kFull = 0.004;    // a place that lacks less than this is full
constexpr std::size_t kLookAhead = 12;  // small items tried for one that fits
constexpr std::size_t kMostWraps = 4;
constexpr double kNothing = 1e-9;

}  // namespace

Sweeper::Sweeper(const Problem& problem) : problem_(problem) {
  grains_.push_back(make_grain(problem, 0.12, 0.2));
  grains_.push_back(make_grain(problem, 0.4, 0.45));
  grains_.push_back(make_grain(problem, 0.95, 0.95));
  const double whole_tokens =
      std::ceil(problem.tokens_per_place) / problem.tokens_per_place;  // S / P tokens may be 0.4
  token_limit_ =
      std::max({kTokenLimit, 1 + 0.6 * problem.largest_cell_tokens, whole_tokens + kNothing});
  area_limit_ = std::max(kAreaLimit, 1 + 0.6 * problem.largest_cell_area);
}

void Sweeper::fill_queue(Queue& queue, const std::vector<int>& items) const {
  queue.items = items;
  queue.at = 0;
  queue.tokens.resize(items.size() + 1);
  queue.area.resize(items.size() + 1);
  queue.tokens[0] = queue.area[0] = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    queue.tokens[i + 1] = queue.tokens[i] + item(items[i]).share;
    queue.area[i + 1] = queue.area[i] + item(items[i]).area;
  }
}

void Sweeper::begin(const Choice& choice) {
  choice_ = &choice;
  grain_ = &grains_[static_cast<std::size_t>(choice.grain)];
  fill_queue(dense_queue_, grain_->dense);
  fill_queue(light_queue_, grain_->lights[choice.light_order]);
  order_.clear();
  for (const int i : choice.documents)
    if (!grain_->whole[static_cast<std::size_t>(i)]) order_.push_back(i);
  first_ = 0;
  last_ = order_.size();
  open_.clear();
  wraps_.clear();
  last_piece_.assign(problem_.items.size(), -1);
  item_rows_.assign(problem_.items.size(), 0);
  placed_area_ = placed_tokens_ = 0;
  outcome_.pieces.clear();
  outcome_.rows = outcome_.area = outcome_.tokens = 0;
}

bool Sweeper::run(const Choice& choice, double most_rows) {
  begin(choice);
  for (int k = 0; k < problem_.places; ++k) {
    begin_place(k);
    if (place_ == 0) {
      take_what_is_left();
    } else {
      fill_place();
      finish_open_items();
    }
    placed_area_ += area_;
    placed_tokens_ += tokens_;
    outcome_.area = std::max(outcome_.area, area_);
    outcome_.tokens = std::max(outcome_.tokens, tokens_);
    outcome_.rows += count_borders();
    if (outcome_.rows > most_rows) return false;
  }
  count_wrapped();
  return outcome_.rows <= most_rows;
}

void Sweeper::begin_place(int sweep_index) {
  place_ = problem_.places - 1 - sweep_index;
  area_ = tokens_ = 0;
  const double pace = 1 + choice_->pace;
  const double due = (sweep_index + 1) * pace;
  area_target_ = std::min(std::max(pace + kCatchUp, area_limit_ - 0.01), due - placed_area_);
  token_target_ = std::min(std::max(pace + kCatchUp, token_limit_ - 0.01), due - placed_tokens_);
}

Sweeper::Source Sweeper::fresh_source(int index) const {
  const Item& it = item(index);
  return {.fresh = index,
          .density = whole(index) ? it.area / it.share : problem_.density(it, it.cells)};
}

// The densest open tail; else the next large document, small dense item, or tail of a wrap.
Sweeper::Source Sweeper::find_dense() {
  Source found{.density = -1};
  for (int i = 0; i < static_cast<int>(open_.size()); ++i) {
    const Open& o = open_[static_cast<std::size_t>(i)];
    if (o.hi <= o.light) continue;
    const double density = problem_.density(item(o.item), o.hi);
    if (density > found.density) found = {.open = i, .density = density};
  }
  if (found.open >= 0) return found;
  if (first_ < last_) return fresh_source(order_[first_]);
  if (!dense_queue_.empty()) return fresh_source(dense_queue_.items[dense_queue_.at]);
  for (auto w = wraps_.rbegin(); w != wraps_.rend(); ++w) {
    if (w->opened) continue;
    w->opened = true;
    const Item& it = item(w->item);
    open_.push_back({w->item, w->cell, it.cells, std::max(w->cell, light(w->item))});
    return {.open = static_cast<int>(open_.size()) - 1, .density = problem_.density(it, it.cells)};
  }
  return {};
}

// The lightest open head, else the next light item.
Sweeper::Source Sweeper::find_light() const {
  Source found{.density = 1e300};
  for (int i = 0; i < static_cast<int>(open_.size()); ++i) {
    const Open& o = open_[static_cast<std::size_t>(i)];
    if (o.hi > o.light) continue;
    const double density = problem_.density(item(o.item), o.hi);
    if (density < found.density) found = {.open = i, .density = density};
  }
  if (found.open >= 0) return found;
  return light_queue_.empty() ? Source{} : fresh_source(light_queue_.items[light_queue_.at]);
}

// Tokens and area of open heads and light items, in order, up to what this place lacks.
void Sweeper::light_ahead() {
  const double room = token_target_ - tokens_;
  light_tokens_ = light_area_ = 0;
  for (const Open& o : open_) {
    if (o.hi > o.light || light_tokens_ >= room) continue;
    const Item& it = item(o.item);
    const double cell = problem_.tokens_to(it, 1);
    const int cells = std::clamp(static_cast<int>((room - light_tokens_) / cell), 1, o.hi - o.lo);
    light_tokens_ += problem_.tokens_to(it, o.hi) - problem_.tokens_to(it, o.hi - cells);
    light_area_ += problem_.area_to(it, o.hi) - problem_.area_to(it, o.hi - cells);
  }
  const Queue& q = light_queue_;
  if (q.empty() || room - light_tokens_ < 1e-3) return;
  const double before = q.tokens[q.at];
  const auto found = std::upper_bound(q.tokens.begin() + static_cast<std::ptrdiff_t>(q.at),
                                      q.tokens.end(), before + room - light_tokens_);
  const std::size_t end = std::min(
      std::max(static_cast<std::size_t>(found - q.tokens.begin()), q.at + 1), q.items.size());
  const double tokens = std::min(room - light_tokens_, q.tokens.back() - before);
  light_area_ += (q.area[end] - q.area[q.at]) / (q.tokens[end] - before) * tokens;
  light_tokens_ += tokens;
}

void Sweeper::take(int open, int cells) {
  Open& o = open_[static_cast<std::size_t>(open)];
  const Item& it = item(o.item);
  area_ += problem_.area_to(it, o.hi) - problem_.area_to(it, o.hi - cells);
  tokens_ += problem_.tokens_to(it, o.hi) - problem_.tokens_to(it, o.hi - cells);
  std::vector<Piece>& pieces = outcome_.pieces;
  int& last = last_piece_[static_cast<std::size_t>(o.item)];
  Piece* const before = last >= 0 ? &pieces[static_cast<std::size_t>(last)] : nullptr;
  if (before != nullptr && before->place == place_ && before->lo == o.hi) {
    before->lo -= cells;
  } else {
    last = static_cast<int>(pieces.size());
    pieces.push_back({o.item, o.hi - cells, o.hi, place_});
  }
  o.hi -= cells;
  if (o.hi == o.lo) open_.erase(open_.begin() + open);
}

void Sweeper::open_fresh(Source& source, bool dense) {
  if (source.open >= 0) return;
  if (!dense)
    ++light_queue_.at;
  else if (first_ < last_)
    ++first_;
  else
    ++dense_queue_.at;
  const Item& it = item(source.fresh);
  open_.push_back({source.fresh, 0, it.cells, light(source.fresh)});
  source.open = static_cast<int>(open_.size()) - 1;
}

// All that is left of the dense item, where the place has room for it.
bool Sweeper::place_whole(const Source& dense) {
  const bool is_open = dense.open >= 0;
  const Open o = is_open ? open_[static_cast<std::size_t>(dense.open)]
                         : Open{dense.fresh, 0, item(dense.fresh).cells, 0};
  const Item& it = item(o.item);
  if (tokens_ + problem_.tokens_to(it, o.hi) - problem_.tokens_to(it, o.lo) >
          token_target_ + 0.01 ||
      area_ + problem_.area_to(it, o.hi) - problem_.area_to(it, o.lo) > area_target_ + 0.01)
    return false;
  Source source = dense;
  open_fresh(source, /*dense=*/true);
  take(source.open, o.hi - o.lo);
  return true;
}

// The head of the document that comes last, or of the one at hand when there is no other.
bool Sweeper::take_head_ahead(const Source& dense) {
  if (choice_->head <= 0 || wraps_.size() >= kMostWraps) return false;
  const auto head_cells = [&](int index) {
    return std::clamp(static_cast<int>(light(index) * choice_->head), 1,
                      std::max(item(index).cells - 1, 1));
  };
  if (first_ < last_) {
    const int index = order_[last_ - 1];
    if (light(index) == 0) return false;
    const int cells = head_cells(index);
    --last_;
    wraps_.push_back({index, cells, false});
    open_.push_back({index, 0, cells, cells});
    return true;
  }
  if (dense.open < 0) return false;
  Open& o = open_[static_cast<std::size_t>(dense.open)];
  const bool wrapped =
      std::any_of(wraps_.begin(), wraps_.end(), [&](const Wrap& w) { return w.item == o.item; });
  if (wrapped || o.lo != 0 || o.light < 2) return false;
  const int index = o.item, cells = std::min(head_cells(index), o.hi - 1);
  o.lo = cells;
  outcome_.rows -= item_rows_[static_cast<std::size_t>(index)];  // count_wrapped() does them all
  wraps_.push_back({index, cells, true});
  open_.push_back({index, 0, cells, cells});
  return true;
}

// The first of the next few small items that fits whole; the others keep their order.
bool Sweeper::place_small(Queue& queue) {
  const std::size_t end = std::min(queue.items.size(), queue.at + kLookAhead);
  for (std::size_t i = queue.at; i < end; ++i) {
    const Item& it = item(queue.items[i]);
    if (tokens_ + it.share > std::min(token_limit_, token_target_ + kFull) ||
        area_ + it.area > std::min(area_limit_, area_target_ + 0.02))
      continue;
    const auto at = queue.items.begin() + static_cast<std::ptrdiff_t>(queue.at);
    const auto chosen = queue.items.begin() + static_cast<std::ptrdiff_t>(i);
    std::rotate(at, chosen, chosen + 1);
    for (std::size_t z = queue.at; z <= i; ++z) {
      queue.tokens[z + 1] = queue.tokens[z] + item(queue.items[z]).share;
      queue.area[z + 1] = queue.area[z] + item(queue.items[z]).area;
    }
    const int index = queue.items[queue.at++];
    open_.push_back({index, 0, item(index).cells, light(index)});
    take(static_cast<int>(open_.size()) - 1, item(index).cells);
    return true;
  }
  return false;
}

// Takes some cells (about half of what is missing, so that the mix can follow the densities).
// False when the place is as full as it gets.
bool Sweeper::step(const Source& dense, const Source& light) {
  const double area_room = area_target_ - area_, token_room = token_target_ - tokens_;
  bool use_dense = static_cast<bool>(dense);
  double wanted = token_room;  // tokens
  if (dense && light) {
    // x tokens at the dense end's density beside light ones fill tokens and area together.
    const bool enough = light_tokens_ >= token_room - 1e-3;
    const double mix = light_tokens_ > 1e-6 ? light_area_ / light_tokens_ : light.density;
    const double missing = area_room - (enough ? mix * token_room : light_area_);
    const double x = std::min(
        token_room, missing / (enough ? std::max(dense.density - mix, 1e-6) : dense.density));
    const int index =
        dense.fresh >= 0 ? dense.fresh : open_[static_cast<std::size_t>(dense.open)].item;
    const Item& it = item(index);
    const bool at_once = dense.fresh >= 0 && whole(index);
    use_dense = x >= 0.5 * (at_once ? it.share : problem_.tokens_to(it, 1)) &&
                (dense.fresh < 0 || it.cells == 1 || missing > choice_->patience);
    wanted = (use_dense ? x : token_room - std::max(x, 0.0)) / 2;
  }
  Source source = use_dense ? dense : light;
  const bool small_dense = use_dense && source.fresh >= 0 && first_ >= last_;
  if (small_dense && place_small(dense_queue_)) return true;
  if (!use_dense && source.fresh >= 0 && place_small(light_queue_)) return true;
  open_fresh(source, use_dense);
  const Open& o = open_[static_cast<std::size_t>(source.open)];
  const Item& it = item(o.item);
  const double cell = problem_.tokens_to(it, 1);
  const double cell_area = std::max(cell * problem_.density(it, o.hi), 1e-12);
  if (tokens_ + cell > std::min(token_limit_, token_target_ + 0.6 * cell) ||
      area_ + cell_area > area_limit_)
    return false;
  if (!dense || !light)
    wanted = 0.9 * std::min(token_room, std::max(0.0, area_room) / cell_area * cell);
  wanted = std::min({wanted, token_limit_ - tokens_, (area_limit_ - area_) / cell_area * cell});
  const int until = use_dense ? std::max(o.lo, std::min(o.light, o.hi - 1)) : o.lo;
  take(source.open, std::clamp(static_cast<int>(wanted / cell), 1, o.hi - until));
  return true;
}

void Sweeper::fill_place() {
  while (true) {
    const double token_room = token_target_ - tokens_;
    if (token_room < kFull) return;
    const Source light = find_light();
    const Source dense = find_dense();
    if (!dense && !light) return;
    light_ahead();
    const double need = (area_target_ - area_) / token_room;
    if (dense && dense.density > need && light_tokens_ < token_room - 1e-3) {
      if (place_whole(dense)) continue;
      const double lag = token_room - light_tokens_ -
                         std::max(0.0, area_target_ - area_ - light_area_) / dense.density;
      if (lag > choice_->lag && take_head_ahead(dense)) continue;
    }
    if (!step(dense, light)) return;
  }
}

// Open items whose rest fits are finished here: their rows cross one border less.
void Sweeper::finish_open_items() {
  while (!open_.empty()) {
    int least = 0;
    double rest = 1e300;
    for (int i = 0; i < static_cast<int>(open_.size()); ++i) {
      const Open& o = open_[static_cast<std::size_t>(i)];
      const double tokens =
          problem_.tokens_to(item(o.item), o.hi) - problem_.tokens_to(item(o.item), o.lo);
      if (tokens < rest) {
        rest = tokens;
        least = i;
      }
    }
    const Open& o = open_[static_cast<std::size_t>(least)];
    const double area = problem_.area_to(item(o.item), o.hi) - problem_.area_to(item(o.item), o.lo);
    if (tokens_ + rest > token_limit_ || area_ + area > area_limit_) return;
    take(least, o.hi - o.lo);
  }
}

void Sweeper::take_what_is_left() {
  const auto take_fresh = [&](int index, int lo) {
    open_.push_back({index, lo, item(index).cells, 0});
  };
  while (first_ < last_) take_fresh(order_[first_++], 0);
  while (!dense_queue_.empty()) take_fresh(dense_queue_.items[dense_queue_.at++], 0);
  while (!light_queue_.empty()) take_fresh(light_queue_.items[light_queue_.at++], 0);
  for (Wrap& w : wraps_) {
    if (!w.opened) take_fresh(w.item, w.cell);
    w.opened = true;
  }
  while (!open_.empty())
    take(static_cast<int>(open_.size()) - 1, open_.back().hi - open_.back().lo);
}

double Sweeper::count_borders() {
  double sum = 0;
  for (const Open& o : open_) {
    const bool wrapped =
        std::any_of(wraps_.begin(), wraps_.end(), [&](const Wrap& w) { return w.item == o.item; });
    const bool fresh = last_piece_[static_cast<std::size_t>(o.item)] < 0;
    if (wrapped || fresh) continue;
    const double rows = problem_.crossing(item(o.item), o.hi);
    item_rows_[static_cast<std::size_t>(o.item)] += rows;
    sum += rows;
  }
  return sum;
}

void Sweeper::count_wrapped() {
  std::vector<Piece> of_item;
  for (const Wrap& w : wraps_) {
    of_item.clear();
    for (const Piece& p : outcome_.pieces)
      if (p.item == w.item) of_item.push_back(p);
    std::sort(of_item.begin(), of_item.end(),
              [](const Piece& a, const Piece& b) { return a.lo < b.lo; });
    outcome_.rows += traffic(problem_, of_item);
  }
}

}  // namespace farspan::balance
