// Tokens meet their experts by a counting sort, stable and linear. What flows back to a token is a sum over its k rows, which the inverse
// of the order finds, so that no two cores ever add to one row and the order of every sum is that of the choices.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/moe_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

template <class T>
void combine_tokens(const cpu::CombineArgs& a, std::int64_t begin, std::int64_t end) {
  const T* y = static_cast<const T*>(a.y);
  for (std::int64_t token = begin; token < end; ++token) {
    const std::int32_t* rows = a.inverse + token * a.k;
    const float* weights = a.weights ? a.weights + token * a.k : nullptr;
    T* out = static_cast<T*>(a.out) + token * a.width;
    for_lanes(a.width, [&](std::int64_t i, auto part) LQUANT_STEP {
      Vector total = set(0);
      for (std::int64_t j = 0; j < a.k; ++j) total = hn::MulAdd(load(y + rows[j] * a.width + i, part), set(weights ? weights[j] : 1.0f), total);
      store(total, out + i, part);
    });
  }
}

/// dy[row] = weight · cotangent and dweight = y[row] · cotangent, whichever are wanted, in one reading.
template <class T>
void combine_backward_tokens(const cpu::CombineBackward& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t at = begin * a.k; at < end * a.k; ++at) {
    const std::int64_t start = a.inverse[at] * a.width;
    const T *cotangent = static_cast<const T*>(a.cotangent) + at / a.k * a.width, *y = static_cast<const T*>(a.y) + start;
    T* dy = a.dy ? static_cast<T*>(a.dy) + start : nullptr;
    const Vector weight = set(a.weights[at]);
    Vector products = set(0);
    for_lanes(a.width, [&](std::int64_t i, auto part) LQUANT_STEP {
      const Vector c = load(cotangent + i, part);
      if (dy) store(hn::Mul(weight, c), dy + i, part);
      if (a.dweights) products = hn::MulAdd(c, load(y + i, part), products);
    });
    if (a.dweights) a.dweights[at] = sum(products);
  }
}

void combine(const cpu::CombineArgs& a) {
  parallel_for(a.tokens, cpu::grain_rows(a.width * a.k),
               [&](std::int64_t begin, std::int64_t end) { a.bf16 ? combine_tokens<Bf16>(a, begin, end) : combine_tokens<float>(a, begin, end); });
}

void combine_backward(const cpu::CombineBackward& a) {
  parallel_for(a.tokens, cpu::grain_rows(a.width * a.k), [&](std::int64_t begin, std::int64_t end) {
    a.bf16 ? combine_backward_tokens<Bf16>(a, begin, end) : combine_backward_tokens<float>(a, begin, end);
  });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {

HWY_EXPORT(combine);
HWY_EXPORT(combine_backward);

std::vector<std::int32_t> inverse(const mx::array& order) {
  const auto* rows = order.data<std::int32_t>();
  const std::int32_t count = static_cast<std::int32_t>(order.size());
  std::vector<std::int32_t> result(count);
  for (std::int32_t r = 0; r < count; ++r) result.at(rows[r]) = r;
  return result;
}

void count_sort(const mx::array& experts, mx::array& order, mx::array& offsets) {
  const auto* chosen = experts.data<std::int32_t>();
  const std::int32_t count = static_cast<std::int32_t>(experts.size()), kinds = offsets.shape(0) - 1;
  std::vector<std::int32_t> next(kinds + 1, 0);
  for (std::int32_t i = 0; i < count; ++i) {
    if (chosen[i] < 0 || chosen[i] >= kinds) {
      throw std::out_of_range("[kernels] sort_by_expert: expert " + std::to_string(chosen[i]) + " of " + std::to_string(kinds));
    }
    ++next[chosen[i] + 1];
  }
  for (std::int32_t e = 0; e < kinds; ++e) next[e + 1] += next[e];
  std::copy(next.begin(), next.end(), offsets.data<std::int32_t>());
  for (std::int32_t i = 0; i < count; ++i) order.data<std::int32_t>()[next[chosen[i]]++] = i;
}

/// Σ over each token's k rows; weights f32 [T, k] or none.
mx::array sum_rows(const mx::array& y, const std::optional<mx::array>& weights, const mx::array& order, int k, Vjp vjp = nullptr) {
  const int tokens = static_cast<int>(order.size()) / k, width = y.shape(1);
  std::vector<mx::array> inputs{y, order};
  if (weights) inputs.push_back(*weights);
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const auto rows = inverse(in[1]);
    HWY_DYNAMIC_DISPATCH(combine)
    ({in[0].data<char>(), rows.data(), in.size() > 2 ? in[2].data<float>() : nullptr, out[0].data<char>(), tokens, k, width,
      in[0].dtype() == mx::bfloat16});
  };
  return make_op("combine_rows", inputs, {{mx::Shape{tokens, width}, y.dtype()}}, compute, std::move(vjp))[0];
}

}  // namespace

Routing cpu::sort_by_expert(const mx::array& experts, int num_experts) {
  const auto results = make_op("sort_by_expert", {experts}, {{{static_cast<int>(experts.size())}, mx::int32}, {{num_experts + 1}, mx::int32}},
                               [](const std::vector<mx::array>& in, std::vector<mx::array>& out) { count_sort(in[0], out[0], out[1]); });
  return {results[0], results[1]};
}

mx::array cpu::gather_rows(const mx::array& x, const Routing& routing, int k) {
  auto compute = [k](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const std::int64_t bytes = in[0].shape(1) * in[0].itemsize();
    const auto* order = in[1].data<std::int32_t>();
    parallel_for(in[1].size(), grain_rows(in[0].shape(1)), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) std::memcpy(out[0].data<char>() + r * bytes, in[0].data<char>() + order[r] / k * bytes, bytes);
    });
  };
  auto vjp = [k](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>&, const std::vector<mx::array>&) {
    return std::vector<mx::array>{sum_rows(mx::astype(cotangents[0], in[0].dtype()), std::nullopt, in[1], k)};
  };
  return make_op("gather_rows", {x, routing.order}, {{mx::Shape{static_cast<int>(routing.order.size()), x.shape(1)}, x.dtype()}}, compute, vjp)[0];
}

mx::array cpu::combine_rows(const mx::array& y, const mx::array& weights, const Routing& routing, int k) {
  auto vjp = [k](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>&) {
    std::vector<Output> outputs;
    for (const int arg : argnums) outputs.push_back({in[arg].shape(), in[arg].dtype()});
    auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
      const auto rows = inverse(in[1]);
      CombineBackward args{in[0].data<char>(), in[3].data<char>(),           rows.data(), in[2].data<float>(), nullptr, nullptr, in[3].shape(0), k,
                           in[3].shape(1),     in[0].dtype() == mx::bfloat16};
      for (std::size_t i = 0; i < argnums.size(); ++i) {
        if (argnums[i] == 0) args.dy = out[i].data<char>();
        if (argnums[i] == 2) args.dweights = out[i].data<float>();
      }
      HWY_DYNAMIC_DISPATCH(combine_backward)(args);
    };
    return make_op("combine_rows_vjp", {in[0], in[1], in[2], mx::astype(cotangents[0], in[0].dtype())}, outputs, compute);
  };
  return sum_rows(y, weights, routing.order, k, vjp);
}

}  // namespace lquant::kernels
#endif
