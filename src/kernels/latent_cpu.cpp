// Each function is one pass over the matrix, a group at a time, on all cores: memory traffic is what it costs. Sums over a group
// have a fixed order, so the result does not depend on the number of threads.
#include "kernels/multiversion.h"
LQUANT_EXACT_ARITHMETIC
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/latent_cpu.cpp"
#include <hwy/foreach_target.h>
//
#include <hwy/highway.h>

#include "kernels/latent_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {

using Shorts = hn::Rebind<std::uint16_t, Lanes>;
using Ints = hn::Rebind<std::int32_t, Lanes>;

HWY_INLINE hn::Vec<Ints> load_latents(const std::uint16_t* p) { return hn::PromoteTo(Ints(), hn::LoadU(Shorts(), p)); }

/// The codes of one vector of latents, as floats.
HWY_INLINE Vector codes_of(const std::uint16_t* p, int bits) { return hn::ConvertTo(Lanes(), hn::ShiftRightSame(load_latents(p), 16 - bits)); }

template <class T>
void weight_groups(const std::uint16_t* u, const T* scales, const T* biases, T* out, std::int64_t begin, std::int64_t end, int bits, int group_size) {
  const std::int64_t lanes = hn::Lanes(Lanes());
  for (std::int64_t g = begin; g < end; ++g) {
    const Vector s = set(static_cast<float>(scales[g])), b = set(static_cast<float>(biases[g]));
    for (std::int64_t i = g * group_size; i < (g + 1) * group_size; i += lanes) {
      // MLX multiplies and adds in the storage dtype: two roundings.
      store(hn::Add(rounded<T>(hn::Mul(codes_of(u + i, bits), s)), b), out + i);
    }
  }
}

template <class T>
void gradient_groups(const T* dw, const std::uint16_t* u, float* ds, float* db, std::int64_t begin, std::int64_t end, int bits, int group_size) {
  const std::int64_t lanes = hn::Lanes(Lanes());
  for (std::int64_t g = begin; g < end; ++g) {
    Vector scaled = set(0), plain = set(0);
    for (std::int64_t i = g * group_size; i < (g + 1) * group_size; i += lanes) {
      const Vector d = load(dw + i);
      scaled = hn::MulAdd(d, codes_of(u + i, bits), scaled);
      plain = hn::Add(plain, d);
    }
    ds[g] = sum(scaled);
    db[g] = sum(plain);
  }
}

template <class T>
void step_groups(const std::uint16_t* u, const T* dw, const float* scales, const float* v, std::uint16_t* next_u, float* next_v, std::int64_t begin,
                 std::int64_t end, const LatentStep& step, int bits, int group_size) {
  const std::int64_t lanes = hn::Lanes(Lanes());
  const Vector low = set(0), high = set(static_cast<float>(kLatentMax));
  for (std::int64_t g = begin; g < end; ++g) {
    Vector squares = set(0);
    for (std::int64_t i = g * group_size; i < (g + 1) * group_size; i += lanes) {
      const Vector d = load(dw + i);
      squares = hn::MulAdd(d, d, squares);
    }
    next_v[g] = step.decay * v[g] + (1 - step.decay) * (sum(squares) / static_cast<float>(group_size));
    const float rms = std::max(std::sqrt(next_v[g] / step.correction), kLatentTiny);
    const float sign = scales[g] > 0 ? 1.0f : scales[g] < 0 ? -1.0f : 0.0f;
    const Vector factor = set(-sign * step.rate * static_cast<float>(latent_one(bits)) / rms);
    for (std::int64_t i = g * group_size; i < (g + 1) * group_size; i += lanes) {
      const Vector moved = hn::MulAdd(load(dw + i), factor, hn::ConvertTo(Lanes(), load_latents(u + i)));
      hn::StoreU(hn::DemoteTo(Shorts(), hn::NearestInt(hn::Clamp(moved, low, high))), Shorts(), next_u + i);
    }
  }
}

void weight_any(const std::uint16_t* u, const void* scales, const void* biases, void* out, bool bf16, std::int64_t begin, std::int64_t end, int bits,
                int group_size) {
  if (bf16)
    weight_groups(u, static_cast<const Bf16*>(scales), static_cast<const Bf16*>(biases), static_cast<Bf16*>(out), begin, end, bits, group_size);
  else
    weight_groups(u, static_cast<const float*>(scales), static_cast<const float*>(biases), static_cast<float*>(out), begin, end, bits, group_size);
}

void gradient_any(const void* dw, bool bf16, const std::uint16_t* u, float* ds, float* db, std::int64_t begin, std::int64_t end, int bits,
                  int group_size) {
  if (bf16)
    gradient_groups(static_cast<const Bf16*>(dw), u, ds, db, begin, end, bits, group_size);
  else
    gradient_groups(static_cast<const float*>(dw), u, ds, db, begin, end, bits, group_size);
}

void step_any(const std::uint16_t* u, const void* dw, bool bf16, const float* scales, const float* v, std::uint16_t* next_u, float* next_v,
              std::int64_t begin, std::int64_t end, const LatentStep& step, int bits, int group_size) {
  if (bf16)
    step_groups(u, static_cast<const Bf16*>(dw), scales, v, next_u, next_v, begin, end, step, bits, group_size);
  else
    step_groups(u, static_cast<const float*>(dw), scales, v, next_u, next_v, begin, end, step, bits, group_size);
}

}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <mlx/mlx.h>

namespace lquant::kernels {
HWY_EXPORT(weight_any);
HWY_EXPORT(gradient_any);
HWY_EXPORT(step_any);

namespace latent_cpu {
namespace {

// 256 groups of 64 are 16 Ki weights, some microseconds of work: less is not worth a second thread.
constexpr std::int64_t kGroupGrain = 256;

const void* raw(const mx::array& a) { return a.data<char>(); }
void* raw(mx::array& a) { return a.data<char>(); }

}  // namespace

mx::array weight(const mx::array& latents, const mx::array& scales, const mx::array& biases, int bits, int group_size) {
  return make_op("LatentWeight", {latents, scales, biases}, {{latents.shape(), scales.dtype()}},
                 [bits, group_size](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
                   const bool bf16 = in[1].dtype() == mx::bfloat16;
                   parallel_for(static_cast<std::int64_t>(in[1].size()), kGroupGrain, [&](std::int64_t begin, std::int64_t end) {
                     HWY_DYNAMIC_DISPATCH(weight_any)
                     (in[0].data<std::uint16_t>(), raw(in[1]), raw(in[2]), raw(out[0]), bf16, begin, end, bits, group_size);
                   });
                 })[0];
}

std::pair<mx::array, mx::array> gradients(const mx::array& dw, const mx::array& latents, int bits, int group_size) {
  auto shape = dw.shape();
  shape.back() /= group_size;
  const auto out =
      make_op("LatentGradients", {dw, latents}, {{shape, mx::float32}, {shape, mx::float32}},
              [bits, group_size](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
                const bool bf16 = in[0].dtype() == mx::bfloat16;
                parallel_for(static_cast<std::int64_t>(out[0].size()), kGroupGrain, [&](std::int64_t begin, std::int64_t end) {
                  HWY_DYNAMIC_DISPATCH(gradient_any)
                  (raw(in[0]), bf16, in[1].data<std::uint16_t>(), out[0].data<float>(), out[1].data<float>(), begin, end, bits, group_size);
                });
              });
  return {out[0], out[1]};
}

std::pair<mx::array, mx::array> step(const mx::array& latents, const mx::array& dw, const mx::array& scales, const mx::array& v,
                                     const LatentStep& step, int bits, int group_size) {
  const auto out = make_op("LatentStep", {latents, dw, mx::astype(scales, mx::float32), v}, {{latents.shape(), mx::uint16}, {v.shape(), mx::float32}},
                           [bits, group_size, step](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
                             const bool bf16 = in[1].dtype() == mx::bfloat16;
                             parallel_for(static_cast<std::int64_t>(in[3].size()), kGroupGrain, [&](std::int64_t begin, std::int64_t end) {
                               HWY_DYNAMIC_DISPATCH(step_any)
                               (in[0].data<std::uint16_t>(), raw(in[1]), bf16, in[2].data<float>(), in[3].data<float>(), out[0].data<std::uint16_t>(),
                                out[1].data<float>(), begin, end, step, bits, group_size);
                             });
                           });
  return {out[0], out[1]};
}

}  // namespace latent_cpu
}  // namespace lquant::kernels
#endif  // HWY_ONCE
