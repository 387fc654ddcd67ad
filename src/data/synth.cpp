#include "data/synth.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "core/error.h"
#include "core/rng.h"
#include "data/retrieval_tasks.h"

namespace farspan {
namespace {

constexpr std::int64_t kByteVocab = 260;

[[noreturn]] void refuse(std::string where, std::string what, std::string fix) {
  throw Error(ExitCode::kUsage,
              {.what = std::move(what), .where = std::move(where), .fix = std::move(fix)});
}

// Which ids the integer tasks use.
struct Alphabet {
  std::int32_t first, count, separator, end;
  explicit Alphabet(std::int64_t vocab) {
    const auto v = static_cast<std::int32_t>(vocab);
    if (vocab == kByteVocab) {
      first = 'a', count = 26, separator = '|', end = byte_tokenizer_info().eos;
    } else {
      first = 0, count = v - 2, separator = v - 2, end = v - 1;
    }
  }
};

// Scores the last `answer` tokens and the end.
void score_answer(SynthDocument& document, std::size_t answer, LabelMode mode) {
  if (mode == LabelMode::kAll) return;
  document.labels = document.tokens;
  std::fill_n(document.labels.begin(), document.tokens.size() - answer - 1, kIgnoreLabel);
}

void require_length(const SynthOptions& o, std::int64_t least) {
  if (o.length < least)
    refuse("--length", fmt::format("{} tokens are too few for this kind", o.length),
           fmt::format("give at least {}", least));
}

SynthDocument scored(TaskDocument task, LabelMode mode) {
  SynthDocument out{.tokens = std::move(task.tokens), .labels = {}};
  score_answer(out, static_cast<std::size_t>(task.answer.size()), mode);
  return out;
}

TaskVocabulary task_vocabulary(const SynthOptions& o) {
  return o.vocab_size == kByteVocab ? TaskVocabulary::bytes()
                                    : TaskVocabulary::integers(o.vocab_size);
}

SynthDocument copy(const SynthOptions& o, Draws& draws) {
  require_length(o, 4);
  const Alphabet alphabet(o.vocab_size);
  const auto half = static_cast<std::size_t>((o.length - 2) / 2);
  SynthDocument out;
  for (std::size_t i = 0; i < half; ++i)
    out.tokens.push_back(alphabet.first + static_cast<std::int32_t>(draws.below(alphabet.count)));
  out.tokens.push_back(alphabet.separator);
  for (std::size_t i = 0; i < half; ++i) out.tokens.push_back(out.tokens[i]);
  out.tokens.push_back(alphabet.end);
  score_answer(out, half, o.labels);
  return out;
}

// The rank-th likeliest successor of a symbol: four different ones, fixed by the seed.
std::int32_t successor(const CounterRng& chain, const Alphabet& alphabet, std::int32_t symbol,
                       int rank) {
  std::array<std::int32_t, 4> chosen{};
  std::uint64_t draw = static_cast<std::uint64_t>(symbol) << 16;
  for (int i = 0; i <= rank; ++i) {
    const auto taken = chosen.begin() + i;
    do {
      *taken = static_cast<std::int32_t>(
          chain.below(draw++, static_cast<std::uint64_t>(alphabet.count)));
    } while (std::find(chosen.begin(), taken, *taken) != taken);
  }
  return alphabet.first + chosen[static_cast<std::size_t>(rank)];
}

SynthDocument markov(const SynthOptions& o, Draws& draws, std::int64_t length) {
  require_length(o, 2);
  const Alphabet alphabet(o.vocab_size);
  const CounterRng chain(o.seed, stream_id("synth.markov.chain"));
  SynthDocument out;
  out.tokens.push_back(alphabet.first + static_cast<std::int32_t>(draws.below(alphabet.count)));
  while (static_cast<std::int64_t>(out.tokens.size()) < length - 1) {
    const double u = draws.uniform();
    const int rank = u < 0.5 ? 0 : u < 0.75 ? 1 : u < 0.875 ? 2 : 3;
    out.tokens.push_back(successor(chain, alphabet, out.tokens.back() - alphabet.first, rank));
  }
  out.tokens.push_back(alphabet.end);
  return out;
}

std::int64_t spread_length(std::int64_t length, Draws& draws) {
  const double shortest = std::log(static_cast<double>(length) / 16);
  const double longest = std::log(static_cast<double>(length) * 4);
  return std::max<std::int64_t>(
      2, std::llround(std::exp(shortest + (longest - shortest) * draws.uniform())));
}

void check_vocabulary(const SynthOptions& o) {
  if (o.vocab_size < 6 || o.vocab_size > std::numeric_limits<std::int32_t>::max())
    refuse("--vocab-size", fmt::format("a vocabulary of {} is impossible here", o.vocab_size),
           "give at least 6: four symbols, a separator and an end");
}

}  // namespace

SynthKind parse_synth_kind(std::string_view text) {
  if (text == "passkey") return SynthKind::kPasskey;
  if (text == "kv") return SynthKind::kKv;
  if (text == "copy") return SynthKind::kCopy;
  if (text == "markov") return SynthKind::kMarkov;
  if (text == "documents") return SynthKind::kDocuments;
  refuse("--kind", fmt::format("the kind `{}` is not known", text),
         "use passkey, kv, copy, markov or documents");
}

SynthDocument make_synth_document(const SynthOptions& o, std::int64_t index) {
  check_vocabulary(o);
  const auto number = static_cast<std::uint64_t>(index);
  const auto draws_of = [&](std::string_view purpose) {
    return Draws(o.seed, stream_id(purpose, number));
  };
  switch (o.kind) {
    case SynthKind::kPasskey: {
      Draws draws = draws_of("synth.passkey");
      return scored(passkey_document(task_vocabulary(o), {.length = o.length}, draws), o.labels);
    }
    case SynthKind::kKv: {
      Draws draws = draws_of("synth.kv");
      return scored(kv_document(task_vocabulary(o), {.length = o.length}, draws, o.seed,
                                stream_id("synth.kv.keys", number)),
                    o.labels);
    }
    case SynthKind::kCopy: {
      Draws draws = draws_of("synth.copy");
      return copy(o, draws);
    }
    case SynthKind::kMarkov: {
      Draws draws = draws_of("synth.markov");
      return markov(o, draws, o.length);
    }
    case SynthKind::kDocuments: {
      Draws draws = draws_of("synth.documents");
      const std::int64_t length = spread_length(o.length, draws);
      return markov(o, draws, length);
    }
  }
  FARSPAN_CHECK(false, "kind {}", static_cast<int>(o.kind));
}

SinkReport synthesize(const SynthOptions& options,
                      const std::function<void(std::int64_t, std::int64_t)>& on_progress) {
  if (options.tokens < 1 && options.documents < 1)
    refuse("--tokens", "nothing is asked for", "give --tokens or --documents");
  make_synth_document(options, 0);  // impossible options are known before a file is made
  TokenizerInfo tokenizer = byte_tokenizer_info();
  if (options.vocab_size != kByteVocab)
    tokenizer = {
        .name = "none", .vocab_size = options.vocab_size, .eos = Alphabet(options.vocab_size).end};
  DocumentSink sink({.out = options.out,
                     .split = options.split,
                     .tokenizer = tokenizer,
                     .overwrite = options.overwrite});
  std::int64_t done = 0, reported = 0;
  for (std::int64_t i = 0; options.documents > 0 ? i < options.documents : done < options.tokens;
       ++i) {
    const SynthDocument document = make_synth_document(options, i);
    sink.append({.tokens = document.tokens, .labels = document.labels});
    sink.end_document();
    done += static_cast<std::int64_t>(document.tokens.size());
    if (!on_progress || done - reported < (1 << 22)) continue;
    reported = done;
    if (options.documents > 0)
      on_progress(i + 1, options.documents);
    else
      on_progress(std::min(done, options.tokens), options.tokens);
  }
  return sink.finish();
}

}  // namespace farspan
