// The inverse is made block by block, which is substitution, or by substitution in a kernel: the powers of a, whose alternating sum it also is, grow
// beyond f32 where keys repeat.
#include "kernels/delta_chunks.h"

#include <mlx/mlx.h>

#include <functional>
#include <vector>

#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

using Arrays = std::vector<mx::array>;

constexpr int kLongest = 64;  // as in delta_chunks.cu
constexpr int kThreads = 96;  // one for each token and one more

/// Made on the host: a few numbers, for which a device would have several launches.
mx::array mask_of(int length, const std::function<bool(int row, int column)>& holds) {
  std::vector<float> mask;
  for (int i = 0; i < length; ++i)
    for (int j = 0; j < length; ++j) mask.push_back(holds(i, j));
  return mx::array(mask.data(), {length, length});
}

mx::array inverse_on_mlx(const mx::array& a) {
  const int length = a.shape(-1);
  auto inverse = mask_of(length, std::equal_to<int>());
  // The inverses of diagonal blocks of 1, 2, 4 … rows, two of which and what stands below the first make one of twice the size.
  for (int block = 1; block < length; block *= 2) {
    const auto below =
        mask_of(length, [block](int i, int j) { return i / (2 * block) == j / (2 * block) && i % (2 * block) >= block && j % (2 * block) < block; });
    const auto between = mx::multiply(a, below);
    inverse = mx::subtract(inverse, block == 1 ? between : mx::matmul(mx::matmul(inverse, between), inverse));
  }
  return mx::broadcast_to(inverse, a.shape());
}

mx::array inverse_on_cuda(const mx::array& a) {
  const int length = a.shape(-1);
  return call({"lquant_unit_inverse",
               delta_chunks_cu(),
               "lquant::unit_inverse(a, length, x);",
               {{"a", a}},
               {{"x", a.shape(), mx::float32}},
               {{"length", length}},
               static_cast<int>(a.size()) / (length * length),
               kThreads})[0];
}

bool serves(const mx::array& x, int length) { return cuda_kernels() && x.size() > 0 && length <= kLongest; }

ChunkDecays decays_on_mlx(const mx::array& logs) {
  const int length = logs.shape(-2);
  const auto mask = [&](bool diagonal) { return mx::expand_dims(lower_mask(length, diagonal), -1); };
  const auto sums = mx::cumsum(mx::multiply(mx::expand_dims(logs, -2), mask(false)), -3);
  return {mx::multiply(mx::exp(sums), mask(true)), mx::exp(mx::cumsum(logs, -2))};
}

ChunkDecays decays_on_cuda(const mx::array& logs) {
  const int length = logs.shape(-2), chunks = static_cast<int>(logs.size()) / length;
  auto shape = logs.shape();
  shape.insert(shape.end() - 1, length);
  const auto forward = [=](const Arrays& in) {
    return call({"lquant_chunk_decays",
                 delta_chunks_cu(),
                 "lquant::decays(logs, length, between, from_front);",
                 {{"logs", in[0]}},
                 {{"between", shape, mx::float32}, {"from_front", in[0].shape(), mx::float32}},
                 {{"length", length}},
                 chunks,
                 kThreads});
  };
  const auto backward = [=](const Arrays& in, const Arrays& cotangents, const Arrays& out) {
    return call({"lquant_chunk_decays_back",
                 delta_chunks_cu(),
                 "lquant::decay_gradients(between, from_front, dbetween, dfront, length, dlogs);",
                 {{"between", out[0]}, {"from_front", out[1]}, {"dbetween", cotangents[0]}, {"dfront", cotangents[1]}},
                 {{"dlogs", in[0].shape(), mx::float32}},
                 {{"length", length}},
                 chunks,
                 kThreads});
  };
  const auto made = mx::custom_vjp(forward, backward)({logs});
  return {made[0], made[1]};
}

}  // namespace

mx::array lower_mask(int length, bool diagonal) {
  return mask_of(length, [diagonal](int i, int j) { return diagonal ? j <= i : j < i; });
}

ChunkDecays chunk_decays(const mx::array& logs) {
  return logs.shape(-1) == 1 && serves(logs, logs.shape(-2)) ? decays_on_cuda(logs) : decays_on_mlx(logs);
}

/// The gradient needs no steps: that of a is −Xᵀ · dX · Xᵀ.
mx::array unit_inverse(const mx::array& a) {
  const auto forward = [](const Arrays& in) { return Arrays{serves(in[0], in[0].shape(-1)) ? inverse_on_cuda(in[0]) : inverse_on_mlx(in[0])}; };
  const auto backward = [](const Arrays&, const Arrays& cotangents, const Arrays& out) {
    const auto transposed = mx::swapaxes(out[0], -1, -2);
    return Arrays{mx::negative(mx::matmul(mx::matmul(transposed, cotangents[0]), transposed))};
  };
  return mx::custom_vjp(forward, backward)({a})[0];
}

}  // namespace lquant::kernels
