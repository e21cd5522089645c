// Gradients of a few rows are squared and added, never kept: rows are independent, so the mean of the squares of their sums is that of single
// tokens'.
#include "quantize/sensitivity.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

#include "base/error.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "kernels/elementwise.h"
#include "kernels/head_loss.h"
#include "kernels/primitive.h"
#include "kernels/scaled_vjp.h"

namespace lquant::quantize {
namespace {

// Rows of one matrix whose ranges are searched in every format. They tell how the formats compare, which is much the same for all rows; what rows
// differ in, how much they matter (those of an embedding by a thousand times), plain rounding of all of them tells.
constexpr int kJudgedRows = 64;

mx::array flat(const mx::array& x) { return mx::reshape(x, {-1, x.shape(-1)}); }

int step_of(int rows) { return (rows + kJudgedRows - 1) / kJudgedRows; }

/// Evenly spaced rows of w [..., N, K], at most kJudgedRows of each [N, K].
mx::array some_rows(const mx::array& w) {
  const int step = step_of(w.shape(-2));
  if (step == 1) return w;
  auto start = mx::Shape(w.ndim(), 0), stop = w.shape(), strides = mx::Shape(w.ndim(), 1);
  strides[w.ndim() - 2] = step;
  return mx::contiguous(mx::slice(w, start, stop, strides));
}

}  // namespace

void FisherStore::add(const std::string& path, const mx::array& gradient) {
  const auto it = sums_.find(path);
  const auto sum = kernels::add_squares(it == sums_.end() ? mx::zeros(gradient.shape(), mx::float32) : it->second, gradient);
  kernels::settle({sum});
  sums_.insert_or_assign(path, sum);
}

void FisherStore::add(const std::string& path, const kernels::GroupedGradient& gradient) {
  auto part = kernels::square_sums(gradient, kGroup, step_of(gradient.dy.shape(1)));
  if (const auto it = stacks_.find(path); it != stacks_.end()) {
    const auto& sum = it->second;
    part = {mx::add(sum.columns, part.columns), mx::add(sum.groups, part.groups), mx::add(sum.rows, part.rows)};
  }
  mx::eval(part.columns, part.groups, part.rows);
  stacks_.insert_or_assign(path, part);
}

const kernels::SquareSums* FisherStore::stack(const std::string& path) const {
  const auto it = stacks_.find(path);
  return it == stacks_.end() ? nullptr : &it->second;
}

void FisherStore::add_lookups(const std::string& path, int rows, const mx::array& ids, const mx::array& gradient) {
  const int width = gradient.shape(-1);
  auto host_ids = mx::contiguous(mx::flatten(ids), false, mx::Device::cpu);
  auto host = mx::contiguous(mx::astype(flat(gradient), mx::float32), false, mx::Device::cpu);
  mx::eval(host_ids, host);
  // Sums by id are made on the host: a part has a thousand tokens, the table perhaps a quarter million rows.
  std::unordered_map<std::int32_t, std::vector<float>> sums;
  std::vector<std::int32_t> order;
  const auto* id = host_ids.data<std::int32_t>();
  const auto* value = host.data<float>();
  for (std::size_t t = 0; t < host_ids.size(); ++t) {
    auto [it, fresh] = sums.try_emplace(id[t], width, 0.0f);
    if (fresh) order.push_back(id[t]);
    for (int i = 0; i < width; ++i) it->second[i] += value[t * width + i];
  }
  std::vector<float> squares;
  for (auto i : order)
    for (float v : sums.at(i)) squares.push_back(v * v);
  const auto at = mx::array(order.data(), {static_cast<int>(order.size())}, mx::int32);
  const auto updates = mx::array(squares.data(), {static_cast<int>(order.size()), 1, width}, mx::float32);
  const auto it = sums_.find(path);
  auto sum = mx::scatter_add(it == sums_.end() ? mx::zeros({rows, width}, mx::float32) : it->second, at, updates, 0);
  sum.eval();
  sums_.insert_or_assign(path, sum);
}

const mx::array& FisherStore::of(const std::string& path) const {
  const auto it = sums_.find(path);
  if (it == sums_.end()) throw std::invalid_argument("[quantize] no gradient was seen for " + path);
  return it->second;
}

BlockGradients through_block(const model::ModelSpec& spec, const model::Visit& visit, const model::Tensors& tensors, const mx::array& x,
                             const mx::array& cotangent, const model::Context& context) {
  const auto linears = spec.blocks[visit.block].linears();
  std::vector<mx::array> inputs{x};
  for (const auto* linear : linears) inputs.push_back(tensors.at(linear->path + ".weight"));
  const auto run = [&](const std::vector<mx::array>& in) {
    auto own = tensors;
    for (std::size_t n = 0; n < linears.size(); ++n) own.insert_or_assign(linears[n]->path + ".weight", in[n + 1]);
    return std::vector<mx::array>{model::block(spec, visit, own, {}, in[0], context)};
  };
  const auto gradients = kernels::gradients_through(run, inputs, cotangent, x.dtype()).gradients;
  BlockGradients result{{}, gradients.front()};
  for (std::size_t n = 0; n < linears.size(); ++n) result.weights.insert({linears[n]->path, gradients[n + 1]});
  return result;
}

HeadGradients head_gradients(const model::ModelSpec& spec, const model::Tensors& tensors, const mx::array& x, const mx::array& targets,
                             const mx::array& mask) {
  const auto head = model::head(spec, tensors, {}, x.dtype());
  kernels::HeadLossArgs args;
  args.softcap = head.softcap;
  args.multiplier = head.multiplier;
  const auto loss = [&](const std::vector<mx::array>& in) {
    const auto hidden = flat(model::final_norm(spec, tensors, in[0]));
    return std::vector<mx::array>{kernels::cross_entropy_loss(hidden, in[1], head.bias, mx::flatten(targets), mx::flatten(mask), args)};
  };
  const auto pass = kernels::loss_gradients(loss, {x, head.weight}, x.dtype());
  return {pass.gradients[1], pass.gradients[0], pass.values[0]};
}

namespace {

bool finite(const mx::array& x) { return mx::all(mx::isfinite(x)).item<bool>(); }

void check_finite(const std::string& path, const mx::array& weight, const std::vector<mx::array>& fisher) {
  if (!finite(weight)) fail("quantize", "{}: holds weights that are NaN or infinite; get the model again or mend that tensor", path);
  if (!std::all_of(fisher.begin(), fisher.end(), finite))
    fail("quantize",
         "{}: its gradients became NaN or infinite on the calibration data; make the model float32 first (lquant convert --dtype float32) or use "
         "other data",
         path);
}

/// What plain rounding in a middling format costs.
double plain_error(const mx::array& w, const mx::array& fisher, const std::vector<codec::Format>& formats) {
  const auto& format = formats[formats.size() / 2];
  return codec::weighted_error(w, codec::quantize(w, format), format, fisher);
}

/// By the judged rows w and their Fisher diagonal. Ranges are searched as the methods will: with one importance for a column, of all rows. Weight by
/// weight the sums are too noisy for it. `all` and `sampled`: plain errors of all rows and of these.
std::vector<double> costs_of(const mx::array& w, const mx::array& fisher, const mx::array& columns, double all, double sampled, double tokens,
                             const std::vector<codec::Format>& formats) {
  const double share = sampled > 0 ? all / sampled : 1;
  std::vector<double> kl;
  for (const auto& format : formats) {
    const auto packed = codec::range_search(w, format, columns).packed;
    kl.push_back(0.5 * share * codec::weighted_error(w, packed, format, fisher) / std::max(1.0, tokens));
  }
  return kl;
}

}  // namespace

std::vector<double> expected_kl(const std::string& path, const mx::array& weight, const mx::array& fisher, double tokens,
                                const std::vector<codec::Format>& formats) {
  check_finite(path, weight, {fisher});
  if (formats.empty()) return {};
  const auto w = some_rows(weight), f = some_rows(fisher);
  const bool every = w.size() == weight.size();
  return costs_of(w, f, mx::mean(fisher, -2), every ? 1 : plain_error(weight, fisher, formats), every ? 1 : plain_error(w, f, formats), tokens,
                  formats);
}

std::vector<double> expected_kl(const std::string& path, const mx::array& weight, const kernels::SquareSums& fisher, double tokens,
                                const std::vector<codec::Format>& formats) {
  check_finite(path, weight, {fisher.columns, fisher.groups, fisher.rows});
  if (formats.empty()) return {};
  const auto w = some_rows(weight);
  double all = 1, sampled = 1;
  if (w.size() != weight.size()) {
    all = sampled = 0;
    const int group = weight.shape(-1) / fisher.groups.shape(-1);
    for (int e = 0; e < weight.shape(0); ++e) {
      const auto cut = [&](const mx::array& x) { return mx::slice(x, {e, 0, 0}, {e + 1, x.shape(1), x.shape(2)}); };
      const auto even = mx::repeat(mx::divide(cut(fisher.groups), mx::array(static_cast<float>(group))), group, -1);
      all += plain_error(cut(weight), even, formats);
      sampled += plain_error(cut(w), some_rows(even), formats);
    }
  }
  const auto columns = mx::divide(fisher.columns, mx::array(static_cast<float>(weight.shape(-2))));
  return costs_of(w, fisher.rows, columns, all, sampled, tokens, formats);
}

double beyond_second_order(const codec::Format& format) { return format.bits <= 2 ? 2 : format.bits == 3 ? 1.25 : 1; }

}  // namespace lquant::quantize
