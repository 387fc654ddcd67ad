// The AMX kernel on emulated tile registers (kernel_table.h says why).
#include "kernels/cpu/attention/gemm_tiles-inl.h"
#include "kernels/cpu/attention/table-inl.h"

namespace farspan::cpu {
namespace {

struct EmulatedTiles {
  struct Session {};

  template <int kTile>
  void load(const void* p, Index stride) {
    for (Index r = 0; r < 16; ++r)
      __builtin_memcpy(tile_[kTile][r], static_cast<const char*>(p) + r * stride * 4, 64);
  }
  template <int kTile>
  void store(void* p, Index stride) const {
    for (Index r = 0; r < 16; ++r)
      __builtin_memcpy(static_cast<char*>(p) + r * stride * 4, tile_[kTile][r], 64);
  }
  template <int kTile>
  void zero() {
    __builtin_memset(tile_[kTile], 0, sizeof tile_[kTile]);
  }
  // tdpbf16ps: for each pair of depth, the products of its two halves one after the other.
  template <int kSum, int kA, int kB>
  void dot() {
    for (int m = 0; m < 16; ++m)
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 16; ++n) {
          const std::uint32_t a = tile_[kA][m][k], b = tile_[kB][k][n];
          float sum = __builtin_bit_cast(float, tile_[kSum][m][n]);
          sum += half(a << 16) * half(b << 16);
          sum += half(a & 0xffff0000u) * half(b & 0xffff0000u);
          tile_[kSum][m][n] = __builtin_bit_cast(std::uint32_t, sum);
        }
  }

 private:
  static float half(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
  std::uint32_t tile_[8][16][16];
};

}  // namespace

const KernelTable& amx_bf16_emulated() {
  return Kernels<TileGemm<EmulatedTiles>, std::uint16_t>::kTable;
}

}  // namespace farspan::cpu
