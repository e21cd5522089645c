#include "calibration/hessian.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>

#include "kernels/moments.h"

namespace lquant::calibration {
namespace {

void add_to(Hessian& sum, const Hessian& part) {
  sum.moment = mx::add(sum.moment, part.moment);
  if (part.shift) sum.shift = sum.shift ? mx::add(*sum.shift, *part.shift) : *part.shift;
  sum.tokens += part.tokens;
  sum.moment.eval();
  if (sum.shift) sum.shift->eval();
}

Hessian of_rows(const mx::array& x, const std::optional<mx::array>& reference) {
  Hessian part{kernels::gram(x), std::nullopt, static_cast<double>(x.shape(0))};
  if (reference) part.shift = kernels::shift_moment(*reference, x);
  part.moment.eval();
  if (part.shift) part.shift->eval();
  return part;
}

}  // namespace

void HessianStore::add(const std::string& path, const mx::array& input, const model::ExpertRows* experts, const mx::array* reference,
                       const mx::array* tokens) {
  if (const auto it = owner_.find(path); it != owner_.end()) {
    if (it->second != path) return;  // its owner hears of the same array
  } else {
    for (const auto& [owner, seen] : last_) {
      if (seen.id() != input.id()) continue;
      owner_[path] = owner;
      return;
    }
    owner_[path] = path;
  }
  last_.insert_or_assign(path, input);
  auto& sums = sums_[path];
  if (!experts) {
    const auto x = tokens_of(input, tokens);
    const auto part = of_rows(x, reference ? std::optional(tokens_of(*reference, tokens)) : std::nullopt);
    if (sums.empty())
      sums.push_back(part);
    else
      add_to(sums.front(), part);
    return;
  }
  // Expert by expert: the sums of a layer's experts are the largest thing in memory, and nothing of that size stands beside them.
  const auto counted = counted_rows(input, *experts, tokens);
  if (sums.empty()) sums.assign(counted.experts(), Hessian{mx::zeros({input.shape(-1), input.shape(-1)}, mx::float32)});
  for (int e = 0; e < counted.experts(); ++e) {
    if (counted.rows(e) == 0) continue;
    const auto part = of_rows(counted.of(e), std::nullopt);
    if (sums[e].tokens == 0)
      sums[e] = part;
    else
      add_to(sums[e], part);
  }
}

const std::vector<Hessian>& HessianStore::of(const std::string& path) const {
  const auto it = owner_.find(path);
  if (it == owner_.end()) throw std::invalid_argument("[calibration] no inputs were seen of " + path);
  return sums_.at(it->second);
}

void HessianStore::clear() {
  owner_.clear();
  sums_.clear();
  last_.clear();
}

Hessian together(const Hessian& a, const Hessian& b) {
  Hessian sum = a;
  add_to(sum, b);
  return sum;
}

mx::array mean_squares(const Hessian& h) { return mx::multiply(mx::diagonal(h.moment), mx::array(static_cast<float>(1 / std::max(1.0, h.tokens)))); }

Hessian rescaled(const Hessian& h, const mx::array& columns) {
  const auto both = mx::multiply(mx::expand_dims(columns, 0), mx::expand_dims(columns, 1));
  Hessian made{mx::divide(h.moment, both), std::nullopt, h.tokens};
  if (h.shift) made.shift = mx::divide(*h.shift, both);
  made.moment.eval();
  if (made.shift) made.shift->eval();
  return made;
}

}  // namespace lquant::calibration
