// A YAML tree -> RunConfig, by reflection over run_config.proto. Collects every issue.
#pragma once

#include "config/load.h"
#include "config/schema.h"
#include "config/yaml_tree.h"

namespace farspan {

class ConfigReader {
 public:
  // Fills `result`: its config, origins and issues.
  explicit ConfigReader(LoadResult& result) : result_(result) {}

  // `source` names the text in positions: "configs/a.yaml".
  void read_document(const YamlTree& tree, std::string_view source);
  // "section.key=value".
  void read_override(const std::string& text);

 private:
  using Message = google::protobuf::Message;
  using Field = google::protobuf::FieldDescriptor;

  void read_section(const YamlNode& node, Message& message, const std::string& prefix);
  void read_field(const YamlNode& node, Message& message, const Field& field,
                  const std::string& key);
  void read_list(const YamlNode& node, Message& message, const Field& field,
                 const std::string& key);
  // One scalar into a single field, or appended to a list. False after reporting an issue.
  bool read_scalar(const YamlNode& node, Message& message, const Field& field,
                   const std::string& key);
  bool read_number_into(const YamlNode& node, Message& message, const Field& field,
                        const std::string& key);
  bool check_string(const YamlNode& node, const Field& field, const std::string& key);
  bool shorthand_applies(const YamlNode& node, const Field& field) const;
  void override_field(const std::string& value, Message& message, const Field& field,
                      const std::string& key);
  void unknown_key(const YamlNode& node, const google::protobuf::Descriptor& level,
                   const std::string& prefix, const std::string& name, const std::string& rest);
  void add(const YamlNode& node, const std::string& key, std::string what, std::string fix,
           std::vector<std::string> also = {});
  std::string where(const YamlNode& node) const;
  void set_origin(const YamlNode& node, const std::string& key);
  void forget_origins(const std::string& key);
  // Entries of a mapping with `<<` expanded; explicit entries come first.
  std::vector<std::pair<const YamlNode*, const YamlNode*>> merged_entries(const YamlNode& node);

  LoadResult& result_;
  std::string source_;  // file, or the override's text
  bool command_line_ = false;
};

}  // namespace farspan
