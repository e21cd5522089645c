#pragma once

#include <mlx/array.h>

#include "model/spec.h"

namespace lquant::model {

/// Of a product [..., out] what belongs to one part of its linear: [..., part.rows].
mx::array columns_of(const mx::array& product, const Part& part);

}  // namespace lquant::model
