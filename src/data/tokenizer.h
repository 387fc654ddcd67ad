// Text to token ids. `bytes` is built in: ids 0..255 are the bytes of the text, then four specials.
//
//   std::unique_ptr<Tokenizer> t = make_tokenizer("bytes");   // a path is refused until it is read
//   std::vector<std::int32_t> ids;
//   t->encode("hello", ids);                                  // appends; specials are never
//   produced ids.push_back(t->info().eos);                             // how documents end
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace farspan {

// What a token store remembers of the tokenizer that made it. Special ids are -1 where absent.
struct TokenizerInfo {
  std::string name = "none";
  std::string hash{};  // 32 hex digits, of everything that decides the ids; empty for "none"
  std::int64_t vocab_size = 0;
  std::int32_t bos = -1;
  std::int32_t eos = -1;
  std::int32_t pad = -1;
  std::int32_t unk = -1;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual const TokenizerInfo& info() const = 0;
  // Appends the ids of `text`. `text` may be a part of a document when splits_anywhere().
  virtual void encode(std::string_view text, std::vector<std::int32_t>& out) const = 0;
  // Appends the text of `ids`; specials give nothing.
  virtual void decode(const std::vector<std::int32_t>& ids, std::string& out) const = 0;
  // True when encode(a + b) == encode(a) + encode(b) for every split, so that documents stream.
  virtual bool splits_anywhere() const = 0;
};

// vocab 260: bytes 0..255, 256 bos, 257 eos, 258 pad, 259 unk.
TokenizerInfo byte_tokenizer_info();

// `name` is "bytes". Anything else throws Error(kUsage): other tokenizers are not built yet.
std::unique_ptr<Tokenizer> make_tokenizer(std::string_view name);

}  // namespace farspan
