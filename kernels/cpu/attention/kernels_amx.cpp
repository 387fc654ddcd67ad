// Tile instructions as assembly: GCC 12's intrinsics paste the tile number as text, so it cannot be
// a template argument, and they do not tell the compiler that they read and write memory.
#include "kernels/cpu/attention/gemm_tiles-inl.h"
#include "kernels/cpu/attention/table-inl.h"

namespace farspan::cpu {
namespace {

struct AmxTiles {
  // The processor's tile configuration while a task runs: eight tiles of 16 rows x 64 bytes. It is
  // released at the end, so that a thread without work carries no tile state.
  class Session {
   public:
    Session() {
      struct alignas(64) {
        std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
        std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } config;
      static_assert(sizeof config == 64);
      asm volatile("ldtilecfg %0" ::"m"(config));
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() { asm volatile("tilerelease" ::: "memory"); }
  };

  // 16 rows of 16 dwords, `stride` dwords apart.
  template <int kTile>
  void load(const void* p, Index stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride * 4), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(void* p, Index stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride * 4), "i"(kTile) : "memory");
  }
  template <int kTile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // sum (16, 16) += a (16, 16 pairs) b (16 pairs, 16).
  template <int kSum, int kA, int kB>
  void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
  }
};

}  // namespace

const KernelTable& amx_bf16() { return Kernels<TileGemm<AmxTiles>, std::uint16_t>::kTable; }

}  // namespace farspan::cpu
