#pragma once

#include <mlx/array.h>

#include <string>

#include "kernels/linear.h"
#include "model/tensors.h"

// How the forward pass reads its weights from the map; used inside this room.
namespace lquant::model {

/// A named tensor; throws std::invalid_argument naming it when the map lacks it.
const mx::array& tensor(const Tensors& tensors, const std::string& name);

/// Rows first … first + count of a linear; count 0: all of them.
struct Rows {
  int first = 0, count = 0;
};

/// Weight (dense, or dequantized from codes) and bias of a linear in `dtype`. Rows of a packed linear are cut before they
/// are dequantized, so that a fused linear costs no second copy.
kernels::LinearWeight linear_weight(const Tensors& tensors, const Formats& formats, const std::string& path, mx::Dtype dtype, Rows rows = {});

}  // namespace lquant::model
