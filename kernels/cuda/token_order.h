// Tokens in the order of their ids, ascending t within an id: a stable radix sort on the device.
//
//   const TokenOrder order = order_tokens(ids, vocab, space_for_order, stream);
//   // order.ids[0 .. n) ascending, order.tokens[i] the place of order.ids[i] among ids
//
// No host synchronisation; the same result every time. Ids outside [0, vocab) come last, as vocab.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace farspan::cuda {

struct TokenOrder {
  const std::int32_t* ids;     // (n)
  const std::int32_t* tokens;  // (n)
};

// Bytes of workspace for n tokens.
std::size_t order_tokens_bytes(std::int64_t n);

// ids (n), n in [1, 2^31); `space` at a multiple of 256 bytes holds the result.
TokenOrder order_tokens(const std::int32_t* ids, std::int64_t n, std::int64_t vocab,
                        std::byte* space, cudaStream_t stream);

}  // namespace farspan::cuda
