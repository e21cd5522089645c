#pragma once

#include <mlx/array.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "codec/foreign_config.h"
#include "codec/format.h"

// The tensors of a linear that another tool has quantized, by the name of the linear's path and a suffix: which may exist, which shapes they must
// have, and the numbers that they stand for.
namespace lquant::codec {

/// Names of the tensors that may hold the linear's weight, in the order in which decode looks for them; path.weight, which may be dense, is among
/// them.
std::vector<std::string> foreign_tensor_names(const Foreign& foreign, const std::string& path);
/// Names beside them that hold nothing of the weight, such as the scales of activations and of a cache: to be dropped.
std::vector<std::string> foreign_unused_names(const std::string& path);

/// Shape and dtype of a stored tensor. fp8 numbers may come as their bytes (uint8, as MLX loads them) or as the bfloat16 numbers that they stand for.
struct Stored {
  mx::Shape shape;
  mx::Dtype dtype;
};

/// What the checkpoint has under path + suffix; none and null where it has nothing.
using StoredOf = std::function<std::optional<Stored>(const std::string& suffix)>;
using TensorOf = std::function<const mx::array*(const std::string& suffix)>;

/// Whether the linear [out, in] (or `stack` of them along a leading axis; 0: no such axis) is packed; false when it has a dense weight of floats.
/// Reads no data. Throws Error, naming the tensor, when one is missing or has another shape or dtype than the description and the linear ask for.
bool check_shapes(const Foreign& foreign, const std::string& path, const StoredOf& stored, int out, int in, int stack = 0);

/// The shape of the weight that the stored tensors stand for, told by the codes (or dense numbers) alone: as many inputs as fill the packed words.
/// Empty when it cannot be told. Throws Error as check_shapes when there are no codes.
mx::Shape shape_of_weight(const Foreign& foreign, const std::string& path, const StoredOf& stored);

/// The weight [out, in] or [stack, out, in] in `dtype`: float32, bfloat16 or float16 (else std::invalid_argument). Calls check_shapes. The
/// arithmetic:
/// - fp8 beside weight_scale_inv: number · scale in the wider of bfloat16 and the scale's dtype, as mlx_lm's sanitize does; in bfloat16 equal to it
///   bit for bit. (mlx_lm's ministral3 multiplies bytes that it has not decoded; here they are decoded.)
/// - compressed-tensors: (code − zero point) · scale in the scale's dtype; the scale of nvfp4 is first divided by the global one, in float32 (in
///   ModelOpt's files multiplied by it). Each matrix of a stack may have a global scale, or one for each of several equal parts of its rows.
/// - AWQ: as the affine weights that mlx_lm makes of it: scale · code + bias, rounded after each in the scale's dtype.
/// - GPTQ: (code − zero point) · scale in the scale's dtype.
/// - mxfp4: as mx.dequantize.
/// The result is rounded to `dtype` once. Lazy, but for g_idx and weight_shape, which are read to check their values (Error).
mx::array decode(const Foreign& foreign, const std::string& path, const TensorOf& tensor, int out, int in, mx::Dtype dtype, int stack = 0);

struct InMlx {
  Format format;
  Packed packed;
};

/// The same weight as MLX's own packed tensors, codes kept: mxfp4 in both layouts, fp8 bytes with a power of two for 32 inputs (mxfp8), AWQ, and 2, 4
/// or 8-bit symmetric GPTQ and compressed-tensors, in groups of 32, 64 or 128 neighbours (affine, with the biases that mlx_lm makes: −zero point ·
/// scale in the scale's dtype). The numbers are those of decode; but scale · code + bias, as MLX computes affine weights, is rounded once more than
/// GPTQ's and compressed-tensors' own formula. None for all else and for dense weights. Throws as decode.
std::optional<InMlx> as_mlx(const Foreign& foreign, const std::string& path, const TensorOf& tensor, int out, int in, int stack = 0);

}  // namespace lquant::codec
