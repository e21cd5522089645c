#pragma once

#include "model/forward.h"
#include "oracle/model_random.h"

// A random two-layer Llama and its packed copy, for tests of training.
namespace lquant::oracle {

bool same(mlx::core::array a, mlx::core::array b);  ///< shape, dtype and every byte

struct TinyPair {
  explicit TinyPair(int bits, std::uint64_t seed = 1, mlx::core::Dtype dtype = mlx::core::float32);
  mlx::core::Dtype dtype;
  model::ModelSpec spec;
  model::Tensors teacher;  ///< of `dtype`
  model::Tensors packed;   ///< every linear at `bits` in groups of 32, the rest and the scales of `dtype`
  model::Formats formats;
};

}  // namespace lquant::oracle
