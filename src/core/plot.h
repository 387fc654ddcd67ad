// Pictures of a run, drawn by gnuplot (docs/adr/0002-plotting.md). The file's extension chooses the
// format: .svg or .png. The file appears whole or not at all.
//
//   LinePlot plot{.title = "Loss", .x_label = "step", .y_label = "loss (nats per token)"};
//   plot.series.push_back({.name = "training", .x = steps, .y = losses});
//   plot.series.push_back({.name = "held out", .x = es, .y = el, .style =
//   SeriesStyle::kLinePoints}); render(plot, run / "loss.svg");
//
// Points that are not finite, or not positive on a logarithmic axis, are gaps. Throws Error(kUsage)
// when gnuplot is missing or refuses, or the file cannot be written; callers for whom a picture is
// an extra catch it and warn. Malformed plots (x and y of different lengths) are our bug: CHECK.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace farspan {

enum class SeriesStyle : std::uint8_t {
  kLine,
  kFaintLine,  // thin and pale: raw values behind their average
  kDashedLine,
  kPoints,
  kLinePoints
};

struct Series {
  std::string name;          // legend entry; empty: none
  std::vector<double> x, y;  // equal lengths
  SeriesStyle style = SeriesStyle::kLine;
  std::optional<int> color{};  // series of equal color share a hue; default: place in the list
};

struct LinePlot {
  std::string title;
  std::string x_label;  // with its unit: "tokens", "time (s)"
  std::string y_label;
  bool log_x = false;
  bool log_y = false;
  std::vector<Series> series{};
  std::optional<double> y_min{}, y_max{};
  // A second scale on the right, y_right = y * right_factor (1 / ln 2: nats to bits); none when
  // right_label is empty.
  std::string right_label{};
  double right_factor = 1.0;
  std::string subtitle{};  // one line under the title: the model, the hardware
  // Log axis of lengths: base 2, labelled 2k 4k 8k ... 1M (binary). Needs log_x.
  bool binary_x = false;
};

// A matrix as colours. Either values on a continuous scale, or, with `categories`, indices into
// them, each with a colour of its own. NaN is left blank.
struct HeatMap {
  std::string title;
  std::string x_label;  // of columns
  std::string y_label;  // of rows
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<double> values{};  // rows x columns, row by row
  std::string value_label{};     // beside the colour scale
  std::vector<std::string> categories{};
  // What the outer edges stand for, both or neither of an axis: 0 and 4096 tokens. Without them the
  // axis counts cells from 0.
  std::optional<double> x_begin{}, x_end{}, y_begin{}, y_end{};
  bool first_row_on_top = true;  // as a matrix is written
  // Names of the cells, in place of numbers: one for each column or row; empty: numbers.
  std::vector<std::string> column_names{}, row_names{};
  std::optional<double> value_min{}, value_max{};  // of the colour scale
  std::string subtitle{};
};

struct RenderOptions {
  std::string gnuplot = "gnuplot";  // program, found on PATH
};

void render(const LinePlot& plot, const std::filesystem::path& path,
            const RenderOptions& options = {});
void render(const HeatMap& map, const std::filesystem::path& path,
            const RenderOptions& options = {});

// The gnuplot script that render() runs, without terminal and output; for tests and for those who
// want to restyle a picture.
std::string gnuplot_script(const LinePlot& plot);
std::string gnuplot_script(const HeatMap& map);

}  // namespace farspan
