// Passkey and key-value retrieval, as `data synth` writes them for training and `farspan eval` asks
// them.
//
// passkey  (Mohtashami & Jaggi 2023, section 4.2; Chen et al. 2023.) Filler, a sentence with a key
//          of five digits, filler, the question, the key. Distractors are sentences with keys of
//          other things. Of integers: filler of the lower symbols, `separator key` with five of the
//          upper ones, filler, and `separator key` again.
// kv       (Liu et al. 2023, "Lost in the middle", section 3.) Lines `key: value`, then one key
//          again; its value answers. Of integers: two symbols of key and two of value a pair, then
//          `separator key value`.
#pragma once

#include "data/task_document.h"

namespace farspan {

// Least tokens of a document, the end included.
std::int64_t least_passkey_length(const TaskVocabulary& vocabulary, std::int64_t distractors);
std::int64_t least_kv_length(const TaskVocabulary& vocabulary);

// Pure functions of their arguments and of what is drawn. Throw Error(kUsage), naming the length,
// for a length that is too short or too long for the task.
TaskDocument passkey_document(const TaskVocabulary& vocabulary, const TaskShape& shape,
                              Draws& draws);
// `keys`: the stream of the permutation that hands out keys, none twice.
TaskDocument kv_document(const TaskVocabulary& vocabulary, const TaskShape& shape, Draws& draws,
                         std::uint64_t seed, std::uint64_t keys);

}  // namespace farspan
