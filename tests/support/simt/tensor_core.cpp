#include "support/simt/tensor_core.h"

#include <bit>
#include <cstring>

#include "support/simt/kernel_view.h"

namespace farspan::simt {
namespace {

// A lane's row is read when the lane arrives: that all execute ldmatrix together orders nothing
// that they did before, so what another lane has stored takes a __syncwarp first.
struct LoadArgs {
  std::uint16_t row[8];  // row lane % 8 of matrix lane / 8
  std::uint32_t* r;
};

template <bool kTransposed>
void complete_ldmatrix(const WarpCall& call) {
  std::uint16_t matrix[4][8][8];
  for (int l = 0; l < kWarpSize; ++l)
    std::memcpy(matrix[l / 8][l % 8], static_cast<LoadArgs*>(call.args[l])->row, 16);
  for (int l = 0; l < kWarpSize; ++l)
    for (int i = 0; i < 4; ++i) {
      const int g = l / 4, t = l % 4;
      const std::uint32_t low = kTransposed ? matrix[i][2 * t][g] : matrix[i][g][2 * t];
      const std::uint32_t high = kTransposed ? matrix[i][2 * t + 1][g] : matrix[i][g][2 * t + 1];
      static_cast<LoadArgs*>(call.args[l])->r[i] = low | high << 16;
    }
}

struct MmaArgs {
  float* d;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

float lower(std::uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float upper(std::uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

void complete_mma(const WarpCall& call) {
  float a[16][16], b[16][8], d[16][8];
  for (int l = 0; l < kWarpSize; ++l) {
    const auto& lane = *static_cast<const MmaArgs*>(call.args[l]);
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
      a[row][column] = lower(lane.a[i]);
      a[row][column + 1] = upper(lane.a[i]);
      d[g + i / 2 * 8][2 * t + i % 2] = lane.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = lower(lane.b[i]);
      b[2 * t + 8 * i + 1][g] = upper(lane.b[i]);
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int l = 0; l < kWarpSize; ++l)
    for (int i = 0; i < 4; ++i)
      static_cast<MmaArgs*>(call.args[l])->d[i] = d[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
}

}  // namespace

void ldmatrix(std::uint32_t (&r)[4], const void* row, bool transposed) {
  require_shared(row, 16, 16, "ldmatrix");
  LoadArgs args{.row = {}, .r = r};
  std::memcpy(args.row, row, sizeof args.row);
  warp_call(transposed ? "ldmatrix.trans" : "ldmatrix", kWholeWarp, &args,
            transposed ? complete_ldmatrix<true> : complete_ldmatrix<false>, true);
}

void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  MmaArgs args{d, a, {b0, b1}};
  warp_call("mma.sync", kWholeWarp, &args, complete_mma, true);
}

}  // namespace farspan::simt
