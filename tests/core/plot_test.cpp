#include "core/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "core/error.h"

namespace farspan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class Plot : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "farspan_plot.XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  static bool have_gnuplot() {
    return std::system("gnuplot --version > /dev/null 2>&1") == 0;  // NOLINT: a test, no input
  }
  static std::string read(const std::filesystem::path& path) {
    std::ostringstream out;
    out << std::ifstream(path, std::ios::binary).rdbuf();
    return out.str();
  }
  static LinePlot loss() {
    return {.title = "Loss of run_1 {a}^b",
            .x_label = "step",
            .y_label = "loss (nats per token)",
            .series = {{.name = "train", .x = {1, 2, 3}, .y = {5, 4, 3}}},
            .right_label = "bits per byte",
            .right_factor = 1.4427};
  }
  std::filesystem::path folder_;
};

TEST_F(Plot, SvgCarriesTitleLabelsAndLegendAsWritten) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  render(loss(), folder_ / "it's loss.svg");
  const std::string svg = read(folder_ / "it's loss.svg");
  EXPECT_THAT(svg, AllOf(HasSubstr("<svg"), HasSubstr("</svg>"), HasSubstr("nats per token"),
                         HasSubstr("bits per byte"), HasSubstr(">train<")));
  EXPECT_THAT(svg, HasSubstr("Loss of run_1 {a}^b")) << "text is text, not markup";
  EXPECT_FALSE(std::filesystem::exists(folder_ / "it's loss.svg.partial"));
}

TEST_F(Plot, PngIsAPng) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  render(loss(), folder_ / "loss.png");
  EXPECT_EQ(read(folder_ / "loss.png").substr(1, 3), "PNG");
}

TEST_F(Plot, EveryKindAndOptionIsAcceptedByGnuplot) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  LinePlot lines{.title = "quotes \" \\ ' and \n newline",
                 .x_label = "length (tokens)",
                 .y_label = "time (s)",
                 .log_x = true,
                 .log_y = true,
                 .right_label = "time (ms)",
                 .right_factor = 1000,
                 .subtitle = "sub_title",
                 .binary_x = true};
  for (SeriesStyle style : {SeriesStyle::kLine, SeriesStyle::kFaintLine, SeriesStyle::kDashedLine,
                            SeriesStyle::kPoints, SeriesStyle::kLinePoints})
    lines.series.push_back({.name = "a_b \"c\"",
                            .x = {1024, 2048, 4096, 0},
                            .y = {0.5, kNan, 0.1, 1},
                            .style = style});
  EXPECT_NO_THROW(render(lines, folder_ / "lines.svg"));
  HeatMap map{.title = "t", .x_label = "key", .y_label = "query", .rows = 2, .columns = 3};
  map.values = {0, 1, kNan, 2, 1, 0};
  EXPECT_NO_THROW(render(map, folder_ / "values.svg"));
  map.categories = {"full", "causal", "band"};
  map.x_begin = 0, map.x_end = 4096, map.first_row_on_top = false;
  EXPECT_NO_THROW(render(map, folder_ / "categories.svg"));
  EXPECT_THAT(read(folder_ / "categories.svg"), HasSubstr(">causal<"));
  EXPECT_NO_THROW(render(LinePlot{.title = "nothing yet"}, folder_ / "empty.svg"));
  EXPECT_THAT(read(folder_ / "empty.svg"), HasSubstr("no data"));
  LinePlot flat{.title = "one point", .series = {{.name = "p", .x = {1}, .y = {0}}}};
  EXPECT_NO_THROW(render(flat, folder_ / "point.svg"));
}

TEST_F(Plot, PointsThatCannotBeDrawnAreGaps) {
  LinePlot plot{.title = "t", .log_y = true};
  plot.series.push_back({.name = "s", .x = {1, 2, 3, 4}, .y = {10, -1, kNan, 20}});
  EXPECT_THAT(gnuplot_script(plot), HasSubstr("\n1 10\n\n\n4 20\n"));
  plot.log_y = false;
  EXPECT_THAT(gnuplot_script(plot), HasSubstr("\n1 10\n2 -1\n\n4 20\n"));
}

TEST_F(Plot, MissingGnuplotSaysHowToGetIt) {
  try {
    render(loss(), folder_ / "a.svg", {.gnuplot = "no-such-gnuplot"});
    FAIL() << "drew without gnuplot";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_THAT(e.text().fix, HasSubstr("apt-get install gnuplot-nox"));
    EXPECT_THAT(e.what(), HasSubstr("no-such-gnuplot"));
  }
}

TEST_F(Plot, FailingProgramKeepsTheOldPictureAndReportsItsWords) {
  const auto program = folder_ / "fake";
  // It leaves half a picture, as gnuplot does when a later line of the script is refused.
  std::ofstream(program) << "#!/bin/sh\n"
                            "echo half > \"$(sed -n \"s/^set output '\\(.*\\)'/\\1/p\")\"\n"
                            "echo 'line 7: cannot' >&2\nexit 3\n";
  std::filesystem::permissions(program, std::filesystem::perms::owner_all);
  std::ofstream(folder_ / "a.svg") << "old";
  try {
    render(loss(), folder_ / "a.svg", {.gnuplot = program.string()});
    FAIL() << "a program that fails drew a picture";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_THAT(e.what(), HasSubstr("line 7: cannot"));
  }
  EXPECT_EQ(read(folder_ / "a.svg"), "old");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a.svg.partial"));
}

TEST_F(Plot, FolderThatIsNotThereIsReported) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  try {
    render(loss(), folder_ / "absent" / "a.svg");
    FAIL() << "drew into a folder that does not exist";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_THAT(e.text().where, HasSubstr("absent"));
  }
}

TEST_F(Plot, UnknownFormatAndMalformedPlotsAreRefused) {
  EXPECT_THROW(render(loss(), folder_ / "a.jpeg"), Error);
  LinePlot uneven{.series = {{.x = {1, 2}, .y = {1}}}};
  EXPECT_THROW(gnuplot_script(uneven), InternalError);
  HeatMap short_map{.rows = 2, .columns = 2, .values = {1, 2, 3}};
  EXPECT_THROW(gnuplot_script(short_map), InternalError);
}

}  // namespace
}  // namespace farspan
