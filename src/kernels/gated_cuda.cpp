// The host's side of gated.cu.
#include "kernels/gated_cuda.h"

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
constexpr int kWide = 8;

/// A function of gated.cu, of the first array's type. Eight elements a thread where rows divide by eight, so that slices of rows are aligned too.
Arrays launch(const std::string& function, const std::string& arguments, const std::vector<CudaInput>& inputs,
              const std::vector<const char*>& outputs, Activation activation) {
  const auto& first = inputs[0].array;
  const int n = first.shape(-1) % kWide == 0 ? kWide : 1;
  const auto threads = first.size() / n;
  std::vector<CudaOutput> made;
  for (const auto* name : outputs) made.push_back({name, first.shape(), first.dtype()});
  const auto body = fmt::format("lquant::{}<{}, {}, {}>({});", function, cuda_type(first.dtype()), static_cast<int>(activation), n, arguments);
  return call(
      {"lquant_" + function, gated_cu(), body, inputs, made, {{"count", static_cast<int>(threads)}}, blocks_for(threads, kThreads), kThreads});
}

}  // namespace

mx::array gated(const mx::array& gate, const mx::array& up, Activation activation) {
  if (gate.size() == 0) return gate;
  const auto forward = [activation](const Arrays& in) {
    return launch("gated", "gate, up, count, y", {{"gate", in[0]}, {"up", in[1]}}, {"y"}, activation);
  };
  const auto backward = [activation](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    const auto dy = mx::astype(cotangents[0], in[0].dtype());
    return launch("gated_gradients", "gate, up, dy, count, dgate, dup", {{"gate", in[0]}, {"up", in[1]}, {"dy", dy}}, {"dgate", "dup"}, activation);
  };
  return mx::custom_vjp(forward, backward)({gate, up})[0];
}

mx::array activate(const mx::array& x, Activation activation) {
  if (x.size() == 0) return x;
  const auto forward = [activation](const Arrays& in) { return launch("activate", "x, count, y", {{"x", in[0]}}, {"y"}, activation); };
  const auto backward = [activation](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    return launch("activate_gradient", "x, dy, count, dx", {{"x", in[0]}, {"dy", mx::astype(cotangents[0], in[0].dtype())}}, {"dx"}, activation);
  };
  return mx::custom_vjp(forward, backward)({x})[0];
}

}  // namespace lquant::kernels::cuda
