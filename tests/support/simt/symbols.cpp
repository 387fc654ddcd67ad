#include "support/simt/symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <vector>

namespace farspan::simt {
namespace {

struct Symbol {
  std::uint64_t size;
  std::string name;
};
using Table = std::map<std::uint64_t, Symbol>;  // by address in the file

std::string demangled(const char* name) {
  int status = 0;
  char* const text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  // Without the parameters: "void f<int>(int*)" becomes "f<int>".
  int depth = 0;
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (result[i] == '<') ++depth;
    if (result[i] == '>') --depth;
    if (result[i] != '(' || depth != 0 || result.compare(i, 11, "(anonymous ") == 0) continue;
    result.resize(i);
    break;
  }
  if (result.starts_with("void ")) result.erase(0, 5);
  return result;
}

Table read_table() {
  std::ifstream in("/proc/self/exe", std::ios::binary);
  const std::vector<char> file((std::istreambuf_iterator<char>(in)), {});
  Table table;
  if (file.size() < sizeof(Elf64_Ehdr)) return table;
  const auto* const header = reinterpret_cast<const Elf64_Ehdr*>(file.data());
  const auto* const sections = reinterpret_cast<const Elf64_Shdr*>(file.data() + header->e_shoff);
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const char* const names = file.data() + sections[sections[s].sh_link].sh_offset;
    const auto* const symbols =
        reinterpret_cast<const Elf64_Sym*>(file.data() + sections[s].sh_offset);
    for (std::size_t i = 0; i < sections[s].sh_size / sizeof(Elf64_Sym); ++i)
      if (ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC && symbols[i].st_size > 0)
        table[symbols[i].st_value] = {symbols[i].st_size, names + symbols[i].st_name};
  }
  return table;
}

// What the program's addresses in memory exceed those in its file by.
std::uint64_t load_address() {
  std::uint64_t base = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) {
        *static_cast<std::uint64_t*>(result) = info->dlpi_addr;
        return 1;  // the program comes first
      },
      &base);
  return base;
}

}  // namespace

std::string symbol_name(const void* address) {
  static const Table table = read_table();
  static const std::uint64_t base = load_address();
  const std::uint64_t at = reinterpret_cast<std::uint64_t>(address) - base;
  auto found = table.upper_bound(at);
  if (found == table.begin()) return fmt::format("{}", address);
  --found;
  if (at >= found->first + found->second.size) return fmt::format("{}", address);
  return demangled(found->second.name.c_str());
}

}  // namespace farspan::simt
