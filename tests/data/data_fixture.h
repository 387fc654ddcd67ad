// Stores for tests: made from lists of documents, with every token of the store in memory beside
// it.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/rng.h"
#include "data/token_store.h"
#include "train/temporary_folder.h"

namespace farspan::data_test {

using farspan::testing::TemporaryFolder;

using Document = TokenStoreWriter::Document;

inline StoreInfo write_store(const std::filesystem::path& path,
                             const std::vector<Document>& documents, std::int64_t vocab_size = 1000,
                             bool overwrite = false) {
  TokenStoreWriter writer(
      path, {.tokenizer = {.name = "none", .vocab_size = vocab_size, .eos = 1, .pad = 2},
             .overwrite = overwrite});
  for (const Document& document : documents) {
    writer.append(document.piece());
    writer.end_document();
  }
  return writer.finish();
}

// While it lives, what HDF5 leaks when it fails to open a damaged file is not our leak. (HDF5 1.10
// may also print "infinite loop closing library" when the program ends after such a failure.)
struct IgnoreLeaks {
#if defined(__SANITIZE_ADDRESS__)
  IgnoreLeaks() { __lsan_disable(); }
  ~IgnoreLeaks() { __lsan_enable(); }
#else
  IgnoreLeaks() {}
#endif
  IgnoreLeaks(const IgnoreLeaks&) = delete;
  IgnoreLeaks& operator=(const IgnoreLeaks&) = delete;
};

struct RandomDocuments {
  std::uint64_t seed = 1;
  int count = 20;
  int longest = 50;
  std::int64_t vocab = 1000;
  bool labels = false, position_ids = false, segment_ids = false;
  bool unique = false;  // token i of the store is i
};

inline std::vector<Document> make_documents(const RandomDocuments& o) {
  const CounterRng rng(o.seed, stream_id("test.documents"));
  std::uint64_t draw = 0;
  auto below = [&](std::int64_t bound) {
    return static_cast<std::int32_t>(rng.below(draw++, static_cast<std::uint64_t>(bound)));
  };
  std::vector<Document> out(static_cast<std::size_t>(o.count));
  std::int32_t next = 0;
  for (Document& d : out) {
    const int length = 1 + below(o.longest);
    std::int32_t segment = 0;
    for (int i = 0; i < length; ++i) {
      d.tokens.push_back(o.unique ? next++ : below(o.vocab));
      if (o.labels) d.labels.push_back(below(3) == 0 ? kIgnoreLabel : below(o.vocab));
      if (o.position_ids) d.position_ids.push_back(below(1 << 20));
      if (o.segment_ids) d.segment_ids.push_back(segment += below(4) == 0);
    }
  }
  return out;
}

// Runs `body`, which must throw an Error; returns it.
template <typename Body>
Error error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(ExitCode::kOk, {.what = "nothing was thrown"});
}

#define EXPECT_ERROR(body, exit_code, text)                                        \
  do {                                                                             \
    const ::farspan::Error error_ = ::farspan::data_test::error_of([&] { body; }); \
    EXPECT_EQ(error_.code(), exit_code) << error_.what();                          \
    EXPECT_NE(std::string(error_.what()).find(text), std::string::npos)            \
        << error_.what() << "\nshould hold: " << text;                             \
  } while (false)

}  // namespace farspan::data_test
