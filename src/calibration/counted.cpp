#include "calibration/counted.h"

#include <mlx/mlx.h>

#include <algorithm>

namespace lquant::calibration {
namespace {

std::vector<std::int32_t> on_host(const mx::array& numbers) {
  mx::array host = mx::contiguous(mx::copy(numbers, mx::Device::cpu), false, mx::Device::cpu);
  host.eval();
  return {host.data<std::int32_t>(), host.data<std::int32_t>() + host.size()};
}

}  // namespace

mx::array tokens_of(const mx::array& x, const mx::array* tokens) {
  const auto flat = mx::reshape(x, {-1, x.shape(-1)});
  return tokens ? mx::take(flat, *tokens, 0) : flat;
}

mx::array CountedRows::of(int expert) const { return mx::slice(input, {offsets[expert], 0}, {offsets[expert + 1], input.shape(-1)}); }

CountedRows counted_rows(const mx::array& input, const model::ExpertRows& experts, const mx::array* tokens) {
  CountedRows all{input, on_host(experts.offsets)};
  if (!tokens) return all;
  const auto token_of = on_host(experts.tokens), counted = on_host(*tokens);
  std::vector<bool> counts(token_of.empty() ? 0 : 1 + *std::max_element(token_of.begin(), token_of.end()));
  for (const auto token : counted)
    if (token < static_cast<std::int32_t>(counts.size())) counts[token] = true;
  std::vector<std::int32_t> kept, offsets{0};
  for (int e = 0; e < all.experts(); ++e) {
    for (auto row = all.offsets[e]; row < all.offsets[e + 1]; ++row)
      if (counts[token_of[row]]) kept.push_back(row);
    offsets.push_back(static_cast<std::int32_t>(kept.size()));
  }
  return {mx::take(input, mx::array(kept.data(), {static_cast<int>(kept.size())}, mx::int32), 0), std::move(offsets)};
}

}  // namespace lquant::calibration
