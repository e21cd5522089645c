#pragma once

#include <vector>

namespace lquant::oracle {

/// Rows of table [V, width] in double.
std::vector<double> rows(const std::vector<int>& ids, const std::vector<double>& table, int width);

/// Σ of the rows of `gradient` [ids.size(), width] by id, into [V, width].
std::vector<double> add_rows(const std::vector<int>& ids, const std::vector<double>& gradient, int table_rows, int width);

}  // namespace lquant::oracle
