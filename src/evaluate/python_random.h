#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace lquant::evaluate {

/// The part of CPython's random.Random that lm-eval draws its examples with: the same numbers for the same seed, in the same order. The
/// generator is MT19937 (Matsumoto and Nishimura, ACM TOMACS 8, 1998), which the standard library has; CPython seeds it by the authors'
/// init_by_array and draws below n by rejecting draws of n's bit length.
class PythonRandom {
 public:
  /// random.Random(seed); of a negative seed Python takes the absolute value.
  explicit PythonRandom(std::int64_t seed);
  /// The next 32 bits.
  std::uint32_t next() { return engine_(); }
  /// randrange(n), n > 0.
  std::size_t below(std::size_t n);
  /// The indices of sample(population, count) for a population of n. Throws std::invalid_argument when count > n.
  std::vector<std::size_t> sample(std::size_t n, std::size_t count);

 private:
  std::mt19937 engine_;
};

}  // namespace lquant::evaluate
