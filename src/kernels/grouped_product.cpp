// The host's side of grouped_product.cu. How many rows an expert has is known on the device alone, so as many blocks are launched as there could be
// tiles, and those behind the last tile return at once.
#include "kernels/grouped_product.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

using Arrays = std::vector<mx::array>;

// As in grouped_product.cu.
constexpr int kTile = 128;
constexpr int kThreads = 256;
constexpr int kCapability = 80;                       // of the instructions in tensor_core.cu
constexpr int kSharedBytes = 4 * 2 * kTile * 32 * 2;  // stages, operands, vectors, depth, bytes

int tiles(int count) { return (count + kTile - 1) / kTile; }

const char* text() {
  static const std::string both = std::string(tensor_core_cu()) + grouped_product_cu();
  return both.c_str();
}

mx::array launch(const std::string& name, const std::string& expression, const std::vector<CudaInput>& inputs, const CudaOutput& output,
                 const std::vector<CudaScalar>& scalars, int blocks) {
  return call({name, text(), "extern __shared__ uint4 shared[];\n" + expression, inputs, {output}, scalars, blocks, kThreads, kSharedBytes})[0];
}

/// x [R, k] by w [E, n, k] (`by_vector`) or [E, k, n]: [R, n].
mx::array by_rows(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias, const mx::array& offsets, bool by_vector) {
  const int rows = x.shape(0), k = x.shape(1), experts = w.shape(0), n = w.shape(by_vector ? 1 : 2);
  const int row_tiles = rows / kTile + std::min(experts, rows);  // every expert may leave one tile partly empty
  const auto type = cuda_type(x.dtype());
  std::vector<CudaInput> inputs{{"x", x}, {"w", w}, {"offsets", offsets}};
  if (bias) inputs.push_back({"bias", *bias});
  const auto expression = fmt::format("lquant::rows_by_experts<{0}, {1}>(shared, x, w, {2}, offsets, experts, row_tiles, k, n, y);", type, by_vector,
                                      bias ? "bias" : fmt::format("static_cast<const {}*>(nullptr)", type));
  return launch(fmt::format("lquant_rows_by_experts_{}{}", by_vector ? "nk" : "kn", bias ? "_bias" : ""), expression, inputs,
                {"y", {rows, n}, x.dtype()}, {{"experts", experts}, {"row_tiles", row_tiles}, {"k", k}, {"n", n}}, row_tiles * tiles(n));
}

mx::array weight_gradient(const mx::array& dy, const mx::array& x, const mx::array& offsets) {
  const int experts = offsets.shape(0) - 1, n = dy.shape(1), k = x.shape(1);
  const auto expression = fmt::format("lquant::gradients_by_experts<{}>(shared, dy, x, offsets, k, n, dw);", cuda_type(x.dtype()));
  return launch("lquant_gradients_by_experts", expression, {{"dy", dy}, {"x", x}, {"offsets", offsets}}, {"dw", {experts, n, k}, x.dtype()},
                {{"k", k}, {"n", n}}, experts * tiles(n) * tiles(k));
}

/// [E, N]: the sum of each expert's rows of dy.
mx::array bias_gradient(const mx::array& dy, const mx::array& offsets) {
  const int experts = offsets.shape(0) - 1;
  const auto bounds = mx::stack({mx::slice(offsets, {0}, {experts}), mx::slice(offsets, {1}, {experts + 1})}, 1);
  return mx::squeeze(mx::segmented_mm(mx::ones({1, dy.shape(0)}, dy.dtype()), dy, mx::astype(bounds, mx::uint32)), 1);
}

}  // namespace

bool fused_grouped_product(const mx::array& weight) {
  return cuda_kernels() && weight.dtype().size() == 2 && weight.size() > 0 && weight.shape(1) % 8 == 0 && weight.shape(2) % 8 == 0 &&
         compute_capability() >= kCapability;
}

mx::array grouped_product(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets) {
  const auto forward = [offsets](const Arrays& in) {
    return Arrays{by_rows(in[0], in[1], in.size() > 2 ? std::optional(in[2]) : std::nullopt, offsets, /*by_vector=*/true)};
  };
  const auto backward = [offsets](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    const auto dy = mx::astype(cotangents[0], in[0].dtype());
    Arrays gradients{by_rows(dy, in[1], std::nullopt, offsets, /*by_vector=*/false), weight_gradient(dy, in[0], offsets)};
    if (in.size() > 2) gradients.push_back(bias_gradient(dy, offsets));
    return gradients;
  };
  Arrays inputs{x, weight};
  if (bias) inputs.push_back(*bias);
  return mx::custom_vjp(forward, backward)(inputs)[0];
}

}  // namespace lquant::kernels
