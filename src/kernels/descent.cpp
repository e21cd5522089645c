// The host's side of descent.cu: names, shapes, launches.
#include "kernels/descent.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <cmath>
#include <string>

#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;  // as in descent.cu

using Arrays = std::vector<mx::array>;

/// A call whose threads take eight weights each.
Arrays over_weights(const std::string& function, const std::string& types, const std::string& arguments, const std::vector<CudaInput>& inputs,
                    const std::vector<CudaOutput>& outputs, std::vector<CudaScalar> scalars, std::size_t weights, int bits, int group_size) {
  const auto threads = weights / kPerThread;
  scalars.push_back({"count", static_cast<int>(threads)});
  const auto body = fmt::format("lquant::{}<{}, {}, {}>({});", function, types, bits, group_size, arguments);
  return call({"lquant_descent_" + function, descent_cu(), body, inputs, outputs, scalars, blocks_for(threads, kThreads), kThreads});
}

std::vector<CudaScalar> scalars_of(const TrainedMatrix& m, const DescentRates& rates, bool codes) {
  const auto t = static_cast<float>(rates.step);
  std::vector<CudaScalar> all{{"inverse_spread", 1 / m.spread}, {"adam_step", rates.scales / (1 - std::pow(kBeta1, t))}};
  if (codes) all.push_back({"code_step", rates.codes});
  all.push_back({"correction", 1 - std::pow(kBeta2, t)});
  return all;
}

std::vector<CudaInput> inputs_of(const TrainedMatrix& m, std::vector<CudaInput> inputs) {
  for (const auto& [name, x] :
       {std::pair{"s0", &m.s0}, {"pivot", &m.pivot}, {"a", &m.a}, {"c", &m.c}, {"ma", &m.ma}, {"va", &m.va}, {"mc", &m.mc}, {"vc", &m.vc}})
    inputs.push_back({name, *x});
  return inputs;
}

std::vector<CudaOutput> next_scales(const TrainedMatrix& m) {
  std::vector<CudaOutput> outputs;
  for (const auto* name : {"next_a", "next_c", "next_ma", "next_va", "next_mc", "next_vc"}) outputs.push_back({name, m.a.shape(), mx::float32});
  return outputs;
}

void take_scales(TrainedMatrix& next, const Arrays& made, std::size_t first) {
  for (auto* x : {&next.a, &next.c, &next.ma, &next.va, &next.mc, &next.vc}) *x = made[first++];
}

}  // namespace

bool fused_descent(int group_size) { return cuda_kernels() && (group_size == 32 || group_size == 64 || group_size == 128); }

mx::array descent_weight(const TrainedMatrix& m, mx::Dtype dtype) {
  return over_weights("weight", cuda_type(dtype), "u, s0, b0, pivot, a, c, inverse_spread, count, w",
                      {{"u", m.latents}, {"s0", m.s0}, {"b0", m.b0}, {"pivot", m.pivot}, {"a", m.a}, {"c", m.c}}, {{"w", m.latents.shape(), dtype}},
                      {{"inverse_spread", 1 / m.spread}}, m.latents.size(), m.bits, m.group_size)[0];
}

std::pair<mx::array, mx::array> descent_gradients(const mx::array& dw, const mx::array& latents, int bits, int group_size) {
  auto groups = latents.shape();
  groups.back() /= group_size;
  const auto made = over_weights("gradients", cuda_type(dw.dtype()), "dw, u, count, ds, db", {{"dw", dw}, {"u", latents}},
                                 {{"ds", groups, mx::float32}, {"db", groups, mx::float32}}, {}, latents.size(), bits, group_size);
  return {made[0], made[1]};
}

TrainedMatrix descend(const TrainedMatrix& m, const mx::array& dw, const DescentRates& rates) {
  auto inputs = inputs_of(m, {{"dw", dw}, {"u", m.latents}});
  inputs.push_back({"v", m.v});
  auto outputs = next_scales(m);
  outputs.insert(outputs.begin(), {"next_u", m.latents.shape(), mx::uint16});
  outputs.push_back({"next_v", m.a.shape(), mx::float32});
  const auto made = over_weights("step", cuda_type(dw.dtype()),
                                 "dw, u, s0, pivot, a, c, ma, va, mc, vc, v, inverse_spread, adam_step, code_step, correction, count, "
                                 "next_u, next_a, next_c, next_ma, next_va, next_mc, next_vc, next_v",
                                 inputs, outputs, scalars_of(m, rates, true), m.latents.size(), m.bits, m.group_size);
  auto next = m;
  next.latents = made[0];
  take_scales(next, made, 1);
  next.v = made[7];
  return next;
}

TrainedMatrix descend_scales(const TrainedMatrix& m, const mx::array& dw, const DescentRates& rates) {
  const auto made =
      over_weights("step_of_scales", cuda_type(dw.dtype()),
                   "dw, u, s0, pivot, a, c, ma, va, mc, vc, inverse_spread, adam_step, correction, count, "
                   "next_a, next_c, next_ma, next_va, next_mc, next_vc",
                   inputs_of(m, {{"dw", dw}, {"u", m.latents}}), next_scales(m), scalars_of(m, rates, false), m.latents.size(), m.bits, m.group_size);
  auto next = m;
  take_scales(next, made, 0);
  return next;
}

TrainedMatrix descend_scales(const TrainedMatrix& m, const mx::array& ds, const mx::array& db, const DescentRates& rates) {
  auto scalars = scalars_of(m, rates, false);
  scalars.push_back({"groups", static_cast<int>(m.a.size())});
  const auto made = call({"lquant_descent_from_sums", descent_cu(),
                          "lquant::step_from_sums(ds, db, s0, pivot, a, c, ma, va, mc, vc, inverse_spread, adam_step, correction, groups, "
                          "next_a, next_c, next_ma, next_va, next_mc, next_vc);",
                          inputs_of(m, {{"ds", ds}, {"db", db}}), next_scales(m), scalars, blocks_for(m.a.size(), kThreads), kThreads});
  auto next = m;
  take_scales(next, made, 0);
  return next;
}

}  // namespace lquant::kernels
