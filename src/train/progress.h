// What a person watches: on a terminal one bar that is redrawn in place, elsewhere plain lines at a
// pace that keeps a log readable. Written to standard error, by one rank (the caller's choice).
//
//   Progress progress({.total_steps = 100, .first_step = resumed_step});
//   log.before_console([&] { progress.erase(); });   // messages do not run into the bar
//   progress.step({.step = 51, .loss = 3.2, .lr = 1e-3, .tokens_per_second = 12e3, .mfu = 0.31});
//   progress.line("held-out loss 3.41 at step 50");
//   progress.finish();
//
//   [=========>          ] 51/100  loss 3.2000  lr 1.0e-03  12.0k tok/s  MFU 31%  ETA 0:42
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace farspan {

enum class ProgressStyle : std::uint8_t {
  kAuto,   // kBar on a terminal, kLines elsewhere
  kBar,    // 80 columns wide if the terminal's width cannot be had
  kLines,  // the first step, the last, every tenth of the run, and every 5 s (later: every minute)
  kNone    // --quiet
};

struct ProgressOptions {
  std::int64_t total_steps = 0;
  std::int64_t first_step = 0;  // steps done before this process started
  ProgressStyle style = ProgressStyle::kAuto;
  // For tests; by default standard error, the steady clock in seconds, and the terminal's width.
  std::function<void(std::string_view)> write{};
  std::function<double()> now{};
  std::function<std::optional<int>()> terminal_width{};
};

struct ProgressStep {
  std::int64_t step = 0;  // steps done, this one included
  double loss = 0;        // nats per token
  double lr = 0;
  double tokens_per_second = 0;
  double mfu = 0;  // in [0, 1]; left out when not finite, as is every number that is not known
};

// All functions may be called from any thread.
class Progress {
 public:
  explicit Progress(ProgressOptions options);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();  // finish()

  void step(const ProgressStep& step);
  // A message of its own line; the bar, if any, comes back beneath it. Nothing with kNone.
  void line(std::string_view text);
  // Clears the bar until the next step, so that something else can write to the terminal.
  void erase();
  // Ends the bar; what it last showed stays.
  void finish();

  ProgressStyle style() const { return style_; }  // never kAuto

 private:
  bool line_is_due(std::int64_t step, double now) const;
  void update_pace(std::int64_t step, double now);
  std::string bar(int width) const;
  void draw();
  void clear();
  double eta_seconds() const;

  mutable std::mutex mutex_;
  ProgressOptions options_;
  ProgressStyle style_;
  ProgressStep last_{};
  double begin_ = 0;
  double last_time_ = 0;               // of the last step
  double last_shown_ = 0;              // of the last drawing or line
  std::int64_t last_shown_step_ = -1;  // of the last line; -1: none yet
  double seconds_per_step_ = 0;        // moving average, pauses for evaluation included
  std::int64_t paced_steps_ = 0;
  bool bar_visible_ = false;
  bool any_step_ = false;
};

// Columns of the terminal behind standard error; nullopt when there is none. Under mpirun a rank's
// standard error is a pipe to mpirun, which copies it to its own: then mpirun's counts.
std::optional<int> terminal_width();

// 950 -> "950", 12345 -> "12.3k", 2.5e6 -> "2.50M": three digits, decimal.
std::string format_count(double value);
// 42 -> "0:42", 4000 -> "1:06:40", 200000 -> "2d 7h".
std::string format_duration(double seconds);

}  // namespace farspan
