// Ulysses and hybrid attention against the definition: head shapes, factorizations, uneven shares.
#include "parallel/ulysses_attention.h"

#include <gtest/gtest.h>

#include "parallel/sharded_attention.h"

namespace farspan {
namespace {

using namespace farspan::testing;
using KvHeads = std::vector<std::int32_t>;

TEST(UlyssesHeads, WholeGroupsKeepTheirKvHeads) {
  for (const int u : {0, 1}) {
    const HeadShare share = ulysses_heads(8, 4, u, 2);
    EXPECT_EQ(share.q_begin, 4 * u);
    EXPECT_EQ(share.q_end, 4 * u + 4);
    EXPECT_EQ(share.kv_heads, u == 0 ? (KvHeads{0, 1}) : (KvHeads{2, 3}));
    EXPECT_FALSE(share.shared);
  }
}

TEST(UlyssesHeads, MoreRanksThanKvHeadsShareThem) {
  for (int u = 0; u < 8; ++u) {
    const HeadShare share = ulysses_heads(8, 2, u, 8);
    EXPECT_EQ(share.kv_heads, KvHeads{u / 4});
    EXPECT_TRUE(share.shared);
  }
}

TEST(UlyssesHeads, BrokenGroupsGetCopies) {
  // 12 query heads in groups of 3; rank 1 has heads 4..7: of groups 1, 1, 2, 2.
  EXPECT_EQ(ulysses_heads(12, 4, 1, 3).kv_heads, (KvHeads{1, 1, 2, 2}));
  EXPECT_EQ(ulysses_heads(12, 4, 1, 3).num_distinct(), 2);
  // Groups of 6, heads 4..7: pairs lie in one group.
  EXPECT_EQ(ulysses_heads(12, 2, 1, 3).kv_heads, (KvHeads{0, 1}));
  EXPECT_TRUE(ulysses_heads(12, 2, 1, 3).shared);
}

// Every query head reads its own KV head, whatever the shape.
TEST(UlyssesHeads, LocalGroupsAreTheModelsGroups) {
  for (const std::int64_t heads : {1, 4, 6, 8, 12, 24})
    for (std::int64_t kv = 1; kv <= heads; ++kv)
      for (int size = 1; heads % kv == 0 && size <= heads; ++size)
        for (int u = 0; heads % size == 0 && u < size; ++u) {
          const HeadShare share = ulysses_heads(heads, kv, u, size);
          const std::int64_t local = share.q_end - share.q_begin;
          const auto copies = static_cast<std::int64_t>(share.kv_heads.size());
          ASSERT_EQ(local % copies, 0);
          for (std::int64_t h = 0; h < local; ++h)
            EXPECT_EQ(share.kv_heads[static_cast<std::size_t>(h / (local / copies))],
                      (share.q_begin + h) / (heads / kv))
                << heads << "/" << kv << " heads, rank " << u << " of " << size;
        }
}

TEST(UlyssesHeads, RanksMustDivideTheQueryHeads) {
  EXPECT_THROW(ulysses_heads(8, 2, 0, 3), InternalError);
}

TEST(UlyssesShare, CoversThePlaceEvenly) {
  for (const std::int64_t block : {1, 4})
    for (const std::int64_t rows : {0, 1, 3, 7, 8, 61})
      for (const int size : {1, 2, 3, 8}) {
        std::int64_t next = 0;
        for (int u = 0; u < size; ++u) {
          const IndexRange share = ulysses_share(rows, u, size, block);
          EXPECT_EQ(share.begin, next);
          EXPECT_GE(share.size(), rows / block / size * block - block + 1);
          EXPECT_LE(share.size(), (rows / block / size + 1) * block);
          EXPECT_TRUE(share.end == rows || share.end % block == 0) << share.end;
          next = share.end;
        }
        EXPECT_EQ(next, rows);
      }
}

// Neighbouring ranks exchange heads; the ring steps over whole groups of them.
TEST(Mesh, PlacesOfAHybrid) {
  run_local_ranks(12, [](Communicator& world) {
    const Mesh mesh(world, 2, 6, 3);
    const ContextPlace place = mesh.place();
    const int in_context = world.rank() % 6;
    EXPECT_EQ(place.ring_rank, in_context / 3);
    EXPECT_EQ(place.ring_size, 2);
    EXPECT_EQ(place.ulysses_rank, in_context % 3);
    EXPECT_EQ(place.ulysses_size, 3);
    EXPECT_EQ(mesh.ring().rank(), place.ring_rank);
    EXPECT_EQ(mesh.ring().size(), 2);
    EXPECT_EQ(mesh.ulysses().rank(), place.ulysses_rank);
    EXPECT_EQ(mesh.ulysses().size(), 3);
  });
}

struct HeadCase {
  TaskHeads heads;
  std::vector<int> ulysses;
};

TEST(UlyssesAttention, EqualsTheDefinitionForAllHeadShapes) {
  for (const HeadCase& c : std::vector<HeadCase>{{{4, 4, 16}, {1, 2, 4}},
                                                 {{4, 2, 16}, {2, 4}},
                                                 {{4, 1, 16}, {2, 4}},
                                                 {{12, 4, 8}, {2, 3, 4, 6, 12}},
                                                 {{12, 2, 8}, {3}},
                                                 {{8, 2, 16}, {4, 8}},
                                                 {{5, 5, 8}, {5}}})
    for (const std::int64_t length : {1, 3, 61}) {
      const AttentionTask task =
          make_task({.seed = 21, .length = length, .longest = 40, .heads = c.heads});
      const TaskResult expected = definition(task);
      for (const int ulysses : c.ulysses) {
        const Sharded how{.strategy = "ulysses", .ulysses = ulysses};
        SCOPED_TRACE(fmt::format("{}/{} heads, length {}, {}", c.heads.q, c.heads.kv, length,
                                 how.description()));
        expect_equal_results(run_sharded(task, how), expected);
      }
    }
}

TEST(HybridAttention, EqualsTheDefinitionForAllFactorizations) {
  for (const auto& [length, longest] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {7, 3}, {97, 97}, {131, 40}}) {
    const AttentionTask task =
        make_task({.seed = 22, .length = length, .longest = longest, .heads = {12, 4, 8}});
    const TaskResult expected = definition(task);
    for (const int ranks : {1, 2, 3, 4, 6, 8, 12})
      for (int ulysses = 1; ulysses <= ranks; ++ulysses) {
        if (ranks % ulysses != 0 || 12 % ulysses != 0) continue;
        for (const LayoutKind kind :
             {LayoutKind::kZigzag, LayoutKind::kContiguous, LayoutKind::kStriped}) {
          const Sharded how{
              .strategy = "hybrid", .ring = ranks / ulysses, .ulysses = ulysses, .layout = kind};
          SCOPED_TRACE(fmt::format("length {}, {}", length, how.description()));
          expect_equal_results(run_sharded(task, how), expected);
        }
      }
  }
}

}  // namespace
}  // namespace farspan
