#include "app/text_stream.h"

#include <algorithm>

namespace farspan::app {
namespace {

constexpr const char* kReplacement = "\xef\xbf\xbd";  // U+FFFD

unsigned char byte_at(std::string_view text, std::size_t i) {
  return static_cast<unsigned char>(text[i]);
}

// Bytes of the character that this one begins; 0: none does.
std::size_t character_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if (lead >= 0xe0 && lead <= 0xef) return 3;
  if (lead >= 0xf0 && lead <= 0xf4) return 4;
  return 0;
}

// Whether `byte` may be the i-th of a character (i >= 1). The second byte rules out overlong forms,
// surrogates and what lies beyond U+10FFFF.
bool continues(unsigned char lead, std::size_t i, unsigned char byte) {
  unsigned char low = 0x80, high = 0xbf;
  if (i == 1 && lead == 0xe0) low = 0xa0;
  if (i == 1 && lead == 0xed) high = 0x9f;
  if (i == 1 && lead == 0xf0) low = 0x90;
  if (i == 1 && lead == 0xf4) high = 0x8f;
  return byte >= low && byte <= high;
}

// The longest end of `text` that begins `word`, but is not all of it.
std::size_t overlap(std::string_view text, std::string_view word) {
  if (word.empty()) return 0;
  for (std::size_t n = std::min(text.size(), word.size() - 1); n > 0; --n)
    if (text.substr(text.size() - n) == word.substr(0, n)) return n;
  return 0;
}

}  // namespace

std::string take_utf8(std::string& bytes) {
  std::string out;
  std::size_t at = 0;
  while (at < bytes.size()) {
    const unsigned char lead = byte_at(bytes, at);
    const std::size_t length = character_length(lead);
    std::size_t good = 1;
    while (good < length && at + good < bytes.size() &&
           continues(lead, good, byte_at(bytes, at + good)))
      ++good;
    if (length > 0 && good == length) {
      out.append(bytes, at, length);
      at += length;
    } else if (length > 0 && at + good == bytes.size()) {
      break;  // its end may follow
    } else {
      out += kReplacement;
      at += good;
    }
  }
  bytes.erase(0, at);
  return out;
}

std::string TextStream::push(std::string_view bytes) {
  if (stopped_) return {};
  held_ += bytes;
  std::size_t certain = held_.size() - overlap(held_, stop_);
  if (const std::size_t stop = stop_.empty() ? held_.npos : held_.find(stop_); stop != held_.npos) {
    stopped_ = true;
    held_.resize(stop);
    certain = stop;
  }
  partial_.append(held_, 0, certain);
  held_.erase(0, certain);
  return take_utf8(partial_);
}

std::string TextStream::finish() {
  partial_ += held_;
  held_.clear();
  std::string out = take_utf8(partial_);
  if (!partial_.empty()) out += kReplacement;
  partial_.clear();
  return out;
}

}  // namespace farspan::app
