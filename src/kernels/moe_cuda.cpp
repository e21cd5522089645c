// The host's side of moe.cu. A gradient takes each row from where it went: MLX's own would add rows to places, in an order that differs from run to
// run.
#include "kernels/moe_cuda.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <string>
#include <vector>

#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"

namespace lquant::kernels::cuda {
namespace {

using Arrays = std::vector<mx::array>;

constexpr int kThreads = 256;
constexpr int kSortThreads = 1024;  // moe.cu counts on them
constexpr int kWarp = 32;
constexpr int kWide = 8;

int columns_of_a_thread(int width) { return width % kWide == 0 ? kWide : 1; }

/// The row of each token's choice: rows[order[r]] = r.
mx::array rows_of_choices(const mx::array& order) {
  const auto count = order.size();
  return call({"lquant_invert",
               moe_cu(),
               "lquant::invert(order, count, rows);",
               {{"order", order}},
               {{"rows", order.shape(), mx::int32}},
               {{"count", static_cast<int>(count)}},
               blocks_for(count, kThreads),
               kThreads})[0];
}

/// [T, H] from y [T·k, H], each row times its weight if there are weights.
mx::array combined(const mx::array& y, const mx::array* weights, const mx::array& order, int k) {
  const int tokens = y.shape(0) / k, width = y.shape(1), n = columns_of_a_thread(width);
  std::vector<CudaInput> inputs{{"y", y}, {"rows", rows_of_choices(order)}};
  if (weights) inputs.push_back({"weights", *weights});
  const auto body = fmt::format("lquant::combine<{}, {}>(y, {}, rows, tokens, k, width, out);", cuda_type(y.dtype()), n,
                                weights ? "weights" : "static_cast<const float*>(nullptr)");
  return call({weights ? "lquant_combine" : "lquant_sum_rows",
               moe_cu(),
               body,
               inputs,
               {{"out", {tokens, width}, y.dtype()}},
               {{"tokens", tokens}, {"k", k}, {"width", width}},
               blocks_for(static_cast<std::size_t>(tokens) * (width / n), kThreads),
               kThreads})[0];
}

/// {dy, dweights} from {y, weights} and the gradient of their combination.
Arrays combination_gradients(const Arrays& in, const mx::array& dout, const mx::array& order, int k) {
  const auto &y = in[0], &weights = in[1];
  const int count = y.shape(0), width = y.shape(1);
  const auto body = fmt::format("lquant::combine_gradients<{}, {}>(y, weights, order, dout, count, k, width, dy, dweights);", cuda_type(y.dtype()),
                                columns_of_a_thread(width));
  return call({"lquant_combine_gradients",
               moe_cu(),
               body,
               {{"y", y}, {"weights", weights}, {"order", order}, {"dout", dout}},
               {{"dy", y.shape(), y.dtype()}, {"dweights", weights.shape(), mx::float32}},
               {{"count", count}, {"k", k}, {"width", width}},
               blocks_for(static_cast<std::size_t>(count) * kWarp, kThreads),
               kThreads});
}

}  // namespace

Routing sort_by_expert(const mx::array& experts, int num_experts) {
  const int count = static_cast<int>(experts.size());
  const auto made = call({"lquant_sort_by_expert",
                          moe_cu(),
                          "lquant::sort_by_expert(experts, count, order, offsets);",
                          {{"experts", experts}},
                          {{"order", {count}, mx::int32}, {"offsets", {num_experts + 1}, mx::int32}},
                          {{"count", count}},
                          num_experts + 1,
                          kSortThreads});
  return {made[0], made[1]};
}

mx::array gather_rows(const mx::array& x, const Routing& routing, int k) {
  const auto order = routing.order;
  const auto forward = [order, k](const Arrays& in) { return Arrays{mx::take(in[0], mx::floor_divide(order, mx::array(k)), 0)}; };
  const auto backward = [order, k](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    return Arrays{combined(mx::astype(cotangents[0], in[0].dtype()), nullptr, order, k)};
  };
  return mx::custom_vjp(forward, backward)({x})[0];
}

mx::array combine_rows(const mx::array& y, const mx::array& weights, const Routing& routing, int k) {
  const auto order = routing.order;
  const auto forward = [order, k](const Arrays& in) { return Arrays{combined(in[0], &in[1], order, k)}; };
  const auto backward = [order, k](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    return combination_gradients(in, mx::astype(cotangents[0], in[0].dtype()), order, k);
  };
  return mx::custom_vjp(forward, backward)({y, weights})[0];
}

}  // namespace lquant::kernels::cuda
