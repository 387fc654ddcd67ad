// A little SVG: shapes and words are appended and become one self-contained document.
//
//   Svg svg(1240);
//   svg.rect(0, 0, 10, 10, hex(amount_color(0.5)));
//   std::string text = svg.document(/*height=*/800, "title");
#pragma once

#include <array>
#include <string>

namespace farspan::app {

using Rgb = std::array<double, 3>;  // 0 to 255
std::string hex(const Rgb& color);  // "#0072b2"
Rgb lighter(const Rgb& color);

// How much, 0 to 1: ColorBrewer's Blues.
Rgb amount_color(double share);
// Which of `places`: viridis (van der Walt & Smith 2015).
Rgb place_color(int place, int places);

inline constexpr const char* kInk = "#222222";
inline constexpr const char* kFaint = "#666666";

struct TextStyle {
  double size = 13;
  const char* color = kInk;
  const char* anchor = "start";
  bool bold = false;
};

class Svg {
 public:
  explicit Svg(double width) : width_(width) {}
  void rect(double x, double y, double w, double h, const std::string& fill, double round = 0);
  void frame(double x, double y, double w, double h);
  void line(double x1, double y1, double x2, double y2, const char* color, bool dashed = false);
  void text(double x, double y, const std::string& words, const TextStyle& style = {});
  void upward(double x, double y, const std::string& words);  // centred, read from below
  // Grids of cells are drawn with crisp edges; without, hairlines show between cells.
  void crisp(bool on);
  std::string document(double height, const std::string& title) const;

 private:
  double width_;
  std::string body_;
};

}  // namespace farspan::app
