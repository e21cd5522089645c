#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "evaluate/row_mean.h"
#include "evaluate/score.h"

namespace lquant::evaluate {

/// The first of the largest values, as numpy.argmax.
std::size_t likeliest(const Likelihoods& likelihoods);
/// The same of likelihoods divided by `lengths` (the choices' characters).
std::size_t likeliest(const Likelihoods& likelihoods, std::span<const std::size_t> lengths);

/// The mean; its standard error is the sample's deviation (n − 1) over √n.
Mean mean_of(const std::vector<double>& values);

/// Two models on the same questions.
struct Paired {
  std::int64_t rows = 0, gained = 0, lost = 0;  ///< right where the other is wrong, and the reverse
  double difference = 0;                        ///< of the accuracies, (gained − lost) / rows
  double low = 0, high = 0;                     ///< its 95 % confidence interval
  double p = 1;                                 ///< of the hypothesis that both are equally often right where they differ
};
/// The interval is Bonett and Price's adjusted Wald interval (J. Educ. Behav. Stat. 37, 2012, 479–488): one gain and one loss are added before the
/// normal approximation, which keeps its coverage when flips are few; it is widened where needed to hold `difference` itself. p is McNemar's exact
/// (binomial, two-sided) one (Psychometrika 12, 1947, 153–157).
/// Throws std::invalid_argument when the lengths differ or are 0.
Paired compare(const std::vector<double>& model, const std::vector<double>& other);

}  // namespace lquant::evaluate
