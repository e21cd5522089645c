// Only the places that are shown get logits again: the figures of all tokens come from a kernel that never holds them.
#include "evaluate/worst.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lquant::evaluate {
namespace {

std::string text_of(const text::Tokenizer& tokenizer, std::int32_t id) {
  const std::int32_t one[] = {id};
  return tokenizer.decode(one);
}

/// Probabilities f32 [places, V]. In f32 whatever the model's dtype: logits of some tens are too coarse in bf16. Of the head a part at a time is f32.
mx::array probabilities(const Answers& answers, const std::vector<TokenFigure>& places) {
  constexpr int kPart = 1 << 14;
  std::vector<mx::array> rows, parts;
  for (const auto& at : places) {
    const auto h = answers.hidden(at.batch);
    const auto place = static_cast<int>(at.position);
    rows.push_back(mx::astype(mx::slice(h, {place, 0}, {place + 1, h.shape(-1)}), mx::float32));
  }
  const auto h = mx::concatenate(rows, 0);
  const auto& head = answers.head;
  for (int begin = 0, vocab = head.weight.shape(0); begin < vocab; begin += kPart) {
    const int end = std::min(begin + kPart, vocab);
    auto part = head;
    part.weight = mx::astype(mx::slice(head.weight, {begin, 0}, {end, head.weight.shape(1)}), mx::float32);
    if (head.bias) part.bias = mx::astype(mx::slice(*head.bias, {begin}, {end}), mx::float32);
    parts.push_back(model::logits(part, h));
    parts.back().eval();
  }
  auto p = mx::contiguous(mx::softmax(mx::concatenate(parts, -1), -1, /*precise=*/true));
  p.eval();
  return p;
}

std::vector<Prediction> likeliest(const float* values, std::size_t vocab, const text::Tokenizer& tokenizer, int count) {
  std::vector<std::int32_t> ids(vocab);
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(vocab));
  std::partial_sort(ids.begin(), end, ids.end(), [&](auto a, auto b) { return values[a] != values[b] ? values[a] > values[b] : a < b; });
  std::vector<Prediction> best;
  for (auto id = ids.begin(); id != end; ++id) best.push_back({text_of(tokenizer, *id), values[*id]});
  return best;
}

}  // namespace

nlohmann::ordered_json WorstToken::to_json() const {
  const auto list = [](const std::vector<Prediction>& predicted) {
    auto all = nlohmann::ordered_json::array();
    for (const auto& p : predicted) all.push_back({{"token", p.token}, {"probability", p.probability}});
    return all;
  };
  return {{"row", row},
          {"column", column},
          {"before", before},
          {"token", token},
          {"kl", kl},
          {"teacher_probability", teacher_probability},
          {"student_probability", student_probability},
          {"teacher", list(teacher)},
          {"student", list(student)}};
}

std::vector<WorstToken> worst_tokens(const std::vector<TokenFigure>& figures, const Answers& student, const Answers& teacher,
                                     const std::vector<calibration::Batch>& batches, const text::Tokenizer& tokenizer, const WorstOptions& options) {
  std::vector<std::size_t> order(figures.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto end = order.begin() + std::min<std::ptrdiff_t>(options.count, static_cast<std::ptrdiff_t>(order.size()));
  std::partial_sort(order.begin(), end, order.end(),
                    [&](auto a, auto b) { return figures[a].kl != figures[b].kl ? figures[a].kl > figures[b].kl : a < b; });
  std::vector<std::size_t> first_row{0};
  for (const auto& batch : batches) first_row.push_back(first_row.back() + static_cast<std::size_t>(batch.rows()));
  std::vector<TokenFigure> places;
  for (auto i = order.begin(); i != end; ++i) places.push_back(figures[*i]);
  std::vector<WorstToken> worst;
  if (places.empty()) return worst;
  const auto teacher_p = probabilities(teacher, places), student_p = probabilities(student, places);
  const auto vocab = static_cast<std::size_t>(teacher_p.shape(-1));
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto& at = places[i];
    const auto& batch = batches[at.batch];
    const auto length = static_cast<std::size_t>(batch.length()), column = at.position % length;
    auto ids = mx::contiguous(batch.ids), targets = mx::contiguous(batch.targets);
    mx::eval(ids, targets);
    // The context stays within the row: what the model saw.
    const auto shown = std::min(column + 1, static_cast<std::size_t>(options.context));
    const auto* last = ids.data<std::int32_t>() + at.position + 1;
    WorstToken w;
    w.row = first_row[at.batch] + at.position / length, w.column = column;
    w.before = tokenizer.decode(std::span(last - shown, last));
    w.token = text_of(tokenizer, targets.data<std::int32_t>()[at.position]);
    w.kl = at.kl;
    w.teacher_probability = std::exp(-at.teacher_nll), w.student_probability = std::exp(-at.nll);
    w.teacher = likeliest(teacher_p.data<float>() + i * vocab, vocab, tokenizer, options.predictions);
    w.student = likeliest(student_p.data<float>() + i * vocab, vocab, tokenizer, options.predictions);
    worst.push_back(std::move(w));
  }
  return worst;
}

}  // namespace lquant::evaluate
