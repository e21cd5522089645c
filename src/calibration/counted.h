#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "model/forward.h"

// Which part of a linear's input is of tokens that count. Padding goes through the model like every token, and experts get its rows too.
namespace lquant::calibration {

namespace mx = mlx::core;

/// x [..., K] → [T, K]: the rows of `tokens` (int32), or all when it is null.
mx::array tokens_of(const mx::array& x, const mx::array* tokens);

/// What the experts of a mixture read in one batch.
struct CountedRows {
  mx::array input;                                                 ///< [R, K]
  std::vector<std::int32_t> offsets;                               ///< E + 1: rows offsets[e] … offsets[e + 1] are expert e's
  std::optional<std::vector<std::int32_t>> places = std::nullopt;  ///< of row r the row of `input`; nullopt: r
  int experts() const { return static_cast<int>(offsets.size()) - 1; }
  int rows(int expert) const { return offsets[expert + 1] - offsets[expert]; }
  /// Those of one expert [rows(expert), K].
  mx::array of(int expert) const;
};
/// Of the rows [R, K] those of `tokens` (int32), in the same order, or all when it is null. Nothing is copied: where the experts' rows have a source,
/// it alone is kept. Evaluated.
CountedRows counted_rows(const mx::array& input, const model::ExpertRows& experts, const mx::array* tokens);

}  // namespace lquant::calibration
