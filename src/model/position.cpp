#include "model/position.h"

#include <cmath>

#include "core/error.h"

namespace farspan {

PositionTable make_position_table(const config::Model& model) {
  const std::string& scaling = model.rope().scaling().type();
  if (model.position() != "rope" || scaling != "none")
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("position '{}' with rotary scaling '{}' is not built yet",
                                     model.position(), scaling),
                 .where = "model.position, model.rope.scaling.type",
                 .fix = "use position: rope with scaling: {type: none}"});
  PositionTable table;
  const std::int64_t dim = model.head_dim();
  for (std::int64_t j = 0; j < dim / 2; ++j)
    table.inv_freq.push_back(
        std::pow(model.rope().theta(), -2.0 * static_cast<double>(j) / static_cast<double>(dim)));
  return table;
}

}  // namespace farspan
