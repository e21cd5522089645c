// Activations without a gate: one pass forward, one backward. xIELU's gradients to its two factors are sums over all elements, made in f32 by fixed
// blocks, whose sums are added in f64 in their order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/activation_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_activations-inl.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

template <class T, Activation kind>
void activate_slice(const cpu::ActivateArgs& a, std::int64_t begin, std::int64_t end) {
  const T* x = static_cast<const T*>(a.x) + begin;
  T* out = static_cast<T*>(a.out) + begin;
  if (!a.cotangent) {
    for_lanes(end - begin, [&](std::int64_t i, auto part) LQUANT_STEP { store(activate<kind>(load(x + i, part)).value, out + i, part); });
    return;
  }
  const T* cotangent = static_cast<const T*>(a.cotangent) + begin;
  for_lanes(end - begin, [&](std::int64_t i, auto part)
                             LQUANT_STEP { store(hn::Mul(load(cotangent + i, part), activate<kind>(load(x + i, part)).slope), out + i, part); });
}

void activate_all(const cpu::ActivateArgs& a) {
  with_activation(a.activation, [&](auto kind) {
    constexpr Activation activation = decltype(kind)::value;
    parallel_for(a.count, cpu::kGrain, [&](std::int64_t begin, std::int64_t end) {
      a.bf16 ? activate_slice<Bf16, activation>(a, begin, end) : activate_slice<float, activation>(a, begin, end);
    });
  });
}

template <class T>
void xielu_values(const cpu::XieluArgs& a, std::int64_t begin, std::int64_t end) {
  const T* x = static_cast<const T*>(a.x) + begin;
  T* out = static_cast<T*>(a.out) + begin;
  for_lanes(end - begin, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector v = load(x + i, part), line = hn::Mul(set(a.beta), v);
    const Vector right = hn::Mul(hn::Mul(v, v), set(a.p)), left = hn::Mul(hn::Sub(hn::Expm1(Lanes(), hn::Min(set(a.eps), v)), v), set(a.n));
    store(hn::Add(hn::IfThenElse(hn::Gt(v, set(0)), right, left), line), out + i, part);
  });
}

template <class T>
void xielu_gradients(const cpu::XieluArgs& a, std::int64_t begin, std::int64_t end, double* sums) {
  const T *x = static_cast<const T*>(a.x) + begin, *cotangent = static_cast<const T*>(a.cotangent) + begin;
  T* out = a.out ? static_cast<T*>(a.out) + begin : nullptr;
  Vector to_p = set(0), to_n = set(0);
  for_lanes(end - begin, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector v = load(x + i, part), c = load(cotangent + i, part), power = hn::Expm1(Lanes(), hn::Min(set(a.eps), v));
    const auto positive = hn::Gt(v, set(0));
    // Of min(x, eps) the slope is 1 below eps alone, and the exponential's is power + 1.
    const Vector inner = hn::IfThenElse(hn::Lt(v, set(a.eps)), power, set(-1));
    const Vector slope = hn::IfThenElse(positive, hn::Mul(set(2 * a.p), v), hn::Mul(inner, set(a.n)));
    if (out) store(hn::Mul(c, hn::Add(slope, set(a.beta))), out + i, part);
    to_p = hn::Add(to_p, hn::IfThenElseZero(positive, hn::Mul(hn::Mul(v, v), c)));
    to_n = hn::Add(to_n, hn::IfThenZeroElse(positive, hn::Mul(hn::Sub(power, v), c)));
  });
  if (!sums) return;
  sums[0] = sum(to_p);
  sums[1] = sum(to_n);
}

void xielu_all(const cpu::XieluArgs& a) {
  if (!a.cotangent) {
    return parallel_for(a.count, cpu::kGrain, [&](std::int64_t begin, std::int64_t end) {
      a.bf16 ? xielu_values<Bf16>(a, begin, end) : xielu_values<float>(a, begin, end);
    });
  }
  parallel_for((a.count + cpu::kGrain - 1) / cpu::kGrain, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t first = block * cpu::kGrain, last = std::min(a.count, first + cpu::kGrain);
      double* sums = a.sums ? a.sums + 2 * block : nullptr;
      a.bf16 ? xielu_gradients<Bf16>(a, first, last, sums) : xielu_gradients<float>(a, first, last, sums);
    }
  });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {

HWY_EXPORT(activate_all);
HWY_EXPORT(xielu_all);

/// `in` begins with x, p, n, beta, eps.
cpu::XieluArgs xielu_args(const std::vector<mx::array>& in) {
  const auto at = [&](int i) { return in[i].data<float>()[0]; };
  return {in[0].data<char>(),           nullptr, nullptr, nullptr, static_cast<std::int64_t>(in[0].size()), at(1), at(2), at(3), at(4),
          in[0].dtype() == mx::bfloat16};
}

}  // namespace

mx::array cpu::activate(const mx::array& x, Activation activation) {
  const auto run = [=](const mx::array& x, const void* cotangent, mx::array& out) {
    HWY_DYNAMIC_DISPATCH(activate_all)
    ({x.data<char>(), cotangent, out.data<char>(), static_cast<std::int64_t>(x.size()), activation, x.dtype() == mx::bfloat16});
  };
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) { run(in[0], nullptr, out[0]); };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>&, const std::vector<mx::array>&) {
    return make_op("activate_vjp", {in[0], mx::astype(cotangents[0], in[0].dtype())}, {{in[0].shape(), in[0].dtype()}},
                   [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) { run(in[0], in[1].data<char>(), out[0]); });
  };
  return make_op("activate", {x}, {{x.shape(), x.dtype()}}, compute, vjp)[0];
}

mx::array cpu::xielu(const mx::array& x, const mx::array& p, const mx::array& n, const mx::array& beta, const mx::array& eps) {
  auto compute = [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    auto args = xielu_args(in);
    args.out = out[0].data<char>();
    HWY_DYNAMIC_DISPATCH(xielu_all)(args);
  };
  auto vjp = [](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                const std::vector<mx::array>&) {
    bool wants_x = false;
    std::vector<Output> outputs;
    for (const int arg : argnums) {
      if (arg > 2) throw std::invalid_argument("[kernels] xielu has no gradient to beta and eps");
      wants_x |= arg == 0;
      outputs.push_back({in[arg].shape(), in[arg].dtype()});
    }
    std::vector<mx::array> inputs = in;
    inputs.push_back(mx::astype(cotangents[0], in[0].dtype()));
    return make_op("xielu_vjp", inputs, outputs, [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
      std::vector<double> sums(2 * ((in[0].size() + kGrain - 1) / kGrain));
      auto args = xielu_args(in);
      args.cotangent = in[5].data<char>();
      args.sums = sums.data();
      for (std::size_t i = 0; wants_x && i < argnums.size(); ++i) {
        if (argnums[i] == 0) args.out = out[i].data<char>();
      }
      HWY_DYNAMIC_DISPATCH(xielu_all)(args);
      for (std::size_t i = 0; i < argnums.size(); ++i) {
        if (argnums[i] == 0) continue;
        double total = 0;
        for (std::size_t j = argnums[i] - 1; j < sums.size(); j += 2) total += sums[j];
        out[i].data<float>()[0] = static_cast<float>(total);
      }
    });
  };
  return make_op("xielu", {x, p, n, beta, eps}, {{x.shape(), x.dtype()}}, compute, vjp)[0];
}

}  // namespace lquant::kernels
#endif
