// The only file that knows yaml-cpp. It takes the parser's events, not its nodes: nodes drop
// duplicate keys silently (0.7 keeps the first).
#include "config/load.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "config/reader.h"
#include "config/schema.h"
#include "config/yaml_tree.h"

namespace farspan {
namespace {

// A configuration is a page or two. The limit keeps a data file given by mistake from being parsed.
constexpr std::size_t kMaxBytes = std::size_t{4} << 20;

class TreeBuilder : public YAML::EventHandler {
 public:
  using Mark = YAML::Mark;
  using Style = YAML::EmitterStyle::value;
  using Anchor = YAML::anchor_t;

  TreeBuilder(YamlTree& tree, std::string_view text) : tree_(tree), text_(text) {
    line_starts_.push_back(0);
    for (std::size_t i = 0; i < text.size(); ++i)
      if (text[i] == '\n' || (text[i] == '\r' && (i + 1 == text.size() || text[i + 1] != '\n')))
        line_starts_.push_back(i + 1);
  }

  void OnDocumentStart(const Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const Mark& mark, Anchor anchor) override {
    place(make(mark, YamlNode::Kind::kNull, anchor));
  }

  void OnAlias(const Mark&, Anchor anchor) override { place(anchors_.at(anchor - 1)); }

  void OnScalar(const Mark& mark, const std::string& tag, Anchor anchor,
                const std::string& value) override {
    YamlNode* node = make(mark, YamlNode::Kind::kScalar, anchor);
    node->text = value;
    node->quoted = tag == "!" || tag == "tag:yaml.org,2002:str";
    if (tag == "!") check_closed(*node);
    if (!tag.empty() && tag != "?" && !node->quoted) refuse_tag(*node, tag);
    place(node);
  }

  void OnSequenceStart(const Mark& mark, const std::string& tag, Anchor anchor, Style) override {
    open(make(mark, YamlNode::Kind::kList, anchor), tag);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const Mark& mark, const std::string& tag, Anchor anchor, Style) override {
    open(make(mark, YamlNode::Kind::kMap, anchor), tag);
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  struct Level {
    YamlNode* node;
    const YamlNode* key;  // of a mapping, waiting for its value
  };

  YamlNode* make(const Mark& mark, YamlNode::Kind kind, Anchor anchor) {
    YamlNode& node = tree_.nodes.emplace_back();
    node.kind = kind;
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    if (anchor != 0) {  // anchors are numbered from 1 in order of appearance
      if (anchors_.size() < anchor) anchors_.resize(anchor);
      anchors_[anchor - 1] = &node;
    }
    return &node;
  }

  void open(YamlNode* node, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") refuse_tag(*node, tag);
    place(node);
    open_.push_back({node, nullptr});
  }

  void place(const YamlNode* node) {
    if (open_.empty()) {
      tree_.root = node;
      return;
    }
    Level& level = open_.back();
    if (level.node->kind == YamlNode::Kind::kList) {
      level.node->items.push_back(node);
    } else if (level.key == nullptr) {
      level.key = node;
    } else {
      level.node->entries.emplace_back(level.key, node);
      level.key = nullptr;
    }
  }

  void refuse_tag(const YamlNode& node, const std::string& tag) {
    tree_.problems.push_back({node.line, node.column, "the tag '" + tag + "' means nothing here",
                              "remove the tag: the key says what type its value has"});
  }

  // yaml-cpp takes the end of the file for a missing closing quote.
  void check_closed(const YamlNode& node) {
    const auto line = static_cast<std::size_t>(node.line - 1);
    if (line >= line_starts_.size()) return;
    std::size_t at = line_starts_[line] + static_cast<std::size_t>(node.column - 1);
    if (at >= text_.size() || (text_[at] != '"' && text_[at] != '\'')) return;
    const char quote = text_[at];
    for (++at; at < text_.size(); ++at) {
      if (text_[at] == '\\' && quote == '"') {
        ++at;
      } else if (text_[at] == quote) {
        if (quote == '"' || at + 1 >= text_.size() || text_[at + 1] != '\'') return;
        ++at;
      }
    }
    tree_.problems.push_back(
        {node.line, node.column, "a quoted text is never closed", "add the closing quote"});
  }

  YamlTree& tree_;
  std::string_view text_;
  std::vector<std::size_t> line_starts_;
  std::vector<Level> open_;
  std::vector<const YamlNode*> anchors_;
};

// The whitespace that a line starts with holds a tab.
bool tab_indented(std::string_view text, int line) {
  for (int i = 1; i < line; ++i) {
    const std::size_t end = text.find('\n');
    if (end == text.npos) return false;
    text.remove_prefix(end + 1);
  }
  return text.substr(0, text.find_first_not_of(" \t")).find('\t') != text.npos;
}

YamlProblem syntax_problem(const YAML::Exception& error, std::string_view text) {
  YamlProblem out{.line = std::max(error.mark.line, 0) + 1,
                  .column = std::max(error.mark.column, 0) + 1,
                  .what = "not valid YAML: " + error.msg,
                  .fix = "check the indentation, colons and brackets around here"};
  for (int line : {out.line, out.line - 1}) {
    if (line < 1 || !tab_indented(text, line)) continue;
    return {line, 1, "a tab in the indentation", "indent with spaces: YAML allows no tabs there"};
  }
  if (error.msg == "bad file") out.what = "not valid YAML: nested too deeply, or cut off";
  if (error.msg == "the referenced anchor is not defined")
    out.fix = "quote a text that starts with *";
  return out;
}

// The length of the UTF-8 character at the front; overlong forms and surrogates are not UTF-8.
int utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto tail = [&](std::size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return tail(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool overlong = lead == 0xe0 && byte(1) < 0xa0;
    const bool surrogate = lead == 0xed && byte(1) > 0x9f;
    return tail(1) && tail(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool overlong = lead == 0xf0 && byte(1) < 0x90;
    const bool beyond = lead == 0xf4 && byte(1) > 0x8f;
    return tail(1) && tail(2) && tail(3) && !overlong && !beyond ? 4 : 0;
  }
  return 0;
}

// As text_problem, with the position. yaml-cpp stops without a word at byte 4 and replaces what is
// not UTF-8.
std::vector<YamlProblem> find_text_problem(std::string_view text) {
  const std::string fix = "a configuration is UTF-8 text without control characters";
  int line = 1, column = 1;
  for (std::size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const int length = utf8_length(text.substr(i));
    const bool control = (c < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7f;
    if (length == 0 || control)
      return {{line, column,
               fmt::format("byte 0x{:02x} is {}", c, control ? "a control character" : "not UTF-8"),
               fix}};
    i += static_cast<std::size_t>(length);
    column = c == '\n' ? 1 : column + length;
    line += c == '\n' ? 1 : 0;
  }
  return {};
}

void fill_origins(LoadedConfig& loaded) {
  visit_leaves(loaded.config, [&](const std::string& key, const auto&, const auto&) {
    loaded.origins.emplace(key, "default");
  });
}

}  // namespace

std::string text_problem(std::string_view text) {
  const std::vector<YamlProblem> problems = find_text_problem(text);
  return problems.empty() ? "" : problems.front().what;
}

YamlTree parse_yaml(std::string_view text) {
  YamlTree tree;
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  if (text.size() > kMaxBytes) {
    tree.problems.push_back({1, 1,
                             fmt::format("{} bytes are too many for a configuration", text.size()),
                             fmt::format("at most {} are read", kMaxBytes)});
    return tree;
  }
  tree.problems = find_text_problem(text);
  if (!tree.problems.empty()) return tree;
  try {
    std::istringstream in{std::string(text)};
    YAML::Parser parser(in);
    TreeBuilder builder(tree, text);
    if (!parser.HandleNextDocument(builder)) return tree;
    YamlTree rest;
    TreeBuilder ignored(rest, text);
    if (tree.problems.empty() && parser.HandleNextDocument(ignored))
      tree.problems.push_back({rest.nodes.empty() ? 1 : rest.nodes.front().line, 1,
                               "a second document starts here", "keep one document per file"});
  } catch (const YAML::Exception& error) {
    tree.problems.push_back(syntax_problem(error, text));
  } catch (const std::exception& error) {  // whatever else the parser finds impossible
    tree.problems.push_back({1, 1, std::string("cannot be read as YAML: ") + error.what(), ""});
  }
  return tree;
}

LoadResult read_config(std::string_view yaml, std::string_view file_name,
                       std::span<const std::string> overrides) {
  LoadResult out;
  out.loaded.file = file_name;
  ConfigReader reader(out);
  reader.read_document(parse_yaml(yaml), file_name);
  for (const std::string& text : overrides) reader.read_override(text);
  fill_origins(out.loaded);
  return out;
}

LoadResult read_config_file(const std::filesystem::path& path,
                            std::span<const std::string> overrides) {
  const auto refuse = [&](std::string what, std::string fix) {
    throw Error(ExitCode::kUsage,
                {.what = std::move(what), .where = path.string(), .fix = std::move(fix)});
  };
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    refuse("the configuration file does not exist",
           "check the path; configs/ holds examples such as configs/quickstart.yaml");
  if (std::filesystem::is_directory(path, error))
    refuse("is a folder, not a configuration file", "name a .yaml file");
  std::ifstream in(path, std::ios::binary);
  if (!in) refuse("the configuration file cannot be opened", "check its permissions");
  std::string text(kMaxBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (in.bad()) refuse("the configuration file cannot be read", "check the disk");
  return read_config(text, path.string(), overrides);
}

namespace {

LoadedConfig or_throw(LoadResult result) {
  if (!result.issues.empty()) throw ConfigError(std::move(result.issues));
  return std::move(result.loaded);
}

}  // namespace

LoadedConfig load_config(const std::filesystem::path& path,
                         std::span<const std::string> overrides) {
  return or_throw(read_config_file(path, overrides));
}

LoadedConfig parse_config(std::string_view yaml, std::string_view file_name,
                          std::span<const std::string> overrides) {
  return or_throw(read_config(yaml, file_name, overrides));
}

}  // namespace farspan
