// "section.key=value" on the command line: the part of ConfigReader (reader.h) that walks a dotted
// path to a field. The value is then read as the file's values are.
#include <fmt/format.h>

#include <algorithm>

#include "config/reader.h"
#include "config/suggest.h"

namespace farspan {

namespace pb = google::protobuf;
using pb::FieldDescriptor;
using Kind = YamlNode::Kind;

namespace {

struct Step {
  std::string name;
  int index = -1;  // of "name[3]"
};

// "data.train[0].weight" -> its steps; empty when malformed.
std::vector<Step> split_path(std::string_view path) {
  std::vector<Step> out;
  for (const std::string& part : split_words(path, '.')) {
    Step step{.name = part};
    const std::size_t open = part.find('[');
    if (open != part.npos) {
      const std::string_view inside = std::string_view(part).substr(open + 1);
      const bool digits = inside.size() >= 2 && inside.size() <= 7 && inside.back() == ']' &&
                          std::all_of(inside.begin(), inside.end() - 1,
                                      [](char c) { return c >= '0' && c <= '9'; });
      if (!digits) return {};
      step.name = part.substr(0, open);
      step.index = std::stoi(std::string(inside));
    }
    out.push_back(std::move(step));
  }
  return out;
}

}  // namespace

void ConfigReader::read_override(const std::string& text) {
  source_ = text;
  command_line_ = true;
  const YamlNode here;
  const std::size_t equals = text.find('=');
  const std::string path = text.substr(0, equals);
  const std::vector<Step> steps = split_path(path);
  if (equals == text.npos || steps.empty()) {
    add(here, "", "is not an override", "write section.key=value, such as train.steps=20");
    return;
  }
  const std::string value = text.substr(equals + 1);

  // Walk to the message that holds the key.
  Message* message = &result_.loaded.config;
  std::string prefix;
  for (std::size_t i = 0;; ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(steps[i].name);
    if (field == nullptr) {
      std::string rest;
      for (std::size_t j = i + 1; j < steps.size(); ++j) rest += "." + steps[j].name;
      return unknown_key(here, *message->GetDescriptor(), prefix, steps[i].name, rest);
    }
    std::string key = join_key(prefix, field->name());
    const pb::Reflection& r = *message->GetReflection();
    const bool last = i + 1 == steps.size();
    if (steps[i].index >= 0) {
      const int size = field->is_repeated() ? r.FieldSize(*message, field) : 0;
      if (!is_section_field(*field) || steps[i].index >= size || last)
        return add(here, key,
                   is_section_field(*field) && !last
                       ? fmt::format("has {} entries, so none numbered {}", size, steps[i].index)
                       : "cannot be set by entry",
                   fmt::format("set the whole list: {}=[...]", key));
      message = r.MutableRepeatedMessage(message, field, steps[i].index);
      prefix = fmt::format("{}[{}]", key, steps[i].index);
      continue;
    }
    if (last) return override_field(value, *message, *field, key);
    if (!is_section_field(*field) || field->is_repeated())
      return add(here, key, fmt::format("holds a value, not a key named {}", steps[i + 1].name),
                 fmt::format("write {}=value", key));
    message = r.MutableMessage(message, field);
    prefix = std::move(key);
  }
}

void ConfigReader::override_field(const std::string& value, Message& message, const Field& field,
                                  const std::string& key) {
  YamlNode node{.kind = Kind::kScalar, .text = value};
  const YamlNode* root = &node;
  YamlTree tree;
  const bool plain_text = field.cpp_type() == FieldDescriptor::CPPTYPE_STRING &&
                          !field.is_repeated() && !value.starts_with('"') &&
                          !value.starts_with('\'');
  if (value.find_first_not_of(' ') == value.npos)
    return add(node, key, "has no value",
               fmt::format("write {0}=value, or {0}=null to unset", key));
  if (!plain_text || value == "null" || value == "~") {
    tree = parse_yaml(value);
    if (!tree.problems.empty())
      return add(node, key, "the value is not YAML: " + tree.problems.front().what,
                 tree.problems.front().fix);
    root = tree.root;
  } else if (const std::string bad = text_problem(value); !bad.empty()) {
    return add(node, key, bad, "write the value in UTF-8, without control characters");
  }
  if (root == nullptr || root->kind == Kind::kNull) {
    message.GetReflection()->ClearField(&message, &field);
    forget_origins(key);
    set_origin(node, key);
    return;
  }
  read_field(*root, message, field, key);
}

}  // namespace farspan
