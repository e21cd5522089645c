#include "pipeline/moments.h"

#include <mlx/mlx.h>

#include <vector>

#include "kernels/elementwise.h"

namespace lquant::pipeline {

void add_moment(Moments& moments, const std::string& path, const mx::array& input, const mx::array* offsets) {
  mx::array sum(0);
  if (!offsets) {
    sum = kernels::second_moment(input);
  } else {
    mx::array host = *offsets;
    host.eval();
    const auto* at = host.data<std::int32_t>();
    std::vector<mx::array> rows;
    for (int e = 0; e + 1 < static_cast<int>(host.size()); ++e)
      rows.push_back(at[e] == at[e + 1] ? mx::zeros({input.shape(-1)}, mx::float32)
                                        : kernels::second_moment(mx::slice(input, {at[e], 0}, {at[e + 1], input.shape(-1)})));
    sum = mx::stack(rows);
  }
  const auto it = moments.find(path);
  if (it == moments.end())
    moments.insert({path, sum});
  else
    it->second = mx::add(it->second, sum);
  moments.at(path).eval();
}

}  // namespace lquant::pipeline
