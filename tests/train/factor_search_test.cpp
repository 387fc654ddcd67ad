#include "train/factor_search.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "comm/factory.h"
#include "model/rotary.h"
#include "train/search_progress.h"
#include "train/temporary_folder.h"

namespace farspan::testing {
namespace {

using ::testing::HasSubstr;

constexpr SearchSpace kSpace{
    .theta = 1e4, .head_dim = 32, .original_context = 256, .target_context = 2048};

// How far from an optimum that no known scheme is near: slow pairs stretched, fast ones as they
// are, and LongRoPE's attention factor.
double distance(const Candidate& c) {
  double sum = std::abs(c.factors.attention - std::sqrt(1 + std::log(8.0) / std::log(256.0)));
  for (std::size_t j = 0; j < c.factors.of_pair.size(); ++j)
    sum += std::abs(std::log(c.factors.of_pair[j] / (j < 6 ? 1.0 : 6.5)));
  return sum;
}

std::vector<Candidate> all_of(const SearchOptions& options, SearchResult* result = nullptr) {
  std::vector<Candidate> out;
  FactorSearch search(kSpace, options, [&](const Candidate& c) {
    out.push_back(c);
    return out.back().nll = distance(c);
  });
  const SearchResult r = search.run();
  if (result != nullptr) *result = r;
  return out;
}

bool same(const Candidate& a, const Candidate& b) {
  return a.factors == b.factors && a.origin == b.origin && a.iteration == b.iteration &&
         a.nll == b.nll;
}

TEST(FactorSearch, KnownFactorsAreTheSchemesOwn) {
  const std::vector<Candidate> known = known_factors(kSpace);
  RotaryArgs args{.theta = kSpace.theta, .head_dim = kSpace.head_dim};
  args.scaling.set_original_context(256);
  args.scaling.set_factor(8);
  const char* types[] = {"linear", "ntk", "yarn"};
  for (std::size_t i = 0; i < 3; ++i) {
    args.scaling.set_type(types[i]);
    const RotaryTable want = rotary_table(args);
    RotaryArgs as_longrope = args;
    as_longrope.scaling = to_scaling(known[i].factors, kSpace);
    as_longrope.document_length = 2048;
    const RotaryTable got = rotary_table(as_longrope);
    EXPECT_EQ(got.attention_scale, want.attention_scale) << types[i];
    for (std::size_t j = 0; j < want.inv_freq.size(); ++j)
      EXPECT_NEAR(got.inv_freq[j], want.inv_freq[j], 1e-8 * want.inv_freq[j]) << types[i] << j;
    as_longrope.document_length = 256;
    args.scaling.set_type("none");
    EXPECT_EQ(rotary_table(as_longrope).inv_freq, rotary_table(args).inv_freq) << types[i];
  }
  EXPECT_EQ(known[0].factors.of_pair, std::vector<double>(16, 8.0));
}

TEST(FactorSearch, CandidatesKeepTheOrderAndAreNew) {
  SearchResult result;
  const std::vector<Candidate> all = all_of({}, &result);
  EXPECT_GT(std::ssize(all), 64 + 39 * 30);
  EXPECT_LE(std::ssize(all), 64 + 39 * 32);
  EXPECT_EQ(result.evaluations, std::ssize(all));
  std::set<RotaryFactors> seen;
  for (const Candidate& c : all) {
    const std::vector<double>& f = c.factors.of_pair;
    ASSERT_TRUE(std::is_sorted(f.begin(), f.end())) << c.origin << " " << seen.size();
    ASSERT_GE(f.front(), 1);
    ASSERT_LE(f.back(), 1.25 * 8);
    ASSERT_TRUE(seen.insert(c.factors).second) << "evaluated twice";
    ASSERT_THAT(c.factors.attention, ::testing::AnyOf(1.0, 0.1 * std::log(8.0) + 1,
                                                      ::testing::DoubleEq(std::sqrt(1.375))));
  }
  const auto count = [&](const char* origin, std::int64_t iteration) {
    return std::count_if(all.begin(), all.end(), [&](const Candidate& c) {
      return c.origin == origin && c.iteration == iteration;
    });
  };
  EXPECT_EQ(count("mutation", 1), 61);
  EXPECT_EQ(count("crossover", 2), 16);
  EXPECT_EQ(count("mutation", 2), 16);
}

TEST(FactorSearch, ApproachesAPlantedOptimum) {
  for (const std::uint64_t seed : {1, 2, 3}) {
    SearchResult r;
    all_of({.seed = seed}, &r);
    double best_known = r.known[0].nll;
    for (const Candidate& c : r.known) best_known = std::min(best_known, c.nll);
    EXPECT_LT(r.best.nll, 0.4 * best_known) << "seed " << seed;
    EXPECT_EQ(r.best.nll, distance(r.best));
    EXPECT_TRUE(std::is_sorted(r.best_nll_by_iteration.rbegin(), r.best_nll_by_iteration.rend()));
  }
}

// What is no number is worse than all; what nothing improves on stays.
TEST(FactorSearch, NeverWorseThanWhatIsKnown) {
  for (const char* best : {"pi", "ntk", "yarn"}) {
    FactorSearch search(kSpace, {.iterations = 5}, [&](const Candidate& c) {
      if (c.origin == best) return 1.0;
      return c.origin == "mutation" ? std::nan("") : 2.0;
    });
    const SearchResult r = search.run();
    EXPECT_EQ(r.best.origin, best);
    EXPECT_EQ(r.best.nll, 1.0);
  }
}

TEST(FactorSearch, IsAFunctionOfItsSeedAndGoesOnWithMoreIterations) {
  const SearchOptions few{.population = 12, .iterations = 3, .seed = 5};
  SearchOptions more = few, other = few;
  more.iterations = 6;
  other.seed = 6;
  const std::vector<Candidate> a = all_of(few), b = all_of(few), c = all_of(more);
  EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end(), same));
  ASSERT_GT(c.size(), a.size());
  EXPECT_TRUE(std::equal(a.begin(), a.end(), c.begin(), same));
  EXPECT_FALSE(same(a[5], all_of(other)[5]));
}

struct Killed : std::exception {};

// Searches with progress in `path`, and is killed before evaluation `last`.
std::int64_t search_with_progress(const std::filesystem::path& path, int ranks, int last,
                                  SearchResult& out, std::uint64_t seed = 1) {
  std::int64_t evaluated = 0;
  run_local_ranks(ranks, [&](Communicator& world) {
    SearchProgress progress(path, {{"seed", seed}}, world);
    FactorSearch search(
        kSpace, {.population = 10, .iterations = 4, .seed = seed}, [&](Candidate c) {
          if (const auto known = progress.next(c)) return *known;
          if (world.rank() == 0 && evaluated++ == last) throw Killed();
          c.nll = c.origin == "ntk" ? std::numeric_limits<double>::infinity() : distance(c);
          progress.add(c);
          return c.nll;
        });
    const SearchResult result = search.run();
    if (world.rank() == 0) out = result;
  });
  return evaluated;
}

TEST(SearchProgress, AnInterruptedSearchEndsAsAnUnbrokenOne) {
  const TemporaryFolder folder;
  SearchResult whole, parts, again;
  const std::int64_t all = search_with_progress(folder / "whole", 1, -1, whole);
  for (const int last : {0, 4, 60})
    EXPECT_THROW(search_with_progress(folder / "parts", 1, last, parts), Killed);
  write_all(folder / "parts", read_all(folder / "parts") + R"({"iteration":)");  // a power cut
  EXPECT_EQ(search_with_progress(folder / "parts", 2, -1, parts), all - 64);
  EXPECT_EQ(parts.best.factors, whole.best.factors);
  EXPECT_EQ(parts.best_nll_by_iteration, whole.best_nll_by_iteration);
  EXPECT_EQ(read_all(folder / "parts"), read_all(folder / "whole"));
  EXPECT_EQ(search_with_progress(folder / "parts", 2, -1, again), 0);
  EXPECT_EQ(again.best.factors, whole.best.factors);
}

std::string refusal(const std::filesystem::path& path, std::uint64_t seed) {
  try {
    SearchResult ignored;
    search_with_progress(path, 1, -1, ignored, seed);
  } catch (const Error& error) {
    return fmt::format("{} {}", static_cast<int>(error.code()), error.what());
  }
  return "accepted";
}

TEST(SearchProgress, RefusesWhatIsNotItsOwn) {
  const TemporaryFolder folder;
  const auto path = folder / "progress";
  SearchResult r;
  search_with_progress(path, 1, -1, r);
  EXPECT_THAT(refusal(path, 2), HasSubstr("2 "));
  EXPECT_THAT(refusal(path, 2), HasSubstr("it differs in seed (there 1, here 2)"));
  std::string text = read_all(path);
  write_all(folder / "other", text.replace(text.find("\"pi\""), 4, "\"ip\""));
  EXPECT_THAT(refusal(folder / "other", 1), HasSubstr("3 line 2 holds another candidate"));
  write_all(folder / "none", "model: {}\n");
  EXPECT_THAT(refusal(folder / "none", 1), HasSubstr("3 line 1 is not one"));
}

}  // namespace
}  // namespace farspan::testing
