#pragma once

#include <vector>

namespace lquant::oracle {

/// Rotary embedding in double of x [positions.size(), heads, width]; positions a token each. Halves paired, or neighbours when interleaved.
std::vector<double> rope(const std::vector<double>& x, const std::vector<double>& inv_freq, const std::vector<int>& positions, int heads, int width,
                         double magnitude, bool interleaved);

}  // namespace lquant::oracle
