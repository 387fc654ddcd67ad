// A configuration as text: YAML that loads back, JSON, and the table of keys.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "config/load.h"
#include "config/schema.h"

namespace farspan {

namespace pb = google::protobuf;
using pb::FieldDescriptor;

namespace {

struct Line {
  std::string text;
  std::string key;  // of the value on this line; empty for section heads
};

void yaml_lines(const pb::Message& message, const std::string& prefix, const std::string& indent,
                std::vector<Line>& out);

// A stage of a curriculum changes only what it says: its other keys are not printed, since their
// defaults would then be said.
bool prints_only_set(const std::string& prefix) { return prefix.starts_with("curriculum.stages["); }

// A list of sections: one "- " item each.
void yaml_items(const pb::Message& message, const FieldDescriptor& field, const std::string& path,
                const std::string& indent, std::vector<Line>& out) {
  const pb::Reflection& r = *message.GetReflection();
  for (int i = 0; i < r.FieldSize(message, &field); ++i) {
    const std::size_t first = out.size();
    yaml_lines(r.GetRepeatedMessage(message, &field, i), fmt::format("{}[{}]", path, i),
               indent + "    ", out);
    if (out.size() == first) out.push_back({indent + "    {}", ""});
    out[first].text[indent.size() + 2] = '-';
  }
}

void yaml_lines(const pb::Message& message, const std::string& prefix, const std::string& indent,
                std::vector<Line>& out) {
  const pb::Descriptor& level = *message.GetDescriptor();
  const pb::Reflection& r = *message.GetReflection();
  for (int i = 0; i < level.field_count(); ++i) {
    const FieldDescriptor& field = *level.field(i);
    const std::string path = join_key(prefix, field.name());
    if (prints_only_set(prefix) && !is_set(message, field)) continue;
    if (!is_section_field(field)) {
      out.push_back(
          {fmt::format("{}{}: {}", indent, field.name(), value_text(message, field)), path});
    } else if (!field.is_repeated()) {
      out.push_back({fmt::format("{}{}:", indent, field.name()), ""});
      const std::size_t first = out.size();
      yaml_lines(r.GetMessage(message, &field), path, indent + "  ", out);
      if (out.size() == first) out.back().text += " {}";
    } else if (r.FieldSize(message, &field) == 0) {
      out.push_back({fmt::format("{}{}: []", indent, field.name()), path});
    } else {
      out.push_back({fmt::format("{}{}:", indent, field.name()), ""});
      yaml_items(message, field, path, indent, out);
    }
  }
}

}  // namespace

std::string to_yaml(const RunConfig& config, const std::map<std::string, std::string>* origins) {
  constexpr std::size_t kWidest = 44;  // longer values push their comment out, not everyone's
  std::vector<Line> lines;
  yaml_lines(config, "", "", lines);
  std::size_t width = 0;
  for (const Line& line : lines)
    if (line.text.size() <= kWidest) width = std::max(width, line.text.size());
  std::string out;
  for (const Line& line : lines) {
    out += line.text;
    if (origins != nullptr && !line.key.empty()) {
      const auto origin = origins->find(line.key);
      if (origin != origins->end())
        out += fmt::format("{:{}}  # {}", "",
                           width > line.text.size() ? width - line.text.size() : 0, origin->second);
    }
    out += '\n';
  }
  return out;
}

namespace {

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string json_value(const pb::Message& message, const FieldDescriptor& field) {
  const pb::Reflection& r = *message.GetReflection();
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_STRING) {
    const std::string text = value_text(message, field);
    return text == "auto" ? "\"auto\"" : text;
  }
  if (!field.is_repeated())
    return is_set(message, field) || field.has_default_value()
               ? json_string(r.GetString(message, &field))
               : "null";
  std::string out = "[";
  for (int i = 0; i < r.FieldSize(message, &field); ++i)
    out += (i == 0 ? "" : ", ") + json_string(r.GetRepeatedString(message, &field, i));
  return out + "]";
}

std::string json_object(const pb::Message& message, const std::string& prefix,
                        const std::string& indent) {
  const pb::Descriptor& level = *message.GetDescriptor();
  const pb::Reflection& r = *message.GetReflection();
  const std::string inner = indent + "  ";
  std::string out = "{";
  for (int i = 0; i < level.field_count(); ++i) {
    const FieldDescriptor& field = *level.field(i);
    if (prints_only_set(prefix) && !is_set(message, field)) continue;
    const std::string path = join_key(prefix, field.name());
    out += fmt::format("{}\n{}\"{}\": ", out.size() == 1 ? "" : ",", inner, field.name());
    if (!is_section_field(field)) {
      out += json_value(message, field);
    } else if (!field.is_repeated()) {
      out += json_object(r.GetMessage(message, &field), path, inner);
    } else {
      out += '[';
      for (int item = 0; item < r.FieldSize(message, &field); ++item)
        out += (item == 0 ? "" : ", ") + json_object(r.GetRepeatedMessage(message, &field, item),
                                                     fmt::format("{}[{}]", path, item), inner);
      out += ']';
    }
  }
  return out + "\n" + indent + "}";
}

}  // namespace

std::string to_json(const RunConfig& config) { return json_object(config, "", ""); }

std::string keys_text() {
  // What these hold are keys of the whole run.
  constexpr std::string_view kAsElsewhere[] = {
      "curriculum.stages[].parallel.", "curriculum.stages[].rope.",
      "curriculum.stages[].positions.", "curriculum.stages[].train[]."};
  constexpr std::size_t kKey = 40, kType = 32, kDefault = 12;
  std::string out = fmt::format("{:<{}}{:<{}}{:<{}}{}\n", "key", kKey, "value", kType, "default",
                                kDefault, "meaning");
  for (const Key& key : all_keys()) {
    if (key.is_section() ||
        std::any_of(std::begin(kAsElsewhere), std::end(kAsElsewhere),
                    [&](std::string_view section) { return key.path.starts_with(section); }))
      continue;
    const std::string built = key.field->options().GetExtension(config::built);
    std::string type = key.type_text();
    // A long list of values gets a line of its own.
    if (type.size() + 1 > kType) type += "\n" + std::string(kKey + kType, ' ');
    out += fmt::format("{:<{}}{:<{}}{:<{}}{}", key.path, kKey, type, kType, key.default_text(),
                       kDefault, key.doc());
    if (!built.empty())
      out += built == "unset" ? " (not built yet)" : fmt::format(" (built: {})", built);
    out += '\n';
  }
  return out;
}

}  // namespace farspan
