// Random numbers of one document, taken in order from a counter RNG (core/rng.h).
//
//   Draws draws(seed, stream_id("synth.passkey", document));
//   std::int64_t die = 1 + draws.below(6);
#pragma once

#include <cstdint>
#include <string>

#include "core/rng.h"

namespace farspan {

class Draws {
 public:
  Draws(std::uint64_t seed, std::uint64_t stream) : rng_(seed, stream) {}
  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(rng_.below(next_++, static_cast<std::uint64_t>(bound)));
  }
  double uniform() { return rng_.uniform(next_++); }
  std::string digits(int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += static_cast<char>('0' + below(10));
    return out;
  }

 private:
  CounterRng rng_;
  std::uint64_t next_ = 0;
};

}  // namespace farspan
