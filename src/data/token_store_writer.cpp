#include <fcntl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <numeric>

#include "data/store_manifest.h"
#include "data/token_store.h"
#include "data/token_store_hdf5.h"

namespace farspan {

using namespace store;  // private to the two files that see HDF5

struct TokenStoreWriter::Impl {
  struct OutColumn {
    bool exists = false;
    Handle dataset;            // created when the buffer first fills
    std::int64_t written = 0;  // elements in the dataset; the rest are in the buffer
    std::vector<std::int32_t> buffer;
    std::int64_t size() const { return written + static_cast<std::int64_t>(buffer.size()); }
  };

  fs::path path, temporary;
  Options options;
  int space_fd = -1;           // the temporary file, to reserve space in it
  std::uint64_t reserved = 0;  // bytes of it
  Handle file;
  std::array<OutColumn, kNumColumns> columns;
  std::vector<std::uint64_t> offsets{0};
  std::vector<std::uint32_t> source_ids;
  std::int32_t largest_id = 0;
  StoreInfo info;
  bool prepared = false, committed = false;

  std::int64_t document_begin() const { return static_cast<std::int64_t>(offsets.back()); }
  bool narrow() const {
    return options.tokenizer.vocab_size > 0 && options.tokenizer.vocab_size <= 65536;
  }
  fs::path temporary_manifest() const { return manifest_path(temporary); }

  // Takes disk space for `bytes` more before HDF5 writes them. HDF5 1.10 cannot close a file that
  // it failed to write, and crashes at exit over it; so a full disk must be met here instead.
  void reserve(std::size_t bytes) {
    hsize_t size = 0;
    if (H5Fget_filesize(file.get(), &size) < 0) throw_write_error(temporary);
    const auto begin = static_cast<off_t>(std::max<std::uint64_t>(size, reserved));
    const auto end = static_cast<off_t>(size + bytes + kReserve);
    if (end <= begin) return;
    rlimit limit{};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        static_cast<rlim_t>(end) > limit.rlim_cur)
      throw system_error(EFBIG, "write", path);
    if (::fallocate(space_fd, FALLOC_FL_KEEP_SIZE, begin, end - begin) != 0) {
      if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
        throw system_error(errno, "write", path);
      struct statvfs disk {};  // a file system that cannot reserve: look before writing
      if (::fstatvfs(space_fd, &disk) == 0 &&
          disk.f_bavail * disk.f_frsize < static_cast<std::uint64_t>(end - begin))
        throw system_error(ENOSPC, "write", path);
    }
    reserved = static_cast<std::uint64_t>(end);
  }

  void flush(std::size_t index) {
    OutColumn& c = columns[index];
    if (c.buffer.empty()) return;
    const QuietErrors quiet;
    reserve(c.buffer.size() * sizeof(std::int32_t));
    const bool is_u16 = index == kTokens && narrow();
    if (!c.dataset) {
      const hid_t type = index == kLabels ? H5T_STD_I32LE : is_u16 ? H5T_STD_U16LE : H5T_STD_U32LE;
      const auto chunk =
          std::clamp<std::int64_t>(static_cast<std::int64_t>(c.buffer.size()), 1, kChunk);
      c.dataset = create_dataset(file.get(), kColumnNames[index], type, chunk);
      if (!c.dataset) throw_write_error(temporary);
    }
    bool ok = false;
    if (is_u16) {
      const std::vector<std::uint16_t> values(c.buffer.begin(), c.buffer.end());
      ok = write_range(c.dataset.get(), H5T_NATIVE_UINT16, c.written, values.size(), values.data());
    } else {
      const hid_t type = index == kLabels ? H5T_NATIVE_INT32 : H5T_NATIVE_UINT32;
      ok = write_range(c.dataset.get(), type, c.written, c.buffer.size(), c.buffer.data());
    }
    if (!ok) throw_write_error(temporary);
    c.written += static_cast<std::int64_t>(c.buffer.size());
    c.buffer.clear();
  }

  void add(std::size_t index, std::span<const std::int32_t> values) {
    OutColumn& c = columns[index];
    c.buffer.insert(c.buffer.end(), values.begin(), values.end());
    if (c.buffer.size() >= kBuffer) flush(index);
  }

  // Elements of a column already added, from the dataset or the buffer.
  std::vector<std::int32_t> read_back(std::size_t index, std::int64_t begin, std::int64_t count) {
    const OutColumn& c = columns[index];
    std::vector<std::int32_t> out(static_cast<std::size_t>(count));
    const std::int64_t stored = std::clamp<std::int64_t>(c.written - begin, 0, count);
    const hid_t type = index == kLabels ? H5T_NATIVE_INT32 : H5T_NATIVE_UINT32;
    const QuietErrors quiet;
    if (stored > 0 &&
        !read_range(c.dataset.get(), type, begin, static_cast<std::size_t>(stored), out.data()))
      bad(temporary, "cannot read back what was written: " + innermost_error());
    for (std::int64_t i = stored; i < count; ++i)
      out[static_cast<std::size_t>(i)] = c.buffer[static_cast<std::size_t>(begin + i - c.written)];
    return out;
  }

  // What an optional column means where it is absent, for tokens that start at stream place `at`
  // (inside a document that starts at `document`).
  std::vector<std::int32_t> implied(std::size_t index, std::span<const std::int32_t> tokens,
                                    std::int64_t at, std::int64_t document) const {
    std::vector<std::int32_t> out(tokens.begin(), tokens.end());
    if (index == kPositionIds)
      std::iota(out.begin(), out.end(), static_cast<std::int32_t>(at - document));
    if (index == kSegmentIds) std::fill(out.begin(), out.end(), 0);
    return out;
  }

  // Gives the tokens so far a column that a later piece brings first.
  void backfill(std::size_t index) {
    columns[index].exists = true;
    const std::int64_t end = columns[kTokens].size();
    for (std::size_t d = 0; d < offsets.size(); ++d) {
      const auto begin = static_cast<std::int64_t>(offsets[d]);
      const auto stop = d + 1 < offsets.size() ? static_cast<std::int64_t>(offsets[d + 1]) : end;
      for (std::int64_t at = begin; at < stop; at += static_cast<std::int64_t>(kBuffer)) {
        const auto tokens = read_back(kTokens, at, std::min<std::int64_t>(stop - at, kBuffer));
        add(index, implied(index, tokens, at, begin));
      }
    }
  }

  void check_values(const DocumentPiece& piece) {
    const std::int64_t vocab =
        options.tokenizer.vocab_size > 0 ? options.tokenizer.vocab_size : kMaxId;
    auto check = [&](std::string_view name, std::span<const std::int32_t> values,
                     std::int64_t limit, bool label) {
      FARSPAN_CHECK(values.empty() || values.size() == piece.tokens.size(), "{} {} for {} tokens",
                    values.size(), name, piece.tokens.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::int32_t v = values[i];
        if ((v >= 0 && v < limit) || (label && v == kIgnoreLabel)) continue;
        bad(path,
            fmt::format("{} {} of token {} (document {}) is outside 0..{}", name, v,
                        columns[kTokens].size() + static_cast<std::int64_t>(i), offsets.size() - 1,
                        limit - 1),
            "correct the input, or give the vocabulary it was made for");
      }
    };
    check("token id", piece.tokens, vocab, false);
    check("label", piece.labels, vocab, true);
    check("position id", piece.position_ids, kMaxId, false);
    check("segment id", piece.segment_ids, kMaxId, false);
    for (auto values : {piece.tokens, piece.labels})
      for (std::int32_t v : values) largest_id = std::max(largest_id, v);
  }

  // A whole dataset at once.
  void write_all(const char* name, hid_t file_type, hid_t memory_type, std::size_t count,
                 const void* data) {
    const auto chunk = std::clamp<std::int64_t>(static_cast<std::int64_t>(count), 1, kChunk);
    reserve(count * H5Tget_size(file_type));
    const Handle dataset = create_dataset(file.get(), name, file_type, chunk);
    if (!dataset || !write_range(dataset.get(), memory_type, 0, count, data))
      throw_write_error(temporary);
  }

  void write_attributes() {
    const TokenizerInfo& t = info.tokenizer;
    const hid_t f = file.get();
    const bool ok = write_attribute(f, "format", std::string(kFormat)) &&
                    write_attribute(f, "format_version", std::int64_t{kTokenStoreVersion}) &&
                    write_attribute(f, "tokenizer", t.name) &&
                    write_attribute(f, "tokenizer_hash", t.hash) &&
                    write_attribute(f, "vocab_size", t.vocab_size) &&
                    write_attribute(f, "bos", std::int64_t{t.bos}) &&
                    write_attribute(f, "eos", std::int64_t{t.eos}) &&
                    write_attribute(f, "pad", std::int64_t{t.pad}) &&
                    write_attribute(f, "unk", std::int64_t{t.unk}) &&
                    write_attribute(f, "num_tokens", info.num_tokens) &&
                    write_attribute(f, "num_documents", info.num_documents);
    if (!ok) throw_write_error(temporary);
  }

  void close_file() {
    const QuietErrors quiet;
    bool ok = true;
    for (OutColumn& c : columns) ok &= c.dataset.reset();
    if (!ok || H5Fflush(file.get(), H5F_SCOPE_LOCAL) < 0) throw_write_error(temporary);
    if (!file.reset()) throw_write_error(temporary);
    // Gives back what was reserved and not used.
    const auto size = static_cast<off_t>(fs::file_size(temporary));
    if (::ftruncate(space_fd, size) != 0) throw system_error(errno, "write", temporary);
  }

  void create_temporary() {
    // Created here first: a failed open(2) says why, a failed H5Fcreate hardly.
    space_fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (space_fd < 0) throw system_error(errno, "create", temporary);
    const QuietErrors quiet;
    const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    // The newest format: its headers and chunk indexes carry checksums of their own.
    H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_file_locking(access.get(), false, true);
    const Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
    H5Pset_obj_track_times(creation.get(), false);
    file =
        Handle(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), H5Fclose);
    if (!file) throw_write_error(temporary);
    reserve(0);
  }

  // Drops everything written.
  void discard() noexcept {
    const QuietErrors quiet;
    for (OutColumn& c : columns) c.dataset.reset();
    file.reset();
    if (space_fd >= 0) ::close(space_fd);
    std::error_code ignored;
    fs::remove(temporary, ignored);
    fs::remove(temporary_manifest(), ignored);
  }

  ~Impl() {
    if (!committed)
      discard();
    else
      ::close(space_fd);
  }
};

TokenStoreWriter::TokenStoreWriter(fs::path path, Options options)
    : impl_(std::make_unique<Impl>()) {
  const fs::path folder = path.parent_path();
  std::error_code ec;
  if (!folder.empty()) fs::create_directories(folder, ec);
  if (ec) throw system_error(ec.value(), "create the folder", folder);
  if (fs::is_directory(path, ec))
    throw Error(ExitCode::kUsage, {.what = "the output is a folder",
                                   .where = path.string(),
                                   .fix = "name a file, such as data/text.h5"});
  if (!options.overwrite && fs::exists(path, ec))
    throw Error(ExitCode::kUsage, {.what = "the output exists already",
                                   .where = path.string(),
                                   .fix = "give --force to replace it, or another --out"});
  impl_->path = path;
  impl_->temporary = fmt::format("{}.tmp.{}", path.string(), ::getpid());
  impl_->options = std::move(options);
  impl_->columns[kTokens].exists = true;
  impl_->create_temporary();
}

TokenStoreWriter::~TokenStoreWriter() = default;

void TokenStoreWriter::append(const DocumentPiece& piece) {
  Impl& w = *impl_;
  FARSPAN_CHECK(!w.prepared);
  if (piece.tokens.empty()) return;
  w.check_values(piece);
  const std::array<std::span<const std::int32_t>, kNumColumns> given = {
      piece.tokens, piece.labels, piece.position_ids, piece.segment_ids};
  const std::int64_t at = w.columns[kTokens].size();
  for (std::size_t i = kLabels; i < kNumColumns; ++i) {
    if (!w.columns[i].exists && given[i].empty()) continue;
    if (!w.columns[i].exists) w.backfill(i);
    if (given[i].empty())
      w.add(i, w.implied(i, piece.tokens, at, w.document_begin()));
    else
      w.add(i, given[i]);
  }
  w.add(kTokens, piece.tokens);
}

void TokenStoreWriter::end_document(std::uint32_t source) {
  Impl& w = *impl_;
  const std::int64_t end = w.columns[kTokens].size();
  if (end == w.document_begin()) return;
  FARSPAN_CHECK(w.options.sources.empty() || source < w.options.sources.size(), "source {}",
                source);
  w.offsets.push_back(static_cast<std::uint64_t>(end));
  w.source_ids.push_back(source);
}

TokenStoreWriter::Document TokenStoreWriter::take_last_document() {
  Impl& w = *impl_;
  FARSPAN_CHECK(num_documents() > 0 && w.columns[kTokens].size() == w.document_begin());
  Document out;
  const std::array<std::vector<std::int32_t>*, kNumColumns> parts = {
      &out.tokens, &out.labels, &out.position_ids, &out.segment_ids};
  const auto begin = static_cast<std::int64_t>(w.offsets[w.offsets.size() - 2]);
  const std::int64_t count = w.document_begin() - begin;
  for (std::size_t i = 0; i < kNumColumns; ++i) {
    Impl::OutColumn& c = w.columns[i];
    if (!c.exists) continue;
    *parts[i] = w.read_back(i, begin, count);
    if (begin >= c.written) {
      c.buffer.resize(static_cast<std::size_t>(begin - c.written));
      continue;
    }
    c.buffer.clear();
    c.written = begin;
    const hsize_t size = static_cast<hsize_t>(begin);
    const QuietErrors quiet;
    if (H5Dset_extent(c.dataset.get(), &size) < 0) throw_write_error(w.temporary);
  }
  out.source = w.source_ids.back();
  w.offsets.pop_back();
  w.source_ids.pop_back();
  return out;
}

std::int64_t TokenStoreWriter::num_tokens() const { return impl_->document_begin(); }
std::int64_t TokenStoreWriter::num_documents() const {
  return static_cast<std::int64_t>(impl_->offsets.size()) - 1;
}

void TokenStoreWriter::prepare() {
  Impl& w = *impl_;
  FARSPAN_CHECK(!w.prepared && w.columns[kTokens].size() == w.document_begin(),
                "a document was not ended");
  if (num_documents() == 0)
    bad(w.path, "there is nothing to store: the input holds no tokens",
        "check that the input files are the ones meant and are not empty");
  w.info.tokenizer = w.options.tokenizer;
  if (w.info.tokenizer.vocab_size == 0) w.info.tokenizer.vocab_size = w.largest_id + 1;
  w.info.num_tokens = num_tokens();
  w.info.num_documents = num_documents();
  w.info.token_bytes = w.narrow() ? 2 : 4;
  w.info.has_labels = w.columns[kLabels].exists;
  w.info.has_position_ids = w.columns[kPositionIds].exists;
  w.info.has_segment_ids = w.columns[kSegmentIds].exists;
  w.info.sources = w.options.sources;
  for (std::size_t i = 0; i < kNumColumns; ++i) w.flush(i);
  {
    const QuietErrors quiet;
    w.write_all("doc_offsets", H5T_STD_U64LE, H5T_NATIVE_UINT64, w.offsets.size(),
                w.offsets.data());
    if (!w.info.sources.empty()) {
      using Json = nlohmann::json;
      const std::string names =
          Json(w.info.sources).dump(-1, ' ', false, Json::error_handler_t::replace);
      w.write_all("sources", H5T_STD_U8LE, H5T_NATIVE_UINT8, names.size(), names.data());
      w.write_all("source_id", H5T_STD_U32LE, H5T_NATIVE_UINT32, w.source_ids.size(),
                  w.source_ids.data());
    }
    w.write_attributes();
  }
  w.close_file();
  sync_path(w.temporary);
  const std::string manifest = make_manifest(w.temporary, w.path.filename().string(), w.info);
  write_file_synced(w.temporary_manifest(), manifest);
  w.prepared = true;
}

StoreInfo TokenStoreWriter::commit() {
  Impl& w = *impl_;
  FARSPAN_CHECK(w.prepared && !w.committed);
  // Whenever this is cut short, the store in place verifies by its manifest or by the next one.
  rename_synced(w.temporary_manifest(), next_manifest_path(w.path));
  rename_synced(w.temporary, w.path);
  rename_synced(next_manifest_path(w.path), manifest_path(w.path));
  w.committed = true;
  return w.info;
}

}  // namespace farspan
