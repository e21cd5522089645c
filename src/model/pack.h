#pragma once

#include <string>

#include "codec/format.h"
#include "model/tensors.h"

namespace lquant::model {

/// Puts a quantized linear in the place of its dense weight: PATH.weight becomes the codes, with PATH.scales and, if it has them, PATH.biases.
void put_packed(Tensors& tensors, const std::string& path, const codec::Packed& packed);

}  // namespace lquant::model
