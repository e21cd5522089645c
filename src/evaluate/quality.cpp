// One pass over the tokens of all rows. Sums are kept by row, for the errors are taken over rows (row_mean.h).
#include "evaluate/quality.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json.h"
#include "kernels/head_loss.h"

namespace lquant::evaluate {

LoadedModel LoadedModel::load(const model::Model& model, std::optional<mx::Dtype> dtype) {
  LoadedModel loaded{model.spec(), {}, model.formats(), dtype.value_or(model.compute_dtype())};
  loaded.tensors = model.load_all(loaded.dtype);
  model::densify(loaded.tensors, loaded.formats, loaded.dtype);
  std::vector<mx::array> all;
  for (auto& [name, tensor] : loaded.tensors) all.push_back(tensor);
  mx::eval(all);
  return loaded;
}

mx::array LoadedModel::hidden(const calibration::Batch& batch) const {
  model::Context context;
  context.segments = batch.borders();
  const auto h = model::hidden_states(spec, tensors, formats, batch.ids, dtype, context);
  return mx::reshape(h, {-1, h.shape(-1)});
}

double Quality::perplexity() const { return std::exp(nll); }
double Quality::teacher_perplexity() const { return std::exp(teacher_nll); }
double Quality::perplexity_se() const { return perplexity() * nll_se; }

nlohmann::json Quality::to_json() const {
  nlohmann::json out{
      {"tokens", tokens}, {"nll", nll}, {"nll_se", or_null(nll_se)}, {"perplexity", perplexity()}, {"perplexity_se", or_null(perplexity_se())}};
  if (has_teacher)
    out.update({{"teacher_perplexity", teacher_perplexity()}, {"kl", kl}, {"kl_se", or_null(kl_se)}, {"kl_p99", kl_p99}, {"top1_agreement", top1}});
  return out;
}

namespace {

model::Head head_of(const LoadedModel& m) { return model::head(m.spec, m.tensors, m.formats, m.dtype); }

}  // namespace

Quality measure(const Answers& student, const Answers* teacher, const std::vector<calibration::Batch>& batches,
                const std::function<void(std::int64_t)>& progress, std::vector<TokenFigure>* figures) {
  const int vocab = student.head.weight.shape(0);
  if (teacher && teacher->head.weight.shape(0) != vocab)
    fail("evaluate", "the teacher has a vocabulary of {} and the model one of {}; they must be the same for KL", teacher->head.weight.shape(0),
         vocab);
  kernels::HeadLossArgs args;
  args.softcap = student.head.softcap;
  args.multiplier = student.head.multiplier;
  if (teacher) {
    args.teacher_softcap = teacher->head.softcap;
    args.teacher_multiplier = teacher->head.multiplier;
  }
  std::vector<RowSum> nll, teacher_nll, kl;
  std::vector<float> all_kl;
  double agree = 0;
  Quality quality;
  quality.has_teacher = teacher != nullptr;
  for (std::size_t b = 0; b < batches.size(); ++b) {
    const auto& batch = batches[b];
    std::optional<kernels::TeacherHidden> told;
    if (teacher) told = kernels::TeacherHidden{teacher->hidden(b), teacher->head.weight, teacher->head.bias};
    auto scores = kernels::score_tokens(student.hidden(b), student.head.weight, student.head.bias, mx::reshape(batch.targets, {-1}), told, args);
    auto mask_array = mx::reshape(batch.next_mask, {-1});
    mx::eval(scores.nll, scores.teacher_nll, scores.kl, scores.agree, mask_array);
    const float *mask = mask_array.data<float>(), *n = scores.nll.data<float>(), *t = scores.teacher_nll.data<float>(), *k = scores.kl.data<float>(),
                *a = scores.agree.data<float>();
    for (int r = 0; r < batch.rows(); ++r) {
      double sums[3] = {};
      std::int64_t tokens = 0;
      for (std::int64_t i = std::int64_t{r} * batch.length(), end = i + batch.length(); i < end; ++i) {
        if (mask[i] == 0) continue;
        ++tokens, sums[0] += n[i], sums[1] += t[i], sums[2] += k[i];
        agree += a[i];
        if (teacher) all_kl.push_back(k[i]);
        if (figures) figures->push_back({b, static_cast<std::size_t>(i), n[i], t[i], k[i]});
      }
      nll.push_back({sums[0], tokens});
      teacher_nll.push_back({sums[1], tokens});
      kl.push_back({sums[2], tokens});
      quality.tokens += tokens;
    }
    if (progress) progress(quality.tokens);
  }
  if (quality.tokens == 0) fail("evaluate", "no token to score; give data with more text");
  const auto mean_nll = token_mean(nll), mean_kl = token_mean(kl);
  quality.nll = mean_nll.value, quality.nll_se = mean_nll.error;
  if (teacher) {
    quality.teacher_nll = token_mean(teacher_nll).value;
    quality.kl = mean_kl.value, quality.kl_se = mean_kl.error;
    quality.kl_rows = std::move(kl);
    quality.top1 = agree / static_cast<double>(quality.tokens);
    const auto at = all_kl.begin() + static_cast<std::ptrdiff_t>(0.99 * static_cast<double>(all_kl.size() - 1));
    std::nth_element(all_kl.begin(), at, all_kl.end());
    quality.kl_p99 = *at;
  }
  return quality;
}

Quality measure(const LoadedModel& student, const LoadedModel* teacher, const std::vector<calibration::Batch>& batches,
                const std::function<void(std::int64_t)>& progress) {
  const auto answers = [&](const LoadedModel& m) { return Answers{head_of(m), [&](std::size_t b) { return m.hidden(batches[b]); }}; };
  const auto told = teacher ? std::optional(answers(*teacher)) : std::nullopt;
  return measure(answers(student), told ? &*told : nullptr, batches, progress);
}

}  // namespace lquant::evaluate
