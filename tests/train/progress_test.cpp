#include "train/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/log.h"

namespace farspan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// A terminal of a given width (none: a pipe) and a clock that the test sets.
struct Screen {
  std::string text;
  double time = 1000;
  std::optional<int> width;

  ProgressOptions options(std::int64_t total, ProgressStyle style = ProgressStyle::kAuto) {
    return {.total_steps = total,
            .style = style,
            .write = [this](std::string_view s) { text += s; },
            .now = [this] { return time; },
            .terminal_width = [this] { return width; }};
  }
  std::string take() { return std::exchange(text, {}); }
};

ProgressStep at(std::int64_t step) {
  return {.step = step, .loss = 3.25, .lr = 1e-3, .tokens_per_second = 12345, .mfu = 0.314};
}

TEST(Progress, BarShowsEverything) {
  Screen screen{.width = 120};
  Progress progress(screen.options(100));
  EXPECT_EQ(progress.style(), ProgressStyle::kBar);
  screen.time += 2;
  progress.step(at(50));
  EXPECT_EQ(screen.take(),
            "\r[===============>              ] 50/100  loss 3.2500  lr 1.0e-03  12.3k tok/s  "
            "MFU 31.4%  ETA 0:02\x1b[K");
}

TEST(Progress, BarFitsEveryWidth) {
  for (int width = 1; width <= 200; ++width) {
    Screen screen{.width = width};
    Progress progress(screen.options(1000));
    screen.time += 500;
    progress.step(at(500));
    const std::string drawn = screen.take();
    ASSERT_TRUE(drawn.starts_with('\r') && drawn.ends_with("\x1b[K")) << drawn;
    const std::string visible = drawn.substr(1, drawn.size() - 4);
    EXPECT_LE(static_cast<int>(visible.size()), std::max(1, width - 1)) << visible;
    if (width >= 45) {
      EXPECT_THAT(visible, HasSubstr("loss 3.25")) << width;
      EXPECT_THAT(visible, HasSubstr("500/1000")) << width;
    }
  }
}

TEST(Progress, NarrowTerminalsLoseTheLeastWantedFirst) {
  Screen screen{.width = 62};
  Progress progress(screen.options(100));
  screen.time += 2;
  progress.step(at(50));
  const std::string drawn = screen.take();
  EXPECT_THAT(drawn, HasSubstr("loss"));
  EXPECT_THAT(drawn, HasSubstr("ETA"));
  EXPECT_THAT(drawn, HasSubstr("tok/s"));
  EXPECT_THAT(drawn, Not(HasSubstr("lr ")));
  EXPECT_THAT(drawn, Not(HasSubstr("MFU")));
}

TEST(Progress, BarIsRedrawnAtMostTenTimesASecondButAlwaysAtTheEnd) {
  Screen screen{.width = 100};
  Progress progress(screen.options(1000));
  int drawings = 0;
  for (int step = 1; step < 1000; ++step) {
    screen.time += 0.001;
    progress.step(at(step));
    if (!screen.take().empty()) ++drawings;
  }
  EXPECT_GE(drawings, 9);
  EXPECT_LE(drawings, 11);
  progress.step(at(1000));
  EXPECT_THAT(screen.take(), HasSubstr("1000/1000"));
  progress.finish();
  EXPECT_EQ(screen.take(), "\n");
  progress.finish();
  EXPECT_EQ(screen.take(), "") << "once";
}

TEST(Progress, LinesDoNotRunIntoTheBar) {
  Screen screen{.width = 80};
  Progress progress(screen.options(10));
  progress.line("before the first step");
  EXPECT_EQ(screen.take(), "before the first step\n");
  progress.step(at(1));
  const std::string bar = screen.take();
  progress.line("held-out loss 3.41");
  EXPECT_EQ(screen.take(), "\r\x1b[Kheld-out loss 3.41\n" + bar);
}

TEST(Progress, LogMessagesClearTheBarFirst) {
  Screen screen{.width = 80};
  Progress progress(screen.options(10));
  Log log({.console = true});
  Log quiet({.console = true, .quiet = true});
  for (Log* l : {&log, &quiet}) l->before_console([&] { progress.erase(); });
  progress.step(at(1));
  screen.take();
  quiet.info("not shown");
  EXPECT_EQ(screen.take(), "") << "a message that is not shown must not clear the bar";
  ::testing::internal::CaptureStderr();
  log.info("checkpoint written");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("checkpoint written"));
  EXPECT_EQ(screen.take(), "\r\x1b[K");
  progress.step(at(2));
  EXPECT_THAT(screen.take(), HasSubstr("2/10")) << "drawn again although 0.1 s have not passed";
}

TEST(Progress, PlainLinesElsewhere) {
  Screen screen;
  Progress progress(screen.options(1000));
  EXPECT_EQ(progress.style(), ProgressStyle::kLines);
  screen.time += 1;
  progress.step(at(1));
  EXPECT_EQ(screen.take(),
            "step    1/1000  loss 3.2500  lr 1.0e-03  12.3k tok/s  MFU 31.4%  ETA 16:39\n");
}

std::vector<int> shown_steps(int total, double seconds_per_step) {
  Screen screen;
  Progress progress(screen.options(total));
  std::vector<int> shown;
  for (int step = 1; step <= total; ++step) {
    screen.time += seconds_per_step;
    progress.step(at(step));
    const std::string text = screen.take();
    if (!text.empty()) shown.push_back(step);
    EXPECT_EQ(text.find('\r'), std::string::npos);
    EXPECT_EQ(text.find('\x1b'), std::string::npos);
  }
  return shown;
}

TEST(Progress, LinesComeAtASensiblePace) {
  EXPECT_THAT(shown_steps(100, 0.2), ElementsAre(1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100));
  EXPECT_THAT(shown_steps(5, 10), ElementsAre(1, 2, 3, 4, 5)) << "slow steps: each";
  EXPECT_THAT(shown_steps(100, 0.001), ElementsAre(1, 100)) << "over in a blink";
  const auto day = shown_steps(86400 / 4, 4);
  EXPECT_LT(day.size(), 2000u) << "a day's log stays readable";
  EXPECT_GT(day.size(), 1000u);
}

TEST(Progress, EtaFollowsThePaceAndCountsFromTheResumedStep) {
  Screen screen{.width = 120};
  ProgressOptions options = screen.options(100);
  options.first_step = 90;
  Progress progress(options);
  for (int step = 91; step <= 95; ++step) {
    screen.time += 2;
    progress.step(at(step));
  }
  EXPECT_THAT(screen.take(), HasSubstr("ETA 0:10")) << "5 steps of 2 s";
}

TEST(Progress, QuietIsSilent) {
  Screen screen{.width = 120};
  Progress progress(screen.options(2, ProgressStyle::kNone));
  progress.step(at(1));
  progress.line("held-out loss");
  progress.step(at(2));
  progress.finish();
  EXPECT_EQ(screen.take(), "");
}

TEST(Progress, UnknownNumbersAreLeftOut) {
  Screen screen;
  Progress progress(screen.options(2));
  progress.step({.step = 1,
                 .loss = std::nan(""),
                 .lr = 1e-3,
                 .tokens_per_second = std::nan(""),
                 .mfu = std::nan("")});
  EXPECT_EQ(screen.take(), "step 1/2  loss not finite  lr 1.0e-03  ETA 0:00\n");
}

TEST(Progress, Counts) {
  EXPECT_EQ(format_count(0), "0.00");
  EXPECT_EQ(format_count(950), "950");
  EXPECT_EQ(format_count(999.7), "1.00k");
  EXPECT_EQ(format_count(9996), "10.0k");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(123456), "123k");
  EXPECT_EQ(format_count(2.5e6), "2.50M");
  EXPECT_EQ(format_count(1.4e12), "1.40T");
}

TEST(Progress, Durations) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(4000), "1:06:40");
  EXPECT_EQ(format_duration(200000), "2d 7h");
  EXPECT_EQ(format_duration(std::nan("")), "?");
  EXPECT_EQ(format_duration(INFINITY), "?");
}

}  // namespace
}  // namespace farspan
