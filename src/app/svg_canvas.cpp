#include "app/svg_canvas.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

namespace farspan::app {
namespace {

template <std::size_t N>
Rgb ramp(const std::array<Rgb, N>& anchors, double t) {
  const double place = std::clamp(t, 0.0, 1.0) * static_cast<double>(N - 1);
  const auto low = std::min(static_cast<std::size_t>(place), N - 2);
  const double share = place - static_cast<double>(low);
  Rgb out{};
  for (std::size_t i = 0; i < 3; ++i)
    out[i] = anchors[low][i] + share * (anchors[low + 1][i] - anchors[low][i]);
  return out;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (static_cast<unsigned char>(c) >= 0x20)
      out += c;
  }
  return out;
}

}  // namespace

std::string hex(const Rgb& c) {
  return fmt::format("#{:02x}{:02x}{:02x}", std::lround(c[0]), std::lround(c[1]),
                     std::lround(c[2]));
}

Rgb amount_color(double share) {
  static constexpr std::array<Rgb, 6> kBlues = {{{239, 246, 252},
                                                 {198, 219, 239},
                                                 {140, 188, 220},
                                                 {74, 143, 197},
                                                 {22, 93, 165},
                                                 {8, 48, 107}}};
  return ramp(kBlues, share);
}

Rgb place_color(int place, int places) {
  static constexpr std::array<Rgb, 9> kViridis = {{{68, 1, 84},
                                                   {71, 44, 122},
                                                   {59, 81, 139},
                                                   {44, 113, 142},
                                                   {33, 144, 141},
                                                   {39, 173, 129},
                                                   {92, 200, 99},
                                                   {170, 220, 50},
                                                   {253, 231, 37}}};
  return ramp(kViridis, places <= 1 ? 0.35 : static_cast<double>(place) / (places - 1));
}

Rgb lighter(const Rgb& c) {
  Rgb out{};
  for (std::size_t i = 0; i < 3; ++i) out[i] = c[i] + 0.45 * (255 - c[i]);
  return out;
}

void Svg::rect(double x, double y, double w, double h, const std::string& fill, double round) {
  body_ += fmt::format(R"(<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill="{}")", x,
                       y, w, h, fill);
  if (round > 0) body_ += fmt::format(R"( rx="{:g}")", round);
  body_ += "/>\n";
}

void Svg::frame(double x, double y, double w, double h) {
  body_ += fmt::format(
      R"(<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill="none" stroke="#bbbbbb"/>)"
      "\n",
      x, y, w, h);
}

void Svg::line(double x1, double y1, double x2, double y2, const char* color, bool dashed) {
  body_ += fmt::format(
      R"(<line x1="{:.2f}" y1="{:.2f}" x2="{:.2f}" y2="{:.2f}" stroke="{}" stroke-width="1.2"{}/>)"
      "\n",
      x1, y1, x2, y2, color, dashed ? R"( stroke-dasharray="5 3")" : "");
}

void Svg::text(double x, double y, const std::string& words, const TextStyle& style) {
  body_ += fmt::format(R"(<text x="{:.2f}" y="{:.2f}" font-size="{:g}" fill="{}")", x, y,
                       style.size, style.color);
  if (std::string_view(style.anchor) != "start")
    body_ += fmt::format(R"( text-anchor="{}")", style.anchor);
  if (style.bold) body_ += R"( font-weight="bold")";
  body_ += fmt::format(">{}</text>\n", escaped(words));
}

void Svg::upward(double x, double y, const std::string& words) {
  body_ += fmt::format(
      R"svg(<text transform="translate({:.2f} {:.2f}) rotate(-90)" font-size="13" fill="{}" text-anchor="middle">{}</text>)svg"
      "\n",
      x, y, kFaint, escaped(words));
}

// A square grid is drawn cell by cell; without this, hairlines show between cells.
void Svg::crisp(bool on) { body_ += on ? "<g shape-rendering=\"crispEdges\">\n" : "</g>\n"; }
std::string Svg::document(double height, const std::string& title) const {
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" "
      "viewBox=\"0 0 {0:g} {1:g}\" font-family=\"Helvetica, Arial, sans-serif\">\n"
      "<title>{2}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{3}</svg>\n",
      width_, height, escaped(title), body_);
}

}  // namespace farspan::app
