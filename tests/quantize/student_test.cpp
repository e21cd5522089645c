#include "quantize/student.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "codec/quantize.h"
#include "oracle/quantize_tiny.h"

namespace lquant::quantize {
namespace {

constexpr double kEps = 0x1p-24;  // of one f32 rounding

codec::Packed quantized(const mx::array& w, const codec::Format& format) {
  const auto parts = mx::quantize(w, format.group_size, format.bits);
  return {parts[0], parts[1], parts[2]};
}

mx::array normal(const mx::Shape& shape, std::uint64_t seed, float deviation = 1) {
  return mx::random::normal(shape, mx::float32, 0, deviation, mx::random::key(seed));
}

mx::array dequantized(const codec::Packed& p, const codec::Format& format) {
  return mx::dequantize(p.codes, p.scales, p.biases, format.group_size, format.bits);
}

double number(const mx::array& a) { return mx::astype(a, mx::float32).item<float>(); }

std::vector<double> numbers(const mx::array& a) {
  auto flat = mx::contiguous(mx::astype(a, mx::float32));
  flat.eval();
  return {flat.data<float>(), flat.data<float>() + flat.size()};
}

TEST(TrainedLinear, StartsAsThePackedMatrixAndPacksToIt) {
  for (const int bits : {2, 3, 4, 5, 6})
    for (const int group : {32, 64, 128})
      for (const auto& dtype : {mx::float32, mx::bfloat16})
        for (const bool move : {false, true}) {
          const codec::Format format{codec::Mode::affine, bits, group};
          const auto w = mx::astype(normal({2, 8, 256}, bits * group, 0.1f), dtype);  // two experts
          const auto packed = quantized(w, format);
          const TrainedLinear linear(packed, format, move ? &w : nullptr, move);
          EXPECT_TRUE(oracle::same(linear.weight(), dequantized(packed, format))) << bits << " bits, group " << group << dtype;
          const auto again = linear.pack();
          EXPECT_TRUE(oracle::same(again.codes, packed.codes));
          EXPECT_TRUE(oracle::same(again.scales, packed.scales));
          EXPECT_TRUE(oracle::same(*again.biases, *packed.biases));
        }
}

TEST(TrainedLinear, WhatItPacksIsWhatItTrained) {
  const codec::Format format{codec::Mode::affine, 3, 64};
  for (const auto& dtype : {mx::float32, mx::bfloat16}) {
    const auto w = mx::astype(normal({16, 128}, 5), dtype);
    const auto packed = quantized(w, format);
    TrainedLinear linear(packed, format, &w, true);
    for (int step = 1; step <= 5; ++step) {
      linear.accumulate(mx::astype(normal({16, 128}, 50 + step), dtype));
      linear.step({0.05f, 0.5f, step});
    }
    const auto now = linear.pack();
    EXPECT_FALSE(oracle::same(now.codes, packed.codes));
    EXPECT_FALSE(oracle::same(now.scales, packed.scales));
    EXPECT_EQ(now.scales.dtype(), dtype);
    EXPECT_TRUE(oracle::same(linear.weight(), dequantized(now, format)));
  }
}

/// One optimizer step on a known gradient against the formulas of student.h in double precision. Finite differences give the
/// gradient with respect to a and c: the loss ⟨dw, W(a, c)⟩ is linear in both.
TEST(TrainedLinear, ScalesAndBiasesFollowAdamOnTheirOwnGradient) {
  const codec::Format format{codec::Mode::affine, 4, 32};
  const int rows = 4, width = 128, groups = rows * width / 32;
  const auto w = normal({rows, width}, 1);
  const auto packed = quantized(w, format);
  TrainedLinear linear(packed, format, nullptr, false);
  const auto s0 = numbers(packed.scales), b0 = numbers(*packed.biases);
  const auto q = numbers(codec::unpack_codes(packed.codes, 4));
  std::vector<double> pivot(groups), a(groups), c(groups), ma(groups), va(groups), mc(groups), vc(groups);
  double spread = 0;
  for (int g = 0; g < groups; ++g) {
    for (int i = 0; i < 32; ++i) pivot[g] += q[g * 32 + i] / 32;
    for (int i = 0; i < 32; ++i) spread += std::pow(q[g * 32 + i] - pivot[g], 2) / q.size();
  }
  spread = std::sqrt(spread);
  // W of given a and c in one group, contracted with dw: the loss whose slopes are the gradients.
  const auto loss = [&](const std::vector<double>& d, int g, double ag, double cg) {
    double sum = 0;
    const double s = s0[g] * (1 + ag / spread), b = b0[g] + s0[g] * (cg - pivot[g] * ag / spread);
    for (int i = 0; i < 32; ++i) sum += d[g * 32 + i] * (s * q[g * 32 + i] + b);
    return sum;
  };
  const double rate = 0.02;
  for (int step = 1; step <= 4; ++step) {
    const auto first = normal({rows, width}, 10 * step), second = normal({rows, width}, 10 * step + 1);
    linear.accumulate(first);
    linear.accumulate(second);  // parts of a batch add up
    linear.step({static_cast<float>(rate), 0, step});
    const auto d = numbers(mx::add(first, second));
    const auto scales = numbers(linear.pack().scales), biases = numbers(*linear.pack().biases);
    for (int g = 0; g < groups; ++g) {
      // Exact for a function that is linear in each, whatever the distance.
      const double ga = loss(d, g, a[g] + 0.5, c[g]) - loss(d, g, a[g] - 0.5, c[g]), gc = loss(d, g, a[g], c[g] + 0.5) - loss(d, g, a[g], c[g] - 0.5);
      const auto adam = [&](double& value, double& m, double& v, double gradient) {
        m = 0.9 * m + 0.1 * gradient;
        v = 0.95 * v + 0.05 * gradient * gradient;
        value -= rate * (m / (1 - std::pow(0.9, step))) / (std::sqrt(v / (1 - std::pow(0.95, step))) + 1e-20);
      };
      adam(a[g], ma[g], va[g], ga);
      adam(c[g], mc[g], vc[g], gc);
      // What Adam does with a gradient depends on its relative error: |Σ dw·q| is made of 32 terms that cancel, and ds − p·db cancels
      // once more. With Σ|dw·q| ≤ 32·15·max|dw|, the errors are at most 64·eps of that against a gradient of ga/s0·r.
      double size = 0;
      for (int i = 0; i < 32; ++i) size += std::abs(d[g * 32 + i]) * (q[g * 32 + i] + pivot[g]);
      const double noise_a = 64 * kEps * size * std::abs(s0[g]) / spread, noise_c = 64 * kEps * size * std::abs(s0[g]);
      // |∂(m̂/√v̂)/∂g| ≤ 1/√v̂ for each step's share; the errors of all steps so far add up.
      const double step_a = rate * step * step * noise_a / std::sqrt(va[g]), step_c = rate * step * step * noise_c / std::sqrt(vc[g]);
      // Ten roundings in the update itself, in units of values of the size of rate·step.
      const double own = 10 * kEps * (rate * step + 1);
      const double s = s0[g] * (1 + a[g] / spread), b = b0[g] + s0[g] * (c[g] - pivot[g] * a[g] / spread);
      ASSERT_NEAR(scales[g], s, std::abs(s0[g]) * (step_a + own) / std::min(1.0, spread)) << "step " << step << " group " << g;
      ASSERT_NEAR(biases[g], b, std::abs(s0[g]) * (step_c + pivot[g] * step_a / spread + 15 * own) + 4 * kEps * std::abs(b0[g]));
    }
  }
}

TEST(TrainedLinear, GradientOfTheWeightReachesScalesAndBiases) {
  // ½|W − T|² by finite differences through the packed scales: the accumulated sums are its slopes.
  const codec::Format format{codec::Mode::affine, 4, 64};
  const auto w = normal({2, 64}, 3), target = normal({2, 64}, 4);
  const auto packed = quantized(w, format);
  TrainedLinear linear(packed, format, nullptr, false);
  linear.accumulate(mx::subtract(linear.weight(), target));
  const auto parts = linear.gradient();
  ASSERT_EQ(parts.size(), 2u);
  const auto q = numbers(codec::unpack_codes(packed.codes, 4)), t = numbers(target), s0 = numbers(packed.scales), b0 = numbers(*packed.biases);
  const auto loss = [&](int g, double s, double b) {
    double sum = 0;
    for (int i = 0; i < 64; ++i) sum += 0.5 * std::pow(s * q[g * 64 + i] + b - t[g * 64 + i], 2);
    return sum;
  };
  const auto ds = numbers(*parts[0]), db = numbers(*parts[1]);
  for (int g = 0; g < 2; ++g) {
    // Central differences of a quadratic are exact but for the rounding of doubles. |W − T| < 10 and q ≤ 15 bound the terms; W itself is
    // off by two roundings of a number below 10.
    const double h = 1e-3, bound = 64 * (66 * kEps * 10 + 2 * kEps * 10);
    EXPECT_NEAR(ds[g], (loss(g, s0[g] + h, b0[g]) - loss(g, s0[g] - h, b0[g])) / (2 * h), 15 * bound);
    EXPECT_NEAR(db[g], (loss(g, s0[g], b0[g] + h) - loss(g, s0[g], b0[g] - h)) / (2 * h), bound);
  }
}

double distance_after(bool move_codes, int steps) {
  // A start that is wrong on purpose: the codes of another matrix, half as far from the target as it is from zero.
  const codec::Format format{codec::Mode::affine, 4, 64};
  const auto target = normal({32, 128}, 7), start = mx::add(target, normal({32, 128}, 8, 0.5f));
  TrainedLinear linear(quantized(start, format), format, nullptr, move_codes);
  const auto distance = [&] { return number(mx::mean(mx::square(mx::subtract(linear.weight(), target)))); };
  for (int step = 1; step <= steps; ++step) {
    linear.accumulate(mx::subtract(linear.weight(), target));
    linear.step({0.01f, 0.05f, step});
  }
  return distance();
}

TEST(TrainedLinear, DescendsAndMovingCodesDescendFurther) {
  const double start = distance_after(false, 0), scales = distance_after(false, 60), codes = distance_after(true, 60);
  EXPECT_NEAR(start, 0.25, 0.05);  // 0.5² of noise and a little of quantization
  EXPECT_LT(scales, start);
  // Scales alone cannot undo noise within a group; codes can, down to their own step of about (5 σ)/15, whose square/12 is 0.01.
  EXPECT_LT(codes, 0.2 * start);
  EXPECT_GT(scales, 0.5 * start);
}

TEST(TrainedLinear, ContinuesFromASavedStateBitForBit) {
  const codec::Format format{codec::Mode::affine, 2, 32};
  for (const bool move : {false, true}) {
    const auto w = mx::astype(normal({8, 96}, 9), mx::bfloat16);
    const auto packed = quantized(w, format);
    const auto work = [&](TrainedLinear& linear, int from, int to) {
      for (int step = from; step <= to; ++step) {
        linear.accumulate(normal({8, 96}, 90 + step));
        linear.step({0.05f, 0.3f, step});
      }
    };
    TrainedLinear whole(packed, format, &w, move), first(packed, format, &w, move), second(packed, format, &w, move);
    work(whole, 1, 6);
    work(first, 1, 3);
    second.restore(first.state());
    work(second, 4, 6);
    EXPECT_TRUE(oracle::same(whole.weight(), second.weight()));
    const auto a = whole.state(), b = second.state();
    ASSERT_EQ(a.size(), move ? 8u : 6u);
    for (const auto& [name, value] : a) EXPECT_TRUE(oracle::same(value, b.at(name))) << name;
  }
}

TEST(TrainedLinear, AStepWithoutAGradientChangesNothing) {
  const codec::Format format{codec::Mode::affine, 4, 64};
  const auto packed = quantized(normal({4, 64}, 2), format);
  TrainedLinear linear(packed, format, nullptr, true);
  const auto before = linear.weight();
  linear.step({1, 1, 1});
  EXPECT_TRUE(oracle::same(before, linear.weight()));
  for (auto* part : linear.gradient()) EXPECT_EQ(number(mx::sum(mx::abs(*part))), 0);  // a rank without rows
}

TEST(StudentTest, TrainsWhatHasFewerThanEightBitsAndLeavesTheRest) {
  const oracle::TinyPair pair(4);
  auto packed = pair.packed;
  auto formats = pair.formats;
  const std::string eight = "model.layers.0.mlp.up_proj", dense = "model.layers.1.mlp.up_proj";
  for (const auto& path : {eight, dense}) {
    for (const char* suffix : {".weight", ".scales", ".biases"}) packed.erase(path + suffix);
    formats.erase(path);
    packed.insert({path + ".weight", pair.teacher.at(path + ".weight")});
  }
  oracle::pack(packed, formats, eight, {codec::Mode::affine, 8, 32});
  Student student(pair.spec, formats, packed, pair.teacher, true);
  EXPECT_EQ(student.size(), pair.spec.linears().size() - 2);
  for (const auto& path : student.paths()) EXPECT_TRUE(path != eight && path != dense);
  EXPECT_EQ(student.fixed_formats(), (model::Formats{{eight, {codec::Mode::affine, 8, 32}}}));
  const auto again = student.pack();
  ASSERT_EQ(again.size(), packed.size());
  for (const auto& [name, value] : packed) EXPECT_TRUE(oracle::same(again.at(name), value)) << name;
  const auto whole = student.with(student.weights());
  EXPECT_TRUE(oracle::same(whole.at(eight + ".weight"), packed.at(eight + ".weight")));
  EXPECT_FALSE(whole.contains(student.paths()[0] + ".scales"));

  std::int64_t codes = 0, groups = 0;
  for (const auto* linear : pair.spec.linears())
    if (linear->path != eight && linear->path != dense) codes += linear->parameters(), groups += linear->parameters() / 32;
  EXPECT_EQ(student.trained_parameters(), codes + 2 * groups);
}

TEST(StudentTest, FaultsAreNamed) {
  const oracle::TinyPair pair(4);
  auto packed = pair.packed;
  packed.erase("model.layers.0.mlp.up_proj.scales");
  try {
    Student(pair.spec, pair.formats, packed, {}, false);
    ADD_FAILURE() << "took a model without scales";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("model.layers.0.mlp.up_proj.scales is missing"), std::string::npos) << e.what();
  }
  EXPECT_THROW(Student(pair.spec, {}, pair.teacher, {}, false), Error);
}

/// The latents of a row of 32 weights whose codes are all `code`, `away` codes from them; 3 bits, scale 0.5, bias −1.
std::vector<float> placed_at(int code, const std::vector<float>& away) {
  std::vector<float> values(32);
  for (int j = 0; j < 32; ++j) values[j] = -1 + 0.5f * (static_cast<float>(code) + away[j % away.size()]);
  const codec::Format format{codec::Mode::affine, 3, 32};
  const auto codes = mx::full({1, 32}, code, mx::uint8);
  const codec::Packed packed{codec::pack_codes(codes, 3), mx::full({1, 1}, 0.5f), mx::full({1, 1}, -1.0f)};
  const mx::array teacher(values.data(), {1, 32}, mx::float32);
  auto latents = TrainedLinear(packed, format, &teacher, true).state().at("u");
  latents.eval();
  std::vector<float> found;
  // 16 bits: the code in the upper 3, its cell in the lower 13; the middle of the cell is the code itself.
  for (std::size_t j = 0; j < away.size(); ++j)
    found.push_back(static_cast<float>(latents.data<std::uint16_t>()[j]) / 8192 - 0.5f - static_cast<float>(code));
  return found;
}

TEST(TrainedLinear, WeightsOutsideTheirCellsStartAsFarInside) {
  const std::vector<float> away{0, 0.3f, -0.45f, 0.6f, -0.7f, 0.9f, 1.0f, -1.6f}, expected{0, 0.3f, -0.45f, 0.4f, -0.3f, 0.1f, 0, 0};
  const auto found = placed_at(3, away);
  for (std::size_t j = 0; j < away.size(); ++j) EXPECT_NEAR(found[j], expected[j], 1.0f / 8192) << away[j];
}

TEST(TrainedLinear, WeightsBeyondTheLastCodesStayThere) {
  EXPECT_LT(placed_at(0, {-0.8f})[0], -0.49f);
  EXPECT_GT(placed_at(7, {0.8f})[0], 0.49f);
  EXPECT_NEAR(placed_at(0, {0.8f})[0], 0.2f, 1.0f / 8192);
}

}  // namespace
}  // namespace lquant::quantize
