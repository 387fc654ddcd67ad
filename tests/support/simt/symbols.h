// Names of functions by address, from the program's symbol table.
#pragma once

#include <string>

namespace farspan::simt {

// "farspan::cuda::(anonymous namespace)::fill_kernel<float>", or the address where there is no
// name.
std::string symbol_name(const void* address);

}  // namespace farspan::simt
