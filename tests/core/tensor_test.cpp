#include "core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

namespace farspan {
namespace {

using ::testing::HasSubstr;

TEST(Shape, CountsPrintsAndCompares) {
  const Shape s{2, 3, 4};
  EXPECT_EQ(s.num_dims(), 3);
  EXPECT_EQ(s.numel(), 24);
  EXPECT_EQ(s.to_string(), "(2, 3, 4)");
  EXPECT_EQ(Shape{}.numel(), 1) << "a scalar";
  EXPECT_EQ((Shape{4, 0, 7}).numel(), 0);
  EXPECT_EQ(s, (Shape{2, 3, 4}));
  EXPECT_FALSE(s == (Shape{2, 3}));
  EXPECT_FALSE(s == (Shape{2, 3, 5}));
  EXPECT_EQ(s.with_rows(9), (Shape{9, 3, 4}));
}

TEST(Shape, RefusesWhatIsNoShape) {
  EXPECT_THROW((Shape{1, -1}), InternalError);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1}), InternalError);
  EXPECT_THROW((Shape{1, 2})[2], InternalError);
  EXPECT_THROW((Shape{1, 2})[-1], InternalError);
  EXPECT_THROW(Shape{}.with_rows(1), InternalError);
}

TEST(Tensor, RowsAreViewsAlongTheOutermostDimension) {
  std::array<float, 12> values{};
  const Tensor t = host_tensor(values.data(), {4, 3});
  const Tensor middle = t.rows(1, 2);
  EXPECT_EQ(middle.shape, (Shape{2, 3}));
  EXPECT_EQ(middle.ptr<float>(), values.data() + 3);
  EXPECT_TRUE(t.rows(4, 0).empty());
  EXPECT_THROW(t.rows(3, 2), InternalError);
  EXPECT_THROW(t.rows(-1, 1), InternalError);
}

TEST(Tensor, ViewKeepsElementsAndChecksTheirNumber) {
  std::array<BFloat16, 12> values{};
  const Tensor t = host_tensor(values.data(), {4, 3});
  EXPECT_EQ(t.view({2, 6}).data, t.data);
  EXPECT_EQ(t.view({12}).shape, (Shape{12}));
  EXPECT_EQ(t.bytes(), 24u);
  EXPECT_EQ(t.to_string(), "bf16 (4, 3)");
  EXPECT_THROW(t.view({13}), InternalError);
}

TEST(Tensor, ReadingAnotherTypeIsCaughtAndNamed) {
  std::array<float, 1> values{};
  const Tensor t = host_tensor(values.data(), {1});
  try {
    t.ptr<BFloat16>();
    FAIL() << "f32 was read as bf16";
  } catch (const InternalError& e) {
    EXPECT_THAT(e.what(), HasSubstr("f32 read as bf16"));
  }
}

TEST(Tensor, DefaultIsEmptyAndUndefined) {
  const Tensor t;
  EXPECT_TRUE(t.empty());
  EXPECT_FALSE(t.defined());
}

}  // namespace
}  // namespace farspan
