// One pass over the ring that deals the items out: how the balanced layout is built.
//
// The last place is filled first and the others follow upstream, so that a document whose tail was
// taken continues towards its head: its rows then travel one way, and what a border costs is the
// rows still to come of the documents that it cuts. Per place, something *dense* (more area per
// token than the mean: tails) is mixed with something *light* (heads of documents whose tail is
// placed, short documents), such that area and tokens reach their targets together. Over the whole
// ring dense and light balance exactly, so a pass gets stuck only for lack of light tokens early
// on; it then takes the head of the document that comes last, whose tail will follow at the far end
// of the sweep, which is the next place downstream on the ring.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/balance_grain.h"
#include "parallel/balance_items.h"

namespace farspan::balance {

// What a pass may choose. Many are tried; the best is kept.
struct Choice {
  std::vector<int> documents;  // those of the finest grain, in the order of the sweep
  int grain = 0;               // of Sweeper's: which documents are cut at all
  int light_order = 0;         // of Grain's orders of light items
  double pace = 0.03;          // targets beyond the mean: early places more, the last one less
  double patience = 0.03;      // area a place may lack before another document is opened for it
  double lag = 0.03;           // tokens it may lack before a head is taken ahead of its tail
  double head = 0;             // such a head, as a part of the document's light cells; 0: never
};

struct Outcome {
  std::vector<Piece> pieces;    // of one item: from its tail to its head, unless `wrapped`
  double rows = 0;              // forwarded, without sinks
  double area = 0, tokens = 0;  // of the fullest place
};

class Sweeper {
 public:
  explicit Sweeper(const Problem& problem);
  static constexpr int kGrains = 3;
  const std::vector<int>& documents() const { return grains_[0].documents; }  // longest first

  // False, and no outcome, when more than `most_rows` would be forwarded.
  bool run(const Choice& choice, double most_rows);
  const Outcome& outcome() const { return outcome_; }
  // Limits of a place: the caps less a reserve, or what whole cells allow when those are coarse.
  double area_limit() const { return area_limit_; }
  double token_limit() const { return token_limit_; }

 private:
  struct Open {  // cells [lo, hi) are still to be placed; [lo, light) of them are light
    int item = 0, lo = 0, hi = 0, light = 0;
  };
  struct Wrap {  // a head taken ahead; its tail, from `cell` on, waits unless `opened`
    int item = 0, cell = 0;
    bool opened = false;
  };
  struct Queue {  // items in order, with sums of what is before each
    std::vector<int> items;
    std::vector<double> tokens, area;
    std::size_t at = 0;
    bool empty() const { return at >= items.size(); }
  };
  // Where the next dense or light cells would come from: an open item, or a fresh one.
  struct Source {
    int open = -1, fresh = -1;
    double density = 0;
    explicit operator bool() const { return open >= 0 || fresh >= 0; }
  };

  const Item& item(int i) const { return problem_.items[static_cast<std::size_t>(i)]; }
  int light(int i) const { return grain_->light[static_cast<std::size_t>(i)]; }
  bool whole(int i) const { return grain_->whole[static_cast<std::size_t>(i)]; }
  void fill_queue(Queue& queue, const std::vector<int>& items) const;
  void begin(const Choice& choice);
  void begin_place(int sweep_index);
  void fill_place();
  void take_what_is_left();
  void finish_open_items();
  double count_borders();
  void count_wrapped();

  Source find_dense();
  Source find_light() const;
  Source fresh_source(int index) const;
  bool place_whole(const Source& dense);
  bool take_head_ahead(const Source& dense);
  bool place_small(Queue& queue);
  bool step(const Source& dense, const Source& light);
  void light_ahead();  // how much light is there for this place: light_tokens_, light_area_
  void open_fresh(Source& source, bool dense);
  void take(int open, int cells);

  const Problem& problem_;
  std::vector<Grain> grains_;  // finest first
  double area_limit_ = 0, token_limit_ = 0;

  const Choice* choice_ = nullptr;
  const Grain* grain_ = nullptr;
  std::vector<int> order_;            // the documents that this grain cuts
  Queue dense_queue_, light_queue_;   // small dense items; light ones
  std::size_t first_ = 0, last_ = 0;  // of order_, not yet opened: [first_, last_)
  std::vector<Open> open_;
  std::vector<Wrap> wraps_;
  std::vector<int> last_piece_;    // of an item, -1: none
  std::vector<double> item_rows_;  // counted for an item so far
  int place_ = 0;
  double placed_area_ = 0, placed_tokens_ = 0;  // at places done
  double area_ = 0, tokens_ = 0;                // at this place
  double area_target_ = 0, token_target_ = 0;
  double light_tokens_ = 0, light_area_ = 0;
  Outcome outcome_;
};

}  // namespace farspan::balance
