// Weights come as checkpoints store them, packed or dense, and leave as one dense matrix in the dtype of the product: on the CPU a
// dequantized matrix and a fast product beat any product over codes as soon as a few dozen rows share it.
#include "model/weights.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "codec/quantize.h"
#include "model/forward.h"

namespace lquant::model {
namespace {

mx::array cut(const mx::array& x, Rows rows) {
  if (rows.count == 0) return x;
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  start[0] = rows.first;
  stop[0] = rows.first + rows.count;
  return mx::slice(x, start, stop);
}

mx::array cast(const mx::array& x, mx::Dtype dtype) { return x.dtype() == dtype ? x : mx::astype(x, dtype); }

mx::array dense(const Tensors& tensors, const Formats& formats, const std::string& path, mx::Dtype dtype, Rows rows) {
  const auto weight = cut(tensor(tensors, path + ".weight"), rows);
  const auto packed = formats.find(path);
  if (packed == formats.end()) return cast(weight, dtype);
  codec::Packed parts{weight, cut(tensor(tensors, path + ".scales"), rows), std::nullopt};
  if (packed->second.mode == codec::Mode::affine) parts.biases = cut(tensor(tensors, path + ".biases"), rows);
  return codec::dequantize(parts, packed->second, dtype);
}

}  // namespace

const mx::array& tensor(const Tensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw std::invalid_argument("[model] the forward pass was given no tensor " + name);
  return found->second;
}

kernels::LinearWeight linear_weight(const Tensors& tensors, const Formats& formats, const std::string& path, mx::Dtype dtype, Rows rows) {
  kernels::LinearWeight linear{dense(tensors, formats, path, dtype, rows), std::nullopt};
  if (const auto bias = tensors.find(path + ".bias"); bias != tensors.end()) linear.bias = cast(cut(bias->second, rows), dtype);
  return linear;
}

mx::array dense_weight(const Tensors& tensors, const Formats& formats, const std::string& path, mx::Dtype dtype) {
  return dense(tensors, formats, path, dtype, {});
}

void densify(Tensors& tensors, Formats& formats, mx::Dtype dtype) {
  for (auto format = formats.begin(); format != formats.end();) {
    const auto& path = format->first;
    if (!tensors.count(path + ".weight")) {  // another block's
      ++format;
      continue;
    }
    auto weight = dense_weight(tensors, formats, path, dtype);
    mx::eval(weight);  // one at a time, so that codes and dense weights of the whole model are never there together
    tensors.insert_or_assign(path + ".weight", weight);
    tensors.erase(path + ".scales");
    tensors.erase(path + ".biases");
    format = formats.erase(format);
  }
}

}  // namespace lquant::model
