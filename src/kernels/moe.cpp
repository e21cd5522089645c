// Routing on MLX's ops. Sorting expert·n + index keeps ties in token order with any sort, stable or not; both parts are read back
// from the sorted keys by division.
#include "kernels/moe.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise_cpu.h"
#include "kernels/moe_cuda.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

void check(const char* what, const mx::array& rows, std::int64_t expected, const Routing& routing, int k) {
  if (k < 1 || rows.ndim() != 2 || !mx::issubdtype(rows.dtype(), mx::floating) || rows.shape(0) != expected || routing.order.dtype() != mx::int32 ||
      static_cast<std::int64_t>(routing.order.size()) % k) {
    throw std::invalid_argument(std::string("[kernels] ") + what + ": rows and routing disagree");
  }
}

/// inverse[order[r]] = r: the row of each token's choice.
mx::array inverse(const mx::array& order) {
  const int n = static_cast<int>(order.size());
  return mx::scatter(mx::zeros({n}, mx::int32), order, mx::reshape(mx::arange(n, mx::int32), {n, 1}), 0);
}

}  // namespace

Routing sort_by_expert(const mx::array& experts, int num_experts) {
  if (experts.ndim() != 2 || experts.dtype() != mx::int32 || num_experts < 1) {
    throw std::invalid_argument("[kernels] sort_by_expert: experts must be int32 [T, k], and there must be some");
  }
  if constexpr (cpu::built) {
    if (cpu::serves(mx::float32)) return cpu::sort_by_expert(experts, num_experts);
  }
  const int n = static_cast<int>(experts.size());
  if (n == 0) return {mx::zeros({0}, mx::int32), mx::zeros({num_experts + 1}, mx::int32)};
  if (cuda_kernels()) return cuda::sort_by_expert(experts, num_experts);
  const auto flat = mx::flatten(experts), length = mx::array(static_cast<std::int64_t>(n), mx::int64);
  const auto keys = mx::sort(mx::add(mx::multiply(mx::astype(flat, mx::int64), length), mx::arange(n, mx::int64)));
  const auto bounds = mx::reshape(mx::arange(num_experts + 1, mx::int32), {num_experts + 1, 1});
  return {mx::astype(mx::remainder(keys, length), mx::int32), mx::sum(mx::astype(mx::less(mx::expand_dims(flat, 0), bounds), mx::int32), 1)};
}

mx::array gather_rows(const mx::array& x, const Routing& routing, int k) {
  check("gather_rows", x, static_cast<std::int64_t>(routing.order.size()) / k, routing, k);
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::gather_rows(x, routing, k);
  }
  if (cuda_kernels() && x.size() > 0) return cuda::gather_rows(x, routing, k);
  return mx::take(x, mx::floor_divide(routing.order, mx::array(k)), 0);
}

mx::array combine_rows(const mx::array& y, const mx::array& weights, const Routing& routing, int k) {
  check("combine_rows", y, static_cast<std::int64_t>(routing.order.size()), routing, k);
  if (weights.ndim() != 2 || weights.shape(1) != k || weights.size() != routing.order.size()) {
    throw std::invalid_argument("[kernels] combine_rows: weights must be [T, k]");
  }
  const auto exact = mx::astype(weights, mx::float32);
  if constexpr (cpu::built) {
    if (cpu::serves(y.dtype())) return cpu::combine_rows(y, exact, routing, k);
  }
  if (cuda_kernels() && y.size() > 0) return cuda::combine_rows(y, exact, routing, k);
  const auto chosen = mx::astype(mx::take(y, mx::reshape(inverse(routing.order), weights.shape()), 0), mx::float32);
  return mx::astype(mx::sum(mx::multiply(chosen, mx::expand_dims(exact, 2)), 1), y.dtype());
}

}  // namespace lquant::kernels
