#include "oracle/quantize_tiny.h"

#include <mlx/mlx.h>

#include <cstring>

namespace lquant::oracle {

bool same(mlx::core::array a, mlx::core::array b) {
  a = mlx::core::contiguous(a), b = mlx::core::contiguous(b);
  mlx::core::eval(a, b);
  return a.shape() == b.shape() && a.dtype() == b.dtype() && std::memcmp(a.data<char>(), b.data<char>(), a.nbytes()) == 0;
}

TinyPair::TinyPair(int bits, std::uint64_t seed, mlx::core::Dtype dtype)
    : dtype(dtype), spec(model::spec_from_config(tiny_config("llama"))), teacher(model::cast(random_tensors(spec, seed), dtype)), packed(teacher) {
  for (const auto* linear : spec.linears()) pack(packed, formats, linear->path, {codec::Mode::affine, bits, 32});
}

}  // namespace lquant::oracle
