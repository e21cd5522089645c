#pragma once

#include <mlx/array.h>

#include <map>
#include <string>

#include "model/spec.h"
#include "model/tensors.h"

// Moving scales along the edges of a model (spec.h): what a producer gives is divided by them, what its consumers multiply it with is
// multiplied by them, and the model computes what it did before. AWQ (arXiv 2306.00978) chooses them so that the consumers' weights bear quantization
// better. A linear's weight that `tensors` lacks is passed over: folded_weight is for those.
namespace lquant::model {

/// Scales by the edge's producer: f32 [channels], or [experts, channels]; all finite and above 0.
using Folds = std::map<std::string, mx::array>;

/// Divides what the edge's producer gives. Returns the scales that took effect: a norm is rounded to `stored`, the dtype that it will be written in,
/// and its rounding is made part of them, so that nothing is lost by it; where a norm's channel is 0, or would become so, its scale is 1. A dense
/// linear becomes f32. Of a packed one, scales and biases are divided in their own dtype: exact for powers of two. Throws std::invalid_argument when
/// shapes disagree.
mx::array fold_producer(const Edge& edge, const mx::array& scales, Tensors& tensors, mx::Dtype stored);

/// Multiplies the weights of the edge's dense consumers, which become f32. Packed ones are left: their codes are of scaled weights already.
void fold_consumers(const Edge& edge, const mx::array& scales, Tensors& tensors);

/// Both ends. Returns the scales that took effect.
mx::array fold(const Edge& edge, const mx::array& scales, Tensors& tensors, mx::Dtype stored);

/// What fold_block makes of the dense weight of one of the block's linears: itself when it is at no end of an edge that has scales, else f32. The
/// scales of norms are those that took effect.
mx::array folded_weight(const ModelSpec& spec, int block, const Folds& folds, const std::string& path, const mx::array& weight);

/// fold() for every edge of the block that `folds` has scales for.
void fold_block(const ModelSpec& spec, int block, const Folds& folds, Tensors& tensors, mx::Dtype stored);

/// An edge's scales as the columns of its consumers read them: [in], or [experts, in].
mx::array column_scales(const Edge& edge, const mx::array& scales);

}  // namespace lquant::model
