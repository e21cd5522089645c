#include "pipeline/moments.h"

#include <mlx/mlx.h>

#include <vector>

#include "calibration/counted.h"
#include "kernels/elementwise.h"
#include "kernels/primitive.h"

namespace lquant::pipeline {

void add_moment(Moments& moments, const std::string& path, const mx::array& input, const model::ExpertRows* experts,
                const std::optional<mx::array>& counted) {
  const auto* tokens = counted ? &*counted : nullptr;
  mx::array sum(0);
  if (!experts) {
    sum = kernels::second_moment(tokens ? calibration::tokens_of(input, tokens) : input);
  } else {
    const auto rows = calibration::counted_rows(input, *experts, tokens);
    std::vector<mx::array> sums;
    for (int e = 0; e < rows.experts(); ++e)
      sums.push_back(rows.rows(e) == 0 ? mx::zeros({input.shape(-1)}, mx::float32) : kernels::second_moment(rows.of(e)));
    sum = mx::stack(sums);
  }
  const auto it = moments.find(path);
  if (it == moments.end())
    moments.insert({path, sum});
  else
    it->second = mx::add(it->second, sum);
  kernels::settle({moments.at(path)});
}

}  // namespace lquant::pipeline
