#include "train/retrieval.h"

#include <algorithm>
#include <numeric>

#include "comm/agree.h"
#include "data/packing.h"

namespace farspan {
namespace {

// Where the answer's tokens of each document of one length are counted.
struct Slots {
  struct Document {
    TokenRange answer;
    std::vector<TokenRange> items;
    std::size_t first;  // slot of the answer's first token
  };
  std::vector<Document> documents;
  std::size_t count = 0;

  void add(const TaskDocument& document) {
    documents.push_back({document.answer, document.items, count});
    count += static_cast<std::size_t>(document.answer.size());
  }
};

void put_row(Batch& batch, std::int64_t row, const TaskDocument& document, bool scored) {
  const std::int64_t length = batch.sequence_length;
  for (std::int64_t t = 0; t < length; ++t) {
    const auto at = static_cast<std::size_t>(row * length + t);
    batch.tokens[at] = document.tokens[static_cast<std::size_t>(t)];
    const bool asked = scored && t + 1 >= document.answer.begin && t + 1 < document.answer.end;
    batch.labels[at] = asked ? document.tokens[static_cast<std::size_t>(t + 1)] : kIgnoreLabel;
    batch.positions[at] = static_cast<std::int32_t>(t);
    batch.segments[at] = static_cast<std::int32_t>(row);
  }
}

// The documents of one length as rows.
ScoredRows rows_of(const TaskGrid& grid, std::size_t length) {
  const std::int64_t first_document = static_cast<std::int64_t>(length) * grid.per_length();
  return {.count = grid.per_length(),
          .length = grid.lengths[length],
          .make = [&grid, first_document](std::int64_t first, std::int64_t n) {
            const std::int64_t last = grid.per_length() - 1;
            Batch batch = empty_batch(n, grid.lengths[grid.place(first_document).length]);
            for (std::int64_t row = 0; row < n; ++row)
              put_row(batch, row, grid.document(first_document + std::min(first + row, last)),
                      first + row <= last);
            return batch;
          }};
}

RetrievalCell count(const Slots::Document& document, std::span<const double> hits,
                    std::span<const double> nll) {
  const auto hit = [&](const TokenRange& range) {
    const auto begin =
        document.first + static_cast<std::size_t>(range.begin - document.answer.begin);
    return std::all_of(hits.begin() + static_cast<std::ptrdiff_t>(begin),
                       hits.begin() + static_cast<std::ptrdiff_t>(begin) + range.size(),
                       [](double h) { return h > 0; });
  };
  RetrievalCell out{.documents = 1,
                    .right = hit(document.answer) ? 1 : 0,
                    .items = static_cast<std::int64_t>(document.items.size()),
                    .tokens = document.answer.size()};
  for (const TokenRange& item : document.items) out.items_right += hit(item) ? 1 : 0;
  for (std::size_t i = document.first;
       i < document.first + static_cast<std::size_t>(document.answer.size()); ++i) {
    out.tokens_right += hits[i] > 0 ? 1 : 0;
    out.nll_sum += nll[i];
  }
  return out;
}

}  // namespace

RetrievalCell& RetrievalCell::operator+=(const RetrievalCell& other) {
  documents += other.documents;
  right += other.right;
  items += other.items;
  items_right += other.items_right;
  tokens += other.tokens;
  tokens_right += other.tokens_right;
  nll_sum += other.nll_sum;
  return *this;
}

RetrievalCell RetrievalResult::of_length(std::size_t length) const {
  RetrievalCell sum;
  for (std::int64_t depth = 0; depth < grid.num_depths(); ++depth) sum += cell(length, depth);
  return sum;
}

RetrievalResult score_retrieval(ScoringModel& model, const TaskGrid& grid,
                                const RetrievalProgress& progress) {
  RetrievalResult out{.grid = grid, .cells = {}};
  out.cells.resize(grid.lengths.size() * static_cast<std::size_t>(grid.num_depths()));
  for (std::size_t length = 0; length < grid.lengths.size(); ++length) {
    const std::int64_t first = static_cast<std::int64_t>(length) * grid.per_length();
    Slots slots;
    together(model.hosts(), [&] {
      for (std::int64_t i = 0; i < grid.per_length(); ++i) slots.add(grid.document(first + i));
    });
    std::vector<double> values(2 * slots.count);  // hits, then nll
    score_labels(model, rows_of(grid, length), [&](const LabelScore& score) {
      const Slots::Document& document = slots.documents[static_cast<std::size_t>(score.row)];
      const std::size_t slot =
          document.first + static_cast<std::size_t>(score.token + 1 - document.answer.begin);
      values[slot] = score.hit() ? 1 : 0;
      values[slots.count + slot] = score.nll;
    });
    sum_over_ranks(model, values);
    const std::span<const double> all = values;
    for (std::int64_t i = 0; i < grid.per_length(); ++i) {
      const TaskGrid::Place place = grid.place(first + i);
      out.cells[length * static_cast<std::size_t>(grid.num_depths()) +
                static_cast<std::size_t>(place.depth)] +=
          count(slots.documents[static_cast<std::size_t>(i)], all.first(slots.count),
                all.last(slots.count));
    }
    if (progress) progress(first + grid.per_length(), grid.size());
  }
  return out;
}

RetrievalResult generate_retrieval(InferenceModel& model, const TaskGrid& grid,
                                   const GenerateOptions& options,
                                   const RetrievalProgress& progress) {
  RetrievalResult out{.grid = grid, .cells = {}};
  out.cells.resize(grid.lengths.size() * static_cast<std::size_t>(grid.num_depths()));
  for (std::int64_t i = 0; i < grid.size(); ++i) {
    TaskDocument document;
    together(model.world(), [&] { document = grid.document(i); });
    const auto at = [&](std::int64_t t) { return document.tokens.begin() + t; };
    GenerateOptions greedy = options;
    greedy.max_new_tokens = document.answer.size();
    greedy.temperature = 0;
    const std::vector<std::int32_t> prompt(at(0), at(document.answer.begin));
    const std::vector<std::int32_t> written = generate(model, prompt, greedy).tokens;
    RetrievalCell one{.documents = 1,
                      .right = std::equal(at(document.answer.begin), at(document.answer.end),
                                          written.begin(), written.end())
                                   ? 1
                                   : 0,
                      .items = static_cast<std::int64_t>(document.items.size())};
    for (const TokenRange& item : document.items)
      one.items_right +=
          std::search(written.begin(), written.end(), at(item.begin), at(item.end)) != written.end()
              ? 1
              : 0;
    const TaskGrid::Place place = grid.place(i);
    out.cells[place.length * static_cast<std::size_t>(grid.num_depths()) +
              static_cast<std::size_t>(place.depth)] += one;
    if (progress && (i + 1) % grid.per_length() == 0) progress(i + 1, grid.size());
  }
  return out;
}

double passkey_accuracy(ScoringModel& model, const TaskVocabulary& vocabulary, std::int64_t length,
                        std::int64_t depths, std::int64_t samples, std::uint64_t seed) {
  const TaskGrid grid{.task = TaskKind::kPasskey,
                      .lengths = {length},
                      .depths = depths,
                      .samples = samples,
                      .seed = seed,
                      .vocabulary = vocabulary};
  return score_retrieval(model, grid).of_length(0).accuracy();
}

}  // namespace farspan
