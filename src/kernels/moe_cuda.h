#pragma once

#include "kernels/moe.h"

// The functions of moe.h as CUDA kernels, with gradients that gather where MLX's add to scattered places. Only where cuda_kernels().
namespace lquant::kernels::cuda {

Routing sort_by_expert(const mx::array& experts, int num_experts);
mx::array gather_rows(const mx::array& x, const Routing& routing, int k);
/// `weights` f32.
mx::array combine_rows(const mx::array& y, const mx::array& weights, const Routing& routing, int k);

}  // namespace lquant::kernels::cuda
