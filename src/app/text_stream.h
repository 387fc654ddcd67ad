// Bytes that come a few at a time as text that can be shown at once: whole UTF-8 characters, and
// nothing that may turn out to be the stop text.
//
//   TextStream stream("\n\n");
//   while (...) show(stream.push(bytes_of(token)));
//   show(stream.finish());
#pragma once

#include <string>
#include <string_view>

namespace farspan::app {

class TextStream {
 public:
  // The text ends before the first `stop`; "": nothing stops it.
  explicit TextStream(std::string stop = {}) : stop_(std::move(stop)) {}

  // What has become certain. Bytes that are not UTF-8 give U+FFFD. Nothing after the stop text.
  std::string push(std::string_view bytes);
  bool stopped() const { return stopped_; }
  // What was held back; an unfinished character gives U+FFFD.
  std::string finish();

 private:
  std::string stop_;
  std::string held_;     // may begin the stop text
  std::string partial_;  // the beginning of a character
  bool stopped_ = false;
};

// Moves the whole characters at the front of `bytes` into the result, each byte that can be part of
// none as U+FFFD; what may be the beginning of a character stays.
std::string take_utf8(std::string& bytes);

}  // namespace farspan::app
