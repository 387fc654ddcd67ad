// The keys of a configuration, read from the descriptors of run_config.proto.
//
//   for (const Key& key : leaf_keys()) fmt::print("{}: {}\n", key.path, key.doc());
//   value_text(config, "train.steps")       -> "100"
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace farspan {

// One key: its dotted path and its field. Keys inside a list carry "[]": "data.train[].path".
struct Key {
  std::string path;
  const google::protobuf::FieldDescriptor* field = nullptr;

  bool is_section() const;  // holds other keys
  std::string doc() const;
  std::string type_text() const;     // "whole number", "cpu | cuda", "list of numbers", ...
  std::string default_text() const;  // as YAML; "" where there is none
};

// Every key, sections before what they hold, in the schema's order.
std::vector<Key> all_keys();

// Keys that hold values, not sections; lists of sections count as one key ("data.train").
std::vector<Key> leaf_keys();

// "model" + "rope" -> "model.rope"; "" + "name" -> "name".
std::string join_key(std::string_view prefix, std::string_view name);

// Full dotted keys that a person who wrote `unknown` at `prefix` (whose keys are those of `level`)
// may have meant, best first, at most three: near names at this level, names that other programs
// use (option `aka`), and the same name under another section when that is nearer.
std::vector<std::string> suggest_keys(const google::protobuf::Descriptor& level,
                                      std::string_view prefix, std::string_view unknown);

// Calls `visit(key, field, message)` for every leaf of `message`, set or not, in schema order. List
// items of sections are visited as "data.train[0].path"; other lists once as a whole; an empty list
// of sections once as a whole.
void visit_leaves(
    const google::protobuf::Message& message,
    const std::function<void(const std::string& key, const google::protobuf::FieldDescriptor& field,
                             const google::protobuf::Message& parent)>& visit);

// Holds other keys, singly or in a list.
bool is_section_field(const google::protobuf::FieldDescriptor& field);

// Set, or (lists) not empty.
bool is_set(const google::protobuf::Message& message,
            const google::protobuf::FieldDescriptor& field);

// A value as the YAML prints it; the default where unset; "null" where there is none; "auto" for
// the 0 of an automatic number. Lists: "[0.9, 0.95]".
std::string value_text(const google::protobuf::Message& message,
                       const google::protobuf::FieldDescriptor& field);
std::string value_text(const google::protobuf::Message& config, std::string_view leaf_key);

// A number in the fewest digits that read back as the same one, never as a whole number's text
// that the loader would refuse ("1e-05", "10000").
std::string number_text(double value);

// A string as YAML: plain when that is safe, else double-quoted.
std::string string_text(std::string_view value);

}  // namespace farspan
