// std::mt19937 takes its whole state from a seed sequence, 32 bits a word: one that hands over the state which init_by_array makes
// turns it into CPython's generator. (The engine sets the first word to 2³¹ when all others are 0, as init_by_array does anyhow.)
#include "evaluate/python_random.h"

#include <array>
#include <bit>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <unordered_set>

namespace lquant::evaluate {
namespace {

constexpr std::size_t kWords = std::mt19937::state_size;

/// The state after init_by_array(key), whose constants are the authors'.
std::array<std::uint32_t, kWords> state_of(const std::vector<std::uint32_t>& key) {
  std::array<std::uint32_t, kWords> state;
  state[0] = 19650218;
  for (std::uint32_t i = 1; i < kWords; ++i) state[i] = 1812433253u * (state[i - 1] ^ state[i - 1] >> 30) + i;
  std::size_t i = 1;
  const auto mix = [&](std::uint32_t factor) { return state[i] ^ (state[i - 1] ^ state[i - 1] >> 30) * factor; };
  const auto step = [&] {
    if (++i < kWords) return;
    state[0] = state[kWords - 1];
    i = 1;
  };
  std::size_t j = 0;
  for (std::size_t k = std::max(kWords, key.size()); k > 0; --k) {
    state[i] = mix(1664525u) + key[j] + static_cast<std::uint32_t>(j);
    step();
    j = (j + 1) % key.size();
  }
  for (std::size_t k = kWords - 1; k > 0; --k) {
    state[i] = mix(1566083941u) - static_cast<std::uint32_t>(i);
    step();
  }
  state[0] = 0x80000000u;
  return state;
}

/// A seed sequence that is the state itself.
struct State {
  using result_type = std::uint32_t;
  std::array<std::uint32_t, kWords> words;
  template <class Iterator>
  void generate(Iterator begin, Iterator end) {
    std::copy_n(words.begin(), std::min<std::ptrdiff_t>(end - begin, kWords), begin);
  }
};

}  // namespace

PythonRandom::PythonRandom(std::int64_t seed) {
  const std::uint64_t magnitude = seed < 0 ? 0 - static_cast<std::uint64_t>(seed) : static_cast<std::uint64_t>(seed);
  std::vector<std::uint32_t> key{static_cast<std::uint32_t>(magnitude)};
  if (magnitude >> 32) key.push_back(static_cast<std::uint32_t>(magnitude >> 32));
  State state{state_of(key)};
  engine_.seed(state);
}

std::size_t PythonRandom::below(std::size_t n) {
  const int bits = std::bit_width(n);
  for (;;) {
    // getrandbits: one word per 32 bits, the least significant first, the last one cut from above.
    std::uint64_t draw = 0;
    for (int got = 0; got < bits; got += 32) {
      std::uint32_t word = next();
      if (bits - got < 32) word >>= 32 - (bits - got);
      draw |= std::uint64_t{word} << got;
    }
    if (draw < n) return static_cast<std::size_t>(draw);
  }
}

std::vector<std::size_t> PythonRandom::sample(std::size_t n, std::size_t count) {
  if (count > n) throw std::invalid_argument("[evaluate] a sample is not larger than its population");
  std::vector<std::size_t> result;
  // CPython's choice between two ways by the memory they take: it decides which numbers are drawn.
  double set_size = 21;
  if (count > 5) set_size += std::pow(4, std::ceil(std::log(3.0 * static_cast<double>(count)) / std::log(4.0)));
  if (static_cast<double>(n) <= set_size) {
    std::vector<std::size_t> pool(n);
    std::iota(pool.begin(), pool.end(), std::size_t{0});
    for (std::size_t i = 0; i < count; ++i) {
      const auto j = below(n - i);
      result.push_back(pool[j]);
      pool[j] = pool[n - i - 1];
    }
    return result;
  }
  std::unordered_set<std::size_t> taken;
  while (result.size() < count) {
    const auto j = below(n);
    if (taken.insert(j).second) result.push_back(j);
  }
  return result;
}

}  // namespace lquant::evaluate
