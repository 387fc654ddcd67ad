#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "config/load.h"
#include "config/quantity.h"
#include "config/schema.h"
#include "config/suggest.h"

namespace farspan {
namespace {

namespace pb = google::protobuf;
using pb::FieldDescriptor;

// A message whose set fields are valid but otherwise arbitrary.
class RandomConfig {
 public:
  explicit RandomConfig(unsigned seed) : random_(seed) {}

  void fill(pb::Message& message) {
    for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
      const FieldDescriptor& field = *message.GetDescriptor()->field(i);
      if (random_() % 4 == 0) continue;
      const int count = field.is_repeated() ? static_cast<int>(random_() % 4) : 1;
      for (int n = 0; n < count; ++n) add(message, field);
    }
  }

 private:
  std::string text(const FieldDescriptor& field) {
    const auto allowed = split_words(field.options().GetExtension(config::one_of));
    if (!allowed.empty()) return allowed[random_() % allowed.size()];
    static const std::vector<std::string> kTexts = {
        "plain",          "a b",  "null",  "~",    "true", "010",   "",       "- x",     "x: y",
        "# no",           "x #y", "*a",    "&a",   "'q'",  "\"q\"", "\\back", "a\nb\tc", "\x01\x7f",
        "gr\u00fc\u00df", "[a]",  "{a}",   "%x",   "1e5",  "a,b",   "...",    "---",     " lead",
        "trail ",         "inf",  "C:\\x", "auto", "=",    "<<",    "?",      "!t"};
    return kTexts[random_() % kTexts.size()];
  }

  double number(const FieldDescriptor& field) {
    if (field.options().GetExtension(config::quantity) == config::STEPS_OR_SHARE)
      return random_() % 2 ? static_cast<double>(random_() % 100000) : unit_(random_);
    const Range range = parse_range(field.options().GetExtension(config::range));
    for (;;) {
      const double value = std::ldexp(unit_(random_), static_cast<int>(random_() % 200) - 100);
      if (range.contains(value)) return value;
    }
  }

  std::int64_t integer(const FieldDescriptor& field) {
    Range range{0, 9.2e18};
    if (field.options().HasExtension(config::range))
      range = parse_range(field.options().GetExtension(config::range));
    for (;;) {
      const auto value = static_cast<std::int64_t>(wide_(random_) >> (1 + random_() % 62));
      if (range.contains(static_cast<double>(value))) return value;
    }
  }

  void add(pb::Message& message, const FieldDescriptor& field) {
    const pb::Reflection& r = *message.GetReflection();
    const bool many = field.is_repeated();
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return fill(many ? *r.AddMessage(&message, &field) : *r.MutableMessage(&message, &field));
      case FieldDescriptor::CPPTYPE_STRING:
        return many ? r.AddString(&message, &field, text(field))
                    : r.SetString(&message, &field, text(field));
      case FieldDescriptor::CPPTYPE_BOOL:
        return r.SetBool(&message, &field, random_() % 2 == 0);
      case FieldDescriptor::CPPTYPE_UINT64:
        return r.SetUInt64(&message, &field, wide_(random_));
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return many ? r.AddDouble(&message, &field, number(field))
                    : r.SetDouble(&message, &field, number(field));
      default:
        return many ? r.AddInt64(&message, &field, integer(field))
                    : r.SetInt64(&message, &field, integer(field));
    }
  }

  std::mt19937 random_;
  std::uniform_real_distribution<double> unit_{0.0, 1.0};
  std::uniform_int_distribution<std::uint64_t> wide_;
};

TEST(Print, RoundTripOfRandomConfigurations) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    RunConfig before;
    RandomConfig(seed).fill(before);
    const std::string yaml = to_yaml(before);
    const LoadResult after = read_config(yaml, "a.yaml", {});
    ASSERT_TRUE(after.issues.empty()) << to_text(after.issues[0]) << "\n" << yaml;
    std::string difference;
    pb::util::MessageDifferencer differ;
    differ.set_message_field_comparison(pb::util::MessageDifferencer::EQUIVALENT);
    differ.ReportDifferencesToString(&difference);
    ASSERT_TRUE(differ.Compare(before, after.loaded.config)) << "seed " << seed << "\n"
                                                             << difference << yaml;
    EXPECT_EQ(to_yaml(after.loaded.config), yaml);
  }
}

TEST(Print, PlainNumbersAndEveryKey) {
  const LoadedConfig c =
      parse_config("train: {sequence_length: 4k}\noptimizer: {lr: 1e-5}\n", "a.yaml", {});
  const std::string yaml = to_yaml(c.config);
  EXPECT_NE(yaml.find("  sequence_length: 4096\n"), std::string::npos);
  EXPECT_NE(yaml.find("  lr: 1e-05\n"), std::string::npos);
  EXPECT_NE(yaml.find("device_memory: auto\n"), std::string::npos);
  EXPECT_NE(yaml.find("  from: null\n"), std::string::npos);
  for (const Key& key : leaf_keys())
    EXPECT_NE(yaml.find(key.field->name() + ":"), std::string::npos) << key.path;
}

TEST(Print, OriginsAreAligned) {
  const LoadedConfig c = parse_config("name: a\ntrain: {steps: 5}\n", "a.yaml", {});
  const std::string yaml = to_yaml(c.config, &c.origins);
  std::size_t column = 0;
  int lines = 0;
  for (const std::string& line : split_words(yaml, '\n')) {
    const std::size_t at = line.find("  # ");
    if (at == line.npos) {
      EXPECT_EQ(line.back(), ':') << line;
      continue;
    }
    if (column == 0) column = at;
    EXPECT_EQ(at, column) << line;
    ++lines;
  }
  EXPECT_GT(lines, 50);
  EXPECT_NE(yaml.find("# a.yaml:2:16"), std::string::npos) << yaml;
  EXPECT_TRUE(read_config(yaml, "b.yaml", {}).issues.empty());
}

TEST(Print, JsonIsTheSameConfiguration) {
  const LoadedConfig c = parse_config(
      "name: \"a \\\"b\\\"\\n\"\ndata: {train: [x, y]}\noptimizer: {betas: [0.5, 0.6]}\n", "a.yaml",
      {});
  const auto json = nlohmann::json::parse(to_json(c.config));
  EXPECT_EQ(json["name"], "a \"b\"\n");
  EXPECT_EQ(json["data"]["train"][1]["path"], "y");
  EXPECT_EQ(json["optimizer"]["betas"][1], 0.6);
  EXPECT_EQ(json["train"]["micro_batch"], "auto");
  EXPECT_TRUE(json["train"]["steps"].is_null());
}

TEST(Print, KeysTableNamesEveryKey) {
  const std::string table = keys_text();
  for (const Key& key : all_keys()) {
    const bool in_stage = key.path.starts_with("curriculum.stages[].");
    if (key.is_section() || (in_stage && key.path.find('.', 20) != std::string::npos)) continue;
    EXPECT_NE(table.find("\n" + key.path + " "), std::string::npos) << key.path;
    EXPECT_FALSE(key.doc().empty()) << key.path;
  }
}

}  // namespace
}  // namespace farspan
