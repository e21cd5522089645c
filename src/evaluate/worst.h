#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "evaluate/quality.h"
#include "text/tokenizer.h"

namespace lquant::evaluate {

struct Prediction {
  std::string token;  ///< its text
  double probability = 0;
};

/// A place in the text at which a model is far from its teacher.
struct WorstToken {
  std::size_t row = 0, column = 0;  ///< of the token among all rows
  std::string before, token;        ///< the text that leads to it, and the token that follows
  double kl = 0;
  double teacher_probability = 0, student_probability = 0;  ///< of the token
  std::vector<Prediction> teacher, student;                 ///< the likeliest, best first
  nlohmann::ordered_json to_json() const;
};

struct WorstOptions {
  int count = 20;
  int predictions = 3;
  int context = 32;  ///< tokens
};

/// The `count` tokens of the largest divergence, largest first; of equals the earlier.
std::vector<WorstToken> worst_tokens(const std::vector<TokenFigure>& figures, const Answers& student, const Answers& teacher,
                                     const std::vector<calibration::Batch>& batches, const text::Tokenizer& tokenizer, const WorstOptions& options);

}  // namespace lquant::evaluate
