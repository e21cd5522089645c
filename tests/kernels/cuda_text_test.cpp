// The text of the CUDA kernels, run thread by thread on the CPU (cuda_on_host.h) and held to the same references as the loops and compositions that
// other devices use.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/activation.h"
#include "kernels/cuda_text_testing.h"
#include "kernels/gated.h"
#include "kernels/latent.h"
#include "kernels/latent_cpu.h"
#include "kernels/primitive.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wunused-function"
// clang-format off: numbers.cu stands first, as it does before every kernel
namespace of_descent {
#include "kernels/numbers.cu"
#include "kernels/descent.cu"
}  // namespace of_descent
namespace of_gates {
#include "kernels/numbers.cu"
#include "kernels/gated.cu"
}  // namespace of_gates
namespace of_heads {
#include "kernels/numbers.cu"
#include "kernels/head_rows.cu"
}  // namespace of_heads
// clang-format on
#pragma GCC diagnostic pop

namespace lquant::kernels {
namespace {

using cuda_on_host::floats, cuda_on_host::launch, cuda_on_host::values;

class CudaText : public cuda_on_host::OnCpu {};

constexpr double kEps = std::numeric_limits<float>::epsilon() / 2;  // of one rounding
constexpr int kThreads = 64;

mx::array normal(const mx::Shape& shape, std::uint64_t seed, float deviation = 1) {
  return mx::random::normal(shape, mx::float32, 0, deviation, mx::random::key(seed));
}

/// An array of the device's 16-bit floats with the values of x, and back.
template <class B>
std::vector<B> as_bf16(const mx::array& x) {
  const auto bits = values<std::uint16_t>(mx::view(mx::astype(x, mx::bfloat16), mx::uint16));
  std::vector<B> out(bits.size());
  for (std::size_t i = 0; i < bits.size(); ++i) out[i].bits = bits[i];
  return out;
}
template <class B>
mx::array from_bf16(const std::vector<B>& x, const mx::Shape& shape) {
  std::vector<std::uint16_t> bits(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) bits[i] = x[i].bits;
  return mx::view(mx::array(bits.data(), shape, mx::uint16), mx::bfloat16);
}

/// A matrix in training, with everything that its kernels read. Widths leave the last block of threads partly empty.
struct Trained {
  Trained(int group, std::uint64_t seed) : groups{5, 256 / group} {
    u = mx::astype(mx::random::randint(0, kLatentMax + 1, {5, 256}, mx::int32, mx::random::key(seed)), mx::uint16);
    const auto of_groups = [&](int i, float deviation) { return normal(groups, seed + i, deviation); };
    s0 = of_groups(1, 0.1f);
    b0 = of_groups(2, 1);
    pivot = of_groups(3, 2);
    a = of_groups(4, 0.1f);
    c = of_groups(5, 0.1f);
    ma = of_groups(6, 1e-3f);
    mc = of_groups(7, 1e-3f);
    va = mx::square(of_groups(8, 1e-3f));
    vc = mx::square(of_groups(9, 1e-3f));
    v = mx::square(of_groups(10, 1e-3f));
    dw = normal({5, 256}, seed + 11, 1e-3f);
  }
  mx::Shape groups;
  mx::array u{0}, s0{0}, b0{0}, pivot{0}, a{0}, c{0}, ma{0}, mc{0}, va{0}, vc{0}, v{0}, dw{0};
  static constexpr float inverse_spread = 0.7f;

  mx::array scales() const { return mx::multiply(s0, mx::add(mx::multiply(a, mx::array(inverse_spread)), mx::array(1.0f))); }
  mx::array biases() const {
    const auto shift = mx::subtract(c, mx::multiply(mx::multiply(pivot, a), mx::array(inverse_spread)));
    return mx::add(b0, mx::multiply(s0, shift));
  }
};

template <int bits, int group>
void weights_equal(std::uint64_t seed) {
  using B = of_descent::lquant::bf16;
  const Trained m(group, seed);
  const auto u = values<std::uint16_t>(m.u);
  const auto s0 = floats(m.s0), b0 = floats(m.b0), pivot = floats(m.pivot), a = floats(m.a), c = floats(m.c);
  const int count = static_cast<int>(u.size()) / 8;
  std::vector<float> wide(u.size());
  std::vector<B> narrow(u.size());
  const int blocks = (count + kThreads - 1) / kThreads;
  launch(blocks, kThreads, [&] {
    of_descent::lquant::weight<float, bits, group>(u.data(), s0.data(), b0.data(), pivot.data(), a.data(), c.data(), m.inverse_spread, count,
                                                   wide.data());
  });
  launch(blocks, kThreads, [&] {
    of_descent::lquant::weight<B, bits, group>(u.data(), s0.data(), b0.data(), pivot.data(), a.data(), c.data(), m.inverse_spread, count,
                                               narrow.data());
  });
  const auto as = [](const mx::array& x, mx::Dtype dtype) { return mx::astype(x, dtype); };
  // Bit for bit: what is trained must be what is stored.
  EXPECT_EQ(wide, floats(latent_weight(m.u, m.scales(), m.biases(), bits, group))) << bits << " bits, group " << group;
  EXPECT_EQ(floats(from_bf16(narrow, m.u.shape())),
            floats(latent_weight(m.u, as(m.scales(), mx::bfloat16), as(m.biases(), mx::bfloat16), bits, group)))
      << bits << " bits, group " << group;
}

TEST_F(CudaText, WeightsAreThoseThatWillBeStored) {
  const MlxOpsOnly composition;  // rounds the product before the sum
  weights_equal<2, 32>(1);
  weights_equal<3, 64>(2);
  weights_equal<4, 128>(3);
  weights_equal<6, 64>(4);
}

template <int bits, int group>
void gradients_equal(std::uint64_t seed) {
  using B = of_descent::lquant::bf16;
  const Trained m(group, seed);
  const auto u = values<std::uint16_t>(m.u);
  const auto dw = as_bf16<B>(m.dw);
  const auto d = floats(mx::astype(m.dw, mx::bfloat16));
  const int count = static_cast<int>(u.size()) / 8;
  std::vector<float> ds(m.a.size()), db(m.a.size());
  launch((count + kThreads - 1) / kThreads, kThreads,
         [&] { of_descent::lquant::gradients<B, bits, group>(dw.data(), u.data(), count, ds.data(), db.data()); });
  for (std::size_t g = 0; g < ds.size(); ++g) {
    double scaled = 0, plain = 0, scaled_size = 0, plain_size = 0;
    for (std::size_t i = g * group; i < (g + 1) * group; ++i) {
      const double q = u[i] >> (16 - bits);
      scaled += d[i] * q, plain += d[i], scaled_size += std::abs(d[i] * q), plain_size += std::abs(d[i]);
    }
    // A sum of n products in any order is off by at most n roundings of Σ|terms| (first order).
    EXPECT_NEAR(ds[g], scaled, (group + 1) * kEps * scaled_size);
    EXPECT_NEAR(db[g], plain, group * kEps * plain_size);
  }
}

TEST_F(CudaText, GradientsAreTheSumsOverGroups) {
  gradients_equal<2, 32>(11);
  gradients_equal<4, 64>(12);
  gradients_equal<5, 128>(13);
}

/// Adam's step in double precision.
double adam(double value, double& m, double& v, double gradient, double step, double correction) {
  m = 0.9 * m + (1 - 0.9) * gradient;
  v = 0.95 * v + (1 - 0.95) * gradient * gradient;
  return value - m * step / std::sqrt(v / correction);
}

template <int bits, int group>
void step_follows(std::uint64_t seed) {
  const Trained m(group, seed);
  const auto u = values<std::uint16_t>(m.u);
  const auto s0 = floats(m.s0), pivot = floats(m.pivot), a = floats(m.a), c = floats(m.c), ma = floats(m.ma), va = floats(m.va), mc = floats(m.mc),
             vc = floats(m.vc), v = floats(m.v), dw = floats(m.dw), scales = floats(m.scales());
  const float adam_step = 0.05f, code_step = 0.7f, correction = 0.3f;
  const int count = static_cast<int>(u.size()) / 8;
  const std::size_t groups = m.a.size();
  std::vector<std::uint16_t> next_u(u.size());
  std::vector<std::vector<float>> next(7, std::vector<float>(groups));
  launch((count + kThreads - 1) / kThreads, kThreads, [&] {
    of_descent::lquant::step<float, bits, group>(dw.data(), u.data(), s0.data(), pivot.data(), a.data(), c.data(), ma.data(), va.data(), mc.data(),
                                                 vc.data(), v.data(), m.inverse_spread, adam_step, code_step, correction, count, next_u.data(),
                                                 next[0].data(), next[1].data(), next[2].data(), next[3].data(), next[4].data(), next[5].data(),
                                                 next[6].data());
  });
  // Where codes stay, the same numbers: in one kernel, and from sums that another has made.
  std::vector<std::vector<float>> still(6, std::vector<float>(groups)), summed = still;
  std::vector<float> sums_scaled(groups), sums_plain(groups);
  launch((count + kThreads - 1) / kThreads, kThreads, [&] {
    of_descent::lquant::step_of_scales<float, bits, group>(dw.data(), u.data(), s0.data(), pivot.data(), a.data(), c.data(), ma.data(), va.data(),
                                                           mc.data(), vc.data(), m.inverse_spread, adam_step, correction, count, still[0].data(),
                                                           still[1].data(), still[2].data(), still[3].data(), still[4].data(), still[5].data());
    of_descent::lquant::gradients<float, bits, group>(dw.data(), u.data(), count, sums_scaled.data(), sums_plain.data());
  });
  launch(static_cast<int>(groups + kThreads - 1) / kThreads, kThreads, [&] {
    of_descent::lquant::step_from_sums(sums_scaled.data(), sums_plain.data(), s0.data(), pivot.data(), a.data(), c.data(), ma.data(), va.data(),
                                       mc.data(), vc.data(), m.inverse_spread, adam_step, correction, static_cast<int>(groups), summed[0].data(),
                                       summed[1].data(), summed[2].data(), summed[3].data(), summed[4].data(), summed[5].data());
  });
  const std::vector<std::vector<float>> moving(next.begin(), next.end() - 1);
  EXPECT_EQ(still, moving);
  EXPECT_EQ(summed, moving);
  for (std::size_t g = 0; g < groups; ++g) {
    double ds = 0, db = 0, squares = 0, size = 0;
    for (std::size_t i = g * group; i < (g + 1) * group; ++i) {
      const double q = u[i] >> (16 - bits);
      ds += dw[i] * q, db += dw[i], squares += double(dw[i]) * dw[i];
      size += std::abs(dw[i]) * (q + std::abs(pivot[g]));
    }
    double first_a = ma[g], second_a = va[g], first_c = mc[g], second_c = vc[g];
    const double now_a = adam(a[g], first_a, second_a, s0[g] * m.inverse_spread * (ds - pivot[g] * db), adam_step, correction);
    const double now_c = adam(c[g], first_c, second_c, s0[g] * db, adam_step, correction);
    // The gradients are off by (group + 5) roundings of their terms' sizes; a step moves by at most step · √(correction / .05) times what they move.
    const double error = (group + 5) * kEps * std::abs(s0[g]) * size;
    EXPECT_NEAR(next[2][g], first_a, 0.1 * error + 4 * kEps * std::abs(ma[g]));
    EXPECT_NEAR(next[4][g], first_c, 0.1 * error + 4 * kEps * std::abs(mc[g]));
    const double root_a = std::sqrt(second_a / correction), root_c = std::sqrt(second_c / correction);
    EXPECT_NEAR(next[0][g], now_a, adam_step * 2 * error / root_a + 8 * kEps * (std::abs(a[g]) + adam_step * std::abs(first_a) / root_a));
    EXPECT_NEAR(next[1][g], now_c, adam_step * 2 * error / root_c + 8 * kEps * (std::abs(c[g]) + adam_step * std::abs(first_c) / root_c));
    const double mean = 0.95 * v[g] + 0.05 * squares / group, relative = (group + 6) * kEps;
    EXPECT_NEAR(next[6][g], mean, relative * mean);
    const double sign = scales[g] > 0 ? 1 : scales[g] < 0 ? -1 : 0, factor = sign * code_step * latent_one(bits) / std::sqrt(mean / correction);
    for (std::size_t i = g * group; i < (g + 1) * group; ++i) {
      const double move = factor * dw[i], expected = std::min(65535.0, std::max(0.0, u[i] - move));
      EXPECT_NEAR(next_u[i], expected, 0.5 + (relative / 2 + 6 * kEps) * std::abs(move) + kEps * (65536 + std::abs(move)));
    }
  }
}

TEST_F(CudaText, StepsFollowTheFormula) {
  step_follows<2, 32>(21);
  step_follows<3, 64>(22);
  step_follows<4, 128>(23);
}

template <Activation activation>
void gates_equal(int n_columns) {
  using B = of_gates::lquant::bf16;
  constexpr int act = static_cast<int>(activation);
  const mx::Shape shape{3, n_columns};
  const auto g = mx::astype(normal(shape, 31, 3), mx::bfloat16), u = mx::astype(normal(shape, 32), mx::bfloat16),
             dy = mx::astype(normal(shape, 33), mx::bfloat16);
  const auto gate = as_bf16<B>(g), up = as_bf16<B>(u), slope = as_bf16<B>(dy);
  std::vector<B> y(gate.size()), dgate(gate.size()), dup(gate.size());
  const auto run = [&]<int n>() {
    const int count = static_cast<int>(gate.size()) / n, blocks = (count + kThreads - 1) / kThreads;
    launch(blocks, kThreads, [&] { of_gates::lquant::gated<B, act, n>(gate.data(), up.data(), count, y.data()); });
    launch(blocks, kThreads,
           [&] { of_gates::lquant::gated_gradients<B, act, n>(gate.data(), up.data(), slope.data(), count, dgate.data(), dup.data()); });
  };
  n_columns % 8 == 0 ? run.template operator()<8>() : run.template operator()<1>();
  const auto f32 = [](const mx::array& x) { return mx::astype(x, mx::float32); };
  const auto function = [](const std::vector<mx::array>& in) { return std::vector{gated(in[0], in[1], activation)}; };
  const auto [value, gradients] = mx::vjp(function, {f32(g), f32(u)}, {f32(dy)});
  const auto near = [&](const std::vector<B>& got, const mx::array& want, const char* what) {
    const auto x = floats(from_bf16(got, shape)), w = floats(want);
    // One rounding to bf16 of what f32 has to some twenty roundings of terms of the size of |g| · |u| · |dy|, at most 12 · 4 · 4 here.
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], w[i], 0x1p-8 * std::abs(w[i]) + 20 * kEps * 200) << what << act << " at " << i;
  };
  near(y, value[0], "value");
  near(dgate, gradients[0], "gate");
  near(dup, gradients[1], "up");
}

TEST_F(CudaText, GatesAndTheirGradientsEqualTheComposition) {
  for (const int columns : {37, 72}) {
    gates_equal<Activation::silu>(columns);
    gates_equal<Activation::gelu>(columns);
    gates_equal<Activation::gelu_tanh>(columns);
    gates_equal<Activation::gelu_quick>(columns);
    gates_equal<Activation::relu>(columns);
    gates_equal<Activation::relu2>(columns);
    gates_equal<Activation::sigmoid>(columns);
  }
}

TEST_F(CudaText, RowsOfLogitsGiveTheirDivergenceAndItsSlopes) {
  namespace h = of_heads::lquant;
  for (const bool wide : {false, true})
    for (const float softcap : {0.0f, 5.0f}) {
      const int rows = 3, width = wide ? 1024 : 301;
      const auto zs = floats(normal({rows, width}, 41, 4)), zt = floats(normal({rows, width}, 42, 4));
      const std::vector<float> mask{1, 0, 0.5f};
      const h::Finish of_student{0.7f, softcap, 0.5f}, of_teacher{1.3f, 0, 0.5f};
      std::vector<float> loss(rows), slopes(zs.size()), alone(rows), none(1);
      const auto run = [&](auto gradient, std::vector<float>& to, std::vector<float>& d) {
        launch(rows, kThreads, [&] {
          if (wide)
            h::divergence<float, float, decltype(gradient)::value, true>(zs.data(), zt.data(), mask.data(), of_student, of_teacher, width, to.data(),
                                                                         d.data());
          else
            h::divergence<float, float, decltype(gradient)::value, false>(zs.data(), zt.data(), mask.data(), of_student, of_teacher, width, to.data(),
                                                                          d.data());
        });
      };
      run(std::true_type(), loss, slopes);
      run(std::false_type(), alone, none);
      EXPECT_EQ(alone, loss);
      for (int r = 0; r < rows; ++r) {
        const auto logit = [](double z, double multiplier, double cap) {
          z *= multiplier;
          return (cap != 0 ? cap * std::tanh(z / cap) : z) * 0.5;
        };
        double sum_s = 0, sum_t = 0;
        for (int i = 0; i < width; ++i) {
          sum_s += std::exp(logit(zs[r * width + i], 0.7f, softcap));
          sum_t += std::exp(logit(zt[r * width + i], 1.3f, 0));
        }
        double kl = 0;
        for (int i = 0; i < width; ++i) {
          const double s = logit(zs[r * width + i], 0.7f, softcap), t = logit(zt[r * width + i], 1.3f, 0);
          const double p = std::exp(t) / sum_t, q = std::exp(s) / sum_s;
          kl += p * (std::log(p) - std::log(q));
          const double inner = std::tanh(zs[r * width + i] * 0.7 / 5);
          const double slope = 0.7 * 0.5 * (softcap != 0 ? 1 - inner * inner : 1);
          // Exponentials of numbers up to 12 carry 12 roundings and their sums as many more as a thread has terms; p and q are below 1.
          ASSERT_NEAR(slopes[r * width + i], mask[r] * slope * (q - p), 100 * kEps * (p + q) + 1e-12) << "row " << r << ", logit " << i;
        }
        EXPECT_NEAR(loss[r], mask[r] * kl, 200 * kEps * (kl + 12));
      }
    }
}

}  // namespace
}  // namespace lquant::kernels
