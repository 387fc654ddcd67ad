#include "app/attention_svg.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "app/score_map.h"
#include "app/svg_canvas.h"

namespace farspan::app {
namespace {

constexpr double kWidth = 1240;
constexpr double kLeft = 100;  // of the map and the matrix
constexpr double kMapWidth = 540;
constexpr double kBarsWidth = 200;  // each of the two bar panels
constexpr double kAreaBars = 700, kTokenBars = 970;
constexpr double kMapTop = 262;
constexpr int kMostRows = 64, kMostColumns = 128, kMostCells = 128;
constexpr double kMatrixSide = 440;

constexpr const char* kAreaColor = "#0072B2";
constexpr const char* kTokenColor = "#E69F00";
constexpr const char* kBytesColor = "#009E73";
constexpr const char* kSeveralColor = "#9a9a9a";

// Every how many-th of n labels to write, so that `room` of them fit.
int label_step(int n, int room) {
  int step = 1;
  for (const int factor : {2, 2, 2, 2, 2, 2, 2, 2, 2, 2})
    if (n / step > room) step *= factor;
  return step;
}

void draw_head(Svg& svg, const AttentionAnswer& a) {
  const AttentionSummary& s = a.summary;
  svg.text(40, 48, "Attention over ranks: " + strategy_text(s), {.size = 26, .bold = true});
  svg.text(40, 76, documents_text(a.problem) + "; " + patterns_text(s),
           {.size = 15, .color = kFaint});
  svg.text(40, 97,
           fmt::format("{} query and {} key/value heads of {}, {}; figures of one layer",
                       s.heads.num_heads, s.heads.num_kv_heads, s.heads.head_dim,
                       s.heads.compute == DType::kF32 ? "fp32" : "bf16"),
           {.size = 15, .color = kFaint});
}

void draw_cards(Svg& svg, const AttentionAnswer& a) {
  const AttentionSummary& s = a.summary;
  struct Card {
    std::string value, name, more;
  };
  const std::array<Card, 5> cards = {{
      {fmt::format("{:.2f}", s.area_max_over_mean), "area, max / mean",
       fmt::format("{} pairs per rank", short_number(mean_area(s)))},
      {fmt::format("{:.2f}", s.tokens_max_over_mean), "tokens, max / mean",
       fmt::format("{} per rank", grouped_digits(s.num_tokens / s.ranks))},
      {percent_text(s.bytes_forward, s.bytes_ring_total), "of a full ring's bytes",
       fmt::format("{} forward", bytes_text(s.bytes_forward))},
      {ratio_text(s.bytes_forward, s.bytes_bound), "the lower bound of bytes",
       fmt::format("{} what ranks need once", ratio_text(s.bytes_forward, s.bytes_unique))},
      {percent_text(a.time.exposed_forward + a.time.exposed_backward,
                    a.time.forward + a.time.backward),
       "of the time is waiting",
       fmt::format("{} of {}", seconds_text(a.time.exposed_forward + a.time.exposed_backward),
                   seconds_text(a.time.forward + a.time.backward))},
  }};
  double x = 40;
  for (const Card& card : cards) {
    svg.rect(x, 118, 220, 84, "#f4f6f8", 8);
    svg.text(x + 16, 152, card.value, {.size = 26, .bold = true});
    svg.text(x + 16, 173, card.name, {.size = 13});
    svg.text(x + 16, 191, card.more, {.size = 12, .color = kFaint});
    x += 235;
  }
}

struct MapFrame {
  double row = 0, column = 0;  // of a cell
  double height = 0;
};

void draw_scale(Svg& svg, double x, double y, const std::string& most) {
  svg.crisp(true);
  for (int i = 0; i < 60; ++i) svg.rect(x + 2 * i, y, 2, 11, hex(amount_color(i / 59.0)));
  svg.crisp(false);
  svg.text(x - 6, y + 10, "0", {.size = 12, .color = kFaint, .anchor = "end"});
  svg.text(x + 126, y + 10, most, {.size = 12, .color = kFaint});
}

void draw_map(Svg& svg, const AreaGrid& grid, const MapFrame& f) {
  svg.text(kLeft, kMapTop - 30, "Attention area by rank and hop", {.size = 16, .bold = true});
  draw_scale(svg, kLeft + kMapWidth - 215, kMapTop - 42, short_number(grid.largest) + " pairs");
  svg.crisp(true);
  for (std::size_t r = 0; r < grid.values.size(); ++r)
    for (std::size_t c = 0; c < grid.values[r].size(); ++c)
      if (const double value = grid.values[r][c]; value > 0)
        svg.rect(kLeft + f.column * static_cast<double>(c),
                 kMapTop + f.row * static_cast<double>(r), f.column, f.row,
                 hex(amount_color(value / grid.largest)));
  svg.crisp(false);
  svg.frame(kLeft, kMapTop, kMapWidth, f.height);
  const int rows = static_cast<int>(grid.values.size());
  for (int r = 0; r < rows; r += label_step(rows, static_cast<int>(f.height / 15)))
    svg.text(kLeft - 8, kMapTop + f.row * (r + 0.5) + 4,
             std::to_string(grid.first_rank[static_cast<std::size_t>(r)]),
             {.size = 12, .color = kFaint, .anchor = "end"});
  svg.upward(kLeft - 48, kMapTop + f.height / 2, "rank");
}

void draw_bars(Svg& svg, const AreaGrid& grid, const MapFrame& f, double left, const char* color,
               const std::string& title, const std::vector<double>& of_mean) {
  double longest = 1;
  std::vector<double> values;
  for (std::size_t r = 0; r + 1 < grid.first_rank.size(); ++r) {
    double sum = 0;
    for (int i = grid.first_rank[r]; i < grid.first_rank[r + 1]; ++i)
      sum += of_mean[static_cast<std::size_t>(i)];
    values.push_back(sum / (grid.first_rank[r + 1] - grid.first_rank[r]));
    longest = std::max(longest, values.back());
  }
  const double unit = kBarsWidth / (longest * 1.02);
  svg.text(left, kMapTop - 30, title, {.size = 16, .bold = true});
  svg.line(left + unit, kMapTop - 8, left + unit, kMapTop + f.height + 6, kInk, true);
  for (std::size_t r = 0; r < values.size(); ++r) {
    const double y = kMapTop + f.row * static_cast<double>(r);
    svg.rect(left, y + 0.1 * f.row, unit * values[r], 0.8 * f.row, color);
    if (f.row >= 11)
      svg.text(left + unit * longest + 8, y + f.row / 2 + 4, fmt::format("{:.2f}", values[r]),
               {.size = 12, .color = kFaint});
  }
  svg.line(left + unit, kMapTop - 8, left + unit, kMapTop + f.height + 6, kInk, true);
  svg.line(left, kMapTop, left, kMapTop + f.height, "#bbbbbb");
  svg.text(left + unit, kMapTop + f.height + 21, "mean",
           {.size = 12, .color = kFaint, .anchor = "middle"});
}

// Under the map, in its columns.
double draw_bytes(Svg& svg, const AttentionSummary& s, const AreaGrid& grid, const MapFrame& f) {
  constexpr double kHeight = 80;
  const double top = kMapTop + f.height + 44, bottom = top + kHeight;
  std::vector<double> bytes;
  for (std::size_t c = 0; c + 1 < grid.first_hop.size(); ++c) {
    bytes.push_back(0);
    for (int h = grid.first_hop[c]; h < grid.first_hop[c + 1]; ++h)
      bytes.back() += s.hops[static_cast<std::size_t>(h)].bytes;
  }
  const double most = *std::max_element(bytes.begin(), bytes.end());
  for (std::size_t c = 0; c < bytes.size(); ++c) {
    if (most <= 0) break;
    const double height = kHeight * bytes[c] / most;
    svg.rect(kLeft + f.column * (static_cast<double>(c) + 0.1), bottom - height, 0.8 * f.column,
             height, kBytesColor);
  }
  svg.line(kLeft, bottom, kLeft + kMapWidth, bottom, "#bbbbbb");
  svg.text(kLeft - 8, top + 10, bytes_text(most), {.size = 12, .color = kFaint, .anchor = "end"});
  svg.text(kLeft - 8, bottom, "0", {.size = 12, .color = kFaint, .anchor = "end"});
  svg.text(kLeft, top - 16, "Keys and values sent on by all ranks", {.size = 14, .bold = true});
  const int columns = static_cast<int>(bytes.size());
  for (int c = 0; c < columns; c += label_step(columns, 20))
    svg.text(kLeft + f.column * (c + 0.5), bottom + 17,
             std::to_string(grid.first_hop[static_cast<std::size_t>(c)]),
             {.size = 12, .color = kFaint, .anchor = "middle"});
  svg.text(kLeft + kMapWidth / 2, bottom + 37, "hop: keys of the rank that many places before",
           {.size = 13, .color = kFaint, .anchor = "middle"});
  return bottom + 37;
}

void draw_matrix(Svg& svg, const AttentionAnswer& a, double top) {
  const int places = a.summary.ring;
  const ScoreMap map = score_map(a.problem, kMostCells);
  const double cell = kMatrixSide / map.size;
  const std::string title = "Who computes what: the score matrix";
  std::string which;  // on a line of its own: what stands beside the matrix begins soon
  if (a.summary.sequences > 1)
    which = fmt::format("the first of {} sequences", a.summary.sequences);
  if (a.summary.patterns.size() > 1)
    which += (which.empty() ? "" : "; ") + a.summary.patterns.front().description;
  svg.text(kLeft, top - (which.empty() ? 16 : 26), title, {.size = 16, .bold = true});
  if (!which.empty()) svg.text(kLeft, top - 8, which, {.size = 12, .color = kFaint});
  svg.rect(kLeft, top, kMatrixSide, kMatrixSide, "#fafafa");
  svg.crisp(true);
  const auto color = [&](const ScoreMap::Cell& c) -> std::string {
    if (c.place == ScoreMap::kNobody) return "";
    if (c.place == ScoreMap::kSeveral) return kSeveralColor;
    const Rgb full = place_color(c.place, places);
    return hex(c.own ? full : lighter(full));
  };
  for (int q = 0; q < map.size; ++q)
    for (int k = 0, end = 0; k < map.size; k = end) {
      const std::string fill = color(map.at(q, k));
      for (end = k + 1; end < map.size && color(map.at(q, end)) == fill;) ++end;
      if (!fill.empty()) svg.rect(kLeft + cell * k, top + cell * q, cell * (end - k), cell, fill);
    }
  svg.crisp(false);
  svg.frame(kLeft, top, kMatrixSide, kMatrixSide);
  const double bottom = top + kMatrixSide;
  const std::string last = grouped_digits(map.tokens);
  svg.text(kLeft, bottom + 17, "0", {.size = 12, .color = kFaint});
  svg.text(kLeft + kMatrixSide, bottom + 17, last, {.size = 12, .color = kFaint, .anchor = "end"});
  svg.text(kLeft + kMatrixSide / 2, bottom + 17, "key (token)",
           {.size = 13, .color = kFaint, .anchor = "middle"});
  svg.upward(kLeft - 14, top + kMatrixSide / 2, "query (token)");
}

void draw_notes(Svg& svg, const AttentionAnswer& a, double top) {
  const AttentionSummary& s = a.summary;
  const double left = 600;
  double y = top - 16;
  svg.text(left, y, s.ulysses > 1 ? "Place in the ring" : "Rank", {.size = 16, .bold = true});
  y += 16;
  constexpr double kScale = 400;
  svg.crisp(true);
  const int steps = std::min(s.ring, 128);
  for (int i = 0; i < steps; ++i) {
    const int place = steps == 1 ? 0 : i * (s.ring - 1) / (steps - 1);
    const Rgb color = place_color(place, s.ring);
    svg.rect(left + kScale * i / steps, y, kScale / steps, 14, hex(color));
    svg.rect(left + kScale * i / steps, y + 18, kScale / steps, 14, hex(lighter(color)));
  }
  svg.rect(left, y + 36, 28, 14, kSeveralColor);
  svg.crisp(false);
  svg.text(left + kScale + 10, y + 12, "its own keys", {.size = 12, .color = kFaint});
  svg.text(left + kScale + 10, y + 30, "keys that travelled", {.size = 12, .color = kFaint});
  svg.text(left + 36, y + 48, "rows spread finely over several", {.size = 12, .color = kFaint});
  svg.text(left, y - 3, "0", {.size = 11, .color = kFaint});
  if (s.ring > 1)
    svg.text(left + kScale, y - 3, std::to_string(s.ring - 1),
             {.size = 11, .color = kFaint, .anchor = "end"});
  y += 86;
  svg.text(left, y, "Predicted, one layer", {.size = 16, .bold = true});
  const auto note = [&](const std::string& words) {
    y += 21;
    svg.text(left, y, words);
  };
  const PredictedTime& t = a.time;
  note(fmt::format("forward {}, of which {} waiting", seconds_text(t.forward),
                   seconds_text(t.exposed_forward)));
  note(fmt::format("backward {}, of which {} waiting", seconds_text(t.backward),
                   seconds_text(t.exposed_backward)));
  note(fmt::format("{} with projections and MLP; {} if dealt out evenly for free",
                   seconds_text(t.total), seconds_text(t.ideal)));
  note("speeds: " + a.speeds.name);
  y += 34;
  svg.text(left, y, "Bytes of one layer, all ranks", {.size = 16, .bold = true});
  note(fmt::format("{} forward, {} backward", bytes_text(s.bytes_forward),
                   bytes_text(s.bytes_backward)));
  note(fmt::format("{} if every key visited every rank", bytes_text(s.bytes_ring_total)));
  note(fmt::format("{} if each rank got once what it needs", bytes_text(s.bytes_unique)));
  if (s.ulysses > 1)
    note(fmt::format("{} of the forward bytes all-to-all", bytes_text(bytes_all_to_all(s))));
  note(fmt::format("{}: {}", bound_text(a), bound_meaning()));
  if (!a.assumed.empty()) {
    y += 34;
    svg.text(left, y, "Assumed", {.size = 16, .bold = true});
    for (const std::string& one : a.assumed) note(one);
  }
}

}  // namespace

std::string attention_svg(const AttentionAnswer& a) {
  const AttentionSummary& s = a.summary;
  const AreaGrid grid = area_grid(s, kMostRows, kMostColumns);
  MapFrame frame;
  const auto rows = static_cast<double>(grid.values.size());
  frame.row = std::clamp(416 / rows, 6.0, 40.0);
  frame.height = frame.row * rows;
  frame.column = kMapWidth / static_cast<double>(grid.first_hop.size() - 1);

  const double area_mean = mean_area(s);
  const double token_mean = static_cast<double>(s.num_tokens) / s.ranks;
  std::vector<double> areas, tokens;
  for (const double area : s.area) areas.push_back(area_mean > 0 ? area / area_mean : 0);
  for (const std::int64_t n : s.tokens) tokens.push_back(static_cast<double>(n) / token_mean);

  Svg svg(kWidth);
  draw_head(svg, a);
  draw_cards(svg, a);
  draw_map(svg, grid, frame);
  draw_bars(svg, grid, frame, kAreaBars, kAreaColor, "Area / mean", areas);
  draw_bars(svg, grid, frame, kTokenBars, kTokenColor, "Tokens / mean", tokens);
  const double matrix_top = draw_bytes(svg, s, grid, frame) + 62;
  draw_matrix(svg, a, matrix_top);
  draw_notes(svg, a, matrix_top);
  return svg.document(matrix_top + kMatrixSide + 44, "Attention over ranks: " + strategy_text(s));
}

}  // namespace farspan::app
