#include "calibration/hessian.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>

#include "kernels/moments.h"
#include "kernels/primitive.h"

namespace lquant::calibration {
namespace {

void settle(const Hessian& h) {
  std::vector<mx::array> all{h.moment};
  if (h.shift) all.push_back(*h.shift);
  kernels::settle(std::move(all));
}

void add_to(Hessian& sum, const Hessian& part) {
  sum.moment = mx::add(sum.moment, part.moment);
  if (part.shift) sum.shift = sum.shift ? mx::add(*sum.shift, *part.shift) : *part.shift;
  sum.tokens += part.tokens;
  settle(sum);
}

Hessian of_rows(const mx::array& x, const std::optional<mx::array>& reference) {
  Hessian part{kernels::gram(x), std::nullopt, static_cast<double>(x.shape(0))};
  if (reference) part.shift = kernels::shift_moment(*reference, x);
  settle(part);
  return part;
}

}  // namespace

void ExpertInputs::add(const mx::array& input, const model::ExpertRows& experts, const mx::array* tokens) {
  batches_.push_back(counted_rows(input, experts, tokens));
}

double ExpertInputs::tokens(int expert) const {
  double sum = 0;
  for (const auto& batch : batches_) sum += batch.rows(expert);
  return sum;
}

Hessian ExpertInputs::of(int expert) const {
  std::optional<Hessian> sum;
  for (const auto& batch : batches_) {
    if (batch.rows(expert) == 0) continue;
    const auto part = of_rows(batch.of(expert), std::nullopt);
    if (sum)
      add_to(*sum, part);
    else
      sum = part;
  }
  if (sum) return *sum;
  const int width = batches_.empty() ? 0 : batches_.front().input.shape(-1);
  return {mx::zeros({width, width}, mx::float32)};
}

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
  if (experts) {
    experts_[path].add(input, *experts, tokens);
    return;
  }
  const auto part = of_rows(tokens_of(input, tokens), reference ? std::optional(tokens_of(*reference, tokens)) : std::nullopt);
  if (const auto [sum, is_new] = sums_.emplace(path, part); !is_new) add_to(sum->second, part);
}

const std::string& HessianStore::owner(const std::string& path) const {
  const auto it = owner_.find(path);
  if (it == owner_.end()) throw std::invalid_argument("[calibration] no inputs were seen of " + path);
  return it->second;
}

const Hessian& HessianStore::of(const std::string& path) const {
  const auto it = sums_.find(owner(path));
  if (it == sums_.end()) throw std::invalid_argument("[calibration] the matrices have inputs of their own in " + path);
  return it->second;
}

const ExpertInputs& HessianStore::experts(const std::string& path) const {
  const auto it = experts_.find(owner(path));
  if (it == experts_.end()) throw std::invalid_argument("[calibration] all matrices share one input in " + path);
  return it->second;
}

void HessianStore::clear() {
  owner_.clear();
  sums_.clear();
  experts_.clear();
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
  settle(made);
  return made;
}

}  // namespace lquant::calibration
