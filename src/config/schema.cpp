#include "config/schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "config/run_config.pb.h"
#include "config/suggest.h"
#include "core/error.h"

namespace farspan {

namespace pb = google::protobuf;
using pb::FieldDescriptor;

bool Key::is_section() const {
  return field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field->is_repeated();
}

std::string Key::doc() const { return field->options().GetExtension(config::doc); }

std::string Key::type_text() const {
  const auto& options = field->options();
  std::string one;
  if (options.HasExtension(config::one_of)) {
    for (const std::string& word : split_words(options.GetExtension(config::one_of)))
      one += (one.empty() ? "" : " | ") + word;
  } else {
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_BOOL:
        one = "true | false";
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        one = "text";
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        one = options.GetExtension(config::quantity) == config::STEPS_OR_SHARE ? "steps or share"
                                                                               : "number";
        break;
      case FieldDescriptor::CPPTYPE_MESSAGE:
        one = "section";
        break;
      default:
        one = "whole number";
    }
    const config::Quantity quantity = options.GetExtension(config::quantity);
    if (quantity == config::MEMORY) one = "bytes";
    if (quantity == config::LENGTH || quantity == config::BUDGET) one = "tokens";
    if (options.GetExtension(config::automatic)) one += " | auto";
  }
  if (!field->is_repeated()) return one;
  return "list of " + one + (one == "number" || one == "section" ? "s" : "");
}

std::string Key::default_text() const {
  if (field->is_repeated() || !field->has_default_value()) return "";
  const auto* prototype =
      pb::MessageFactory::generated_factory()->GetPrototype(field->containing_type());
  return value_text(*prototype, *field);
}

std::string join_key(std::string_view prefix, std::string_view name) {
  return prefix.empty() ? std::string(name) : fmt::format("{}.{}", prefix, name);
}

namespace {

void collect_keys(const pb::Descriptor& level, const std::string& prefix, std::vector<Key>& out) {
  for (int i = 0; i < level.field_count(); ++i) {
    const FieldDescriptor* field = level.field(i);
    const std::string path = join_key(prefix, field->name());
    out.push_back({path, field});
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE)
      collect_keys(*field->message_type(), path + (field->is_repeated() ? "[]" : ""), out);
  }
}

bool known_as(const FieldDescriptor& field, std::string_view word) {
  for (const std::string& name : split_words(field.options().GetExtension(config::aka)))
    if (edit_distance(name, word) == 0) return true;
  return false;
}

}  // namespace

std::vector<Key> all_keys() {
  std::vector<Key> out;
  collect_keys(*config::RunConfig::descriptor(), "", out);
  return out;
}

std::vector<Key> leaf_keys() {
  std::vector<Key> out = all_keys();
  std::erase_if(out, [](const Key& key) {
    return key.is_section() || key.path.find("[]") != std::string::npos;
  });
  return out;
}

std::vector<std::string> suggest_keys(const pb::Descriptor& level, std::string_view prefix,
                                      std::string_view unknown) {
  constexpr int kNever = 1000;
  const int limit = typo_limit(unknown);
  std::vector<std::pair<int, std::string>> here, elsewhere;
  for (int i = 0; i < level.field_count(); ++i) {
    const FieldDescriptor& field = *level.field(i);
    const int distance = known_as(field, unknown) ? 0 : edit_distance(unknown, field.name());
    if (distance <= limit) here.emplace_back(distance, join_key(prefix, field.name()));
  }
  const auto nearer = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::stable_sort(here.begin(), here.end(), nearer);
  const int best = here.empty() ? kNever : here.front().first;

  for (const Key& key : all_keys()) {
    if (key.path.find("[]") != std::string::npos || key.path == prefix) continue;
    int distance = known_as(*key.field, unknown) ? 0 : edit_distance(unknown, key.field->name());
    // A dotted name written inside a section ("rope.theta" under train) is compared as a whole.
    distance = std::min(distance, edit_distance(unknown, key.path));
    if (distance <= limit && distance < best) elsewhere.emplace_back(distance, key.path);
  }
  std::stable_sort(elsewhere.begin(), elsewhere.end(), nearer);

  // Something nearer elsewhere goes first, but never pushes this level's own keys out.
  std::vector<std::string> out;
  const std::size_t room = here.empty() ? 3 : 1;
  for (std::size_t i = 0; i < std::min(room, elsewhere.size()); ++i)
    out.push_back(elsewhere[i].second);
  for (const auto& [distance, path] : here)
    if (out.size() < 3 && std::find(out.begin(), out.end(), path) == out.end()) out.push_back(path);
  return out;
}

namespace {

void visit_level(const pb::Message& message, const std::string& prefix,
                 const std::function<void(const std::string&, const FieldDescriptor&,
                                          const pb::Message&)>& visit) {
  const pb::Descriptor& level = *message.GetDescriptor();
  const pb::Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < level.field_count(); ++i) {
    const FieldDescriptor& field = *level.field(i);
    const std::string path = join_key(prefix, field.name());
    if (field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      visit(path, field, message);
    } else if (!field.is_repeated()) {
      visit_level(reflection.GetMessage(message, &field), path, visit);
    } else if (reflection.FieldSize(message, &field) == 0) {
      visit(path, field, message);
    } else {
      for (int item = 0; item < reflection.FieldSize(message, &field); ++item)
        visit_level(reflection.GetRepeatedMessage(message, &field, item),
                    fmt::format("{}[{}]", path, item), visit);
    }
  }
}

// One scalar: item `index` of a list, or (-1) a single field.
std::string scalar_text(const pb::Message& message, const FieldDescriptor& field, int index) {
  const pb::Reflection& r = *message.GetReflection();
  const bool automatic = field.options().GetExtension(config::automatic);
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: {
      const bool value =
          index < 0 ? r.GetBool(message, &field) : r.GetRepeatedBool(message, &field, index);
      return value ? "true" : "false";
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      const std::int64_t value =
          index < 0 ? r.GetInt64(message, &field) : r.GetRepeatedInt64(message, &field, index);
      return automatic && value == 0 ? "auto" : fmt::format("{}", value);
    }
    case FieldDescriptor::CPPTYPE_UINT64:
      return fmt::format("{}", index < 0 ? r.GetUInt64(message, &field)
                                         : r.GetRepeatedUInt64(message, &field, index));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return number_text(index < 0 ? r.GetDouble(message, &field)
                                   : r.GetRepeatedDouble(message, &field, index));
    case FieldDescriptor::CPPTYPE_STRING:
      return string_text(index < 0 ? r.GetString(message, &field)
                                   : r.GetRepeatedString(message, &field, index));
    default:
      FARSPAN_CHECK(false, "no text for the type of {}", field.full_name());
  }
  return {};
}

}  // namespace

void visit_leaves(const pb::Message& message,
                  const std::function<void(const std::string&, const FieldDescriptor&,
                                           const pb::Message&)>& visit) {
  visit_level(message, "", visit);
}

bool is_section_field(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
}

bool is_set(const pb::Message& message, const FieldDescriptor& field) {
  const pb::Reflection& reflection = *message.GetReflection();
  return field.is_repeated() ? reflection.FieldSize(message, &field) > 0
                             : reflection.HasField(message, &field);
}

std::string value_text(const pb::Message& message, const FieldDescriptor& field) {
  if (field.is_repeated()) {
    const int size = message.GetReflection()->FieldSize(message, &field);
    std::string out = "[";
    for (int i = 0; i < size; ++i) {
      if (i > 0) out += ", ";
      out += scalar_text(message, field, i);
    }
    return out + "]";
  }
  if (!is_set(message, field) && !field.has_default_value()) return "null";
  return scalar_text(message, field, -1);
}

std::string value_text(const pb::Message& config, std::string_view leaf_key) {
  std::string out;
  bool found = false;
  visit_leaves(
      config, [&](const std::string& key, const FieldDescriptor& field, const pb::Message& parent) {
        if (key != leaf_key) return;
        out = value_text(parent, field);
        found = true;
      });
  FARSPAN_CHECK(found, "no key {}", leaf_key);
  return out;
}

std::string number_text(double value) { return fmt::format("{}", value); }

std::string string_text(std::string_view value) {
  static constexpr std::string_view kSafe = "_-./+";
  const auto word_char = [](unsigned char c) {
    return std::isalnum(c) != 0 || kSafe.find(static_cast<char>(c)) != std::string_view::npos;
  };
  const auto starts_plain = [](unsigned char c) {
    return std::isalpha(c) != 0 || c == '_' || c == '.' || c == '/';
  };
  static constexpr std::string_view kReserved[] = {"null", "true", "false", "yes", "no",  "on",
                                                   "off",  "nan",  ".nan",  "inf", ".inf"};
  std::string lower(value);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool reserved =
      std::find(std::begin(kReserved), std::end(kReserved), lower) != std::end(kReserved);
  if (!value.empty() && !reserved && starts_plain(static_cast<unsigned char>(value.front())) &&
      std::all_of(value.begin(), value.end(),
                  [&](char c) { return word_char(static_cast<unsigned char>(c)); }))
    return std::string(value);

  std::string out = "\"";
  for (char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace farspan
