#include "model/ops/gated_mlp.h"

#include <mlx/mlx.h>

#include <algorithm>

#include "kernels/elementwise.h"

namespace lquant::model {
namespace {

const Part& part_of(const LinearSpec& fused, Role role) {
  return *std::find_if(fused.parts.begin(), fused.parts.end(), [&](const Part& part) { return part.role == role; });
}

mx::array sparse(const mx::array& gate, float above) {
  const auto mean = mx::mean(gate, -1, /*keepdims=*/true);
  const auto deviation = mx::sqrt(mx::var(gate, -1, /*keepdims=*/true));
  const auto cutoff = mx::add(mean, mx::multiply(deviation, mx::array(above, deviation.dtype())));
  return mx::maximum(mx::subtract(gate, cutoff), mx::array(0.0f, gate.dtype()));
}

}  // namespace

mx::array result_factor(const Scope& scope, const LinearSpec& gate, int row, const mx::array& h) {
  const auto y = kernels::linear(h, scope.weight(gate));
  if (gate.out == 1) return mx::sigmoid(y);
  auto start = mx::Shape(y.ndim(), 0), stop = y.shape();
  start.back() = row;
  stop.back() = row + 1;
  return mx::slice(mx::softmax(y, -1, /*precise=*/true), start, stop);
}

Edge gated_edge(const LinearSpec& up, const Part& rows, const LinearSpec& down) {
  Edge edge;
  edge.producer = up.path;
  edge.rows = rows;
  edge.consumers = {down.path};
  edge.channels = edge.head_dim = down.in;
  edge.experts = down.experts;
  return edge;
}

void GatedMlp::contents(int op, int first_stage, Contents& all) const {
  for (const auto& linear : inputs) all.readings.push_back({&linear, op, first_stage});
  if (result_gate && result_row == 0) all.readings.push_back({&*result_gate, op, first_stage});
  all.readings.push_back({&down, op, first_stage + 1});
}

Flow GatedMlp::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  for (const auto& linear : inputs) scope.observe(linear, normed);
  if (result_gate && result_row == 0) scope.observe(*result_gate, normed);
  return {{normed}, {}};
}

Flow GatedMlp::advance(const Scope& scope, int, const Flow& at) const {
  const auto& h = at.inputs[0];
  const auto activated = [&](const mx::array& gate, const mx::array& up) {
    if (situ) return kernels::situ_gated(gate, up, *situ);
    return clamp ? kernels::clamped_gated(gate, up, *clamp) : kernels::gated(gate, up, activation);
  };
  const auto product = [&] {
    if (sparse_above) {
      const auto both = kernels::linears(h, {scope.weight(inputs[0]), scope.weight(inputs[1])});
      return kernels::gated(sparse(both[0], *sparse_above), both[1], activation);
    }
    if (!clamp && !situ && inputs.size() == 1 && inputs[0].parts[0].role == Role::gate && inputs[0].parts[0].contiguous())
      return kernels::gated_fused(kernels::linear(h, scope.weight(inputs[0])), activation);
    const auto both =
        inputs.size() == 1
            ? kernels::linears(h, {scope.weight(inputs[0], part_of(inputs[0], Role::gate)), scope.weight(inputs[0], part_of(inputs[0], Role::up))})
            : kernels::linears(h, {scope.weight(inputs[0]), scope.weight(inputs[1])});
    return activated(both[0], both[1]);
  };
  Flow next{{product()}, {}};
  if (result_gate) next.kept.push_back(result_factor(scope, *result_gate, result_row, h));
  scope.observe(down, next.inputs[0]);
  return next;
}

mx::array GatedMlp::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  if (!result_gate) return kernels::linear(at.inputs[0], scope.weight(down), residual);
  const auto y = mx::multiply(kernels::linear(at.inputs[0], scope.weight(down)), at.kept[0]);
  return residual ? kernels::add(*residual, y) : y;
}

std::vector<std::string> GatedMlp::readers() const {
  std::vector<std::string> all;
  for (const auto& linear : inputs) all.push_back(linear.path);
  if (result_gate && result_row == 0) all.push_back(result_gate->path);
  return all;
}

/// Where up is cut at a limit or bent, no scale passes.
std::vector<Edge> GatedMlp::edges() const {
  if (clamp || (situ && situ->linear > 0)) return {};
  const auto& up = inputs.back();
  return {gated_edge(up, inputs.size() == 1 ? part_of(up, Role::up) : Part::piece(Role::up, 0, up.out), down)};
}

}  // namespace lquant::model
