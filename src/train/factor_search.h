// The search of LongRoPE (Ding et al. 2024, arXiv 2402.13753, section 3.2-3.3 and algorithm 1): by
// how much to divide the frequency of each rotated pair, so that a model reads a longer context
// with the least perplexity, without tuning.
//
//   FactorSearch search(space, {.seed = 1}, [&](const Candidate& c) { return nll_of(c.factors); });
//   SearchResult r = search.run();
//   r.best.factors.of_pair              // long_factor of model.rope.scaling
//
// From the paper: candidates never decrease from pair to pair (NTK: fast pairs need less
// interpolation), lie between 1 and 1.25 s in steps of 0.01, and begin as PI, NTK, YaRN and their
// mutations; each iteration keeps the best, and adds mutations and crossovers of them. Ours: how a
// child that keeps the order is drawn (the authors' code redraws factors between their direct
// neighbours), and that a candidate has one of three attention factors too: 1, YaRN's or
// LongRoPE's, so that PI, NTK and YaRN compete as what they are, and nothing that is found is
// worse.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "config/run_config.pb.h"
#include "data/draws.h"

namespace farspan {

struct RotaryFactors {
  std::vector<double> of_pair;  // (head_dim / 2): divide the frequencies
  double attention = 1.0;       // multiplies cos and sin
  auto operator<=>(const RotaryFactors&) const = default;
};

struct Candidate {
  RotaryFactors factors;
  std::string origin;          // pi, ntk, yarn, mutation, crossover
  std::int64_t iteration = 1;  // that it was evaluated in
  double nll = 0;              // nats per token
};

struct SearchSpace {
  double theta = 10000;
  std::int64_t head_dim = 0;  // even, at least 4
  std::int64_t original_context = 0, target_context = 0;
  double factor() const {  // s
    return static_cast<double>(target_context) / static_cast<double>(original_context);
  }
};

// Defaults are those of the paper and of the authors' code.
struct SearchOptions {
  std::int64_t population = 64;  // of the first iteration, at least 3
  std::int64_t iterations = 40;  // populations that are evaluated
  std::int64_t parents = 32;     // best candidates, of which children are drawn
  std::int64_t mutations = 16, crossovers = 16;
  double mutation_probability = 0.3;  // of each pair
  std::uint64_t seed = 1;
};

struct SearchResult {
  Candidate best;
  std::vector<Candidate> known;  // pi, ntk, yarn
  std::vector<double> best_nll_by_iteration;
  std::int64_t evaluations = 0;
};

// PI, NTK and YaRN (model/rotary.h) as factors, in that order.
std::vector<Candidate> known_factors(const SearchSpace& space);

// As the model reads it: longrope with these factors beyond the original context, 1 within.
config::RopeScaling to_scaling(const RotaryFactors& factors, const SearchSpace& space);

// A pure function of space, options and what `evaluate` returns; more iterations go on from fewer.
class FactorSearch {
 public:
  // Nats per token; what is no number counts as infinite. Called for each candidate once.
  using Evaluate = std::function<double(const Candidate&)>;
  FactorSearch(const SearchSpace& space, const SearchOptions& options, Evaluate evaluate);

  // `done` is called after each iteration, with what is known by then.
  SearchResult run(const std::function<void(const SearchResult&)>& done = {});

 private:
  using MakeChild = std::function<RotaryFactors(Draws&)>;

  void evaluate(std::vector<Candidate> population);
  std::vector<Candidate> first_population();
  std::vector<Candidate> children(std::int64_t iteration);
  // `count` candidates that were not there before; fewer where draws only repeat what was.
  void add_children(std::vector<Candidate>& to, const char* origin, std::int64_t iteration,
                    std::int64_t count, const MakeChild& make);
  RotaryFactors mutation(const RotaryFactors& parent, Draws& draws) const;
  RotaryFactors crossover(const RotaryFactors& a, const RotaryFactors& b, Draws& draws) const;
  const RotaryFactors& any_parent(Draws& draws) const;

  SearchSpace space_;
  SearchOptions options_;
  Evaluate evaluate_;
  std::vector<double> attention_factors_;
  std::vector<Candidate> parents_;  // best first; of equals the older
  std::set<RotaryFactors> seen_;
  SearchResult result_;
};

}  // namespace farspan
