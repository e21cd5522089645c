#pragma once

#include <mlx/array.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "calibration/batches.h"
#include "evaluate/row_mean.h"
#include "model/model.h"

namespace lquant::evaluate {

namespace mx = mlx::core;

/// A model ready to be asked again and again: tensors in memory, packed weights made dense.
struct LoadedModel {
  model::ModelSpec spec;
  model::Tensors tensors;
  model::Formats formats;
  mx::Dtype dtype;
  static LoadedModel load(const model::Model& model, std::optional<mx::Dtype> dtype = std::nullopt);
  /// Hidden states [R·L, H] behind the final norm.
  mx::array hidden(const calibration::Batch& batch) const;
};

/// How well a model predicts a text, and how far it is from its teacher. All per token, in nats.
struct Quality {
  std::int64_t tokens = 0;
  /// Mean of −log p(next token). Standard errors are taken over rows (row_mean.h); NaN, and null in JSON, from fewer than two.
  double nll = 0, nll_se = 0;
  double teacher_nll = 0;
  double kl = 0, kl_se = 0;  ///< KL(teacher ‖ student)
  double kl_p99 = 0;         ///< its 99th percentile over tokens
  double top1 = 0;           ///< share of tokens at which both have the same likeliest token
  bool has_teacher = false;
  std::vector<RowSum> kl_rows;  ///< of every row, in order; for paired_difference with another model on the same rows. Not in JSON
  double perplexity() const;
  double teacher_perplexity() const;
  /// Half the width of perplexity's ±1 standard error interval (delta method: perplexity · nll_se).
  double perplexity_se() const;
  nlohmann::json to_json() const;
};

/// One scored token: what is predicted behind position `position` (row · length + column) of batch `batch`. In nats.
struct TokenFigure {
  std::size_t batch = 0, position = 0;
  float nll = 0, teacher_nll = 0, kl = 0;  ///< as in kernels::TokenScores
};

/// A model's answers to some batches.
struct Answers {
  model::Head head;
  std::function<mx::array(std::size_t batch)> hidden;  ///< hidden states [R·L, H] behind the final norm
};

/// `progress(tokens)` is called after each batch; `figures` gets those of each scored token, in order. Throws Error for vocabularies that differ.
Quality measure(const Answers& student, const Answers* teacher, const std::vector<calibration::Batch>& batches,
                const std::function<void(std::int64_t)>& progress = nullptr, std::vector<TokenFigure>* figures = nullptr);
Quality measure(const LoadedModel& student, const LoadedModel* teacher, const std::vector<calibration::Batch>& batches,
                const std::function<void(std::int64_t)>& progress = nullptr);

}  // namespace lquant::evaluate
