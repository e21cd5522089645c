#include "model/pack.h"

namespace lquant::model {

void put_packed(Tensors& tensors, const std::string& path, const codec::Packed& packed) {
  tensors.insert_or_assign(path + ".weight", packed.codes);
  tensors.insert_or_assign(path + ".scales", packed.scales);
  if (packed.biases) tensors.insert_or_assign(path + ".biases", *packed.biases);
}

}  // namespace lquant::model
