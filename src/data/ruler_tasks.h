// Tasks of RULER (Hsieh et al. 2024, arXiv 2404.06654, sections 3 and B) that need no other data,
// as documents of bytes. Haystacks are the noise sentences of passkey retrieval; words are drawn.
//
//   multikey    four numbers for four words, one of them asked for
//   multivalue  four numbers for one word, all asked for, in the order of the text
//   multiquery  four numbers for four words, all asked for
//   vt          variable tracking: a value handed on through four assignments; the five variables
//               that have it, in the order of the text
//   cwe         common words: a list in which ten words come 30 times and others 3 times, or, where
//               that does not fit, five words 10 times and others once; the common ones, in the
//               order in which they first appear
//   fwe         frequent words: words with frequencies of Zipf's law, exponent 2, the commonest
//               of which are dots; the three most frequent after those
//
// Answers have an order here, unlike RULER's, because a document holds them once: a teacher-forced
// pass reads them in it. Scores by generation ask for no order (train/retrieval.h).
#pragma once

#include "data/task_document.h"

namespace farspan {

// CHECKs that `task` is one of these. Throws Error(kUsage) for a length that is too short, and for
// a vocabulary of integers.
TaskDocument ruler_document(TaskKind task, const TaskVocabulary& vocabulary, const TaskShape& shape,
                            Draws& draws);

}  // namespace farspan
