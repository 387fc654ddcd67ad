#include "app/text_stream.h"

#include <gtest/gtest.h>

#include <vector>

namespace farspan::app {
namespace {

// What comes out when the bytes come in pieces of `size`.
std::vector<std::string> shown(const std::string& bytes, std::size_t size,
                               const std::string& stop = {}) {
  TextStream stream(stop);
  std::vector<std::string> out;
  for (std::size_t i = 0; i < bytes.size(); i += size)
    out.push_back(stream.push(bytes.substr(i, size)));
  out.push_back(stream.finish());
  return out;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += part;
  return all;
}

TEST(TextStream, ShowsWholeCharacters) {
  const std::string text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";  // a é € 😀 z
  EXPECT_EQ(shown(text, 1), (std::vector<std::string>{"a", "", "\xc3\xa9", "", "", "\xe2\x82\xac",
                                                      "", "", "", "\xf0\x9f\x98\x80", "z", ""}));
  for (const std::size_t size : {2u, 3u, 5u, 100u}) EXPECT_EQ(joined(shown(text, size)), text);
}

TEST(TextStream, ReplacesWhatIsNoUtf8) {
  const std::string bad = "\xef\xbf\xbd";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a\xffz", "a" + bad + "z"},                  // no lead byte
      {"\x80", bad},                                // a continuation without one
      {"\xe2\x82", bad},                            // unfinished at the end
      {"\xe2\x82z", bad + "z"},                     // cut off
      {"\xc0\xaf", bad + bad},                      // overlong
      {"\xe0\x80\x80", bad + bad + bad},            // overlong
      {"\xed\xa0\x80", bad + bad + bad},            // a surrogate
      {"\xf4\x90\x80\x80", bad + bad + bad + bad},  // beyond U+10FFFF
      {"\xc3\xc3\xa9", bad + "\xc3\xa9"}};          // a lead byte where one ends
  for (const auto& [bytes, text] : cases)
    for (const std::size_t size : {1u, 2u, 9u}) EXPECT_EQ(joined(shown(bytes, size)), text) << text;
}

TEST(TextStream, EndsBeforeTheStopText) {
  for (const std::size_t size : {1u, 2u, 3u, 50u}) {
    EXPECT_EQ(joined(shown("one\n\ntwo\n\n", size, "\n\n")), "one");
    EXPECT_EQ(joined(shown("aaab", size, "aab")), "a") << size;
    EXPECT_EQ(joined(shown("never", size, "verb")), "never");
    EXPECT_EQ(joined(shown("\xc3\xa9!", size, "\xc3\xa9")), "");
  }
  TextStream stream("stop");
  EXPECT_EQ(stream.push("a st"), "a ");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(stream.push("one"), "stone");
  EXPECT_EQ(stream.push("stop, more"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.push("more"), "");
  EXPECT_EQ(stream.finish(), "");
}

}  // namespace
}  // namespace farspan::app
