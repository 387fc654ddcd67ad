#include "core/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace farspan {
namespace {

using ::testing::HasSubstr;

TEST(Arena, TakesAlignedPiecesThatDoNotOverlap) {
  const auto device = make_cpu_device();
  Arena arena(*device, 4096, "scratch");
  const Tensor a = arena.take(DType::kF32, {3}, "a");
  const Tensor b = arena.take(DType::kBF16, {5, 2}, "b");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data) % Arena::kAlignment, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data) % Arena::kAlignment, 0u);
  EXPECT_GE(b.data, a.data + a.bytes());
  EXPECT_EQ(b.shape, (Shape{5, 2}));
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_EQ(b.device, device->id());
  EXPECT_EQ(arena.used(), 2 * Arena::kAlignment);
}

TEST(Arena, ScopesGiveBackInReverseOrder) {
  const auto device = make_cpu_device();
  Arena arena(*device, 4096, "scratch");
  const Tensor kept = arena.take(DType::kU8, {1}, "kept");
  std::byte* first = nullptr;
  {
    const Arena::Scope outer = arena.scope();
    first = arena.take(DType::kU8, {300}, "outer").data;
    {
      const Arena::Scope inner = arena.scope();
      EXPECT_GT(arena.take(DType::kU8, {1000}, "inner").data, first);
    }
    EXPECT_EQ(arena.used(), 3 * Arena::kAlignment);
  }
  EXPECT_EQ(arena.used(), Arena::kAlignment);
  EXPECT_EQ(arena.take(DType::kU8, {1}, "again").data, first);
  EXPECT_NE(kept.data, first);
  EXPECT_EQ(arena.high_water(), Arena::kAlignment * (1 + 2 + 4));
}

TEST(Arena, MovedScopeGivesBackOnce) {
  const auto device = make_cpu_device();
  Arena arena(*device, 4096, "scratch");
  {
    Arena::Scope a = arena.scope();
    arena.take(DType::kU8, {1}, "x");
    { const Arena::Scope b = std::move(a); }
    EXPECT_EQ(arena.used(), 0u);
    arena.take(DType::kU8, {1}, "y");
  }
  EXPECT_EQ(arena.used(), Arena::kAlignment) << "the moved-from scope must not give back";
}

TEST(Arena, FullArenaNamesItselfAndTheRequest) {
  const auto device = make_cpu_device();
  Arena arena(*device, 1024, "saved");
  arena.take(DType::kU8, {512}, "first");
  try {
    arena.take(DType::kF32, {200, 2}, "logits");
    FAIL() << "1600 bytes fitted into 512";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kExhausted);
    EXPECT_THAT(e.what(), HasSubstr("'saved'"));
    EXPECT_THAT(e.what(), HasSubstr("'logits'"));
    EXPECT_THAT(e.what(), HasSubstr("(200, 2)"));
    EXPECT_THAT(e.what(), HasSubstr("1600 bytes"));
  }
  EXPECT_EQ(arena.used(), 512u) << "a refused request must leave the arena as it was";
}

TEST(Arena, DryArenaSaysWhatItsPeakIsMadeOf) {
  const auto device = make_dry_device();
  Arena arena(*device, kDryCapacity, "scratch");
  {
    const Arena::Scope scope = arena.scope();
    arena.take(DType::kF32, {1024, 1024}, "x");
    arena.take(DType::kF32, {1024, 512}, "y");
    arena.take(DType::kF32, {1024, 512}, "y");
    arena.take(DType::kF32, {1024}, "z");
  }
  arena.take(DType::kF32, {1024, 1024}, "later, and less");
  const auto items = arena.peak_items();
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(items[0].name, "x");
  EXPECT_EQ(items[1].name, "y");
  EXPECT_EQ(items[1].bytes, 2u * 1024 * 512 * 4);
  EXPECT_EQ(items[2].name, "z");
  EXPECT_EQ(arena.high_water(), items[0].bytes + items[1].bytes + items[2].bytes);
}

TEST(Arena, DryPassSizesARealArena) {
  const auto dry = make_dry_device();
  const auto cpu = make_cpu_device();
  const auto pass = [](Arena& arena) {
    const Arena::Scope scope = arena.scope();
    arena.take(DType::kBF16, {17, 33}, "a");
    const Arena::Scope inner = arena.scope();
    arena.take(DType::kF64, {999}, "b");
  };
  Arena measured(*dry, kDryCapacity, "dry");
  pass(measured);
  Arena exact(*cpu, measured.high_water(), "exact");
  EXPECT_NO_THROW(pass(exact));
  Arena tight(*cpu, measured.high_water() - 1, "tight");
  EXPECT_THROW(pass(tight), Error);
}

TEST(Arena, EmptyTensorsCostNothing) {
  const auto device = make_cpu_device();
  Arena arena(*device, 0, "empty");
  EXPECT_TRUE(arena.take(DType::kF32, {0, 128}, "no rows").empty());
  EXPECT_EQ(arena.used(), 0u);
}

}  // namespace
}  // namespace farspan
