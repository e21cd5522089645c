#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Which of several formats each tensor gets when a budget of bytes is shared: the multiple-choice knapsack problem
// (Kellerer, Pferschy, Pisinger: Knapsack Problems, 2004, chapter 11), solved for all budgets at once.
namespace lquant::plan {

/// One way to store a tensor: its size, and what it adds to the model's loss.
struct Choice {
  std::int64_t bytes = 0;
  double loss = 0;
};

/// A tensor (or several that share a format) and its choices, in any order, at least one.
struct Item {
  std::string name;
  std::vector<Choice> choices;
};

struct Allocation {
  std::vector<int> chosen;  ///< by item: index into its choices
  std::int64_t bytes = 0;
  double loss = 0;
  double bound = 0;  ///< no allocation in the same budget has a loss below this; equal to `loss` when the solution is proven to be the best
};

struct AllocatorOptions {
  /// Cells of the byte grid times items, one byte of memory each. When the exact grid (the greatest common divisor of all sizes) has more, sizes are
  /// rounded up to a coarser one, and `bound` comes from the Lagrangian instead.
  std::int64_t max_cells = std::int64_t{1} << 28;
};

/// Dynamic programming over bytes: least[i][b] = min over i's choices of least[i − 1][b − bytes] + loss. Losses may be negative (measured ones are,
/// now and then); they add up. Time is cells × items × choices.
class Allocator {
 public:
  /// Throws std::invalid_argument for no items, an item without choices, negative bytes or a loss that is not finite.
  explicit Allocator(std::vector<Item> items, const AllocatorOptions& options = {});

  const std::vector<Item>& items() const { return items_; }
  /// Bytes of the smallest and of the largest allocation that can be worth taking.
  std::int64_t least_bytes() const { return least_bytes_; }
  std::int64_t most_bytes() const { return most_bytes_; }
  bool exact() const { return exact_; }

  /// The least loss in at most `budget` bytes. Throws Error when even the smallest allocation is larger.
  Allocation within(std::int64_t budget) const;
  /// The fewest bytes with a loss of at most `loss`. Throws Error when none has so little.
  Allocation below(double loss) const;
  /// Every allocation that no other beats in both bytes and loss (on the grid), from small to large; at most `count`, evenly spaced in bytes.
  std::vector<Allocation> curve(std::size_t count) const;

 private:
  Allocation at_cell(std::int64_t cell) const;
  double lagrangian_bound(std::int64_t budget) const;

  std::vector<Item> items_;
  std::vector<std::vector<int>> kept_;  ///< choices that are not dominated, by item, from small to large
  std::int64_t unit_ = 1, least_bytes_ = 0, most_bytes_ = 0, cells_ = 0;
  bool exact_ = true;
  std::vector<double> best_;         ///< by cell: the least loss in so many units above least_bytes_
  std::vector<std::uint8_t> taken_;  ///< [items, cells]: index into kept_
};

}  // namespace lquant::plan
