#include "data/synth.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "core/error.h"
#include "core/rng.h"
#include "data/permutation.h"

namespace farspan {
namespace {

constexpr std::int64_t kByteVocab = 260;

[[noreturn]] void refuse(std::string where, std::string what, std::string fix) {
  throw Error(ExitCode::kUsage,
              {.what = std::move(what), .where = std::move(where), .fix = std::move(fix)});
}

// Draws of one document, taken in order.
class Draws {
 public:
  Draws(std::uint64_t seed, std::string_view purpose, std::int64_t document)
      : rng_(seed, stream_id(purpose, static_cast<std::uint64_t>(document))) {}
  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(rng_.below(next_++, static_cast<std::uint64_t>(bound)));
  }
  double uniform() { return rng_.uniform(next_++); }

 private:
  CounterRng rng_;
  std::uint64_t next_ = 0;
};

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

void append_text(std::vector<std::int32_t>& out, std::string_view text) {
  for (char c : text) out.push_back(static_cast<std::uint8_t>(c));
}

std::string digits(Draws& draws, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += static_cast<char>('0' + draws.below(10));
  return out;
}

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

SynthDocument passkey(const SynthOptions& o, Draws& draws) {
  constexpr std::string_view kFiller =
      "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
  const std::string key = digits(draws, 5);
  const std::string fact = fmt::format("The pass key is {}. Remember it. ", key);
  const std::string question = "What is the pass key? The pass key is ";
  const auto fixed = static_cast<std::int64_t>(fact.size() + question.size() + key.size()) + 1;
  require_length(o, fixed);
  const auto filler = static_cast<std::size_t>(o.length - fixed);
  std::string text;
  while (text.size() < filler) text += kFiller;
  text.erase(0, text.size() - filler);
  // Before the sentence that a uniform depth falls in.
  const auto depth = static_cast<std::size_t>(draws.below(static_cast<std::int64_t>(filler) + 1));
  const auto border = text.rfind(". ", depth);
  text.insert(border == std::string::npos ? 0 : border + 2, fact);
  SynthDocument out;
  append_text(out.tokens, text + question + key);
  out.tokens.push_back(byte_tokenizer_info().eos);
  score_answer(out, key.size(), o.labels);
  return out;
}

SynthDocument kv(const SynthOptions& o, Draws& draws, std::int64_t index) {
  constexpr std::int64_t kLine = 11;      // "abcd: 1234\n"
  constexpr std::int64_t kQuery = 12;     // "? abcd: 1234"
  constexpr std::int64_t kKeys = 456976;  // 26^4
  require_length(o, kLine + kQuery + 1);
  const std::int64_t pairs = (o.length - kQuery - 1) / kLine;
  if (pairs > kKeys)
    refuse("--length", "there are not so many keys of four letters",
           fmt::format("give at most {}", kKeys * kLine + kQuery + 1));
  const Permutation keys(kKeys, o.seed,
                         stream_id("synth.kv.keys", static_cast<std::uint64_t>(index)));
  const std::int64_t asked = draws.below(pairs);
  std::string text(static_cast<std::size_t>(o.length - kQuery - 1 - pairs * kLine), '\n');
  std::string query, answer;
  for (std::int64_t i = 0; i < pairs; ++i) {
    std::string key(4, 'a');
    std::uint64_t number = keys(static_cast<std::uint64_t>(i));
    for (char& c : key) c = static_cast<char>('a' + number % 26), number /= 26;
    const std::string value = digits(draws, 4);
    text += fmt::format("{}: {}\n", key, value);
    if (i != asked) continue;
    query = fmt::format("? {}: ", key);
    answer = value;
  }
  SynthDocument out;
  append_text(out.tokens, text + query + answer);
  out.tokens.push_back(byte_tokenizer_info().eos);
  score_answer(out, answer.size(), o.labels);
  return out;
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
  const bool text = o.kind == SynthKind::kPasskey || o.kind == SynthKind::kKv;
  if (text && o.vocab_size != kByteVocab)
    refuse("--vocab-size", "passkey and kv are text of bytes", "leave it out (260)");
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
  switch (o.kind) {
    case SynthKind::kPasskey: {
      Draws draws(o.seed, "synth.passkey", index);
      return passkey(o, draws);
    }
    case SynthKind::kKv: {
      Draws draws(o.seed, "synth.kv", index);
      return kv(o, draws, index);
    }
    case SynthKind::kCopy: {
      Draws draws(o.seed, "synth.copy", index);
      return copy(o, draws);
    }
    case SynthKind::kMarkov: {
      Draws draws(o.seed, "synth.markov", index);
      return markov(o, draws, o.length);
    }
    case SynthKind::kDocuments: {
      Draws draws(o.seed, "synth.documents", index);
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
