// Reads the event files back with a parser of its own: framing, checksums (bit by bit) and the
// protobuf wire format (encoding of the fields by number), so that neither the writer's table nor
// the .proto file is trusted.
#include "train/tensorboard.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include "core/error.h"
#include "train/temporary_folder.h"

namespace farspan {
namespace {

using testing::count_files;
using testing::read_all;
using testing::TemporaryFolder;
using testing::write_all;

std::uint32_t slow_crc32c(std::string_view bytes) {
  std::uint32_t crc = ~0u;
  for (char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int i = 0; i < 8; ++i) crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
  }
  return ~crc;
}

template <typename T>
T load(std::string_view bytes) {
  T out{};
  EXPECT_GE(bytes.size(), sizeof(T));
  std::memcpy(&out, bytes.data(), std::min(sizeof(T), bytes.size()));
  return out;
}

std::vector<std::string> read_records(const std::string& file) {
  std::vector<std::string> out;
  std::string_view rest = file;
  const auto masked = [](std::string_view bytes) {
    return std::rotr(slow_crc32c(bytes), 15) + 0xa282ead8u;
  };
  while (!rest.empty()) {
    const auto length = load<std::uint64_t>(rest);
    if (rest.size() < 16 || rest.size() - 16 < length) {
      ADD_FAILURE() << "torn record";
      return out;
    }
    EXPECT_EQ(load<std::uint32_t>(rest.substr(8)), masked(rest.substr(0, 8)));
    const std::string_view payload = rest.substr(12, length);
    EXPECT_EQ(load<std::uint32_t>(rest.substr(12 + length)), masked(payload));
    out.emplace_back(payload);
    rest.remove_prefix(16 + length);
  }
  return out;
}

// The fields of one message: varints as numbers, everything else as bytes.
struct Message {
  std::multimap<int, std::string> bytes;
  std::multimap<int, std::uint64_t> numbers;

  explicit Message(std::string_view data) {
    while (!data.empty()) {
      const std::uint64_t key = varint(data);
      const int field = static_cast<int>(key >> 3);
      const int type = static_cast<int>(key & 7);
      if (type == 0) {
        numbers.emplace(field, varint(data));
        continue;
      }
      const std::size_t n = type == 1 ? 8 : type == 5 ? 4 : varint(data);
      if ((type != 1 && type != 2 && type != 5) || n > data.size()) {
        ADD_FAILURE() << "field " << field << ": wire type " << type << ", " << n << " bytes";
        return;
      }
      bytes.emplace(field, data.substr(0, n));
      data.remove_prefix(n);
    }
  }
  static std::uint64_t varint(std::string_view& data) {
    std::uint64_t out = 0;
    for (int shift = 0; !data.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(data[0]);
      data.remove_prefix(1);
      out |= static_cast<std::uint64_t>(byte & 0x7fu) << shift;
      if (byte < 0x80) break;
    }
    return out;
  }
  std::string text(int field) const {
    EXPECT_EQ(bytes.count(field), 1u) << "field " << field;
    return bytes.count(field) ? bytes.find(field)->second : "";
  }
  std::uint64_t number(int field) const {
    return numbers.count(field) ? numbers.find(field)->second : 0;
  }
  Message sub(int field) const { return Message(text(field)); }
};

std::map<std::string, float> scalars_of(const Message& event) {
  std::map<std::string, float> out;
  const Message summary = event.sub(5);
  const auto [begin, end] = summary.bytes.equal_range(1);
  for (auto it = begin; it != end; ++it) {
    const Message value(it->second);
    out[value.text(1)] = load<float>(value.text(2));
  }
  return out;
}

TEST(TensorBoard, Crc32cGolden) {  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(""), 0u);
}

TEST(TensorBoard, FileOfARun) {
  const TemporaryFolder folder;
  TensorBoardFile board(folder.path(), 51);
  board.scalar(51, "train/loss", 2.5);
  board.text("sample", 100, "In the beginning\xff.");

  const std::string name = board.path().filename().string();
  EXPECT_TRUE(name.starts_with("events.out.tfevents.")) << name;
  const auto records = read_records(read_all(board.path()));
  ASSERT_EQ(records.size(), 4u);
  const Message version(records[0]);
  EXPECT_EQ(version.text(3), "brain.Event:2");
  EXPECT_GT(load<double>(version.text(1)), 1.7e9) << "wall time";
  const Message start(records[1]);
  EXPECT_EQ(start.number(2), 51u);
  EXPECT_EQ(start.sub(7).number(1), 1u) << "SessionLog START";
  const Message loss(records[2]);
  EXPECT_EQ(loss.number(2), 51u);
  EXPECT_EQ(scalars_of(loss), (std::map<std::string, float>{{"train/loss", 2.5f}}));
  const Message text(records[3]);
  EXPECT_EQ(text.number(2), 100u);
  const Message value = text.sub(5).sub(1);
  EXPECT_EQ(value.text(1), "sample");
  EXPECT_EQ(value.sub(9).sub(1).text(1), "text") << "plugin name";
  EXPECT_EQ(value.sub(8).number(1), 7u) << "DT_STRING";
  EXPECT_EQ(value.sub(8).sub(2).sub(2).number(1), 1u) << "shape [1]";
  EXPECT_EQ(value.sub(8).text(8), "In the beginning\xef\xbf\xbd.");
}

TEST(TensorBoard, RowsBecomeTags) {
  const TemporaryFolder folder;
  TensorBoardFile board(folder.path(), 0);
  board.write(TrainRow{.step = 3,
                       .loss = std::nan(""),
                       .lr = 1e-3,
                       .sequence_length = 2048,
                       .extras = {{"exposed_comm_seconds", 0.5}}});
  board.write(EvalRow{.step = 3, .name = "loss", .value = 4, .extras = {{"tokens", 64}}});
  const auto records = read_records(read_all(board.path()));
  ASSERT_EQ(records.size(), 4u);
  auto train = scalars_of(Message(records[2]));
  EXPECT_TRUE(train.contains("train/loss"));
  EXPECT_TRUE(std::isnan(train["train/loss"])) << "a loss that is not finite must be seen";
  EXPECT_FALSE(train.contains("train/mfu")) << "unknown: left out";
  EXPECT_EQ(train["train/lr"], 1e-3f);
  EXPECT_EQ(train["train/sequence_length"], 2048.0f);
  EXPECT_EQ(train["train/exposed_comm_seconds"], 0.5f);
  EXPECT_EQ(scalars_of(Message(records[3])),
            (std::map<std::string, float>{{"eval/loss", 4.0f}, {"eval/loss/tokens", 64.0f}}));
}

TEST(TensorBoard, EachFileSortsAfterTheOnesBefore) {
  const TemporaryFolder folder;
  write_all(folder / "events.out.tfevents.9999999990.elsewhere.1", "");
  const TensorBoardFile a(folder.path(), 0);
  const TensorBoardFile b(folder.path(), 5);  // within the same second, by the same process
  EXPECT_EQ(count_files(folder.path()), 3);
  EXPECT_GT(a.path().filename(), "events.out.tfevents.9999999990.elsewhere.1");
  EXPECT_GT(b.path().filename(), a.path().filename());
}

TEST(TensorBoard, UnwritableFolderIsUsage) {
  EXPECT_THROW(TensorBoardFile("/nonexistent/folder", 0), Error);
}

}  // namespace
}  // namespace farspan
