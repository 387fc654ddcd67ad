#include "data/document_sink.h"

#include <xxhash.h>

#include <charconv>

#include "core/error.h"

namespace farspan {
namespace {

constexpr std::size_t kHashedTokens = 65536;

[[noreturn]] void bad_split(std::string_view text) {
  throw Error(ExitCode::kUsage,
              {.what = fmt::format("`{}` does not say how to split", text),
               .where = "--split",
               .fix = "write NAME=SHARE with a share between 0 and 1, such as --split val=0.01"});
}

}  // namespace

Split parse_split(std::string_view text) {
  const auto equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) bad_split(text);
  Split out{.name = std::string(text.substr(0, equals))};
  for (char c : out.name)
    if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && !(c >= '0' && c <= '9') && c != '_')
      bad_split(text);
  const std::string_view share = text.substr(equals + 1);
  const auto [end, error] = std::from_chars(share.data(), share.data() + share.size(), out.share);
  if (error != std::errc() || end != share.data() + share.size() || !(out.share > 0) ||
      !(out.share < 1) || out.name == "train")
    bad_split(text);
  return out;
}

std::filesystem::path split_path(const std::filesystem::path& out, std::string_view name) {
  std::filesystem::path stem = out.stem();
  if (stem.extension() == ".train") stem = stem.stem();
  return out.parent_path() / fmt::format("{}.{}{}", stem.string(), name, out.extension().string());
}

DocumentSink::DocumentSink(SinkOptions options) : options_(std::move(options)) {
  paths_ = {options_.out};
  if (options_.split) paths_.push_back(split_path(options_.out, options_.split->name));
  for (const auto& path : paths_)
    writers_.push_back(std::make_unique<TokenStoreWriter>(
        path, TokenStoreWriter::Options{.tokenizer = options_.tokenizer,
                                        .sources = options_.sources,
                                        .overwrite = options_.overwrite}));
}

TokenStoreWriter& DocumentSink::choose() {
  if (!options_.split) return *writers_[0];
  XXH3_state_t* state = XXH3_createState();
  if (state == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(state);
  std::size_t left = kHashedTokens;
  for (const Held& held : held_) {
    const std::size_t count = std::min(left, held.tokens.size());
    XXH3_64bits_update(state, held.tokens.data(), count * sizeof(std::int32_t));
    left -= count;
  }
  const std::uint64_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return *writers_[static_cast<double>(hash >> 11) * 0x1p-53 < options_.split->share ? 1 : 0];
}

void DocumentSink::write_held() {
  if (chosen_ == nullptr) chosen_ = &choose();
  for (const Held& held : held_) chosen_->append(held.piece());
  held_.clear();
  held_tokens_ = 0;
}

void DocumentSink::append(const DocumentPiece& piece) {
  if (!options_.split) return writers_[0]->append(piece);
  if (chosen_ != nullptr) return chosen_->append(piece);
  auto copy = [](std::span<const std::int32_t> values) {
    return std::vector<std::int32_t>(values.begin(), values.end());
  };
  held_.push_back(
      {copy(piece.tokens), copy(piece.labels), copy(piece.position_ids), copy(piece.segment_ids)});
  held_tokens_ += piece.tokens.size();
  if (held_tokens_ >= kHashedTokens) write_held();
}

void DocumentSink::end_document(std::uint32_t source) {
  if (options_.split) write_held();
  (options_.split ? chosen_ : writers_[0].get())->end_document(source);
  chosen_ = nullptr;
}

SinkReport DocumentSink::finish() {
  if (options_.split) {
    const auto documents = writers_[0]->num_documents() + writers_[1]->num_documents();
    if (documents == 1)
      throw Error(ExitCode::kBadData,
                  {.what = "there is only one document, which cannot be split in two",
                   .where = options_.out.string(),
                   .fix = "leave out --split, or cut the text finer (--document line)"});
    for (std::size_t i = 0; i < 2 && documents > 1; ++i) {
      if (writers_[i]->num_documents() > 0) continue;
      const auto moved = writers_[1 - i]->take_last_document();
      writers_[i]->append(moved.piece());
      writers_[i]->end_document(moved.source);
    }
  }
  for (auto& writer : writers_) writer->prepare();
  SinkReport report;
  for (std::size_t i = 0; i < writers_.size(); ++i)
    report.parts.push_back({paths_[i], writers_[i]->commit()});
  return report;
}

}  // namespace farspan
