#include "oracle/kernels_embedding.h"

namespace lquant::oracle {

std::vector<double> rows(const std::vector<int>& ids, const std::vector<double>& table, int width) {
  std::vector<double> result;
  for (int id : ids) result.insert(result.end(), table.begin() + id * width, table.begin() + (id + 1) * width);
  return result;
}

std::vector<double> add_rows(const std::vector<int>& ids, const std::vector<double>& gradient, int table_rows, int width) {
  std::vector<double> result(table_rows * width, 0.0);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (int j = 0; j < width; ++j) result[ids[i] * width + j] += gradient[i * width + j];
  }
  return result;
}

}  // namespace lquant::oracle
