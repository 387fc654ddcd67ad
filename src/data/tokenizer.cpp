#include "data/tokenizer.h"

#include "core/error.h"
#include "data/files.h"

namespace farspan {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  const TokenizerInfo& info() const override { return info_; }
  void encode(std::string_view text, std::vector<std::int32_t>& out) const override {
    out.reserve(out.size() + text.size());
    for (char c : text) out.push_back(static_cast<std::uint8_t>(c));
  }
  void decode(const std::vector<std::int32_t>& ids, std::string& out) const override {
    for (std::int32_t id : ids)
      if (id >= 0 && id < 256) out.push_back(static_cast<char>(id));
  }
  bool splits_anywhere() const override { return true; }

 private:
  TokenizerInfo info_ = byte_tokenizer_info();
};

}  // namespace

TokenizerInfo byte_tokenizer_info() {
  return {.name = "bytes",
          .hash = hash_text("farspan bytes: 0..255 bytes, 256 bos, 257 eos, 258 pad, 259 unk"),
          .vocab_size = 260,
          .bos = 256,
          .eos = 257,
          .pad = 258,
          .unk = 259};
}

std::unique_ptr<Tokenizer> make_tokenizer(std::string_view name) {
  if (name == "bytes") return std::make_unique<ByteTokenizer>();
  throw Error(
      ExitCode::kUsage,
      {.what = fmt::format("the tokenizer `{}` cannot be used: this build has only `bytes`", name),
       .where = "--tokenizer",
       .fix = "use --tokenizer bytes, or tokenize with the model's own tools and import "
              "the ids with --format tokens"});
}

}  // namespace farspan
