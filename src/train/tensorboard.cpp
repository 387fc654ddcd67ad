#include "train/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <vector>

#include "core/error.h"
#include "train/tensorboard_event.pb.h"

namespace farspan {
namespace {

namespace fs = std::filesystem;
namespace tb = tensorboard;

constexpr std::string_view kPrefix = "events.out.tfevents.";

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<std::uint32_t, 256> kCrcTable = make_crc_table();

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// The seconds in the name of an event file; 0 for other files.
std::int64_t time_of(std::string_view file_name) {
  if (!file_name.starts_with(kPrefix)) return 0;
  file_name.remove_prefix(kPrefix.size());
  std::int64_t seconds = 0;
  std::from_chars(file_name.data(), file_name.data() + file_name.size(), seconds);
  return seconds;
}

// Readers take a folder's files in the order of their names, and a restart within a second (or
// after the clock was set back) must still come last.
fs::path new_event_path(const fs::path& folder) {
  auto seconds = static_cast<std::int64_t>(wall_seconds());
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    seconds = std::max(seconds, time_of(entry.path().filename().string()) + 1);
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0 || host[0] == '\0') host = {"localhost"};
  return folder / fmt::format("{}{:010}.{}.{}", kPrefix, seconds, host.data(), ::getpid());
}

template <typename Int>
void append_little_endian(std::string& out, Int value) {
  for (std::size_t i = 0; i < sizeof(Int); ++i)
    out.push_back(static_cast<char>((value >> (8 * i)) & 0xffu));
}

void append_record(AppendFile& file, const tb::Event& event) {
  const std::string payload = event.SerializeAsString();
  std::string record;
  record.reserve(payload.size() + 16);
  append_little_endian(record, static_cast<std::uint64_t>(payload.size()));
  append_little_endian(record, masked_crc32c(record));
  record += payload;
  append_little_endian(record, masked_crc32c(payload));
  file.append(record);
}

tb::Event event_at(std::int64_t step) {
  tb::Event event;
  event.set_wall_time(wall_seconds());
  event.set_step(step);
  return event;
}

// Length of the UTF-8 sequence at the start of `s`, 0 if there is none (RFC 3629).
std::size_t utf8_length(std::string_view s) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t n = lead >= 0xc2 && lead < 0xe0   ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
  if (n == 0 || s.size() < n) return 0;
  for (std::size_t i = 1; i < n; ++i)
    if ((byte(i) & 0xc0u) != 0x80u) return 0;
  const bool overlong = (lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xf0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xed && byte(1) >= 0xa0;
  const bool too_large = lead == 0xf4 && byte(1) >= 0x90;
  return overlong || surrogate || too_large ? 0 : n;
}

std::string to_utf8(std::string_view s) {
  std::string out;
  while (!s.empty()) {
    const std::size_t n = utf8_length(s);
    out += n > 0 ? s.substr(0, n) : std::string_view("\xef\xbf\xbd");
    s.remove_prefix(std::max<std::size_t>(n, 1));
  }
  return out;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = ~0u;
  for (char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xffu];
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

TensorBoardFile::TensorBoardFile(const fs::path& folder, std::int64_t first_step)
    : file_(new_event_path(folder)) {
  tb::Event version = event_at(0);
  version.set_file_version("brain.Event:2");
  append_record(file_, version);
  tb::Event start = event_at(first_step);
  start.mutable_session_log()->set_status(tb::SessionLog::START);
  append_record(file_, start);
}

void TensorBoardFile::scalars(std::int64_t step,
                              std::span<const std::pair<std::string, double>> values) {
  tb::Event event = event_at(step);
  for (const auto& [tag, value] : values) {
    tb::Summary::Value* out = event.mutable_summary()->add_value();
    out->set_tag(tag);
    out->set_simple_value(static_cast<float>(value));
  }
  append_record(file_, event);
}

void TensorBoardFile::scalar(std::int64_t step, std::string_view tag, double value) {
  const std::pair<std::string, double> one{tag, value};
  scalars(step, {&one, 1});
}

void TensorBoardFile::text(std::string_view tag, std::int64_t step, std::string_view content) {
  tb::Event event = event_at(step);
  tb::Summary::Value* out = event.mutable_summary()->add_value();
  out->set_tag(std::string(tag));
  out->mutable_metadata()->mutable_plugin_data()->set_plugin_name("text");
  tb::Tensor* tensor = out->mutable_tensor();
  tensor->set_dtype(tb::Tensor::DT_STRING);
  tensor->mutable_tensor_shape()->add_dim()->set_size(1);
  tensor->add_string_val(to_utf8(content));
  append_record(file_, event);
}

void TensorBoardFile::write(const TrainRow& row) {
  std::vector<std::pair<std::string, double>> values{
      {"train/loss", row.loss}, {"train/grad_norm", row.grad_norm}, {"train/lr", row.lr}};
  const auto add_known = [&](std::string key, double value) {
    if (!std::isnan(value)) values.emplace_back("train/" + std::move(key), value);
  };
  add_known("seconds", row.seconds);
  add_known("tokens_per_second", row.tokens_per_second);
  add_known("tflops_per_rank", row.tflops_per_rank);
  add_known("mfu", row.mfu);
  add_known("tokens", static_cast<double>(row.tokens));
  add_known("sequence_length", static_cast<double>(row.sequence_length));
  add_known("stage", static_cast<double>(row.stage));
  add_known("valid_tokens", static_cast<double>(row.valid_tokens));
  add_known("skipped", static_cast<double>(row.skipped));
  for (const auto& [key, value] : row.extras) add_known(key, value);
  scalars(row.step, values);
}

void TensorBoardFile::write(const EvalRow& row) {
  std::vector<std::pair<std::string, double>> values{{"eval/" + row.name, row.value}};
  for (const auto& [key, value] : row.extras)
    values.emplace_back(fmt::format("eval/{}/{}", row.name, key), value);
  scalars(row.step, values);
}

}  // namespace farspan
