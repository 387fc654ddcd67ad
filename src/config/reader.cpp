#include "config/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

#include "config/quantity.h"
#include "config/suggest.h"

namespace farspan {

namespace pb = google::protobuf;
using pb::FieldDescriptor;
using Kind = YamlNode::Kind;

namespace {

constexpr std::size_t kMaxListItems = 100'000;

// A value in a message: short, on one line.
std::string shown(std::string_view text) {
  constexpr std::size_t kMost = 60;
  std::string out(text.substr(0, kMost));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  // Do not cut a UTF-8 character in two.
  if (text.size() > kMost) {
    while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0) == 0x80) out.pop_back();
    if (!out.empty() && (static_cast<unsigned char>(out.back()) & 0x80) != 0) out.pop_back();
    out += "...";
  }
  return out;
}

std::string found(const YamlNode& node) {
  switch (node.kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      return "a mapping";
    case Kind::kScalar:
      break;
  }
  return fmt::format("'{}'", shown(node.text));
}

std::string key_names(const pb::Descriptor& level) {
  std::string out;
  for (int i = 0; i < level.field_count(); ++i)
    out += (i == 0 ? "" : ", ") + level.field(i)->name();
  return out;
}

}  // namespace

std::string ConfigReader::where(const YamlNode& node) const {
  if (command_line_) return fmt::format("command line: {}", shown(source_));
  return fmt::format("{}:{}:{}", source_, node.line, node.column);
}

void ConfigReader::add(const YamlNode& node, const std::string& key, std::string what,
                       std::string fix, std::vector<std::string> also) {
  result_.issues.push_back({.key = key,
                            .where = where(node),
                            .what = std::move(what),
                            .fix = std::move(fix),
                            .also = std::move(also)});
}

void ConfigReader::set_origin(const YamlNode& node, const std::string& key) {
  result_.loaded.origins[key] =
      command_line_ ? "command line" : fmt::format("{}:{}:{}", source_, node.line, node.column);
}

void ConfigReader::forget_origins(const std::string& key) {
  auto& origins = result_.loaded.origins;
  std::erase_if(origins, [&](const auto& entry) {
    const std::string& name = entry.first;
    return name.starts_with(key) &&
           (name.size() == key.size() || name[key.size()] == '.' || name[key.size()] == '[');
  });
}

void ConfigReader::unknown_key(const YamlNode& node, const pb::Descriptor& level,
                               const std::string& prefix, const std::string& name,
                               const std::string& rest) {
  std::vector<std::string> meant = suggest_keys(level, prefix, name), words;
  for (std::string& path : meant) {
    path += rest;
    const bool same_level = rest.empty() && path.starts_with(prefix + ".") &&
                            path.find('.', prefix.size() + 1) == path.npos;
    words.push_back(same_level && !command_line_ ? path.substr(prefix.size() + 1) : path);
  }
  std::string fix =
      words.empty()
          ? fmt::format("known keys{}: {}", prefix.empty() ? "" : " of " + prefix, key_names(level))
          : did_you_mean(words);
  add(node, join_key(prefix, shown(name)), "unknown key", std::move(fix), std::move(meant));
}

std::vector<std::pair<const YamlNode*, const YamlNode*>> ConfigReader::merged_entries(
    const YamlNode& node) {
  auto out = node.entries;
  std::set<std::string> given;
  std::erase_if(out, [](const auto& e) { return e.first->text == "<<" && !e.first->quoted; });
  if (out.size() == node.entries.size()) return out;
  for (const auto& [key, value] : out) given.insert(key->text);
  const auto merge = [&](const YamlNode& from) {
    if (from.kind != Kind::kMap) {
      add(from, "<<", fmt::format("expects a mapping to merge, found {}", found(from)),
          "write <<: *anchor, where the anchor names a mapping");
      return;
    }
    for (const auto& entry : from.entries) {
      if (entry.first->text == "<<" && !entry.first->quoted) {
        add(*entry.first, "<<", "a merged mapping merges another one",
            "write the keys out: merges are followed one level deep");
      } else if (given.insert(entry.first->text).second) {
        out.push_back(entry);
      }
    }
  };
  for (const auto& [key, value] : node.entries) {
    if (key->text != "<<" || key->quoted) continue;
    if (value->kind == Kind::kList) {
      for (const YamlNode* item : value->items) merge(*item);
    } else {
      merge(*value);
    }
  }
  return out;
}

void ConfigReader::read_section(const YamlNode& node, Message& message, const std::string& prefix) {
  const pb::Descriptor& level = *message.GetDescriptor();
  if (node.kind != Kind::kMap) {
    add(node, prefix, fmt::format("expects a mapping of keys, found {}", found(node)),
        fmt::format("keys here: {}", key_names(level)));
    return;
  }
  std::map<std::string, const YamlNode*> first;
  for (const auto& [key, value] : merged_entries(node)) {
    if (key->kind != Kind::kScalar) {
      add(*key, prefix, fmt::format("a key must be a word, found {}", found(*key)),
          "write key: value");
      continue;
    }
    const std::string path = join_key(prefix, shown(key->text));
    const auto [earlier, is_new] = first.emplace(key->text, key);
    if (!is_new) {
      add(*key, path,
          fmt::format("duplicate key, first given at {}:{}", earlier->second->line,
                      earlier->second->column),
          "keep one of the two");
      continue;
    }
    const FieldDescriptor* field = level.FindFieldByName(key->text);
    if (field == nullptr) {
      unknown_key(*key, level, prefix, key->text, "");
    } else if (value->kind == Kind::kNull) {
      message.GetReflection()->ClearField(&message, field);
      forget_origins(path);
    } else {
      read_field(*value, message, *field, path);
    }
  }
}

bool ConfigReader::shorthand_applies(const YamlNode& node, const Field& field) const {
  return node.kind == Kind::kScalar && is_section_field(field) &&
         field.message_type()->options().HasExtension(config::shorthand);
}

void ConfigReader::read_field(const YamlNode& node, Message& message, const Field& field,
                              const std::string& key) {
  if (field.is_repeated()) return read_list(node, message, field, key);
  if (is_section_field(field))
    return read_section(node, *message.GetReflection()->MutableMessage(&message, &field), key);
  if (read_scalar(node, message, field, key)) set_origin(node, key);
}

void ConfigReader::read_list(const YamlNode& node, Message& message, const Field& field,
                             const std::string& key) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const YamlNode*> items = node.items;
  if (shorthand_applies(node, field)) {
    items = {&node};
  } else if (node.kind != Kind::kList) {
    add(node, key, fmt::format("expects a list, found {}", found(node)),
        is_section_field(field)
            ? fmt::format("write [{{{}: ...}}]", field.message_type()->field(0)->name())
            : fmt::format("write {}: [..., ...]", field.name()));
    return;
  }
  if (items.size() > kMaxListItems) {
    add(node, key, fmt::format("has {} entries", items.size()),
        fmt::format("at most {} are read", kMaxListItems));
    return;
  }
  reflection.ClearField(&message, &field);
  forget_origins(key);
  set_origin(node, key);
  for (std::size_t i = 0; i < items.size(); ++i) {
    const YamlNode& item = *items[i];
    const std::string item_key = fmt::format("{}[{}]", key, i);
    if (!is_section_field(field)) {
      read_scalar(item, message, field, item_key);
      continue;
    }
    Message& added = *reflection.AddMessage(&message, &field);
    if (shorthand_applies(item, field)) {
      const std::string& name = field.message_type()->options().GetExtension(config::shorthand);
      read_field(item, added, *field.message_type()->FindFieldByName(name),
                 join_key(item_key, name));
    } else {
      read_section(item, added, item_key);
    }
  }
}

bool ConfigReader::check_string(const YamlNode& node, const Field& field, const std::string& key) {
  if (!field.options().HasExtension(config::one_of)) return true;
  const std::vector<std::string> allowed =
      split_words(field.options().GetExtension(config::one_of));
  if (std::find(allowed.begin(), allowed.end(), node.text) != allowed.end()) return true;
  const std::vector<std::string> near = nearest(node.text, allowed);
  std::string fix = "one of: ";
  for (std::size_t i = 0; i < allowed.size(); ++i) fix += (i == 0 ? "" : ", ") + allowed[i];
  if (!near.empty()) fix = did_you_mean(near) + " " + fix;
  add(node, key, fmt::format("{} is not a known value", found(node)), std::move(fix));
  return false;
}

bool ConfigReader::read_number_into(const YamlNode& node, Message& message, const Field& field,
                                    const std::string& key) {
  const pb::Reflection& r = *message.GetReflection();
  const auto& options = field.options();
  const config::Quantity quantity = options.GetExtension(config::quantity);
  const auto refuse = [&](std::string what, std::string fix) {
    add(node, key, std::move(what), std::move(fix));
    return false;
  };
  const auto in_range = [&](auto value) {
    if (!options.HasExtension(config::range)) return true;
    const Range range = parse_range(options.GetExtension(config::range));
    return range.contains(value) ||
           refuse(fmt::format("{} is out of range", found(node)),
                  fmt::format("a value {} ({})", range.text(), options.GetExtension(config::doc)));
  };
  if (node.quoted) {
    const std::string fix = "remove the quotes";
    return refuse(fmt::format("expects a number, found the quoted text {}", found(node)), fix);
  }
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
    const Reading<double> reading = read_number(node.text, quantity);
    if (!reading.ok) return refuse(fmt::format("{} {}", found(node), reading.what), reading.fix);
    if (!in_range(reading.value)) return false;
    field.is_repeated() ? r.AddDouble(&message, &field, reading.value)
                        : r.SetDouble(&message, &field, reading.value);
    return true;
  }
  Reading<Int128> reading = read_integer(node.text, quantity);
  if (options.GetExtension(config::automatic) && node.text == "auto")
    reading = {.ok = true, .value = 0};
  else if (!reading.ok && node.text == "auto")
    return refuse("'auto' is not possible here", "write a number");
  if (!reading.ok) return refuse(fmt::format("{} {}", found(node), reading.what), reading.fix);
  if (!in_range(reading.value)) return false;
  const bool is_signed = field.cpp_type() == FieldDescriptor::CPPTYPE_INT64;
  const Int128 low = is_signed ? Int128{std::numeric_limits<std::int64_t>::min()} : Int128{0};
  const Int128 high = is_signed ? Int128{std::numeric_limits<std::int64_t>::max()}
                                : Int128{std::numeric_limits<std::uint64_t>::max()};
  if (reading.value < low || reading.value > high)
    return refuse(fmt::format("{} is out of range", found(node)),
                  is_signed ? "write a smaller number" : "a whole number from 0 to 2^64 - 1");
  if (!is_signed) {
    r.SetUInt64(&message, &field, static_cast<std::uint64_t>(reading.value));
  } else if (field.is_repeated()) {
    r.AddInt64(&message, &field, static_cast<std::int64_t>(reading.value));
  } else {
    r.SetInt64(&message, &field, static_cast<std::int64_t>(reading.value));
  }
  return true;
}

bool ConfigReader::read_scalar(const YamlNode& node, Message& message, const Field& field,
                               const std::string& key) {
  const pb::Reflection& r = *message.GetReflection();
  const auto type = field.cpp_type();
  if (node.kind != Kind::kScalar) {
    const bool text = type == FieldDescriptor::CPPTYPE_STRING;
    const bool truth = type == FieldDescriptor::CPPTYPE_BOOL;
    add(node, key,
        fmt::format("expects {}, found {}",
                    text    ? "text"
                    : truth ? "true or false"
                            : "a number",
                    found(node)),
        fmt::format("write {}: value", field.name()));
    return false;
  }
  if (type == FieldDescriptor::CPPTYPE_STRING) {
    if (!check_string(node, field, key)) return false;
    field.is_repeated() ? r.AddString(&message, &field, node.text)
                        : r.SetString(&message, &field, node.text);
    return true;
  }
  if (type != FieldDescriptor::CPPTYPE_BOOL) return read_number_into(node, message, field, key);

  const bool yes = node.text == "true" || node.text == "True" || node.text == "TRUE";
  const bool no = node.text == "false" || node.text == "False" || node.text == "FALSE";
  if (node.quoted || (!yes && !no)) {
    add(node, key,
        fmt::format("expects true or false, found {}{}", node.quoted ? "the quoted text " : "",
                    found(node)),
        "write true or false, without quotes");
    return false;
  }
  r.SetBool(&message, &field, yes);
  return true;
}

void ConfigReader::read_document(const YamlTree& tree, std::string_view source) {
  source_ = source;
  command_line_ = false;
  if (!tree.problems.empty()) {
    for (const YamlProblem& problem : tree.problems) {
      const YamlNode at{.line = problem.line, .column = problem.column};
      add(at, "", problem.what, problem.fix);
    }
    return;
  }
  if (tree.root == nullptr || tree.root->kind == Kind::kNull) {
    add(YamlNode{}, "", "the configuration is empty",
        "start from configs/quickstart.yaml; keys: " + key_names(*RunConfig::descriptor()));
    return;
  }
  read_section(*tree.root, result_.loaded.config, "");
}

}  // namespace farspan
