#include "kernels/latent.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "kernels/dequantize.h"
#include "kernels/latent_cpu.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

constexpr int kBits[] = {2, 3, 4, 5, 6, 8};
constexpr double kEps = std::numeric_limits<float>::epsilon() / 2;  // of one rounding

bool same(mx::array a, mx::array b) {
  a = mx::contiguous(a), b = mx::contiguous(b);
  mx::eval(a, b);
  return a.shape() == b.shape() && a.dtype() == b.dtype() && std::memcmp(a.data<char>(), b.data<char>(), a.nbytes()) == 0;
}

template <class T>
std::vector<T> values(mx::array a) {
  a = mx::contiguous(a);
  a.eval();
  return {a.data<T>(), a.data<T>() + a.size()};
}

std::vector<double> numbers(const mx::array& a) {
  const auto v = values<float>(mx::astype(a, mx::float32));
  return {v.begin(), v.end()};
}

mx::array normal(const mx::Shape& shape, std::uint64_t seed, float deviation = 1) {
  return mx::random::normal(shape, mx::float32, 0, deviation, mx::random::key(seed));
}

mx::array random_latents(const mx::Shape& shape, std::uint64_t seed) {
  return mx::astype(mx::random::randint(0, kLatentMax + 1, shape, mx::int32, mx::random::key(seed)), mx::uint16);
}

mx::Shape groups_of(mx::Shape shape, int group_size) {
  shape.back() /= group_size;
  return shape;
}

/// Bit for bit, as long as the CPU computes both. A GPU's mx::dequantize may fuse the product s q with the sum (one rounding, of r) where the ops
/// here round both: then u |s q| for the product's rounding, which the sum's passes on once more, and u |r| for each of two roundings of r, with
/// u half of the dtype's epsilon. `exact` is s q + b computed in f32; its own error is far below u of the narrow dtypes, and of f32 the same again.
bool same_weight(const mx::array& ours, const mx::array& mlx, const mx::array& product, const mx::array& exact) {
  if (mx::default_device() == mx::Device::cpu) return same(ours, mlx);
  const double u = mx::finfo(mlx.dtype()).eps / 2;
  const auto a = numbers(ours), b = numbers(mlx), p = numbers(product), r = numbers(exact);
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::abs(a[i] - b[i]) <= u * (2 * std::abs(p[i]) + 4 * std::abs(r[i])))) return false;
  return ours.shape() == mlx.shape() && ours.dtype() == mlx.dtype();
}

TEST(LatentWeight, EqualsMlxDequantizeOfTheCodes) {
  std::uint64_t seed = 1;
  for (const int bits : kBits)
    for (const int group_size : {32, 64, 128})
      for (const auto& dtype : {mx::float32, mx::bfloat16, mx::float16})
        for (const mx::Shape& shape : {mx::Shape{3, 128}, mx::Shape{2, 5, 256}}) {
          const auto latents = random_latents(shape, ++seed);
          const auto scales = mx::astype(normal(groups_of(shape, group_size), ++seed, 0.1f), dtype);
          const auto biases = mx::astype(normal(groups_of(shape, group_size), ++seed), dtype);
          const auto codes = latent_codes(latents, bits);
          const auto expected = mx::dequantize(pack_codes(codes, bits), scales, biases, group_size, bits);
          const auto each = [&](const mx::array& of_groups) { return mx::repeat(mx::astype(of_groups, mx::float32), group_size, -1); };
          const auto product = mx::multiply(mx::astype(codes, mx::float32), each(scales));
          const auto exact = mx::add(product, each(biases));
          EXPECT_TRUE(same_weight(latent_weight(latents, scales, biases, bits, group_size), expected, product, exact))
              << bits << " bits, group " << group_size << " " << dtype;
          const MlxOpsOnly gpu_like;
          EXPECT_TRUE(same_weight(latent_weight(latents, scales, biases, bits, group_size), expected, product, exact))
              << bits << " bits, group " << group_size << " " << dtype;
        }
}

TEST(LatentWeight, RefusesScalesOfAnotherShape) {
  const auto latents = random_latents({2, 64}, 1);
  EXPECT_THROW(latent_weight(latents, mx::ones({2, 1}), mx::ones({2, 1}), 4, 32), std::invalid_argument);
  EXPECT_THROW(latent_weight(latents, mx::ones({2, 1}), mx::ones({2, 1}), 9, 64), std::invalid_argument);
}

/// Every code once in the first row and random ones elsewhere; scales of both signs and one of zero.
struct Coded {
  mx::array codes, scales, biases;
};
Coded coded(int bits) {
  constexpr int kWidth = 256;
  std::vector<std::uint8_t> codes(4 * kWidth);
  for (int i = 0; i < 4 * kWidth; ++i) codes[i] = static_cast<std::uint8_t>((i < kWidth ? i : i * 37) % (1 << bits));
  return {mx::array(codes.data(), {4, kWidth}, mx::uint8),
          mx::array({0.01f, -0.02f, 0.0f, 3.0f, -1e-6f, 0.5f, 0.25f, -7.0f, 0.0f, 1.0f, 1e-3f, -1e-3f, 0.1f, 0.2f, -0.3f, 0.4f}, {4, 4}),
          normal({4, 4}, 3)};
}

TEST(MakeLatents, KeepTheGivenCodeWhateverTheWeight) {
  for (const int bits : kBits) {
    const auto [codes, scales, biases] = coded(bits);
    const auto exact = mx::dequantize(pack_codes(codes, bits), scales, biases, 64, bits);
    // Weights at their code, near it, far from it, and of no relation to it: the latent may never leave the code.
    for (const float noise : {0.0f, 1e-3f, 1.0f, 1e6f}) {
      const auto latents = make_latents(mx::add(exact, normal({4, 256}, 9, noise)), codes, scales, biases, bits, 64);
      EXPECT_EQ(latents.dtype(), mx::uint16);
      EXPECT_TRUE(same(latent_codes(latents, bits), codes)) << bits << " bits, noise " << noise;
    }
  }
}

TEST(MakeLatents, RememberWhereBetweenTheBordersTheWeightLies) {
  for (const int bits : kBits) {
    const auto [codes, scales, biases] = coded(bits);
    // w = scale · (code + t) + bias lies at (code + t + 1/2) · one in a latent's units. In f32, w carries an error of eps·(2|s·q'| + |b|)
    // and the way back one more rounding each of −b, /s, −q, +½: in codes at most 4·eps·(|q'| + |b/s|) beside half a unit of rounding.
    for (const float t : {-0.4f, 0.0f, 0.3f}) {
      const auto expand = [](const mx::array& a) { return mx::repeat(a, 64, -1); };
      const auto place = mx::add(mx::astype(codes, mx::float32), mx::array(t));
      const auto w = mx::add(mx::multiply(expand(scales), place), expand(biases));
      const auto latents = numbers(mx::astype(make_latents(w, codes, scales, biases, bits, 64), mx::float32));
      const auto q = numbers(mx::astype(codes, mx::float32)), s = numbers(expand(scales)), b = numbers(expand(biases));
      for (std::size_t i = 0; i < q.size(); ++i) {
        const double one = latent_one(bits), inside = s[i] == 0 ? 0 : static_cast<double>(t);
        const double error = s[i] == 0 ? 0 : 4 * kEps * (q[i] + 1 + std::abs(b[i] / s[i])) * one;
        const double expected = q[i] * one + std::min((inside + 0.5) * one, one - 1);
        ASSERT_NEAR(latents[i], expected, std::min(0.5 + error, one)) << bits << " bits, t " << t << ", scale " << s[i];
      }
    }
  }
}

TEST(LatentGradients, AreTheSumsOverGroups) {
  std::uint64_t seed = 100;
  for (const int bits : kBits)
    for (const int group_size : {32, 64, 128})
      for (const auto& dtype : {mx::float32, mx::bfloat16, mx::float16}) {
        const mx::Shape shape{2, 3, 256};
        const auto latents = random_latents(shape, ++seed);
        const auto dw = mx::astype(normal(shape, ++seed), dtype);
        const auto q = numbers(mx::astype(latent_codes(latents, bits), mx::float32)), d = numbers(dw);
        const auto hold = [&](const char* path) {
          const auto [ds, db] = latent_gradients(dw, latents, bits, group_size);
          EXPECT_EQ(ds.shape(), groups_of(shape, group_size));
          const auto s = numbers(ds), b = numbers(db);
          for (std::size_t g = 0; g < s.size(); ++g) {
            double scaled = 0, plain = 0, scaled_size = 0, plain_size = 0;
            for (std::size_t i = g * group_size; i < (g + 1) * group_size; ++i) {
              scaled += d[i] * q[i], plain += d[i];
              scaled_size += std::abs(d[i] * q[i]), plain_size += std::abs(d[i]);
            }
            // A sum of n products in any order is off by at most n·eps·Σ|terms| (one rounding a term and a sum, first order).
            ASSERT_NEAR(s[g], scaled, (group_size + 1) * kEps * scaled_size) << path << bits;
            ASSERT_NEAR(b[g], plain, group_size * kEps * plain_size) << path << bits;
          }
        };
        hold("CPU ");
        const MlxOpsOnly gpu_like;
        hold("MLX ");
      }
}

struct StepCase {
  mx::array latents, dw, scales, v;
  LatentStep step;
};

StepCase step_case(int group_size, const mx::Dtype& dtype, std::uint64_t seed, float rate) {
  const mx::Shape shape{4, 256}, groups = groups_of(shape, group_size);
  auto latents = values<std::uint16_t>(random_latents(shape, seed));
  // Latents at and near both ends, so that clamping is seen.
  for (std::size_t i = 0; i < latents.size(); i += 5) latents[i] = i % 2 ? 65535 - i % 3 : i % 3;
  auto scales = values<float>(normal(groups, seed + 1));
  scales[1] = 0, scales[2] = -std::abs(scales[2]);
  auto dw = mx::multiply(normal(shape, seed + 2), mx::array(1e-3f));
  dw = mx::slice_update(dw, mx::zeros({1, group_size}), mx::Shape{0, 0}, mx::Shape{1, group_size});  // one group without a gradient
  auto v = values<float>(mx::square(normal(groups, seed + 3, 1e-3f)));
  v[0] = 0;
  return {mx::array(latents.data(), shape, mx::uint16),
          mx::astype(dw, dtype),
          mx::array(scales.data(), groups, mx::float32),
          mx::array(v.data(), groups, mx::float32),
          {rate, 0.95f, static_cast<float>(1 - std::pow(0.95, 3))}};
}

/// Holds one step to double precision.
void expect_step(const StepCase& c, int bits, int group_size) {
  const auto [latents, v] = latent_step(c.latents, c.dw, c.scales, c.v, c.step, bits, group_size);
  EXPECT_EQ(latents.dtype(), mx::uint16);
  const auto u = numbers(mx::astype(c.latents, mx::float32)), d = numbers(c.dw), s = numbers(c.scales), old = numbers(c.v);
  const auto now = numbers(mx::astype(latents, mx::float32)), next_v = numbers(v);
  const double decay = c.step.decay;
  for (std::size_t g = 0; g < s.size(); ++g) {
    double squares = 0;
    for (std::size_t i = g * group_size; i < (g + 1) * group_size; ++i) squares += d[i] * d[i];
    const double expected_v = decay * old[g] + (1.0 - decay) * squares / group_size;
    // All terms are positive: the sum has a relative error of group + 1 roundings, and five more follow (1 − decay, /group, two
    // products, one sum).
    const double relative = (group_size + 6) * kEps;
    ASSERT_NEAR(next_v[g], expected_v, relative * expected_v);
    const double rms = std::sqrt(expected_v / c.step.correction);
    const double sign = s[g] > 0 ? 1 : s[g] < 0 ? -1 : 0;
    for (std::size_t i = g * group_size; i < (g + 1) * group_size; ++i) {
      const double move = rms > 0 ? sign * c.step.rate * latent_one(bits) * d[i] / rms : 0;
      const double expected = std::min(65535.0, std::max(0.0, u[i] - move));
      // Half of v's relative error reaches the root; six roundings follow in the factor and the product, and one, of a number of
      // the size of the latent, in the difference; then the latent is rounded to a whole number.
      const double error = (relative / 2 + 6 * kEps) * std::abs(move) + kEps * (65536 + std::abs(move));
      ASSERT_NEAR(now[i], expected, 0.5 + error) << bits << " bits, latent " << u[i] << " moved by " << -move;
    }
  }
}

TEST(LatentStep, FollowsTheFormulaAndStaysInRange) {
  std::uint64_t seed = 500;
  for (const int bits : kBits)
    for (const int group_size : {32, 64, 128})
      for (const auto& dtype : {mx::float32, mx::bfloat16, mx::float16})
        for (const float rate : {0.003f, 0.7f, 50.0f}) {  // the largest throws most latents out of the range
          const auto c = step_case(group_size, dtype, seed += 10, rate);
          expect_step(c, bits, group_size);
          const MlxOpsOnly gpu_like;
          expect_step(c, bits, group_size);
        }
}

TEST(LatentStep, GoesDownhill) {
  // A positive gradient asks for a smaller weight: a smaller code where the scale is positive, a larger one where it is negative.
  const auto latents = mx::full({1, 96}, 30000, mx::uint16);
  const auto scales = mx::array({0.1f, -0.1f, 0.0f}, {1, 3});
  const auto moved = values<std::uint16_t>(latent_step(latents, mx::ones({1, 96}), scales, mx::zeros({1, 3}), {0.01f, 0.95f, 0.05f}, 4, 32).first);
  // v = 0.05, corrected to 1: each weight moves by 0.01 codes of 4096 units.
  EXPECT_EQ(moved[0], 30000 - 41);
  EXPECT_EQ(moved[40], 30000 + 41);
  EXPECT_EQ(moved[90], 30000);
}

#ifdef _OPENMP
TEST(Latents, DoNotDependOnTheNumberOfThreads) {
  const mx::Shape shape{64, 2048};  // 2,048 groups of 64: enough for four threads of 256 groups and more
  const auto latents = random_latents(shape, 7), dw = normal(shape, 8), scales = normal({64, 32}, 9), v = mx::square(normal({64, 32}, 10));
  const int before = omp_get_max_threads();
  const auto all = [&](int threads) {
    omp_set_num_threads(threads);
    const auto [ds, db] = latent_gradients(dw, latents, 4, 64);
    const auto [u, next_v] = latent_step(latents, dw, scales, v, {0.3f, 0.95f, 0.1f}, 4, 64);
    std::vector<mx::array> out{latent_weight(latents, scales, v, 4, 64), ds, db, u, next_v};
    mx::eval(out);
    omp_set_num_threads(before);
    return out;
  };
  const auto one = all(1), four = all(4);
  for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(same(one[i], four[i])) << i;
}
#endif

}  // namespace
}  // namespace lquant::kernels
