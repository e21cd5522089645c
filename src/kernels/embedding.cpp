// A packed table is read as a dense one thrice, rows of codes, of scales and of biases, which then meet in dequantize_affine: so its
// layout is known in one place, and the gradients to scales and biases are those of two small dense tables.
#include "kernels/embedding.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/dequantize.h"
#include "kernels/elementwise_cpu.h"

namespace lquant::kernels {
namespace {

void check(const mx::array& ids, const mx::array& table) {
  if (ids.dtype() != mx::int32) throw std::invalid_argument("[kernels] embedding: ids must be int32");
  if (table.ndim() != 2) throw std::invalid_argument("[kernels] embedding: the table must be [V, H]");
}

/// MLX does not look whether an index lies in its array, so we do; but not while MLX compiles the function around, where ids have no values.
void check_range(const mx::array& ids, const mx::array& table) {
  if (ids.size() > 0 && !ids.is_tracer() && (mx::min(ids).item<std::int32_t>() < 0 || mx::max(ids).item<std::int32_t>() >= table.shape(0))) {
    throw std::out_of_range("[kernels] embedding: an id lies outside the table");
  }
}

mx::array rows_on_mlx(const mx::array& ids, const mx::array& table) {
  check_range(ids, table);
  if (!mx::issubdtype(table.dtype(), mx::floating)) return mx::take(table, ids, 0);
  const auto forward = [ids](const std::vector<mx::array>& in) { return std::vector<mx::array>{mx::take(in[0], ids, 0)}; };
  const auto backward = [ids](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<mx::array>&) {
    const auto count = static_cast<int>(ids.size()), width = in[0].shape(1);
    const auto updates = mx::reshape(mx::astype(cotangents[0], mx::float32), {count, 1, width});
    return std::vector<mx::array>{mx::scatter_add(mx::zeros(in[0].shape(), mx::float32), mx::flatten(ids), updates, 0)};
  };
  return mx::custom_vjp(forward, backward)({table})[0];
}

mx::array rows(const mx::array& ids, const mx::array& table) {
  if constexpr (cpu::built) {
    if (table.dtype() == mx::uint32 && cpu::serves(mx::float32)) return cpu::gather_words(ids, table);
    if (cpu::serves(table.dtype())) return cpu::embedding(ids, table);
  }
  return rows_on_mlx(ids, table);
}

mx::array times(const mx::array& x, float multiplier) {
  if (multiplier == 1) return x;
  const mx::array factor(multiplier, x.dtype());
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::times(x, mx::astype(factor, mx::float32).item<float>());
  }
  return mx::multiply(x, factor);
}

}  // namespace

mx::array embedding(const mx::array& ids, const mx::array& table, float multiplier) {
  check(ids, table);
  if (!mx::issubdtype(table.dtype(), mx::floating)) throw std::invalid_argument("[kernels] embedding: the table must be float");
  return times(rows(ids, table), multiplier);
}

mx::array embedding_affine(const mx::array& ids, const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size,
                           mx::Dtype dtype, float multiplier) {
  check(ids, codes);
  check(ids, scales);
  check(ids, biases);
  if (codes.dtype() != mx::uint32 || codes.shape(0) != scales.shape(0) || scales.shape() != biases.shape()) {
    throw std::invalid_argument("[kernels] embedding_affine: codes must be u32 [V, …], scales and biases [V, H/group_size]");
  }
  return times(dequantize_affine(rows(ids, codes), rows(ids, scales), rows(ids, biases), bits, group_size, dtype), multiplier);
}

}  // namespace lquant::kernels
