#include "data/token_store.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/store_manifest.h"
#include "data/token_store_hdf5.h"

namespace farspan {

using namespace store;  // private to the two files that see HDF5

struct TokenStore::Impl {
  fs::path path;
  Handle file;
  std::array<Handle, kNumColumns> columns;
  Handle source_id;

  std::int64_t integer(const char* name) const {
    const auto value = read_integer(file.get(), name);
    if (!value) bad(path, fmt::format("attribute `{}` is missing or not an integer", name));
    return *value;
  }
  std::string string(const char* name) const {
    auto value = read_string(file.get(), name);
    if (!value) bad(path, fmt::format("attribute `{}` is missing or not a string", name));
    return *value;
  }

  // A dataset checked to be 1-D, of `length` elements, of unsigned (or signed) integers of one of
  // the widths, and checksummed. An empty handle when it does not exist.
  Handle open(const char* name, std::int64_t length, std::initializer_list<std::size_t> widths,
              bool is_signed = false) const {
    if (H5Lexists(file.get(), name, H5P_DEFAULT) <= 0) return {};
    const Handle access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
    H5Pset_chunk_cache(access.get(), 1009, kCacheBytes, 0.75);
    Handle dataset(H5Dopen2(file.get(), name, access.get()), H5Dclose);
    if (!dataset)
      bad(path, fmt::format("dataset `{}` cannot be opened: {}", name, innermost_error()));
    const Handle space(H5Dget_space(dataset.get()), H5Sclose);
    const Handle type(H5Dget_type(dataset.get()), H5Tclose);
    const std::size_t width = H5Tget_size(type.get());
    if (H5Tget_class(type.get()) != H5T_INTEGER ||
        std::find(widths.begin(), widths.end(), width) == widths.end() ||
        (H5Tget_sign(type.get()) == H5T_SGN_2) != is_signed)
      bad(path, fmt::format("dataset `{}` has the wrong type ({} bytes per element)", name, width));
    hsize_t size = 0;
    if (H5Sget_simple_extent_ndims(space.get()) != 1 ||
        H5Sget_simple_extent_dims(space.get(), &size, nullptr) != 1)
      bad(path, fmt::format("dataset `{}` is not 1-D", name));
    if (length >= 0 && size != static_cast<hsize_t>(length))
      bad(path, fmt::format("dataset `{}` has {} elements, expected {}", name, size, length));
    const Handle plist(H5Dget_create_plist(dataset.get()), H5Pclose);
    unsigned flags = 0;
    std::size_t values = 0;
    if (H5Pget_filter_by_id2(plist.get(), H5Z_FILTER_FLETCHER32, &flags, &values, nullptr, 0,
                             nullptr, nullptr) < 0)
      bad(path, fmt::format("dataset `{}` has no Fletcher32 checksum", name));
    return dataset;
  }

  Handle open_required(const char* name, std::int64_t length,
                       std::initializer_list<std::size_t> widths, bool is_signed = false) const {
    Handle dataset = open(name, length, widths, is_signed);
    if (!dataset) bad(path, fmt::format("dataset `{}` is missing", name));
    return dataset;
  }

  void read(const Handle& dataset, const char* name, hid_t type, std::int64_t begin,
            std::size_t count, void* out) const {
    const QuietErrors quiet;
    if (!read_range(dataset.get(), type, begin, count, out))
      bad(path,
          fmt::format("dataset `{}`, elements {}..{}: the file is damaged there ({})", name, begin,
                      begin + static_cast<std::int64_t>(count) - 1, innermost_error()));
  }

  void read_attributes(StoreInfo& info) const {
    if (read_string(file.get(), "format") != std::optional<std::string>(kFormat))
      bad(path, "this HDF5 file is not a token store (its `format` is not farspan.tokens)",
          "name a store made by `farspan data import` or `farspan data synth`");
    const std::int64_t version = integer("format_version");
    if (version != kTokenStoreVersion)
      bad(path, fmt::format("the store has format version {}, this build reads version {}", version,
                            kTokenStoreVersion));
    TokenizerInfo& t = info.tokenizer;
    t = {.name = string("tokenizer"),
         .hash = string("tokenizer_hash"),
         .vocab_size = integer("vocab_size")};
    for (auto [name, id] :
         {std::pair{"bos", &t.bos}, {"eos", &t.eos}, {"pad", &t.pad}, {"unk", &t.unk}}) {
      const std::int64_t value = integer(name);
      if (value < -1 || value >= t.vocab_size)
        bad(path, fmt::format("attribute `{}` is {}, outside the vocabulary of {}", name, value,
                              t.vocab_size));
      *id = static_cast<std::int32_t>(value);
    }
    info.num_tokens = integer("num_tokens");
    info.num_documents = integer("num_documents");
    if (info.num_tokens < 1 || info.num_documents < 1 || t.vocab_size < 1 || t.vocab_size > kMaxId)
      bad(path, fmt::format("the store holds {} tokens in {} documents of vocabulary {}: it must "
                            "hold at least one token",
                            info.num_tokens, info.num_documents, t.vocab_size));
  }

  std::vector<std::uint64_t> read_offsets(const StoreInfo& info) const {
    const Handle dataset = open_required("doc_offsets", info.num_documents + 1, {8});
    std::vector<std::uint64_t> out(static_cast<std::size_t>(info.num_documents) + 1);
    read(dataset, "doc_offsets", H5T_NATIVE_UINT64, 0, out.size(), out.data());
    if (out.front() != 0 || out.back() != static_cast<std::uint64_t>(info.num_tokens))
      bad(path, fmt::format("doc_offsets run from {} to {}, expected 0 to {}", out.front(),
                            out.back(), info.num_tokens));
    const auto it = std::adjacent_find(out.begin(), out.end(), std::greater<>());
    if (it != out.end())
      bad(path, fmt::format("doc_offsets[{}] = {} is followed by the smaller {}", it - out.begin(),
                            *it, *(it + 1)));
    return out;
  }

  std::vector<std::string> read_sources() const {
    const Handle dataset = open("sources", -1, {1});
    if (!dataset) return {};
    const Handle space(H5Dget_space(dataset.get()), H5Sclose);
    std::string text(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.get())), '\0');
    read(dataset, "sources", H5T_NATIVE_UINT8, 0, text.size(), text.data());
    const auto json = nlohmann::json::parse(text, nullptr, false);
    if (!json.is_array()) bad(path, "dataset `sources` is not a JSON list");
    std::vector<std::string> out;
    for (const auto& name : json) out.push_back(name.is_string() ? name.get<std::string>() : "");
    return out;
  }
};

TokenStore::TokenStore(fs::path path, Verify verify)
    : path_(std::move(path)), impl_(std::make_unique<Impl>()) {
  const StoreInfo expected = check_manifest(path_, verify == Verify::kHash);
  const QuietErrors quiet;
  impl_->path = path_;
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access.get(), false, true);  // read-only and network disks have no locks
  impl_->file = Handle(H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!impl_->file) bad(path_, "this cannot be read as HDF5: " + innermost_error());
  impl_->read_attributes(info_);
  info_.file_bytes = expected.file_bytes;
  info_.file_hash = expected.file_hash;
  if (info_.num_tokens != expected.num_tokens || info_.num_documents != expected.num_documents ||
      info_.tokenizer.vocab_size != expected.tokenizer.vocab_size ||
      info_.tokenizer.name != expected.tokenizer.name)
    bad(path_, "the store and its manifest disagree about tokens, documents or vocabulary");
  doc_offsets_ = impl_->read_offsets(info_);
  auto& columns = impl_->columns;
  columns[kTokens] = impl_->open_required("tokens", info_.num_tokens, {2, 4});
  columns[kLabels] = impl_->open("labels", info_.num_tokens, {4}, /*is_signed=*/true);
  columns[kPositionIds] = impl_->open("position_ids", info_.num_tokens, {4});
  columns[kSegmentIds] = impl_->open("segment_ids", info_.num_tokens, {4});
  impl_->source_id = impl_->open("source_id", info_.num_documents, {4});
  const Handle type(H5Dget_type(columns[kTokens].get()), H5Tclose);
  info_.token_bytes = static_cast<int>(H5Tget_size(type.get()));
  info_.has_labels = static_cast<bool>(columns[kLabels]);
  info_.has_position_ids = static_cast<bool>(columns[kPositionIds]);
  info_.has_segment_ids = static_cast<bool>(columns[kSegmentIds]);
  info_.sources = impl_->read_sources();
}

TokenStore::~TokenStore() = default;

void TokenStore::read_column(int column, std::int64_t begin, std::span<std::int32_t> out) const {
  const auto index = static_cast<std::size_t>(column);
  const char* name = kColumnNames[index];
  const Handle& dataset = impl_->columns[index];
  FARSPAN_CHECK(static_cast<bool>(dataset), "{} has no `{}`", path_.string(), name);
  FARSPAN_CHECK(begin >= 0 && begin + static_cast<std::int64_t>(out.size()) <= info_.num_tokens,
                "{} elements from {} of {}", out.size(), begin, info_.num_tokens);
  if (index == kTokens && info_.token_bytes == 2) {
    // Widened here: HDF5's own conversion is several times slower.
    std::vector<std::uint16_t> narrow(out.size());
    impl_->read(dataset, name, H5T_NATIVE_UINT16, begin, narrow.size(), narrow.data());
    std::copy(narrow.begin(), narrow.end(), out.begin());
  } else {
    const hid_t type = index == kLabels ? H5T_NATIVE_INT32 : H5T_NATIVE_UINT32;
    impl_->read(dataset, name, type, begin, out.size(), out.data());
  }
  const bool is_id = index == kTokens || index == kLabels;
  const std::int64_t limit = is_id ? info_.tokenizer.vocab_size : kMaxId;
  for (std::size_t i = 0; i < out.size(); ++i) {
    // Unsigned values past 2^31 appear as negative here.
    if (out[i] >= 0 && out[i] < limit) continue;
    if (index == kLabels && out[i] == kIgnoreLabel) continue;
    bad(path_, fmt::format("{}[{}] is {}, outside 0..{}", name,
                           begin + static_cast<std::int64_t>(i), out[i], limit - 1));
  }
}

void TokenStore::read_tokens(std::int64_t begin, std::span<std::int32_t> out) const {
  read_column(kTokens, begin, out);
}
void TokenStore::read_labels(std::int64_t begin, std::span<std::int32_t> out) const {
  read_column(kLabels, begin, out);
}
void TokenStore::read_position_ids(std::int64_t begin, std::span<std::int32_t> out) const {
  read_column(kPositionIds, begin, out);
}
void TokenStore::read_segment_ids(std::int64_t begin, std::span<std::int32_t> out) const {
  read_column(kSegmentIds, begin, out);
}

std::int64_t TokenStore::source_of_document(std::int64_t document) const {
  FARSPAN_CHECK(document >= 0 && document < info_.num_documents, "document {} of {}", document,
                info_.num_documents);
  if (!impl_->source_id) return 0;
  std::uint32_t source = 0;
  impl_->read(impl_->source_id, "source_id", H5T_NATIVE_UINT32, document, 1, &source);
  if (source >= info_.sources.size())
    bad(path_, fmt::format("source_id[{}] is {}, but {} sources are named", document, source,
                           info_.sources.size()));
  return source;
}

void TokenStore::check_vocabulary(std::int64_t model_vocab_size) const {
  if (info_.tokenizer.vocab_size <= model_vocab_size) return;
  bad(path_,
      fmt::format("the store's token ids go up to {}, outside the model's vocabulary of {}",
                  info_.tokenizer.vocab_size - 1, model_vocab_size),
      fmt::format("set model.vocab_size to at least {}, or import the text with the model's "
                  "tokenizer",
                  info_.tokenizer.vocab_size));
}

void TokenStore::verify_content() const {
  std::vector<std::int32_t> buffer(kBuffer);
  for (std::size_t column = 0; column < kNumColumns; ++column) {
    if (!impl_->columns[column]) continue;
    for (std::int64_t at = 0; at < info_.num_tokens; at += static_cast<std::int64_t>(kBuffer)) {
      const auto count = std::min<std::int64_t>(info_.num_tokens - at, kBuffer);
      read_column(static_cast<int>(column), at, {buffer.data(), static_cast<std::size_t>(count)});
    }
  }
  if (!impl_->source_id) return;
  for (std::int64_t at = 0; at < info_.num_documents; ++at) source_of_document(at);
}

}  // namespace farspan
