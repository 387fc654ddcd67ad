#include "train/factor_search.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "core/error.h"
#include "model/rotary.h"

namespace farspan {
namespace {

constexpr double kStep = 0.01;    // between factors
constexpr double kBeyond = 1.25;  // largest factor, in s
constexpr int kAttempts = 16;     // to draw a child that is new

// A multiple of kStep in [low, high]; `otherwise` where there is none.
double draw_between(double low, double high, double otherwise, Draws& draws) {
  constexpr double kRounding = 1e-9;
  const auto first = static_cast<std::int64_t>(std::ceil(low / kStep - kRounding));
  const auto last = static_cast<std::int64_t>(std::floor(high / kStep + kRounding));
  if (last < first) return otherwise;
  return static_cast<double>(first + draws.below(last - first + 1)) / std::round(1 / kStep);
}

// Pairs in order, or from the last to the first.
std::vector<std::size_t> places(std::size_t count, bool up) {
  std::vector<std::size_t> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = up ? i : count - 1 - i;
  return out;
}

bool coin(Draws& draws) { return draws.below(2) == 1; }

}  // namespace

std::vector<Candidate> known_factors(const SearchSpace& space) {
  RotaryArgs args{.theta = space.theta, .head_dim = space.head_dim};
  const std::vector<double> plain = rotary_table(args).inv_freq;
  args.scaling.set_original_context(space.original_context);
  args.scaling.set_factor(space.factor());
  std::vector<Candidate> out;
  for (const auto& [type, origin] : {std::pair{"linear", "pi"}, {"ntk", "ntk"}, {"yarn", "yarn"}}) {
    args.scaling.set_type(type);
    const RotaryTable scaled = rotary_table(args);
    Candidate c;
    c.origin = origin;
    c.factors.attention = scaled.attention_scale;
    double last = 1;  // a quotient's rounding may not break the order
    for (std::size_t j = 0; j < plain.size(); ++j) {
      const double factor = std::round(plain[j] / scaled.inv_freq[j] * 1e9) / 1e9;
      c.factors.of_pair.push_back(last = std::max(last, factor));
    }
    out.push_back(std::move(c));
  }
  return out;
}

config::RopeScaling to_scaling(const RotaryFactors& factors, const SearchSpace& space) {
  config::RopeScaling out;
  out.set_type("longrope");
  out.set_original_context(space.original_context);
  out.set_target_context(space.target_context);
  out.set_factor(space.factor());
  out.set_attention_factor(factors.attention);
  for (const double f : factors.of_pair) {
    out.add_short_factor(1);
    out.add_long_factor(f);
  }
  return out;
}

FactorSearch::FactorSearch(const SearchSpace& space, const SearchOptions& options,
                           Evaluate evaluate)
    : space_(space), options_(options), evaluate_(std::move(evaluate)) {
  FARSPAN_CHECK(space.head_dim >= 4 && space.original_context > 1 &&
                    space.target_context > space.original_context,
                "head_dim {}, {} to {}", space.head_dim, space.original_context,
                space.target_context);
  FARSPAN_CHECK(options.population >= 3 && options.parents >= 1 && options.iterations >= 1);
  result_.known = known_factors(space);
  const double longrope = std::sqrt(1 + std::log(space.factor()) /
                                            std::log(static_cast<double>(space.original_context)));
  attention_factors_ = {1.0, result_.known.back().factors.attention, longrope};
}

SearchResult FactorSearch::run(const std::function<void(const SearchResult&)>& done) {
  for (std::int64_t iteration = 1; iteration <= options_.iterations; ++iteration) {
    evaluate(iteration == 1 ? first_population() : children(iteration));
    result_.best = parents_.front();
    result_.best_nll_by_iteration.push_back(result_.best.nll);
    if (done) done(result_);
  }
  return result_;
}

void FactorSearch::evaluate(std::vector<Candidate> population) {
  for (Candidate& c : population) {
    c.nll = evaluate_(c);
    if (!std::isfinite(c.nll)) c.nll = std::numeric_limits<double>::infinity();
    ++result_.evaluations;
    for (Candidate& known : result_.known)
      if (known.origin == c.origin) known.nll = c.nll;
    parents_.push_back(std::move(c));
  }
  std::stable_sort(parents_.begin(), parents_.end(),
                   [](const Candidate& a, const Candidate& b) { return a.nll < b.nll; });
  if (std::ssize(parents_) > options_.parents)
    parents_.resize(static_cast<std::size_t>(options_.parents));
}

std::vector<Candidate> FactorSearch::first_population() {
  std::vector<Candidate> out = result_.known;
  for (const Candidate& c : out) seen_.insert(c.factors);
  add_children(out, "mutation", 1, options_.population - std::ssize(out), [&](Draws& draws) {
    return mutation(result_.known[static_cast<std::size_t>(draws.below(3))].factors, draws);
  });
  return out;
}

std::vector<Candidate> FactorSearch::children(std::int64_t iteration) {
  std::vector<Candidate> out;
  add_children(out, "mutation", iteration, options_.mutations,
               [&](Draws& draws) { return mutation(any_parent(draws), draws); });
  add_children(out, "crossover", iteration, options_.crossovers, [&](Draws& draws) {
    const RotaryFactors& a = any_parent(draws);
    return crossover(a, any_parent(draws), draws);
  });
  return out;
}

void FactorSearch::add_children(std::vector<Candidate>& to, const char* origin,
                                std::int64_t iteration, std::int64_t count, const MakeChild& make) {
  for (std::int64_t child = 0; child < count; ++child) {
    Draws draws(options_.seed,
                stream_id(std::string("extend.") + origin, static_cast<std::uint64_t>(iteration),
                          static_cast<std::uint64_t>(child)));
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      RotaryFactors factors = make(draws);
      if (!seen_.insert(factors).second) continue;
      to.push_back({.factors = std::move(factors), .origin = origin, .iteration = iteration});
      break;
    }
  }
}

const RotaryFactors& FactorSearch::any_parent(Draws& draws) const {
  return parents_[static_cast<std::size_t>(draws.below(std::ssize(parents_)))].factors;
}

// A pair moves between the values of the pairs `reach` away, and those that it passes go with it.
// Between direct neighbours alone, flat stretches such as PI's could hardly move.
RotaryFactors FactorSearch::mutation(const RotaryFactors& parent, Draws& draws) const {
  RotaryFactors out = parent;
  std::vector<double>& f = out.of_pair;
  const std::size_t reach = std::size_t{1} << draws.below(std::bit_width(f.size()) + 1);
  for (const std::size_t j : places(f.size(), coin(draws))) {
    if (draws.uniform() >= options_.mutation_probability) continue;
    const double low = j >= reach ? f[j - reach] : 1.0;
    const double high = j + reach < f.size() ? f[j + reach] : kBeyond * space_.factor();
    f[j] = draw_between(low, high, f[j], draws);
    for (std::size_t i = 0; i < f.size(); ++i)
      f[i] = i < j ? std::min(f[i], f[j]) : std::max(f[i], f[j]);
  }
  if (draws.uniform() < options_.mutation_probability)
    out.attention =
        attention_factors_[static_cast<std::size_t>(draws.below(std::ssize(attention_factors_)))];
  return out;
}

// Each pair is of either parent, by a coin, unless that would break the order; then the other's
// does not, since it is at least (going down: at most) that parent's own last one.
RotaryFactors FactorSearch::crossover(const RotaryFactors& a, const RotaryFactors& b,
                                      Draws& draws) const {
  RotaryFactors out{.of_pair = a.of_pair, .attention = coin(draws) ? a.attention : b.attention};
  const bool up = coin(draws);
  double last = up ? 0 : std::numeric_limits<double>::infinity();
  for (const std::size_t j : places(a.of_pair.size(), up)) {
    const bool first = coin(draws);
    const double chosen = (first ? a : b).of_pair[j], other = (first ? b : a).of_pair[j];
    const bool keeps = up ? chosen >= last : chosen <= last;
    out.of_pair[j] = last = keeps ? chosen : other;
  }
  return out;
}

}  // namespace farspan
