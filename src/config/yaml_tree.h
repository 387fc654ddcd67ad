// A YAML document as a tree with positions. Unlike yaml-cpp's nodes it keeps every entry of a
// mapping, so that duplicate keys can be seen, and a position for each node.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace farspan {

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  int line = 1, column = 1;  // 1-based; columns count bytes
  std::string text{};        // of a scalar
  bool quoted = false;       // '...' or "..." (or tagged !!str): text, never a number
  std::vector<const YamlNode*> items{};
  std::vector<std::pair<const YamlNode*, const YamlNode*>> entries{};
};

struct YamlProblem {
  int line = 1, column = 1;
  std::string what;
  std::string fix;
};

// Owns the nodes; `root` is null when the document is empty. An alias is the node it names, which
// may contain itself.
struct YamlTree {
  std::deque<YamlNode> nodes;
  const YamlNode* root = nullptr;
  std::vector<YamlProblem> problems;  // syntax: when not empty, the tree is incomplete
};

// Never throws for any bytes. Implemented in load.cpp.
YamlTree parse_yaml(std::string_view text);

// What keeps bytes from being text of a configuration ("byte 7 is not UTF-8"); empty when nothing.
std::string text_problem(std::string_view text);

}  // namespace farspan
