// Figures of a model in 16 bits beside those of the same numbers in f32.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>

#include "evaluate/quality.h"
#include "evaluate/score.h"
#include "model/forward.h"
#include "oracle/model_random.h"

namespace lquant::evaluate {
namespace {

class DtypesTest : public ::testing::TestWithParam<std::pair<std::string, mx::Dtype>> {
 protected:
  DtypesTest() {
    std::vector<calibration::Example> examples;
    for (int i = 0; i < 12; ++i) {
      auto ids = mx::random::randint(1, 48, {10 + i}, mx::int32, mx::random::key(i));
      ids.eval();
      examples.push_back({{ids.data<std::int32_t>(), ids.data<std::int32_t>() + ids.size()}, i % 3});
    }
    batches = calibration::make_batches(examples, 6, 40, true);
  }
  /// The random model in `in`, its numbers those of the stored dtype; `bits` > 0 rounds every linear first.
  LoadedModel loaded(mx::Dtype in, int bits = 0) const {
    LoadedModel m{spec, stored, {}, in};
    if (bits > 0)
      for (const auto* linear : spec.linears()) {
        auto& w = m.tensors.at(linear->path + ".weight");
        const auto parts = mx::quantize(w, 32, bits);
        w = mx::dequantize(parts[0], parts[1], parts[2], 32, bits);
      }
    m.tensors = model::cast(m.tensors, in);
    return m;
  }

  const mx::Dtype dtype = GetParam().second;
  const model::ModelSpec spec = model::spec_from_config(oracle::tiny_config(GetParam().first));
  const model::Tensors stored = model::cast(oracle::random_tensors(spec, 5), dtype);
  std::vector<calibration::Batch> batches;
};

std::vector<std::pair<std::string, mx::Dtype>> models() {
  std::vector<std::pair<std::string, mx::Dtype>> all;
  for (const char* type : {"llama", "gemma2", "qwen3_moe"})
    for (const auto dtype : {mx::bfloat16, mx::float16}) all.push_back({type, dtype});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Models, DtypesTest, ::testing::ValuesIn(models()),
                         [](const auto& info) { return info.param.first + "_" + oracle::name_of(info.param.second); });

TEST_P(DtypesTest, QualityIsThatOfSinglePrecision) {
  const auto measured = [&](mx::Dtype in) {
    const auto student = loaded(in, 3), teacher = loaded(in);
    return measure(student, &teacher, batches);
  };
  const auto got = measured(dtype), want = measured(mx::float32);
  EXPECT_EQ(got.tokens, want.tokens);
  // Logits, of a size of some 3 (their spread over the vocabulary), are off by the hidden states' rounding and their own; of one token
  // −log p moves by twice that at most. KL moves, by errors δ of the student's or the teacher's logits, by Σ (p − q)·δ ≤ √(2 KL)·δ (Pinsker's
  // inequality) and by δ² of second order.
  const double logit = 3 * (oracle::rounding_of(static_cast<int>(spec.blocks.size()), dtype) + oracle::unit_of(dtype));
  EXPECT_NEAR(got.nll, want.nll, 2 * logit);
  EXPECT_NEAR(got.teacher_nll, want.teacher_nll, 2 * logit);
  const double kl = 2 * std::sqrt(2 * want.kl) * logit + logit * logit;
  EXPECT_NEAR(got.kl, want.kl, kl);
  EXPECT_GT(want.kl, kl) << "else the comparison would say nothing";
}

TEST_P(DtypesTest, ScoresAreThoseOfSinglePrecision) {
  std::vector<Encoded> questions(2);
  for (int q = 0; q < 2; ++q)
    for (int c = 0; c < 3; ++c) {
      std::vector<std::int32_t> tokens;
      for (int i = 0; i < 4 + 2 * q + c; ++i) tokens.push_back((5 * i + 7 * q + (i < 4 ? 0 : 11 * c)) % 48);
      questions[q].sequences.push_back({tokens, 3});
    }
  const auto scored = [&](mx::Dtype in) {
    const auto m = loaded(in);
    return score(m, model::head(m.spec, m.tensors, m.formats, m.dtype), questions);
  };
  const auto got = scored(dtype), want = scored(mx::float32);
  const double logit = 3 * (oracle::rounding_of(static_cast<int>(spec.blocks.size()), dtype) + oracle::unit_of(dtype));
  for (int q = 0; q < 2; ++q)
    for (int c = 0; c < 3; ++c)
      EXPECT_NEAR(got[q][c], want[q][c], 2 * logit * static_cast<double>(questions[q].sequences[c].tokens.size() - 3)) << q << ", " << c;
}

}  // namespace
}  // namespace lquant::evaluate
