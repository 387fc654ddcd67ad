// The picture that `farspan inspect attention --svg FILE` writes: one self-contained SVG with the
// figures that decide, each rank's area by hop, area and tokens of each rank, bytes of each hop,
// and the score matrix coloured by the rank that computes it. Colours stay apart under the common
// colour blindnesses (Okabe & Ito 2008; viridis).
#pragma once

#include <string>

#include "app/attention_report.h"

namespace farspan::app {

std::string attention_svg(const AttentionAnswer& answer);

}  // namespace farspan::app
