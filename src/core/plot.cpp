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

void put_title(std::string& out, const std::string& title, const std::string& subtitle) {
  if (title.empty() && subtitle.empty()) return;
  // Two lines in one gnuplot title: the join must stay an escape, so it is put in after quoting.
  std::string text = gnuplot_string(title);
  if (!subtitle.empty())
    text = text.substr(0, text.size() - 1) + "\\n" + gnuplot_string(subtitle).substr(1);
  out += fmt::format("set title {} noenhanced\n", text);
}

// Binary lengths: 512, 2k, 1M.
std::string binary_label(double value) {
  constexpr double kKilo = 1024, kMega = 1024.0 * 1024;
  if (value >= kMega) return fmt::format("{:g}M", value / kMega);
  if (value >= kKilo) return fmt::format("{:g}k", value / kKilo);
  return fmt::format("{:g}", value);
}

std::string binary_ticks(const LinePlot& plot) {
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const Series& series : plot.series)
    for (double x : series.x)
      if (std::isfinite(x) && x > 0) {
        low = std::min(low, x);
        high = std::max(high, x);
      }
  if (high == 0) return {};
  const int first = static_cast<int>(std::floor(std::log2(low)));
  const int last = static_cast<int>(std::ceil(std::log2(high)));
  const int stride = std::max(1, (last - first) / 10);
  std::string ticks;
  for (int e = first; e <= last; e += stride)
    ticks += fmt::format("{}\"{}\" {:.17g}", ticks.empty() ? "" : ", ", binary_label(std::exp2(e)),
                         std::exp2(e));
  return fmt::format("set xtics ({}) nomirror\n", ticks);
}

// 12345678 rather than 1.23457e+07 while it is legible; powers of ten on long log axes.
void put_axes(std::string& out, const LinePlot& plot) {
  out += fmt::format("set xlabel {} noenhanced\n", gnuplot_string(plot.x_label));
  out += fmt::format("set ylabel {} noenhanced offset -0.5,0\n", gnuplot_string(plot.y_label));
  out += "set format x '%.7g'\nset format y '%.6g'\n";
  if (plot.log_x) out += plot.binary_x ? "set logscale x 2\n" : "set logscale x 10\n";
  if (plot.log_y) out += "set logscale y 10\nset mytics 10\n";
  out += "set grid xtics ytics mxtics mytics lc rgb '#DDDDDD' lw 1, lc rgb '#F0F0F0' lw 1\n";
  if (plot.log_x && plot.binary_x) out += binary_ticks(plot);
  const auto bound = [](const std::optional<double>& v) {
    return v ? fmt::format("{:.17g}", *v) : std::string("*");
  };
  out += fmt::format("set yrange [{}:{}]\n", bound(plot.y_min), bound(plot.y_max));
  if (plot.right_label.empty()) {
    out += "set border 3\n";
    return;
  }
  FARSPAN_CHECK(plot.right_factor > 0, "right_factor {}", plot.right_factor);
  out += fmt::format(
      "set border 11\nset link y2 via y*{0:.17g} inverse y/{0:.17g}\nset y2tics nomirror\n"
      "set format y2 '%.6g'\nset y2label {1} noenhanced\n",
      plot.right_factor, gnuplot_string(plot.right_label));
}

bool drawable(double value, bool logarithmic) {
  return std::isfinite(value) && (!logarithmic || value > 0);
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
      return fmt::format("points pt {} ps 0.9 lc rgb '#{}'", shape, color);
    case SeriesStyle::kLinePoints:
      return fmt::format("linespoints lw 2 pt {} ps 1.1 lc rgb '#{}'", shape, color);
  }
  return {};
}

constexpr std::string_view kCommon =
    "set encoding utf8\nset tics nomirror out scale 0.6\nset border lc rgb '#555555'\n"
    "set xtics textcolor rgb '#333333'\nset ytics textcolor rgb '#333333'\n";

void put_heat_axes(std::string& out, const HeatMap& map) {
  const double x0 = map.x_begin.value_or(0);
  const double x1 = map.x_end.value_or(static_cast<double>(map.columns));
  const double y0 = map.y_begin.value_or(0);
  const double y1 = map.y_end.value_or(static_cast<double>(map.rows));
  FARSPAN_CHECK(x1 > x0 && y1 > y0, "x [{}, {}], y [{}, {}]", x0, x1, y0, y1);
  put_title(out, map.title, map.subtitle);
  out += fmt::format("set xlabel {} noenhanced\nset ylabel {} noenhanced\n",
                     gnuplot_string(map.x_label), gnuplot_string(map.y_label));
  out += "set format x '%.7g'\nset format y '%.7g'\n";
  out += fmt::format("set xrange [{:.17g}:{:.17g}]\n", x0, x1);
  out += map.first_row_on_top ? fmt::format("set yrange [{:.17g}:{:.17g}]\n", y1, y0)
                              : fmt::format("set yrange [{:.17g}:{:.17g}]\n", y0, y1);
  // Rounded outwards only when the caller's edges are round numbers themselves: no slack.
  out += "unset key\nset tics front\n";
}

void put_palette(std::string& out, const HeatMap& map) {
  if (map.categories.empty()) {
    // Viridis (van der Walt & Smith 2015): even in brightness, safe for colour-blind eyes.
    out +=
        "set palette defined (0 '#440154', 1 '#46327E', 2 '#365C8D', 3 '#277F8E', 4 '#1FA187', 5 "
        "'#4AC16D', 6 '#A0DA39', 7 '#FDE725')\n";
    out += fmt::format("set cblabel {} noenhanced\n", gnuplot_string(map.value_label));
    return;
  }
  const std::size_t n = map.categories.size();
  FARSPAN_CHECK(n <= kPalette.size(), "{} categories, at most {}", n, kPalette.size());
  std::string colors, ticks;
  for (std::size_t i = 0; i < n; ++i) {
    // Two stops a category make a step instead of a ramp.
    colors +=
        fmt::format("{}{} '#{}', {} '#{}'", i == 0 ? "" : ", ", i, kPalette[i], i + 1, kPalette[i]);
    ticks += fmt::format("{}{} {}", i == 0 ? "" : ", ", gnuplot_string(map.categories[i]), i);
  }
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
  put_axes(out, plot);
  out += legend ? "set key top right opaque box lc rgb '#DDDDDD' width 1 height 0.4 samplen 2.5\n"
                : "unset key\n";
  if (curves.empty()) {
    // gnuplot refuses an empty plot; an honest empty frame beats an error at the end of a run.
    out += "set label 1 'no data' at graph 0.5,0.5 center\nset xrange [1:10]\nset yrange [1:10]\n";
    curves = "1/0 notitle";
  }
  return out + "plot " + curves + "\n";
}

std::string gnuplot_script(const HeatMap& map) {
  FARSPAN_CHECK(map.rows > 0 && map.columns > 0, "{} x {}", map.rows, map.columns);
  FARSPAN_CHECK(static_cast<std::int64_t>(map.values.size()) == map.rows * map.columns,
                "{} values for {} x {}", map.values.size(), map.rows, map.columns);
  std::string out(kCommon);
  out += "$m << END_OF_MATRIX\n";
  for (std::int64_t r = 0; r < map.rows; ++r) {
    for (std::int64_t c = 0; c < map.columns; ++c) {
      const double v = map.values[static_cast<std::size_t>(r * map.columns + c)];
      if (std::isfinite(v))
        fmt::format_to(std::back_inserter(out), "{:.9g} ", v);
      else
        out += "NaN ";
    }
    out += '\n';
  }
  out += "END_OF_MATRIX\n";
  put_heat_axes(out, map);
  put_palette(out, map);
  const double x0 = map.x_begin.value_or(0);
  const double y0 = map.y_begin.value_or(0);
  const double dx = (map.x_end.value_or(static_cast<double>(map.columns)) - x0) /
                    static_cast<double>(map.columns);
  const double dy =
      (map.y_end.value_or(static_cast<double>(map.rows)) - y0) / static_cast<double>(map.rows);
  // `pixels`: rectangles instead of an embedded bitmap, sharp at any zoom. Cell centres.
  return out + fmt::format(
                   "plot $m matrix using ({:.17g}+($1+0.5)*{:.17g}):({:.17g}+($2+0.5)*"
                   "{:.17g}):3 with image pixels\n",
                   x0, dx, y0, dy);
}

void render(const LinePlot& plot, const std::filesystem::path& path, const RenderOptions& options) {
  render_script(gnuplot_script(plot), path, options);
}

void render(const HeatMap& map, const std::filesystem::path& path, const RenderOptions& options) {
  render_script(gnuplot_script(map), path, options);
}

}  // namespace farspan
