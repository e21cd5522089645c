#include "kernels/head_loss.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "kernels/primitive.h"
#include "oracle/kernels_head_loss.h"

namespace lquant::kernels {
namespace {

using namespace oracle::head_loss;
using oracle::linear::matrix;
using Arrays = std::vector<mx::array>;

enum class Kind { hidden, top_k, targets };

/// One problem in MLX arrays and, of the same numbers, in double.
struct Problem {
  Kind kind;
  HeadLossArgs args;
  mx::array hidden, head, bias, mask, t_hidden, t_head, t_bias, top_logits, top_ids, targets;
  bool with_bias;
  End student, teacher;
  Matrix teacher_logits;

  TeacherHidden full() const { return {t_hidden, t_head, with_bias ? std::optional(t_bias) : std::nullopt}; }
  mx::array loss(const Arrays& in, bool needs = true, bool head_too = true) const {
    const std::optional<mx::array> b = with_bias ? std::optional(in[2]) : std::nullopt;
    if (kind == Kind::hidden) return kl_loss(in[0], in[1], b, full(), mask, args, needs, head_too);
    if (kind == Kind::top_k) return kl_loss(in[0], in[1], b, TeacherTopK{top_logits, top_ids}, mask, args, needs, head_too);
    return cross_entropy_loss(in[0], in[1], b, targets, mask, args, needs, head_too);
  }
  Arrays inputs() const { return with_bias ? Arrays{hidden, head, bias} : Arrays{hidden, head}; }

  double oracle() const {
    const auto z = logits(student);
    const Matrix& t = teacher_logits;
    double sum = 0;
    for (std::int64_t i = 0; i < z.rows; ++i) {
      const double weight = mask.data<float>()[i];
      if (weight == 0) continue;
      if (kind == Kind::hidden) {
        sum += weight * kl(row(t, i), row(z, i));
      } else if (kind == Kind::top_k) {
        auto kept = row(matrix(top_logits), i), mine = kept;
        for (std::size_t j = 0; j < kept.size(); ++j) {
          kept[j] /= args.temperature;
          mine[j] = z(i, top_ids.data<std::int32_t>()[i * kept.size() + j]);
        }
        sum += weight * kl(kept, mine);
      } else {
        sum -= weight * log_softmax(row(z, i))[targets.data<std::int32_t>()[i]];
      }
    }
    return sum;
  }
};

mx::array normal(const mx::Shape& shape, mx::Dtype dtype, int seed, float scale = 1) {
  auto x = mx::astype(mx::multiply(mx::random::normal(shape, mx::float32, mx::random::key(seed)), mx::array(scale)), dtype);
  mx::eval(x);
  return x;
}

End end_of(const mx::array& hidden, const mx::array& head, const mx::array* bias, float multiplier, float softcap, float temperature) {
  return {matrix(hidden), matrix(head), bias ? matrix(*bias).values : std::vector<double>{}, multiplier, softcap, temperature};
}

Problem problem(Kind kind, int tokens, int vocabulary, int width, mx::Dtype dtype, HeadLossArgs args = {}, bool with_bias = false,
                std::vector<float> weights = {}) {
  const int k = std::max(1, vocabulary / 3);
  if (weights.empty()) {
    for (int t = 0; t < tokens; ++t) weights.push_back(0.5f + 0.25f * static_cast<float>(t % 3));
  }
  std::vector<std::int32_t> ids, targets;
  for (int t = 0; t < tokens; ++t) {
    targets.push_back(weights[t] == 0 ? -100 : (t * 37 + 1) % vocabulary);
    for (int j = 0; j < k; ++j) ids.push_back((t + 3 * j) % vocabulary);
  }
  if (vocabulary % 3 == 0) throw std::logic_error("ids would repeat");
  const float scale = 1 / std::sqrt(static_cast<float>(width));
  Problem p{kind,
            args,
            normal({tokens, width}, dtype, 1),
            normal({vocabulary, width}, dtype, 2, 2 * scale),
            normal({vocabulary}, dtype, 3),
            mx::array(weights.data(), {tokens}, mx::float32),
            normal({tokens, width + 2}, dtype, 4),
            normal({vocabulary, width + 2}, dtype, 5, 2 * scale),
            normal({vocabulary}, dtype, 6),
            normal({tokens, k}, dtype, 7),
            mx::array(ids.data(), {tokens, k}, mx::int32),
            mx::array(targets.data(), {tokens}, mx::int32),
            with_bias,
            {},
            {},
            {}};
  p.student = end_of(p.hidden, p.head, with_bias ? &p.bias : nullptr, args.multiplier, args.softcap, args.temperature);
  p.teacher = end_of(p.t_hidden, p.t_head, with_bias ? &p.t_bias : nullptr, args.teacher_multiplier, args.teacher_softcap, args.temperature);
  p.teacher_logits = logits(p.teacher);
  return p;
}

/// How far a logit can be off, by the absolute sum of its products: their rounding in f32 (K + 8 units of 2^-24), and `unit` where
/// MLX keeps logits in 16 bits.
double logit_error(const End& end, double unit) {
  if (end.hidden.values.empty()) return 0;
  auto absolute = end;
  absolute.hidden = oracle::linear::absolute(end.hidden);
  absolute.head = oracle::linear::absolute(end.head);
  for (auto& b : absolute.bias) b = std::abs(b);
  absolute.softcap = 0;  // its slope is at most 1
  const auto size = logits(absolute).values;
  const double largest = *std::max_element(size.begin(), size.end());
  return largest * ((end.hidden.columns + 8) * std::ldexp(1, -24) + unit);
}

struct Bounds {
  double loss, gradient;  ///< of one token's loss; of the gradient to one of its logits, relative to p_student + p_teacher
};

/// A loss moves by at most twice a student logit's error, and by that of the teacher times 2·(1 + R) with R the largest |log p_t − log p_s|,
/// here below 30. Sums in f32 lanes of at most 1,024 terms, exponentials and maxima add 1,100 units of rounding of values up to R.
Bounds bounds(const Problem& p, double logit_unit = 0) {
  const double error = logit_error(p.student, logit_unit) + (p.kind == Kind::hidden ? logit_error(p.teacher, logit_unit) : 0);
  const double unit = std::ldexp(1, -24), range = 30;
  return {2 * error * (1 + range) + 1100 * unit * (1 + range), 2 * error + 16 * unit * (1 + range)};
}

/// `half` is the unit roundoff of the problem's dtype when that has 16 bits, `coarse` says whether logits are kept in it.
void check(Problem& p, double half = 0, bool coarse = false) {
  const auto bound = bounds(p, coarse ? half : 0);
  const double tokens = static_cast<double>(p.hidden.shape(0));
  auto function = [&](const Arrays& in) { return p.loss(in); };
  std::vector<int> argnums{0, 1};
  if (p.with_bias) argnums.push_back(2);
  // A cotangent other than 1 tells whether it is applied.
  auto weighted = [&](const Arrays& in) { return mx::multiply(function(in), mx::array(-0.5f)); };
  auto [value, gradients] = mx::value_and_grad(weighted, argnums)(p.inputs());
  mx::eval(gradients);
  const double want = -0.5 * p.oracle();
  EXPECT_NEAR(value.item<float>(), want, 0.5 * tokens * bound.loss + 1e-6 * std::abs(want));
  EXPECT_NEAR(p.loss(p.inputs(), false).item<float>(), -2 * want, tokens * bound.loss + 2e-6 * std::abs(want));
  EXPECT_EQ(gradients[0].dtype(), p.hidden.dtype());
  EXPECT_EQ(gradients[1].dtype(), mx::float32);

  auto largest = [](const std::vector<double>& x) {
    return std::abs(*std::max_element(x.begin(), x.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }));
  };
  const double scale = 0.5 * p.args.multiplier / p.args.temperature, rounding = p.student.head.rows * std::ldexp(1, -24);
  // Σ over logits of p_student + p_teacher is 2, so a gradient to hidden is off by 2·(its share + the f32 sum's) of the largest
  // weight; one to the head by the same of the largest state, for each token. Where logits are kept in 16 bits, their slopes are rounded so as well
  // before the products; a 16-bit result rounds once more, as does MLX's bf16 head gradient.
  const double share = 2 * scale * (bound.gradient + rounding + (coarse ? half : 0)) + 1e-8;
  const double tolerance[] = {share * largest(p.student.head.values), share * tokens * largest(p.student.hidden.values), share * tokens};
  std::vector<double>* values[] = {&p.student.hidden.values, &p.student.head.values, &p.student.bias};
  for (std::size_t i = 0; i < argnums.size(); ++i) {
    const auto got = matrix(gradients[i]).values;
    ASSERT_EQ(got.size(), values[i]->size());
    const std::size_t stride = std::max<std::size_t>(1, got.size() / 12);
    const double last = gradients[i].dtype() != mx::float32 || coarse ? 2 * half : 1e-6;
    for (std::size_t j = 0; j < got.size(); j += stride) {
      const double exact = -0.5 * slope((*values[i])[j], [&] { return p.oracle(); });
      EXPECT_NEAR(got[j], exact, tolerance[i] + last * std::abs(exact)) << "input " << i << ", element " << j;
    }
  }
}

class HeadLoss : public testing::TestWithParam<std::pair<Kind, bool>> {
 protected:
  void SetUp() override {
    mx::set_default_device(mx::Device::cpu);
    if (GetParam().second) mlx_.emplace();
  }
  Kind kind() const { return GetParam().first; }

 private:
  std::optional<MlxOpsOnly> mlx_;
};

INSTANTIATE_TEST_SUITE_P(Paths, HeadLoss,
                         testing::Values(std::pair{Kind::hidden, false}, std::pair{Kind::top_k, false}, std::pair{Kind::targets, false},
                                         std::pair{Kind::hidden, true}, std::pair{Kind::top_k, true}, std::pair{Kind::targets, true}),
                         [](const auto& info) {
                           const std::string name = info.param.first == Kind::hidden  ? "Hidden"
                                                    : info.param.first == Kind::top_k ? "TopK"
                                                                                      : "Targets";
                           return name + (info.param.second ? "Mlx" : "Cpu");
                         });

TEST_P(HeadLoss, ValueAndGradientsEqualDoubleInOddShapes) {
  for (const auto& [tokens, vocabulary, width] : {std::array{1, 4, 3}, std::array{5, 37, 7}, std::array{2, 8191, 7}, std::array{70, 65, 16}}) {
    auto p = problem(kind(), tokens, vocabulary, width, mx::float32);
    check(p);
  }
}

TEST_P(HeadLoss, TemperatureSoftcapMultiplierAndBias) {
  for (int bits = 0; bits < 16; ++bits) {
    HeadLossArgs args;
    if (bits & 1) args.temperature = 2;
    if (bits & 2) args.softcap = 3, args.teacher_softcap = 2.5f;
    if (bits & 4) args.multiplier = 0.6f, args.teacher_multiplier = 1.3f;
    auto p = problem(kind(), 3, 37, 7, mx::float32, args, bits & 8);
    check(p);
  }
}

TEST_P(HeadLoss, TakesSixteenBits) {
  for (const auto& [dtype, unit] : {std::pair{mx::bfloat16, std::ldexp(1, -8)}, std::pair{mx::float16, std::ldexp(1, -11)}})
    for (bool bias : {false, true}) {
      auto p = problem(kind(), 6, 100, 33, dtype, {}, bias);
      check(p, unit, !cpu_kernels());
    }
}

// Of 8,191 tokens most have a probability near 1e-4; times a mask of 2^-12 the slopes of their logits lie below 3e-8, where f16 has nothing. The
// gradient of `hidden`, multiplied by a cotangent of 2^12, must come out as it does from f32.
TEST_P(HeadLoss, SlopesTooSmallForF16AreKept) {
  const int tokens = 6, vocabulary = 8191, width = 33;
  const std::vector<float> weights(tokens, std::ldexp(1.0f, -12));
  const auto half = problem(kind(), tokens, vocabulary, width, mx::float16, {}, false, weights);
  auto whole = half;
  for (auto* x : {&whole.hidden, &whole.head, &whole.t_hidden, &whole.t_head, &whole.top_logits}) *x = mx::astype(*x, mx::float32);
  const auto gradient = [](const Problem& p) {
    const auto loss = [&](const Arrays& in) { return Arrays{p.loss(in, true, false)}; };
    const auto function = [&](const Arrays& in) { return loss({in[0], p.head}); };
    return mx::astype(mx::vjp(function, {p.hidden}, {mx::array(std::ldexp(1.0f, 12))}).second[0], mx::float32);
  };
  const auto norm = [](const mx::array& x) { return std::sqrt(mx::sum(mx::square(x)).item<float>()); };
  const auto got = gradient(half), want = gradient(whole);
  // Logits below 10 are off by 10 · 2^-11 where MLX keeps them in f16, and probabilities by as much of themselves; both sides' may add up.
  EXPECT_LT(norm(mx::subtract(got, want)), 20 * std::ldexp(1.0, -11) * norm(want));
  EXPECT_GT(norm(want), 0);
}

TEST_P(HeadLoss, MaskedTokensGiveNothing) {
  for (const auto& weights : std::vector<std::vector<float>>{{1, 0, 0, 2, 0}, {0, 0, 0, 0, 0}, {0, 0, 1, 1, 1}}) {
    auto p = problem(kind(), 5, 37, 7, mx::float32, {}, true, weights);
    check(p);
    auto gradient = mx::abs(mx::grad([&](const Arrays& in) { return p.loss(in); })(p.inputs())[0]);
    const auto sums = matrix(mx::expand_dims(mx::sum(gradient, 1), 0));
    for (int t = 0; t < 5; ++t) EXPECT_EQ(sums(0, t) == 0, weights[t] == 0);
  }
}

// With a head of zeros each of V tokens has the probability 1/V: the row of the one target there is collects 1500 · 60 · (1/V − 1), beyond f16's 65504.
TEST(HeadLossOfF16, HeadGradientsBeyondItsRangeAreF32) {
  const int tokens = 1500, vocabulary = 64, width = 8;
  const auto gradient = [&] {
    const auto loss = [&](const Arrays& in) {
      return Arrays{cross_entropy_loss(mx::full({tokens, width}, 60.0f, mx::float16), in[0], std::nullopt, mx::full({tokens}, 3, mx::int32),
                                       mx::ones({tokens}), {})};
    };
    return mx::vjp(loss, {mx::zeros({vocabulary, width}, mx::float16)}, {mx::array(1.0f)}).second[0];
  };
  const auto expect = [&](const mx::array& dw) {
    const auto values = matrix(dw);
    EXPECT_EQ(dw.dtype(), mx::float32);
    for (int v = 0; v < vocabulary; ++v) {
      // An f32 sum of 1,500 like terms.
      const double want = tokens * 60.0 * (1.0 / vocabulary - (v == 3 ? 1 : 0));
      for (int i = 0; i < width; ++i) EXPECT_NEAR(values(v, i), want, 1500 * std::ldexp(1, -24) * std::abs(want)) << v;
    }
  };
  expect(gradient());
  const MlxOpsOnly mlx;
  expect(gradient());
}

TEST_P(HeadLoss, DeclinedGradientsAreRefused) {
  const auto p = problem(kind(), 3, 37, 7, mx::float32);
  auto frozen = [&](const Arrays& in) { return p.loss(in, true, false); };
  auto forward = [&](const Arrays& in) { return p.loss(in, false); };
  auto all = [&](const Arrays& in) { return p.loss(in); };
  EXPECT_TRUE(mx::array_equal(mx::grad(frozen, 0)(p.inputs())[0], mx::grad(all, 0)(p.inputs())[0]).item<bool>());
  EXPECT_THROW(mx::grad(frozen, 1)(p.inputs()), std::invalid_argument);
  EXPECT_THROW(mx::grad(forward, 0)(p.inputs()), std::invalid_argument);
}

TEST_P(HeadLoss, ChunksAddUpToTheWhole) {
  // With the least scratch a chunk has 64 tokens; the parts computed alone must give the same, up to the order of sums.
  if (kind() != Kind::hidden) GTEST_SKIP();
  const int tokens = 150, vocabulary = 301;
  HeadLossArgs args;
  args.scratch_bytes = 1;
  const auto p = problem(kind(), tokens, vocabulary, 5, mx::float32, args, true);
  auto whole = mx::value_and_grad([&](const Arrays& in) { return p.loss(in); }, {0, 1, 2})(p.inputs());
  mx::eval(whole.second);
  double loss = 0;
  Arrays parts;
  auto head = mx::zeros_like(p.head), bias = mx::zeros_like(p.bias);
  for (int begin = 0; begin < tokens; begin += 50) {
    auto part = [&](const Arrays& in) {
      auto rows = [&](const mx::array& x) { return mx::slice(x, {begin, 0}, {begin + 50, x.shape(1)}); };
      const TeacherHidden teacher{rows(p.t_hidden), p.t_head, p.t_bias};
      return kl_loss(in[0], in[1], in[2], teacher, mx::slice(p.mask, {begin}, {begin + 50}), {});
    };
    auto [value, gradients] = mx::value_and_grad(part, {0, 1, 2})({mx::slice(p.hidden, {begin, 0}, {begin + 50, 5}), p.head, p.bias});
    loss += value.item<float>();
    parts.push_back(gradients[0]);
    head = mx::add(head, gradients[1]);
    bias = mx::add(bias, gradients[2]);
  }
  EXPECT_NEAR(whole.first.item<float>(), loss, 1e-5 * loss);
  auto worst = [](const mx::array& a, const mx::array& b) { return mx::max(mx::abs(mx::subtract(a, b))).item<float>(); };
  auto largest = [](const mx::array& a) { return mx::max(mx::abs(a)).item<float>(); };
  // Sums over V logits of gradients that add up to at most 2 by absolute value, or over T tokens; each term rounded by 2^-24.
  const float unit = std::ldexp(1.0f, -24);
  EXPECT_LE(worst(whole.second[0], mx::concatenate(parts, 0)), 2 * largest(p.head) * vocabulary * unit);
  EXPECT_LE(worst(whole.second[1], head), 2 * largest(p.hidden) * tokens * tokens * unit);
  EXPECT_LE(worst(whole.second[2], bias), 2 * tokens * tokens * unit);
  const auto scores = score_tokens(p.hidden, p.head, p.bias, p.targets, p.full(), args),
             plain = score_tokens(p.hidden, p.head, p.bias, p.targets, p.full(), {});
  EXPECT_LE(worst(scores.nll, plain.nll), 1e-5f);
  EXPECT_LE(worst(scores.kl, plain.kl), 1e-5f);
}

TEST_P(HeadLoss, ScoresEqualDouble) {
  if (kind() == Kind::top_k) GTEST_SKIP();
  HeadLossArgs args;
  args.teacher_multiplier = 1.3f;
  args.softcap = 4;
  const auto p = problem(Kind::hidden, 9, 37, 7, mx::float32, args, true);
  const bool with_teacher = kind() == Kind::hidden;
  auto scores = score_tokens(p.hidden, p.head, p.bias, p.targets, with_teacher ? std::optional(p.full()) : std::nullopt, args);
  mx::eval(scores.nll, scores.teacher_nll, scores.kl, scores.agree);
  const auto z = logits(p.student), t = logits(p.teacher);
  const double bound = bounds(p).loss;
  for (int i = 0; i < 9; ++i) {
    const auto zs = row(z, i), ts = row(t, i);
    const int target = p.targets.data<std::int32_t>()[i];
    EXPECT_NEAR(scores.nll.data<float>()[i], -log_softmax(zs)[target], bound);
    EXPECT_NEAR(scores.teacher_nll.data<float>()[i], with_teacher ? -log_softmax(ts)[target] : 0, bound);
    EXPECT_NEAR(scores.kl.data<float>()[i], with_teacher ? kl(ts, zs) : 0, bound);
    auto top = [](const std::vector<double>& v) { return std::max_element(v.begin(), v.end()) - v.begin(); };
    EXPECT_EQ(scores.agree.data<float>()[i], with_teacher && top(zs) == top(ts) ? 1 : 0);
  }
  const auto same = score_tokens(p.hidden, p.head, p.bias, p.targets, TeacherHidden{p.hidden, p.head, p.bias}, {});
  EXPECT_EQ(mx::sum(same.agree).item<float>(), 9);
  EXPECT_LE(mx::max(mx::abs(same.kl)).item<float>(), bound);
}

TEST_P(HeadLoss, RefusesWhatDoesNotFit) {
  auto p = problem(kind(), 3, 37, 7, mx::float32);
  auto refused = [&](const std::function<void(Problem&)>& spoil) {
    auto bad = p;
    spoil(bad);
    EXPECT_THROW(mx::eval(bad.loss(bad.inputs())), std::invalid_argument);
  };
  refused([](Problem& x) { x.mask = mx::ones({4}); });
  refused([](Problem& x) { x.head = mx::ones({37, 8}); });
  refused([](Problem& x) { x.args.temperature = 0; });
  refused([](Problem& x) { x.t_head = mx::ones({36, 9}), x.top_ids = mx::ones({3, 2}, mx::int32), x.targets = mx::ones({2}, mx::int32); });
  if (cpu_kernels() && kind() != Kind::hidden) {
    refused([](Problem& x) { x.targets = mx::array({0, 37, 1}), x.top_ids = mx::full(x.top_ids.shape(), -1); });
  }
}

}  // namespace
}  // namespace lquant::kernels
