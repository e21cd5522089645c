// Sizes of quantized matrices are multiples of a large number (a group of every row), so that the exact grid is small: some thousand
// cells for models of any size. One table then answers for every budget; an allocation is read back from the choices taken at each cell.
#include "plan/allocate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "base/error.h"

namespace lquant::plan {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
// Taken choices are kept as bytes.
constexpr std::size_t kMaxChoices = 255;

/// Choices from small to large, without those that cost as much and lose as much as another.
std::vector<int> undominated(const Item& item) {
  std::vector<int> order(item.choices.size());
  std::iota(order.begin(), order.end(), 0);
  const auto& c = item.choices;
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return c[a].bytes != c[b].bytes ? c[a].bytes < c[b].bytes : c[a].loss < c[b].loss; });
  std::vector<int> kept;
  for (int i : order)
    if (kept.empty() || c[i].loss < c[kept.back()].loss) kept.push_back(i);
  return kept;
}

}  // namespace

Allocator::Allocator(std::vector<Item> items, const AllocatorOptions& options) : items_(std::move(items)) {
  if (items_.empty()) throw std::invalid_argument("[plan] allocate: there is nothing to allocate");
  std::int64_t divisor = 0;
  for (const auto& item : items_) {
    if (item.choices.empty()) throw std::invalid_argument("[plan] allocate: " + item.name + " has no choices");
    for (const auto& choice : item.choices)
      if (choice.bytes < 0 || !std::isfinite(choice.loss)) throw std::invalid_argument("[plan] allocate: " + item.name + " has a senseless choice");
    kept_.push_back(undominated(item));
    if (kept_.back().size() > kMaxChoices) throw std::invalid_argument("[plan] allocate: " + item.name + " has more than 255 choices");
    const auto smallest = item.choices[kept_.back().front()].bytes;
    for (int i : kept_.back()) divisor = std::gcd(divisor, item.choices[i].bytes - smallest);
    least_bytes_ += smallest;
    most_bytes_ += item.choices[kept_.back().back()].bytes;
  }
  unit_ = std::max<std::int64_t>(1, divisor);
  const auto span = most_bytes_ - least_bytes_, count = static_cast<std::int64_t>(items_.size());
  if ((span / unit_ + 1) * count > options.max_cells) {
    exact_ = false;
    unit_ = span / std::max<std::int64_t>(1, options.max_cells / count - 1 - count) + 1;  // rounding up adds a cell an item at most
  }
  cells_ = span / unit_ + 1 + (exact_ ? 0 : count);

  best_.assign(cells_, 0.0);
  taken_.assign(static_cast<std::size_t>(count * cells_), 0);
  std::vector<double> next(cells_);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto& choices = items_[i].choices;
    const auto smallest = choices[kept_[i].front()].bytes;
    std::fill(next.begin(), next.end(), kNever);
    auto* taken = taken_.data() + i * cells_;
    for (std::size_t k = 0; k < kept_[i].size(); ++k) {
      const auto& choice = choices[kept_[i][k]];
      const auto step = (choice.bytes - smallest + unit_ - 1) / unit_;
      for (std::int64_t b = step; b < cells_; ++b) {
        const double loss = best_[b - step] + choice.loss;
        if (loss < next[b]) next[b] = loss, taken[b] = static_cast<std::uint8_t>(k);
      }
    }
    best_.swap(next);
  }
}

Allocation Allocator::at_cell(std::int64_t cell) const {
  Allocation a;
  a.chosen.resize(items_.size());
  for (auto i = static_cast<std::int64_t>(items_.size()) - 1; i >= 0; --i) {
    const auto& choices = items_[i].choices;
    const int chosen = kept_[i][taken_[i * cells_ + cell]];
    a.chosen[i] = chosen;
    a.bytes += choices[chosen].bytes;
    a.loss += choices[chosen].loss;
    cell -= (choices[chosen].bytes - choices[kept_[i].front()].bytes + unit_ - 1) / unit_;
  }
  a.bound = a.loss;
  return a;
}

/// max over λ ≥ 0 of Σ_i min_c (loss_c + λ·bytes_c) − λ·budget, which is concave in λ: its slope, the bytes that λ buys less the budget, falls as λ
/// grows, and bisection finds where it turns.
double Allocator::lagrangian_bound(std::int64_t budget) const {
  const auto dual = [&](double lambda, std::int64_t* bytes) {
    double value = -lambda * static_cast<double>(budget);
    *bytes = 0;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      double least = kNever;
      std::int64_t size = 0;
      for (int k : kept_[i]) {
        const auto& c = items_[i].choices[k];
        const double cost = c.loss + lambda * static_cast<double>(c.bytes);
        if (cost < least) least = cost, size = c.bytes;
      }
      value += least;
      *bytes += size;
    }
    return value;
  };
  std::int64_t bytes = 0;
  double best = dual(0, &bytes);
  if (bytes <= budget) return best;
  double low = 0, high = 1e-12;
  for (int i = 0; i < 200 && (best = std::max(best, dual(high, &bytes)), bytes > budget); ++i) low = high, high *= 4;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    best = std::max(best, dual(middle, &bytes));
    (bytes > budget ? low : high) = middle;
  }
  return best;
}

Allocation Allocator::within(std::int64_t budget) const {
  if (budget < least_bytes_)
    fail("plan", "the smallest choice of formats takes {} bytes and the budget is {}; raise the target", least_bytes_, budget);
  auto best = at_cell(budget >= most_bytes_ ? cells_ - 1 : (budget - least_bytes_) / unit_);  // the last cell holds all, rounded up or not
  if (!exact_) best.bound = std::min(best.loss, lagrangian_bound(budget));
  return best;
}

Allocation Allocator::below(double loss) const {
  // best_ falls with the cell. The coarse grid's cells hold sizes that were rounded up, and so may have a smaller neighbour.
  const auto it = std::partition_point(best_.begin(), best_.end(), [&](double least) { return least > loss; });
  if (it == best_.end()) fail("plan", "the largest choice of formats still has a loss of {:.3g}, above {:.3g}; allow more", best_.back(), loss);
  return at_cell(it - best_.begin());
}

std::vector<Allocation> Allocator::curve(std::size_t count) const {
  std::vector<std::int64_t> corners;  // cells at which the loss falls
  for (std::int64_t b = 0; b < cells_; ++b)
    if (b == 0 || best_[b] < best_[b - 1]) corners.push_back(b);
  std::vector<Allocation> points;
  if (count == 0) return points;
  const auto span = corners.back();
  std::size_t at = 0;
  for (std::size_t p = 0; p < count && at < corners.size(); ++p) {
    const auto wanted = count == 1 ? span : span * static_cast<std::int64_t>(p) / static_cast<std::int64_t>(count - 1);
    while (at + 1 < corners.size() && corners[at] < wanted) ++at;
    points.push_back(at_cell(corners[at]));
    if (corners[at] < wanted) break;
    ++at;
  }
  return points;
}

}  // namespace lquant::plan
