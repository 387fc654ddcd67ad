// A pseudo-random permutation of 0..n-1 evaluated one element at a time, without storing it: a
// six-round Feistel network over the smallest even number of bits that holds n (at least 6 bits,
// as fewer do not mix), walked until the value falls below n (Black and Rogaway, "Ciphers with
// arbitrary finite domains", CT-RSA 2002).
//
//   Permutation p(n, seed, stream_id("data.documents", epoch));
//   p(k);                // the document at place k of this epoch; on average at most 4 walks (n >
//   16)
#pragma once

#include <array>
#include <cstdint>

namespace farspan {

class Permutation {
 public:
  Permutation(std::uint64_t n, std::uint64_t seed, std::uint64_t stream);
  std::uint64_t operator()(std::uint64_t k) const;
  std::uint64_t size() const { return n_; }

 private:
  std::uint64_t n_;
  int half_bits_;
  std::array<std::uint64_t, 6> keys_;
};

}  // namespace farspan
