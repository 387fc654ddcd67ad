#include "core/rng.h"

#include <cmath>
#include <numbers>

#include "core/error.h"

namespace farspan {

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> c,
                                        std::array<std::uint32_t, 2> k) {
  constexpr std::uint64_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
  constexpr std::uint32_t kW0 = 0x9E3779B9u, kW1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = kM0 * c[0];
    const std::uint64_t p1 = kM1 * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
    k[0] += kW0;
    k[1] += kW1;
  }
  return c;
}

std::uint64_t stream_id(std::string_view purpose, std::uint64_t a, std::uint64_t b) {
  std::uint64_t h = 0xcbf29ce484222325u;
  auto absorb = [&h](std::uint8_t byte) { h = (h ^ byte) * 0x100000001b3u; };
  for (char ch : purpose) absorb(static_cast<std::uint8_t>(ch));
  for (std::uint64_t v : {a, b})
    for (int i = 0; i < 8; ++i) absorb(static_cast<std::uint8_t>(v >> (8 * i)));
  h ^= h >> 33;
  h *= 0xff51afd7ed558ccdu;
  h ^= h >> 33;
  return h;
}

std::array<std::uint32_t, 4> CounterRng::block(std::uint64_t counter) const {
  return philox4x32(
      {static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
       static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
      {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
}

std::uint64_t CounterRng::bits(std::uint64_t counter) const {
  const auto b = block(counter);
  return (static_cast<std::uint64_t>(b[1]) << 32) | b[0];
}

double CounterRng::uniform(std::uint64_t counter) const {
  return static_cast<double>(bits(counter) >> 11) * 0x1p-53;
}

std::uint64_t CounterRng::below(std::uint64_t counter, std::uint64_t bound) const {
  FARSPAN_CHECK(bound > 0);
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>((static_cast<Wide>(bits(counter)) * bound) >> 64);
}

double CounterRng::normal(std::uint64_t counter) const {
  const auto b = block(counter);
  const std::uint64_t u = (static_cast<std::uint64_t>(b[1]) << 32) | b[0];
  const std::uint64_t v = (static_cast<std::uint64_t>(b[3]) << 32) | b[2];
  const double u1 = (static_cast<double>(u >> 11) + 0.5) * 0x1p-53;
  const double u2 = static_cast<double>(v >> 11) * 0x1p-53;
  return std::sqrt(-2.0 * std::log(u1)) * std::cos(2.0 * std::numbers::pi * u2);
}

}  // namespace farspan
