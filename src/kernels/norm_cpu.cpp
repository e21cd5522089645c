// A row is read twice from the first-level cache and once from memory: first for the sum of its squares, then for its result.
// The gradient does the same, so nothing but the input is kept from the forward pass. With r = 1/√(mean(x²) + eps) and
// h = cotangent ⊙ weight,
//   dx = r·h − x·r³·mean(h ⊙ x)  (+ the cotangent of the residual stream, when the op has that reader too),
//   dweight = Σ_rows cotangent ⊙ x·r, by fixed blocks of rows, whose sums are then added in order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

/// Four chains of sums, by turns, hide the latency of the fused product.
template <class T>
float sum_of_squares(const T* x, std::int64_t width) {
  const std::int64_t lanes = hn::Lanes(Lanes());
  Vector a = set(0), b = set(0), c = set(0), d = set(0);
  std::int64_t i = 0;
  for (; i + 4 * lanes <= width; i += 4 * lanes) {
    const Vector p = load(x + i), q = load(x + i + lanes), r = load(x + i + 2 * lanes), s = load(x + i + 3 * lanes);
    a = hn::MulAdd(p, p, a);
    b = hn::MulAdd(q, q, b);
    c = hn::MulAdd(r, r, c);
    d = hn::MulAdd(s, s, d);
  }
  for_lanes(width - i, [&](std::int64_t j, auto part) LQUANT_STEP {
    const Vector p = load(x + i + j, part);
    a = hn::MulAdd(p, p, a);
  });
  return sum(hn::Add(hn::Add(a, b), hn::Add(c, d)));
}

template <class T>
void norm_forward_rows(const cpu::NormForward& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    const T* residual = a.residual ? static_cast<const T*>(a.residual) + row * a.width : nullptr;
    T* out = static_cast<T*>(a.out) + row * a.width;
    const Vector r = set(1 / std::sqrt(sum_of_squares(x, a.width) / a.width + a.eps));
    for_lanes(a.width, [&](std::int64_t i, auto part) LQUANT_STEP {
      Vector y = hn::Mul(load(x + i, part), r);
      if (a.weight) y = hn::Mul(rounded_pure<T>(y), load(a.weight + i, part));
      if (residual) y = hn::Add(rounded<T>(y), load(residual + i, part));
      store(y, out + i, part);
    });
  }
}

/// One row: `first` begins dweight's block, later rows add to it.
template <class T>
void norm_backward_row(const cpu::NormBackward& a, std::int64_t row, float* dweight, bool first) {
  const std::int64_t start = row * a.width;
  const T* x = static_cast<const T*>(a.x) + start;
  const T* cotangent = static_cast<const T*>(a.cotangent) + start;
  Vector squares = set(0), products = set(0);
  for_lanes(a.width, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector v = load(x + i, part);
    Vector h = load(cotangent + i, part);
    if (a.weight) h = hn::Mul(h, load(a.weight + i, part));
    squares = hn::MulAdd(v, v, squares);
    products = hn::MulAdd(h, v, products);
  });
  const float r = 1 / std::sqrt(sum(squares) / a.width + a.eps);
  const Vector scale = set(r), pull = set(-r * r * r * (sum(products) / a.width));
  T* dx = a.dx ? static_cast<T*>(a.dx) + start : nullptr;
  const T* stream = a.stream_cotangent ? static_cast<const T*>(a.stream_cotangent) + start : nullptr;
  for_lanes(a.width, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector v = load(x + i, part), g = load(cotangent + i, part);
    if (dx) {
      const Vector h = a.weight ? hn::Mul(g, load(a.weight + i, part)) : g;
      Vector d = hn::MulAdd(h, scale, hn::Mul(v, pull));
      if (stream) d = hn::Add(d, load(stream + i, part));
      store(d, dx + i, part);
    }
    if (dweight) {
      const Vector share = hn::Mul(g, hn::Mul(v, scale));
      store(first ? share : hn::Add(share, load(dweight + i, part)), dweight + i, part);
    }
  });
}

template <class T>
void norm_backward_blocks(const cpu::NormBackward& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t block = begin; block < end; ++block) {
    const std::int64_t first = block * cpu::kRowBlock, last = std::min(a.rows, first + cpu::kRowBlock);
    float* dweight = a.dweight ? a.dweight + block * a.width : nullptr;
    for (std::int64_t row = first; row < last; ++row) norm_backward_row<T>(a, row, dweight, row == first);
  }
}

void norm_forward(const cpu::NormForward& a) {
  parallel_for(a.rows, cpu::grain_rows(a.width), [&](std::int64_t begin, std::int64_t end) {
    a.bf16 ? norm_forward_rows<Bf16>(a, begin, end) : norm_forward_rows<float>(a, begin, end);
  });
}

void norm_backward(const cpu::NormBackward& a) {
  const std::int64_t grain = 1 + cpu::grain_rows(a.width) / cpu::kRowBlock;
  parallel_for(cpu::row_blocks(a.rows), grain, [&](std::int64_t begin, std::int64_t end) {
    a.bf16 ? norm_backward_blocks<Bf16>(a, begin, end) : norm_backward_blocks<float>(a, begin, end);
  });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {

HWY_EXPORT(norm_forward);
HWY_EXPORT(norm_backward);

/// weight + offset in the weight's dtype, as f32; empty without a weight.
std::vector<float> effective_weight(const mx::array* weight, float offset) { return weight ? cpu::as_floats(*weight, offset) : std::vector<float>(); }

void run_forward(const mx::array& x, const mx::array* weight, const mx::array* residual, mx::array& out, float eps, float offset) {
  if (x.size() == 0) return;
  const auto effective = effective_weight(weight, offset);
  const std::int64_t width = x.shape(-1);
  HWY_DYNAMIC_DISPATCH(norm_forward)
  ({x.data<char>(), residual ? residual->data<char>() : nullptr, cpu::data_or_null(effective), out.data<char>(),
    static_cast<std::int64_t>(x.size()) / width, width, eps, x.dtype() == mx::bfloat16});
}

/// The gradients that are asked for, made in one pass: to x first, then to the weight.
std::vector<mx::array> norm_gradient(const mx::array& x, const std::optional<mx::array>& weight, const mx::array& cotangent,
                                     const std::optional<mx::array>& stream_cotangent, float eps, float offset, bool wants_x, bool wants_weight) {
  std::vector<mx::array> inputs{x, mx::astype(cotangent, x.dtype())};
  const int weight_at = weight ? 2 : 0, stream_at = stream_cotangent ? 2 + (weight ? 1 : 0) : 0;
  if (weight) inputs.push_back(*weight);
  if (stream_cotangent) inputs.push_back(mx::astype(*stream_cotangent, x.dtype()));
  std::vector<Output> outputs;
  if (wants_x) outputs.push_back({x.shape(), x.dtype()});
  if (wants_weight) outputs.push_back({weight->shape(), weight->dtype()});
  return make_op("rms_norm_vjp", inputs, outputs, [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const std::int64_t width = in[0].shape(-1), rows = width ? static_cast<std::int64_t>(in[0].size()) / width : 0;
    const auto effective = effective_weight(weight_at ? &in[weight_at] : nullptr, offset);
    std::vector<float> blocks(wants_weight ? cpu::row_blocks(rows) * width : 0);
    if (in[0].size() > 0) {
      HWY_DYNAMIC_DISPATCH(norm_backward)
      ({in[0].data<char>(), in[1].data<char>(), stream_at ? in[stream_at].data<char>() : nullptr, cpu::data_or_null(effective),
        wants_x ? out[0].data<char>() : nullptr, wants_weight ? blocks.data() : nullptr, rows, width, eps, in[0].dtype() == mx::bfloat16});
    }
    if (wants_weight) cpu::add_blocks(blocks, width, out.back());
  });
}

/// norm_gradient's results in the order of argnums, given which input is x and which the weight. `passed` is the gradient of
/// any other input.
std::vector<mx::array> by_argnums(const std::vector<int>& argnums, int x_at, int weight_at, const std::optional<mx::array>& passed,
                                  const std::function<std::vector<mx::array>(bool wants_x, bool wants_weight)>& gradient) {
  bool wants_x = false, wants_weight = false;
  for (const int arg : argnums) {
    wants_x |= arg == x_at;
    wants_weight |= arg == weight_at;
  }
  std::vector<mx::array> made;
  if (wants_x || wants_weight) made = gradient(wants_x, wants_weight);
  std::vector<mx::array> result;
  for (const int arg : argnums) result.push_back(arg == x_at ? made.front() : arg == weight_at ? made.back() : *passed);
  return result;
}

}  // namespace

namespace cpu {

std::vector<float> as_floats(const mx::array& parameter, float offset) {
  std::vector<float> result(parameter.size());
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = parameter.dtype() == mx::float32
                    ? parameter.data<float>()[i] + offset
                    : static_cast<float>(mx::bfloat16_t(static_cast<float>(parameter.data<mx::bfloat16_t>()[i]) + offset));
  }
  return result;
}

void add_blocks(const std::vector<float>& blocks, std::int64_t width, mx::array& out) {
  std::vector<float> total(width, 0.0f);
  for (std::size_t start = 0; start < blocks.size(); start += width) {
    for (std::int64_t i = 0; i < width; ++i) total[i] += blocks[start + i];
  }
  if (out.dtype() == mx::float32) {
    std::copy(total.begin(), total.end(), out.data<float>());
  } else {
    std::copy(total.begin(), total.end(), out.data<mx::bfloat16_t>());
  }
}

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps, float offset) {
  std::vector<mx::array> inputs{x};
  if (weight) inputs.push_back(*weight);
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    run_forward(in[0], in.size() > 1 ? &in[1] : nullptr, nullptr, out[0], eps, offset);
  };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>&) {
    const auto scale = in.size() > 1 ? std::optional(in[1]) : std::nullopt;
    return by_argnums(argnums, 0, 1, std::nullopt, [&](bool wants_x, bool wants_weight) {
      return norm_gradient(in[0], scale, cotangents[0], std::nullopt, eps, offset, wants_x, wants_weight);
    });
  };
  return make_op("rms_norm", inputs, {{x.shape(), x.dtype()}}, compute, vjp)[0];
}

std::pair<mx::array, mx::array> residual_norm(const mx::array& x, const mx::array& weight, float eps, float offset) {
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    out[0].copy_shared_buffer(in[0]);  // the stream passes through: the same memory, counted once more
    run_forward(in[0], &in[1], nullptr, out[1], eps, offset);
  };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>&) {
    return by_argnums(argnums, 0, 1, std::nullopt, [&](bool wants_x, bool wants_weight) {
      return norm_gradient(in[0], in[1], cotangents[1], wants_x ? std::optional(cotangents[0]) : std::nullopt, eps, offset, wants_x, wants_weight);
    });
  };
  const auto results = make_op("residual_norm", {x, weight}, {{x.shape(), x.dtype()}, {x.shape(), x.dtype()}}, compute, vjp);
  return {results[0], results[1]};
}

mx::array add_norm(const mx::array& residual, const mx::array& y, const mx::array& weight, float eps, float offset) {
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) { run_forward(in[1], &in[2], &in[0], out[0], eps, offset); };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>&) {
    return by_argnums(argnums, 1, 2, cotangents[0], [&](bool wants_x, bool wants_weight) {
      return norm_gradient(in[1], in[2], cotangents[0], std::nullopt, eps, offset, wants_x, wants_weight);
    });
  };
  return make_op("add_norm", {residual, y, weight}, {{y.shape(), y.dtype()}}, compute, vjp)[0];
}

}  // namespace cpu
}  // namespace lquant::kernels
#endif
