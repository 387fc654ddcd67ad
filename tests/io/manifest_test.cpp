// The manifest's own hash and its description of coverage; names of folders.
#include "io/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/checkpoint_folder.h"
#include "io/content_hash.h"

namespace farspan::io {
namespace {

using ::testing::HasSubstr;

Manifest sample() {
  Manifest m;
  m.set_format_version(kManifestVersion);
  m.set_step(5);
  m.mutable_state()->set_step(5);
  for (const char* file : {"shard_00000.h5", "shard_00001.h5"}) {
    ShardFile& shard = *m.add_shards();
    shard.set_file(file);
    shard.set_bytes(100);
    shard.set_xxh3_128(hash_of(file));
  }
  TensorEntry& t = *m.add_tensors();
  t.set_name("w");
  t.set_dtype("f32");
  t.add_shape(4);
  t.add_shape(5);
  for (int i = 0; i < 2; ++i) {
    TensorShard& piece = *t.add_pieces();
    piece.set_offset(10 * i);
    piece.set_count(10);
    piece.set_shard(i);
    piece.set_dataset("tensors/w");
    piece.set_dataset_offset(0);
  }
  return m;
}

TEST(Manifest, DecodesWhatItEncodes) {
  Manifest m = sample();
  const std::string bytes = encode_manifest(m);
  EXPECT_EQ(decode_manifest(bytes, "x").SerializeAsString(), m.SerializeAsString());
  EXPECT_EQ(m.self_xxh3_128().size(), 32u);
  EXPECT_EQ(encode_manifest(m), bytes);  // idempotent
}

TEST(Manifest, EveryFlippedBitAndEveryTruncationIsFound) {
  Manifest m = sample();
  const std::string bytes = encode_manifest(m);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = bytes;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      EXPECT_THROW(decode_manifest(bad, "x"), Error) << "byte " << i << " bit " << bit;
    }
    EXPECT_THROW(decode_manifest(bytes.substr(0, i), "x"), Error) << "cut at " << i;
  }
  EXPECT_THROW(decode_manifest(bytes + "x", "x"), Error);
}

TEST(Manifest, ProblemsAreNamed) {
  const auto problem = [](auto change) {
    Manifest m = sample();
    change(m);
    const auto text = manifest_problem(m);
    // The reader refuses what the writer would, though its hash is right.
    EXPECT_EQ(text.has_value(), [&] {
      try {
        decode_manifest(encode_manifest(m), "x");
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), ExitCode::kBadData);
        return true;
      }
      return false;
    }());
    return text.value_or("none");
  };
  const auto piece = [](Manifest& m, int i) { return m.mutable_tensors(0)->mutable_pieces(i); };
  EXPECT_EQ(problem([](Manifest&) {}), "none");
  EXPECT_THAT(problem([](Manifest& m) { m.set_format_version(9); }), HasSubstr("format 9"));
  EXPECT_THAT(problem([](Manifest& m) { m.clear_step(); }), HasSubstr("no step"));
  EXPECT_THAT(problem([&](Manifest& m) { piece(m, 1)->set_offset(11); }),
              HasSubstr("elements 10 to 10 of tensor w are in no shard"));
  EXPECT_THAT(problem([&](Manifest& m) { piece(m, 1)->set_offset(9); }),
              HasSubstr("element 9 of tensor w is in two shards"));
  EXPECT_THAT(problem([&](Manifest& m) { piece(m, 1)->set_count(9); }),
              HasSubstr("elements 19 to 19"));
  EXPECT_THAT(problem([&](Manifest& m) { piece(m, 1)->set_count(11); }), HasSubstr("pieces more"));
  EXPECT_THAT(problem([&](Manifest& m) { piece(m, 1)->set_shard(2); }), HasSubstr("no shard"));
  EXPECT_THAT(problem([&](Manifest& m) { piece(m, 0)->set_count(0); }), HasSubstr("0 elements"));
  EXPECT_THAT(problem([](Manifest& m) { *m.add_tensors() = m.tensors(0); }), HasSubstr("twice"));
  EXPECT_THAT(problem([](Manifest& m) { m.mutable_tensors(0)->set_dtype("f8"); }),
              HasSubstr("'f8'"));
  EXPECT_THAT(problem([](Manifest& m) { m.mutable_tensors(0)->set_shape(0, -4); }),
              HasSubstr("impossible shape"));
  EXPECT_THAT(problem([](Manifest& m) {
                m.mutable_tensors(0)->set_shape(0, std::int64_t{1} << 40);
                m.mutable_tensors(0)->set_shape(1, std::int64_t{1} << 40);
              }),
              HasSubstr("impossible shape"));
  EXPECT_THAT(problem([](Manifest& m) { m.mutable_shards(0)->set_file("../x"); }),
              HasSubstr("plain file name"));
  EXPECT_THAT(problem([](Manifest& m) { m.mutable_shards(0)->set_file("shard_00001.h5"); }),
              HasSubstr("twice"));
  EXPECT_THAT(problem([](Manifest& m) { m.mutable_shards(0)->clear_xxh3_128(); }),
              HasSubstr("no size or hash"));
}

TEST(Manifest, HashIsXxh3OfKnownValue) {
  EXPECT_EQ(hash_of(""), "99aa06d3014798d86001c324468d497f");  // the published test vector
  ContentHash split;
  split.update("ab");
  split.update("c");
  EXPECT_EQ(split.hex(), hash_of("abc"));
}

TEST(Names, StepFolders) {
  EXPECT_EQ(step_folder_name(50), "step_00000050");
  EXPECT_EQ(step_of("step_00000050"), 50);
  EXPECT_EQ(step_of("step_1234567890"), 1234567890);
  for (const char* name : {"step_50", "step_", "step_000000050", "step_0000005x", "x",
                           "step_00000050.tmp.a", "step_-0000001"})
    EXPECT_FALSE(step_of(name).has_value()) << name;
  EXPECT_TRUE(is_temporary_name(temporary_name(50, new_uuid())));
  EXPECT_FALSE(is_temporary_name("step_00000050"));
  EXPECT_EQ(new_uuid().size(), 32u);
  EXPECT_NE(new_uuid(), new_uuid());
}

}  // namespace
}  // namespace farspan::io
