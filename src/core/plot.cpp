#include "core/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <string_view>

#include "core/error.h"
#include "core/gnuplot_process.h"

namespace farspan {
namespace {

// Okabe & Ito (2008): distinguishable under every common colour blindness, and in grey by the order
// of their brightness.
constexpr std::array<std::string_view, 7> kPalette = {"0072B2", "D55E00", "009E73", "CC79A7",
                                                      "E69F00", "56B4E9", "444444"};
// Point shapes of gnuplot that stay apart when colours do not: disc, triangle, square, diamond...
constexpr std::array<int, 7> kPointShapes = {7, 9, 5, 13, 11, 6, 8};

// Text inside gnuplot's double quotes. Backslash sequences and quotes lose their meaning.
std::string gnuplot_string(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out + '"';
}

// The same for text in enhanced mode, where _ ^ { } @ & ~ would be markup.
std::string literal(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (std::string_view("_^{}@&~\\").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  const std::string twice = gnuplot_string(out);
  return twice.substr(1, twice.size() - 2);
}

void put_title(std::string& out, const std::string& title, const std::string& subtitle) {
  if (title.empty() && subtitle.empty()) return;
  out += "set title \"";
  if (!title.empty()) out += fmt::format("{{/:Bold {}}}", literal(title));
  if (!subtitle.empty()) out += fmt::format("\\n{{/*0.85 {}}}", literal(subtitle));
  out += "\"\n";
}

// Binary lengths: 512, 2k, 1M.
std::string binary_label(double value) {
  constexpr double kKilo = 1024, kMega = 1024.0 * 1024;
  if (value >= kMega) return fmt::format("{:g}M", value / kMega);
  if (value >= kKilo) return fmt::format("{:g}k", value / kKilo);
  return fmt::format("{:g}", value);
}

bool drawable(double value, bool logarithmic) {
  return std::isfinite(value) && (!logarithmic || value > 0);
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  bool empty() const { return low > high; }
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

struct Extent {
  Range x, y;
};

Extent extent_of(const LinePlot& plot) {
  Extent out;
  for (const Series& series : plot.series)
    for (std::size_t i = 0; i < series.x.size(); ++i)
      if (drawable(series.x[i], plot.log_x) && drawable(series.y[i], plot.log_y)) {
        out.x.include(series.x[i]);
        out.y.include(series.y[i]);
      }
  return out;
}

std::string binary_ticks(const Range& x) {
  const int first = static_cast<int>(std::floor(std::log2(x.low)));
  const int last = static_cast<int>(std::ceil(std::log2(x.high)));
  const int stride = std::max(1, (last - first) / 10);
  std::string ticks;
  for (int e = first; e <= last; e += stride)
    ticks += fmt::format("{}\"{}\" {:.17g}", ticks.empty() ? "" : ", ", binary_label(std::exp2(e)),
                         std::exp2(e));
  return fmt::format("set xtics ({}) nomirror\n", ticks);
}

// The y axis with a little air around the data. Set here rather than by gnuplot, because a second
// scale needs the same edges.
Range padded_y(const LinePlot& plot, Range y) {
  if (y.empty()) y = {.low = 1, .high = 2};
  if (plot.log_y) {
    const double air = std::max(std::pow(y.high / y.low, 0.04), 1.02);
    y = {.low = y.low / air, .high = y.high * air};
  } else {
    const double span = y.high - y.low;
    const double air = span > 0 ? 0.04 * span : std::max(0.05 * std::abs(y.high), 1e-3);
    y = {.low = y.low - air, .high = y.high + air};
  }
  return {.low = plot.y_min.value_or(y.low), .high = plot.y_max.value_or(y.high)};
}

void put_axes(std::string& out, const LinePlot& plot, const Extent& extent) {
  out += fmt::format("set xlabel {} noenhanced\n", gnuplot_string(plot.x_label));
  out += fmt::format("set ylabel {} noenhanced offset -0.5,0\n", gnuplot_string(plot.y_label));
  out += "set format x '%.7g'\nset format y '%.6g'\n";
  if (plot.log_x) out += plot.binary_x ? "set logscale x 2\n" : "set logscale x 10\n";
  if (plot.log_y) out += "set logscale y 10\nset mytics 10\n";
  out += "set grid xtics ytics mytics lt 1 lc rgb '#D8D8D8' lw 1, lt 1 lc rgb '#EEEEEE' lw 1\n";
  if (plot.binary_x && !extent.x.empty()) out += binary_ticks(extent.x);
  const Range y = padded_y(plot, extent.y);
  FARSPAN_CHECK(y.low < y.high, "y from {} to {}", y.low, y.high);
  out += fmt::format("set yrange [{:.17g}:{:.17g}]\n", y.low, y.high);
  if (plot.right_label.empty()) {
    out += "set border 3\n";
    return;
  }
  FARSPAN_CHECK(plot.right_factor > 0, "right_factor {}", plot.right_factor);
  out += fmt::format(
      "set border 11\n{}set y2range [{:.17g}:{:.17g}]\nset y2tics nomirror textcolor rgb "
      "'#333333'\n"
      "set format y2 '%.6g'\nset y2label {} noenhanced\n",
      plot.log_y ? "set logscale y2 10\n" : "", y.low * plot.right_factor,
      y.high * plot.right_factor, gnuplot_string(plot.right_label));
}

std::string style_of(const Series& series, std::size_t place) {
  const std::size_t hue =
      static_cast<std::size_t>(series.color.value_or(static_cast<int>(place))) % kPalette.size();
  const std::string_view color = kPalette[hue];
  const int shape = kPointShapes[hue];
  switch (series.style) {
    case SeriesStyle::kLine:
      return fmt::format("lines lw 2.5 lc rgb '#{}'", color);
    case SeriesStyle::kFaintLine:
      return fmt::format("lines lw 1.2 lc rgb '#99{}'", color);
    case SeriesStyle::kDashedLine:
      return fmt::format("lines lw 2 dt (8,5) lc rgb '#{}'", color);
    case SeriesStyle::kPoints:
      return fmt::format("points pt {} ps 0.7 lc rgb '#{}'", shape, color);
    case SeriesStyle::kLinePoints:
      return fmt::format("linespoints lw 2 pt {} ps 0.8 lc rgb '#{}'", shape, color);
  }
  return {};
}

constexpr std::string_view kCommon =
    "set encoding utf8\nset tics nomirror out scale 0.6\nset border lc rgb '#555555'\n"
    "set xtics textcolor rgb '#333333'\nset ytics textcolor rgb '#333333'\n";

constexpr std::int64_t kSharpCells = 320;

// The outer edges of a heat map's axis: as the caller says, else so that cell i is centred on i.
struct Edges {
  double begin, end;
  double cell(std::int64_t cells) const { return (end - begin) / static_cast<double>(cells); }
};

Edges edges_of(const std::optional<double>& begin, const std::optional<double>& end,
               std::int64_t cells) {
  FARSPAN_CHECK(begin.has_value() == end.has_value(), "one edge without the other");
  if (!begin) return {.begin = -0.5, .end = static_cast<double>(cells) - 0.5};
  FARSPAN_CHECK(*end > *begin, "edges {} and {}", *begin, *end);
  return {.begin = *begin, .end = *end};
}

// Axes that count tokens run in powers of two: 0 512 1k 1.5k. Others: gnuplot's choice, on whole
// numbers where cells are counted.
std::string heat_ticks(char axis, const Edges& edges, bool counted, std::int64_t cells) {
  constexpr double kTick = 1024;
  const double span = edges.end - edges.begin;
  if (counted) return cells <= 32 ? fmt::format("set {}tics 1\n", axis) : std::string();
  if (std::fmod(edges.begin, kTick) != 0 || std::fmod(span, kTick) != 0) return {};
  std::string ticks;
  for (int i = 0; i <= 8; ++i) {
    const double at = edges.begin + span * i / 8;
    ticks += fmt::format("{}\"{}\" {:.17g}", i == 0 ? "" : ", ", binary_label(at), at);
  }
  return fmt::format("set {}tics ({})\n", axis, ticks);
}

// Names at the middle of their cells.
std::string named_ticks(char axis, const std::vector<std::string>& names, const Edges& edges) {
  std::string ticks;
  for (std::size_t i = 0; i < names.size(); ++i)
    ticks += fmt::format("{}{} {:.17g}", i == 0 ? "" : ", ", gnuplot_string(names[i]),
                         edges.begin + (static_cast<double>(i) + 0.5) *
                                           edges.cell(static_cast<std::int64_t>(names.size())));
  return fmt::format("set {}tics ({}) noenhanced\n", axis, ticks);
}

void put_heat_axes(std::string& out, const HeatMap& map, const Edges& x, const Edges& y) {
  put_title(out, map.title, map.subtitle);
  out += fmt::format("set xlabel {} noenhanced\nset ylabel {} noenhanced\n",
                     gnuplot_string(map.x_label), gnuplot_string(map.y_label));
  out += "set format x '%.7g'\nset format y '%.7g'\n";
  out += map.column_names.empty() ? heat_ticks('x', x, !map.x_begin, map.columns)
                                  : named_ticks('x', map.column_names, x);
  out += map.row_names.empty() ? heat_ticks('y', y, !map.y_begin, map.rows)
                               : named_ticks('y', map.row_names, y);
  out += fmt::format("set xrange [{:.17g}:{:.17g}]\n", x.begin, x.end);
  out += map.first_row_on_top ? fmt::format("set yrange [{:.17g}:{:.17g}]\n", y.end, y.begin)
                              : fmt::format("set yrange [{:.17g}:{:.17g}]\n", y.begin, y.end);
  out += "unset key\nset tics front\n";
}

void put_palette(std::string& out, const HeatMap& map) {
  if (map.categories.empty()) {
    // Viridis (van der Walt & Smith 2015): even in brightness, safe for colour-blind eyes.
    out +=
        "set palette defined (0 '#440154', 1 '#46327E', 2 '#365C8D', 3 '#277F8E', 4 '#1FA187', 5 "
        "'#4AC16D', 6 '#A0DA39', 7 '#FDE725')\n";
    out += fmt::format("set cblabel {} noenhanced\n", gnuplot_string(map.value_label));
    if (map.value_min && map.value_max)
      out += fmt::format("set cbrange [{:.9g}:{:.9g}]\n", *map.value_min, *map.value_max);
    return;
  }
  const std::size_t n = map.categories.size();
  FARSPAN_CHECK(n <= kPalette.size(), "{} categories, at most {}", n, kPalette.size());
  std::string colors, ticks;
  std::size_t longest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    // Two stops a category make a step instead of a ramp.
    colors +=
        fmt::format("{}{} '#{}', {} '#{}'", i == 0 ? "" : ", ", i, kPalette[i], i + 1, kPalette[i]);
    ticks += fmt::format("{}{} {}", i == 0 ? "" : ", ", gnuplot_string(map.categories[i]), i);
    longest = std::max(longest, map.categories[i].size());
  }
  // gnuplot leaves room for numbers only.
  out += fmt::format("set rmargin {}\n", std::max<std::size_t>(longest, 7) - 3);
  out += fmt::format("set palette maxcolors {} defined ({})\n", n, colors);
  out += fmt::format("set cbrange [-0.5:{}]\nset cbtics ({}) scale 0 noenhanced\n",
                     static_cast<double>(n) - 0.5, ticks);
  out += fmt::format("set cblabel {} noenhanced\n", gnuplot_string(map.value_label));
}

std::string terminal_for(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  if (extension == ".png")
    return "set terminal pngcairo enhanced size 1200,750 font 'DejaVu Sans,15' background "
           "'#FFFFFF'\n";
  if (extension == ".svg")
    return "set terminal svg enhanced size 960,600 dynamic font 'DejaVu Sans,14' background "
           "'#FFFFFF'\n";
  throw Error(ExitCode::kUsage,
              {.what = fmt::format("cannot draw a picture of the type '{}'", extension),
               .where = path.string(),
               .fix = "name the file .svg or .png"});
}

void render_script(const std::string& script, const std::filesystem::path& path,
                   const RenderOptions& options) {
  // Beside the target, so that the rename cannot cross file systems.
  std::filesystem::path partial = path;
  partial += ".partial";
  std::string output = partial.string();
  for (std::size_t i = 0; (i = output.find('\'', i)) != std::string::npos; i += 2)
    output.insert(i, 1, '\'');  // gnuplot doubles the quote inside single quotes
  const std::string whole =
      terminal_for(path) + fmt::format("set output '{}'\n", output) + script + "unset output\n";
  run_gnuplot(options.gnuplot, whole, path, partial);
}

}  // namespace

std::string gnuplot_script(const LinePlot& plot) {
  FARSPAN_CHECK(!plot.binary_x || plot.log_x, "binary_x needs log_x");
  std::string out(kCommon);
  std::string curves;
  bool legend = false;
  for (std::size_t i = 0; i < plot.series.size(); ++i) {
    const Series& series = plot.series[i];
    FARSPAN_CHECK(series.x.size() == series.y.size(), "series '{}': {} x, {} y", series.name,
                  series.x.size(), series.y.size());
    std::string rows;
    for (std::size_t j = 0; j < series.x.size(); ++j)
      if (drawable(series.x[j], plot.log_x) && drawable(series.y[j], plot.log_y))
        fmt::format_to(std::back_inserter(rows), "{:.9g} {:.9g}\n", series.x[j], series.y[j]);
      else
        rows += '\n';  // a gap
    if (rows.find_first_not_of('\n') == std::string::npos) continue;
    out += fmt::format("$s{} << END_OF_SERIES\n{}END_OF_SERIES\n", i, rows);
    curves += fmt::format(
        "{}$s{} using 1:2 with {} {}", curves.empty() ? "" : ", ", i, style_of(series, i),
        series.name.empty() ? "notitle" : "title " + gnuplot_string(series.name) + " noenhanced");
    legend = legend || !series.name.empty();
  }
  put_title(out, plot.title, plot.subtitle);
  put_axes(out, plot, extent_of(plot));
  out += legend ? "set key top right opaque box lc rgb '#DDDDDD' width 1 height 0.4 samplen 2.5\n"
                : "unset key\n";
  if (curves.empty()) {
    // gnuplot refuses an empty plot; an honest empty frame beats an error at the end of a run.
    out += "set label 1 'no data' at graph 0.5,0.5 center\nset xrange [1:10]\n";
    curves = "1/0 notitle";
  }
  return out + "plot " + curves + "\n";
}

std::string gnuplot_script(const HeatMap& map) {
  FARSPAN_CHECK(map.rows > 0 && map.columns > 0, "{} x {}", map.rows, map.columns);
  FARSPAN_CHECK(static_cast<std::int64_t>(map.values.size()) == map.rows * map.columns,
                "{} values for {} x {}", map.values.size(), map.rows, map.columns);
  FARSPAN_CHECK(
      map.column_names.empty() || static_cast<std::int64_t>(map.column_names.size()) == map.columns,
      "{} names of {} columns", map.column_names.size(), map.columns);
  FARSPAN_CHECK(
      map.row_names.empty() || static_cast<std::int64_t>(map.row_names.size()) == map.rows,
      "{} names of {} rows", map.row_names.size(), map.rows);
  std::string out(kCommon);
  // Viewers of SVG smooth an embedded bitmap when they enlarge it; repeated cells keep edges sharp.
  const std::int64_t across = (kSharpCells + map.columns - 1) / map.columns;
  const std::int64_t down = (kSharpCells + map.rows - 1) / map.rows;
  out += "$m << END_OF_MATRIX\n";
  for (std::int64_t r = 0; r < map.rows; ++r) {
    std::string line;
    for (std::int64_t c = 0; c < map.columns; ++c) {
      const double v = map.values[static_cast<std::size_t>(r * map.columns + c)];
      const std::string text = std::isfinite(v) ? fmt::format("{:.9g} ", v) : "NaN ";
      for (std::int64_t i = 0; i < across; ++i) line += text;
    }
    line += '\n';
    for (std::int64_t i = 0; i < down; ++i) out += line;
  }
  out += "END_OF_MATRIX\n";
  const Edges x = edges_of(map.x_begin, map.x_end, map.columns);
  const Edges y = edges_of(map.y_begin, map.y_end, map.rows);
  put_heat_axes(out, map, x, y);
  put_palette(out, map);
  const double dx = x.cell(map.columns * across), dy = y.cell(map.rows * down);
  // `image` places cell centres.
  return out + fmt::format(
                   "plot $m matrix using ({:.17g}+($1+0.5)*{:.17g}):({:.17g}+($2+0.5)*"
                   "{:.17g}):3 with image\n",
                   x.begin, dx, y.begin, dy);
}

void render(const LinePlot& plot, const std::filesystem::path& path, const RenderOptions& options) {
  render_script(gnuplot_script(plot), path, options);
}

void render(const HeatMap& map, const std::filesystem::path& path, const RenderOptions& options) {
  render_script(gnuplot_script(map), path, options);
}

}  // namespace farspan
