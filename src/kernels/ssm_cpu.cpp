// A vector of channels walks through all tokens with its states beside it. The backward pass makes the states again and keeps them, for one vector of
// channels at a time. Gradients to b and c are sums over channels: by slices of them, whose sums are added in their order, so that the result does
// not depend on the number of threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ssm_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>  // before all else: it includes this file once per instruction set

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"
#include "kernels/ssm_cpu.h"

#ifndef LQUANT_KERNELS_SSM_CPU_ARGS
#define LQUANT_KERNELS_SSM_CPU_ARGS
namespace lquant::kernels::cpu {

/// Channels whose gradients to b and c are summed before those of others are added: a few vectors.
inline constexpr std::int64_t kSlice = 128;

struct SelectiveScanArgs {
  std::int64_t batch, tokens, channels, size;
  const float *x, *dt, *a, *b, *c, *keeps, *first;
  float *y, *last;
};

struct SelectiveScanGradients {
  const float *to_y, *to_last;
  float *x, *dt, *first;
  float* a;      ///< [B, N, C]
  float *b, *c;  ///< [B, slices, T, N]
};

}  // namespace lquant::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

using cpu::kSlice;

template <class Width>
void walk(const cpu::SelectiveScanArgs& s, std::int64_t batch, std::int64_t channel, Width part, float* states) {
  const std::int64_t lanes = hn::Lanes(Lanes());
  for (std::int64_t n = 0; n < s.size; ++n) store(load(s.first + (batch * s.size + n) * s.channels + channel, part), states + n * lanes);
  for (std::int64_t t = 0; t < s.tokens; ++t) {
    const std::int64_t token = batch * s.tokens + t, at = token * s.channels + channel;
    const float *b = s.b + token * s.size, *c = s.c + token * s.size;
    const Vector dt = load(s.dt + at, part), input = hn::Mul(dt, load(s.x + at, part)), keeps = set(s.keeps[token]);
    Vector y = set(0);
    for (std::int64_t n = 0; n < s.size; ++n) {
      const Vector decay = hn::Mul(keeps, hn::Exp(Lanes(), hn::Mul(dt, load(s.a + n * s.channels + channel, part))));
      const Vector h = hn::MulAdd(decay, load(states + n * lanes), hn::Mul(input, set(b[n])));
      store(h, states + n * lanes);
      y = hn::MulAdd(h, set(c[n]), y);
    }
    store(y, s.y + at, part);
  }
  for (std::int64_t n = 0; n < s.size; ++n) store(load(states + n * lanes), s.last + (batch * s.size + n) * s.channels + channel, part);
}

/// `h` has room for (tokens + 1) · size vectors, `decays` for tokens · size; to_b and to_c, of as many, are added to.
template <class Width>
void walk_back(const cpu::SelectiveScanArgs& s, const cpu::SelectiveScanGradients& g, std::int64_t batch, std::int64_t channel, Width part, float* h,
               float* decays, float* to_b, float* to_c, float* to_h) {
  const std::int64_t lanes = hn::Lanes(Lanes()), row = s.size * lanes;
  const auto state_at = [&](std::int64_t n) { return (batch * s.size + n) * s.channels + channel; };
  for (std::int64_t n = 0; n < s.size; ++n) {
    store(load(s.first + state_at(n), part), h + n * lanes);
    store(load(g.to_last + state_at(n), part), to_h + n * lanes);
    store(set(0), g.a + state_at(n), part);
  }
  for (std::int64_t t = 0; t < s.tokens; ++t) {
    const std::int64_t token = batch * s.tokens + t, at = token * s.channels + channel;
    const Vector dt = load(s.dt + at, part), input = hn::Mul(dt, load(s.x + at, part)), keeps = set(s.keeps[token]);
    for (std::int64_t n = 0; n < s.size; ++n) {
      const Vector decay = hn::Mul(keeps, hn::Exp(Lanes(), hn::Mul(dt, load(s.a + n * s.channels + channel, part))));
      store(decay, decays + t * row + n * lanes);
      store(hn::MulAdd(decay, load(h + t * row + n * lanes), hn::Mul(input, set(s.b[token * s.size + n]))), h + (t + 1) * row + n * lanes);
    }
  }
  for (std::int64_t t = s.tokens - 1; t >= 0; --t) {
    const std::int64_t token = batch * s.tokens + t, at = token * s.channels + channel;
    const float *b = s.b + token * s.size, *c = s.c + token * s.size;
    const Vector dt = load(s.dt + at, part), x = load(s.x + at, part), input = hn::Mul(dt, x), to_y = load(g.to_y + at, part);
    Vector to_input = set(0), to_dt = set(0);
    for (std::int64_t n = 0; n < s.size; ++n) {
      const std::int64_t i = t * row + n * lanes;
      const Vector own = hn::MulAdd(to_y, set(c[n]), load(to_h + n * lanes)), handed = hn::Mul(own, load(decays + i));
      store(hn::MulAdd(to_y, load(h + i + row), load(to_c + i)), to_c + i);
      store(hn::MulAdd(own, input, load(to_b + i)), to_b + i);
      to_input = hn::MulAdd(own, set(b[n]), to_input);
      const Vector to_exponent = hn::Mul(handed, load(h + i));
      to_dt = hn::MulAdd(to_exponent, load(s.a + n * s.channels + channel, part), to_dt);
      store(hn::MulAdd(to_exponent, dt, load(g.a + state_at(n), part)), g.a + state_at(n), part);
      store(handed, to_h + n * lanes);
    }
    store(hn::Mul(to_input, dt), g.x + at, part);
    store(hn::MulAdd(to_input, x, to_dt), g.dt + at, part);
  }
  for (std::int64_t n = 0; n < s.size; ++n) store(load(to_h + n * lanes), g.first + state_at(n), part);
}

/// Of each of `count` vectors the sum of its lanes.
void add_lanes(const float* vectors, std::int64_t count, float* sums) {
  const std::int64_t lanes = hn::Lanes(Lanes());
  for (std::int64_t i = 0; i < count; ++i) sums[i] = sum(load(vectors + i * lanes));
}

/// work(channel, Whole or Part) for the vectors of a slice of channels.
template <class Work>
void for_slice(const cpu::SelectiveScanArgs& s, std::int64_t slice, const Work& work) {
  const std::int64_t first = slice * kSlice, last = std::min(s.channels, first + kSlice), lanes = hn::Lanes(Lanes());
  std::int64_t channel = first;
  for (; channel + lanes <= last; channel += lanes) work(channel, Whole());
  if (channel < last) work(channel, Part{last - channel});
}

void scan(const cpu::SelectiveScanArgs& s) {
  const std::int64_t slices = (s.channels + kSlice - 1) / kSlice;
  parallel_for(s.batch * slices, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> states(s.size * hn::Lanes(Lanes()));
    for (std::int64_t i = begin; i < end; ++i)
      for_slice(s, i % slices, [&](std::int64_t channel, auto part) { walk(s, i / slices, channel, part, states.data()); });
  });
}

void scan_back(const cpu::SelectiveScanArgs& s, const cpu::SelectiveScanGradients& g) {
  const std::int64_t slices = (s.channels + kSlice - 1) / kSlice, lanes = hn::Lanes(Lanes()), all = s.tokens * s.size;
  parallel_for(s.batch * slices, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> h((all + s.size) * lanes), decays(all * lanes), to_h(s.size * lanes), to_b(all * lanes), to_c(all * lanes);
    for (std::int64_t i = begin; i < end; ++i) {
      std::fill(to_b.begin(), to_b.end(), 0.0f);
      std::fill(to_c.begin(), to_c.end(), 0.0f);
      for_slice(s, i % slices, [&](std::int64_t channel, auto part) {
        walk_back(s, g, i / slices, channel, part, h.data(), decays.data(), to_b.data(), to_c.data(), to_h.data());
      });
      add_lanes(to_b.data(), all, g.b + i * all);
      add_lanes(to_c.data(), all, g.c + i * all);
    }
  });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {

HWY_EXPORT(scan);
HWY_EXPORT(scan_back);

using Arrays = std::vector<mx::array>;

/// `in` begins with x, dt, a, b, c, keeps, first.
cpu::SelectiveScanArgs args_of(const Arrays& in) {
  const auto data = [&](int i) { return in[i].data<float>(); };
  return {in[0].shape(0), in[0].shape(1), in[0].shape(2), in[3].shape(2), data(0), data(1), data(2),
          data(3),        data(4),        data(5),        data(6),        nullptr, nullptr};
}

Arrays gradients(const Arrays& in, const Arrays& cotangents) {
  Arrays inputs = in;
  inputs.insert(inputs.end(), cotangents.begin(), cotangents.end());
  const int batch = in[0].shape(0), tokens = in[0].shape(1), channels = in[0].shape(2), size = in[3].shape(2);
  const int slices = (channels + static_cast<int>(cpu::kSlice) - 1) / static_cast<int>(cpu::kSlice);
  const auto f32 = mx::float32;
  const auto made = make_op("selective_scan_vjp", inputs,
                            {{in[0].shape(), f32},
                             {in[0].shape(), f32},
                             {{batch, size, channels}, f32},
                             {{batch, slices, tokens, size}, f32},
                             {{batch, slices, tokens, size}, f32},
                             {{batch, size, channels}, f32}},
                            [](const Arrays& in, Arrays& out) {
                              const auto room = [&](int i) { return out[i].data<float>(); };
                              HWY_DYNAMIC_DISPATCH(scan_back)
                              (args_of(in), {in[7].data<float>(), in[8].data<float>(), room(0), room(1), room(5), room(2), room(3), room(4)});
                            });
  return {made[0], made[1], mx::sum(made[2], 0), mx::sum(made[3], 1), mx::sum(made[4], 1), mx::zeros_like(in[5]), made[5]};
}

}  // namespace

std::pair<mx::array, mx::array> cpu::selective_scan(const mx::array& x, const mx::array& dt, const mx::array& a, const mx::array& b,
                                                    const mx::array& c, const mx::array& keeps, const mx::array& first) {
  auto compute = [](const Arrays& in, Arrays& out) {
    auto args = args_of(in);
    args.y = out[0].data<float>();
    args.last = out[1].data<float>();
    HWY_DYNAMIC_DISPATCH(scan)(args);
  };
  auto vjp = [](const Arrays& in, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) {
    const auto all = gradients(in, cotangents);
    Arrays asked;
    for (const int i : argnums) asked.push_back(all.at(i));
    return asked;
  };
  const auto out = make_op("selective_scan", {x, dt, a, b, c, keeps, first}, {{x.shape(), mx::float32}, {first.shape(), mx::float32}}, compute, vjp);
  return {out[0], out[1]};
}

}  // namespace lquant::kernels
#endif
