// A row is read three times, all but the first from the first-level cache: for its mean, for the squares of its differences from it, for its result.
// The gradient does the same, so nothing but the inputs is kept from the forward pass. With n = (x − mean)·r, r = 1/√(variance + eps)
// and h = cotangent ⊙ weight,
//   dx = r·(h − mean(h) − n·mean(h ⊙ n)),
//   dweight = Σ_rows cotangent ⊙ n,  dbias = Σ_rows cotangent, by fixed blocks of rows, whose sums are then added in order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/layer_norm_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

/// How many numbers a step of for_lanes handles: lanes beyond them read as zero, which is no zero once the mean is subtracted.
HWY_INLINE Vector only(Vector v, Whole) { return v; }
HWY_INLINE Vector only(Vector v, Part part) { return hn::IfThenElseZero(hn::FirstN(Lanes(), part.count), v); }

struct RowStatistics {
  float mean, inverse;  ///< inverse: 1 / √(variance + eps)
};

template <class T>
RowStatistics statistics(const T* x, std::int64_t width, float eps) {
  Vector total = set(0), squares = set(0);
  for_lanes(width, [&](std::int64_t i, auto part) LQUANT_STEP { total = hn::Add(total, load(x + i, part)); });
  const float mean = sum(total) / width;
  for_lanes(width, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector d = only(hn::Sub(load(x + i, part), set(mean)), part);
    squares = hn::MulAdd(d, d, squares);
  });
  return {mean, 1 / std::sqrt(sum(squares) / width + eps)};
}

template <class T>
void layer_forward_rows(const cpu::LayerNormForward& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    T* out = static_cast<T*>(a.out) + row * a.width;
    const RowStatistics at = statistics(x, a.width, a.eps);
    for_lanes(a.width, [&](std::int64_t i, auto part) LQUANT_STEP {
      Vector y = hn::Mul(hn::Sub(load(x + i, part), set(at.mean)), set(at.inverse));
      if (a.weight) y = hn::Mul(rounded<T>(y), load(a.weight + i, part));
      if (a.bias) y = hn::Add(rounded<T>(y), load(a.bias + i, part));
      store(y, out + i, part);
    });
  }
}

/// One row: `first` begins the block's sums, later rows add to them.
template <class T>
void layer_backward_row(const cpu::LayerNormBackward& a, std::int64_t row, float* dweight, float* dbias, bool first) {
  const T* x = static_cast<const T*>(a.x) + row * a.width;
  const T* cotangent = static_cast<const T*>(a.cotangent) + row * a.width;
  const RowStatistics at = statistics(x, a.width, a.eps);
  const Vector mean = set(at.mean), inverse = set(at.inverse);
  Vector total = set(0), products = set(0);
  for_lanes(a.width, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector n = hn::Mul(hn::Sub(load(x + i, part), mean), inverse), g = load(cotangent + i, part);
    const Vector h = a.weight ? hn::Mul(g, load(a.weight + i, part)) : g;
    total = hn::Add(total, h);
    products = hn::MulAdd(h, n, products);  // lanes beyond the row have a cotangent of 0
    if (dweight) store(first ? hn::Mul(g, n) : hn::MulAdd(g, n, load(dweight + i, part)), dweight + i, part);
    if (dbias) store(first ? g : hn::Add(g, load(dbias + i, part)), dbias + i, part);
  });
  if (!a.dx) return;
  T* dx = static_cast<T*>(a.dx) + row * a.width;
  const Vector shift = set(sum(total) / a.width), pull = set(sum(products) / a.width);
  for_lanes(a.width, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector n = hn::Mul(hn::Sub(load(x + i, part), mean), inverse), g = load(cotangent + i, part);
    const Vector h = a.weight ? hn::Mul(g, load(a.weight + i, part)) : g;
    store(hn::Mul(inverse, hn::NegMulAdd(n, pull, hn::Sub(h, shift))), dx + i, part);
  });
}

template <class T>
void layer_backward_blocks(const cpu::LayerNormBackward& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t block = begin; block < end; ++block) {
    const std::int64_t first = block * cpu::kRowBlock, last = std::min(a.rows, first + cpu::kRowBlock);
    float *dweight = a.dweight ? a.dweight + block * a.width : nullptr, *dbias = a.dbias ? a.dbias + block * a.width : nullptr;
    for (std::int64_t row = first; row < last; ++row) layer_backward_row<T>(a, row, dweight, dbias, row == first);
  }
}

void layer_forward(const cpu::LayerNormForward& a) {
  parallel_for(a.rows, cpu::grain_rows(a.width), [&](std::int64_t begin, std::int64_t end) {
    a.bf16 ? layer_forward_rows<Bf16>(a, begin, end) : layer_forward_rows<float>(a, begin, end);
  });
}

void layer_backward(const cpu::LayerNormBackward& a) {
  const std::int64_t grain = 1 + cpu::grain_rows(a.width) / cpu::kRowBlock;
  parallel_for(cpu::row_blocks(a.rows), grain, [&](std::int64_t begin, std::int64_t end) {
    a.bf16 ? layer_backward_blocks<Bf16>(a, begin, end) : layer_backward_blocks<float>(a, begin, end);
  });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {

HWY_EXPORT(layer_forward);
HWY_EXPORT(layer_backward);

/// Where weight and bias stand among the inputs behind `first`; 0: there is none.
struct Places {
  int weight, bias;
  Places(const std::optional<mx::array>& weight, const std::optional<mx::array>& bias, int first)
      : weight(weight ? first : 0), bias(bias ? first + (weight ? 1 : 0) : 0) {}
};

/// The gradients to x, weight and bias, as far as they are asked for, in this order.
std::vector<mx::array> layer_norm_gradient(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& bias,
                                           const mx::array& cotangent, float eps, float offset, const bool (&wants)[3]) {
  const bool wants_x = wants[0], wants_weight = wants[1], wants_bias = wants[2];
  std::vector<mx::array> inputs{x, mx::astype(cotangent, x.dtype())};
  if (weight) inputs.push_back(*weight);
  std::vector<Output> outputs;
  if (wants_x) outputs.push_back({x.shape(), x.dtype()});
  if (wants_weight) outputs.push_back({weight->shape(), weight->dtype()});
  if (wants_bias) outputs.push_back({bias->shape(), bias->dtype()});
  return make_op("layer_norm_vjp", inputs, outputs, [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const std::int64_t width = in[0].shape(-1), rows = static_cast<std::int64_t>(in[0].size()) / width, blocks = cpu::row_blocks(rows);
    const auto effective = in.size() > 2 ? cpu::as_floats(in[2], offset) : std::vector<float>();
    std::vector<float> weight_sums(wants_weight ? blocks * width : 0), bias_sums(wants_bias ? blocks * width : 0);
    HWY_DYNAMIC_DISPATCH(layer_backward)
    ({in[0].data<char>(), in[1].data<char>(), cpu::data_or_null(effective), wants_x ? out[0].data<char>() : nullptr,
      wants_weight ? weight_sums.data() : nullptr, wants_bias ? bias_sums.data() : nullptr, rows, width, eps, in[0].dtype() == mx::bfloat16});
    if (wants_weight) cpu::add_blocks(weight_sums, width, out[wants_x]);
    if (wants_bias) cpu::add_blocks(bias_sums, width, out.back());
  });
}

}  // namespace

mx::array cpu::layer_norm(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& bias, float eps, float offset) {
  const Places at(weight, bias, 1);
  std::vector<mx::array> inputs{x};
  if (weight) inputs.push_back(*weight);
  if (bias) inputs.push_back(*bias);
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const auto scale = at.weight ? as_floats(in[at.weight], offset) : std::vector<float>();
    const auto shift = at.bias ? as_floats(in[at.bias], 0) : std::vector<float>();
    const std::int64_t width = in[0].shape(-1);
    HWY_DYNAMIC_DISPATCH(layer_forward)
    ({in[0].data<char>(), cpu::data_or_null(scale), cpu::data_or_null(shift), out[0].data<char>(), static_cast<std::int64_t>(in[0].size()) / width,
      width, eps, in[0].dtype() == mx::bfloat16});
  };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>&) {
    bool wants[3] = {false, false, false};
    const auto which = [&](int arg) { return arg == 0 ? 0 : arg == at.weight ? 1 : 2; };
    for (const int arg : argnums) wants[which(arg)] = true;
    const auto input = [&](int place) { return place ? std::optional(in[place]) : std::nullopt; };
    const auto made = layer_norm_gradient(in[0], input(at.weight), input(at.bias), cotangents[0], eps, offset, wants);
    std::vector<mx::array> result;
    for (const int arg : argnums) result.push_back(made[which(arg) == 0 ? 0 : which(arg) == 1 ? wants[0] : made.size() - 1]);
    return result;
  };
  return make_op("layer_norm", inputs, {{x.shape(), x.dtype()}}, compute, vjp)[0];
}

}  // namespace lquant::kernels
#endif
