// Reading, finding and fingerprinting checkpoints (io/checkpoint.h).
#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "io/checkpoint.h"
#include "io/checkpoint_folder.h"
#include "io/content_hash.h"
#include "io/durable.h"
#include "io/hdf5_file.h"
#include "io/manifest.h"

namespace farspan {
namespace {

Error bad_checkpoint(std::string what, const std::filesystem::path& where) {
  return Error(ExitCode::kBadData,
               {.what = std::move(what),
                .where = where.string(),
                .fix = "use another checkpoint, or restore this one from a copy"});
}

void verify_shard(const io::ShardFile& shard, const std::filesystem::path& folder, bool hash) {
  const auto path = folder / shard.file();
  const std::int64_t bytes = io::size_of_file(io::open_for_reading(path), path);
  if (bytes != shard.bytes()) {
    throw bad_checkpoint(
        fmt::format("{} shard: {} bytes, the manifest says {}",
                    bytes < shard.bytes() ? "truncated" : "overlong", bytes, shard.bytes()),
        path);
  }
  if (!hash) return;
  const io::FileHash actual = io::hash_file(path);
  if (actual.bytes != shard.bytes() || actual.xxh3_128 != shard.xxh3_128()) {
    throw bad_checkpoint(fmt::format("corrupt shard: its {} bytes hash to {}, the manifest says {}",
                                     actual.bytes, actual.xxh3_128, shard.xxh3_128()),
                         path);
  }
}

}  // namespace

struct CheckpointReader::Impl {
  std::filesystem::path folder;
  io::Manifest manifest;
  std::map<std::string, const io::TensorEntry*, std::less<>> by_name;
  std::vector<std::unique_ptr<io::Hdf5Reader>> shards;  // opened when first read

  const io::Hdf5Reader& shard(int index) {
    auto& reader = shards[static_cast<std::size_t>(index)];
    if (!reader) reader = std::make_unique<io::Hdf5Reader>(folder / manifest.shards(index).file());
    return *reader;
  }
};

CheckpointReader::CheckpointReader(std::filesystem::path step_folder, bool verify_hashes)
    : impl_(std::make_unique<Impl>()) {
  // "step_00000050/" has an empty file name; the checks below want the real one.
  if (step_folder.filename().empty()) step_folder = step_folder.parent_path();
  const auto path = step_folder / io::kManifestFile;
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) {
    throw bad_checkpoint(std::filesystem::is_directory(step_folder, error)
                             ? "not a checkpoint: it has no manifest.pb (a save that never ended?)"
                             : "there is no such checkpoint folder",
                         step_folder);
  }
  impl_->folder = step_folder;
  impl_->manifest =
      io::decode_manifest(io::read_file(path, std::numeric_limits<std::int32_t>::max()), path);
  const auto named = io::step_of(step_folder.filename().string());
  if (named && *named != impl_->manifest.step()) {
    throw bad_checkpoint(fmt::format("the folder is named for step {}, its manifest is of step {}",
                                     *named, impl_->manifest.step()),
                         path);
  }
  for (const io::ShardFile& shard : impl_->manifest.shards())
    verify_shard(shard, step_folder, verify_hashes);
  for (const io::TensorEntry& tensor : impl_->manifest.tensors())
    impl_->by_name.emplace(tensor.name(), &tensor);
  impl_->shards.resize(static_cast<std::size_t>(impl_->manifest.shards_size()));
}

CheckpointReader::~CheckpointReader() = default;

const io::Manifest& CheckpointReader::manifest() const { return impl_->manifest; }

const io::TensorEntry* CheckpointReader::find(std::string_view name) const {
  const auto it = impl_->by_name.find(name);
  return it == impl_->by_name.end() ? nullptr : it->second;
}

void CheckpointReader::read(std::string_view name, std::int64_t offset, Tensor out) const {
  const io::TensorEntry* tensor = find(name);
  if (tensor == nullptr)
    throw bad_checkpoint(fmt::format("it holds no tensor {}", name), impl_->folder);
  if (tensor->dtype() != name_of(out.dtype)) {
    throw bad_checkpoint(fmt::format("tensor {} is stored as {}, {} is wanted", name,
                                     tensor->dtype(), name_of(out.dtype)),
                         impl_->folder);
  }
  const std::int64_t end = offset + out.numel();
  const std::int64_t elements = io::num_elements(*tensor).value();
  if (offset < 0 || end > elements) {
    throw bad_checkpoint(fmt::format("tensor {} has {} elements, {} to {} are wanted", name,
                                     elements, offset, end - 1),
                         impl_->folder);
  }
  const Tensor flat = out.view({out.numel()});
  for (const io::TensorShard& piece : tensor->pieces()) {
    const std::int64_t begin = std::max(offset, piece.offset());
    const std::int64_t stop = std::min(end, piece.offset() + piece.count());
    if (begin >= stop) continue;
    impl_->shard(piece.shard())
        .read(piece.dataset(), piece.dataset_offset() + (begin - piece.offset()),
              flat.rows(begin - offset, stop - begin));
  }
}

std::optional<std::filesystem::path> find_latest_checkpoint(
    const std::filesystem::path& checkpoints, Log& log) {
  std::vector<CheckpointFolder> found = list_checkpoints(checkpoints);
  for (auto entry = found.rbegin(); entry != found.rend(); ++entry) {
    try {
      const CheckpointReader reader(entry->path);
      return entry->path;
    } catch (const Error& e) {
      // Only damage is a reason to go further back: a checkpoint that this user may not read, say,
      // must not silently cost the steps since the one before.
      if (e.code() != ExitCode::kBadData) throw;
      log.warn("skipped {}: {} ({})", entry->path.filename().string(), e.text().what,
               e.text().where);
    }
  }
  return std::nullopt;
}

CheckpointDigest digest_checkpoint(const std::filesystem::path& step_folder) {
  const CheckpointReader reader(step_folder);
  std::vector<const io::TensorEntry*> tensors;
  for (const io::TensorEntry& tensor : reader.manifest().tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(),
            [](const auto* a, const auto* b) { return a->name() < b->name(); });

  constexpr std::int64_t kBlockBytes = std::int64_t{4} << 20;
  std::vector<std::byte> block(kBlockBytes);
  io::ContentHash weights, optimizer;
  for (const io::TensorEntry* tensor : tensors) {
    io::ContentHash& hash = io::is_optimizer_state(tensor->name()) ? optimizer : weights;
    hash.update(fmt::format("{}\n{}\n", tensor->name(), tensor->dtype()));
    hash.update(static_cast<std::int64_t>(tensor->shape_size()));
    for (const std::int64_t extent : tensor->shape()) hash.update(extent);
    const DType dtype = io::dtype_named(tensor->dtype()).value();
    const std::int64_t elements = io::num_elements(*tensor).value();
    const std::int64_t step = kBlockBytes / static_cast<std::int64_t>(size_of(dtype));
    for (std::int64_t first = 0; first < elements; first += step) {
      const Tensor part{.data = block.data(),
                        .dtype = dtype,
                        .shape = {std::min(step, elements - first)},
                        .device = {}};
      reader.read(tensor->name(), first, part);
      hash.update(std::span<const std::byte>(part.data, part.bytes()));
    }
  }
  const io::TrainState& s = reader.manifest().state();
  const std::string data = fmt::format(
      "step {}\napplied {}\nskipped {}\ntokens {}\nsamples {}\nstage {}\nstage_first_sample {}\n"
      "seed {}\nfingerprint {}\n",
      s.step(), s.applied_steps(), s.skipped_steps(), s.tokens(), s.samples(), s.stage(),
      s.stage_first_sample(), s.seed(), s.data_fingerprint());
  return {.weights = weights.hex(), .optimizer = optimizer.hex(), .data = io::hash_of(data)};
}

}  // namespace farspan
