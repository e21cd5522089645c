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

mx::array CountedRows::of(int expert) const {
  const auto first = offsets[expert], last = offsets[expert + 1];
  if (!places) return mx::slice(input, {first, 0}, {last, input.shape(-1)});
  return mx::take(input, mx::array(places->data() + first, {last - first}, mx::int32), 0);
}

CountedRows counted_rows(const mx::array& input, const model::ExpertRows& experts, const mx::array* tokens) {
  CountedRows all{experts.source.value_or(input), on_host(experts.offsets)};
  all.input.eval();
  if (!tokens && !experts.source) return all;
  const auto token_of = on_host(experts.tokens);
  if (!tokens) {
    all.places = token_of;
    return all;
  }
  const auto counted = on_host(*tokens);
  std::vector<bool> counts(token_of.empty() ? 0 : 1 + *std::max_element(token_of.begin(), token_of.end()));
  for (const auto token : counted)
    if (token < static_cast<std::int32_t>(counts.size())) counts[token] = true;
  std::vector<std::int32_t> kept, offsets{0};
  for (int e = 0; e < all.experts(); ++e) {
    for (auto row = all.offsets[e]; row < all.offsets[e + 1]; ++row)
      if (counts[token_of[row]]) kept.push_back(experts.source ? token_of[row] : row);
    offsets.push_back(static_cast<std::int32_t>(kept.size()));
  }
  all.offsets = std::move(offsets);
  all.places = std::move(kept);
  return all;
}

}  // namespace lquant::calibration
