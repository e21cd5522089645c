#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace lquant {

/// A random permutation of 0 … n−1 that is the same on every platform and library (std::shuffle is not).
inline std::vector<std::size_t> permutation(std::size_t n, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::size_t i = n; i > 1; --i) {
    // Rejection keeps every index equally likely; the loop almost never repeats.
    const std::uint64_t limit = engine.max() - engine.max() % i;
    std::uint64_t draw;
    do draw = engine();
    while (draw >= limit);
    std::swap(order[i - 1], order[draw % i]);
  }
  return order;
}

}  // namespace lquant
