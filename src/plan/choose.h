#pragma once

#include <functional>
#include <string>
#include <vector>

#include "plan/allocate.h"
#include "plan/plan.h"

namespace lquant::plan {

/// A bound on the bits of all linears whose path matches a pattern of the shell ("*.down_proj", "model.layers.0.*").
struct Limit {
  std::string pattern;
  int bits = 0;
};

struct ChooserOptions {
  std::vector<codec::Format> formats;  ///< that a linear may have; the smallest of them is what config.json names globally
  bool tie = false;                    ///< linears of a block that read one input (q, k and v; gate and up) share a format
  std::vector<Limit> floors, ceilings;
};

/// The formats of a model as a knapsack: one item for each linear (or each that are tied together).
class FormatChooser {
 public:
  /// `cost` gives the loss that a linear adds in a format; `dense_bytes` per dense element. Linears with a format of their own (routers) keep it,
  /// those that no format divides stay dense. Throws Error for limits that match nothing or leave a linear without a format.
  FormatChooser(const model::ModelSpec& spec, const ChooserOptions& options,
                const std::function<double(const std::string& path, const codec::Format& format)>& cost, int dense_bytes = 2);

  /// Made when it is first asked for: it solves all budgets at once. Not safe from many threads.
  const Allocator& allocator() const;
  /// Bytes of the whole model with the smallest and with the largest format for each linear, whatever they cost.
  struct Range {
    std::int64_t least = 0, most = 0;
  };
  Range range() const;
  /// The plan that an allocation stands for.
  QuantPlan plan(const Allocation& allocation) const;
  /// Bits per weight of the whole model, with its norms and all that stays dense.
  double bits_per_weight(std::int64_t allocated_bytes) const;
  /// The same of the whole model's bytes.
  double whole_bits_per_weight(std::int64_t total) const { return 8.0 * static_cast<double>(total) / static_cast<double>(parameters_); }
  /// What the whole model may have in `bits` per weight, or in `total` bytes, for the allocator's budget.
  std::int64_t budget_for_bits(double bits) const;
  std::int64_t budget_for_bytes(std::int64_t total) const { return total - fixed_bytes_; }
  std::int64_t total_bytes(std::int64_t allocated_bytes) const { return allocated_bytes + fixed_bytes_; }

 private:
  struct Tied {
    std::vector<std::string> paths;
    std::vector<codec::Format> formats;
  };
  QuantPlan fixed_;  ///< what is not chosen
  std::vector<Tied> items_;
  std::int64_t parameters_ = 0, fixed_bytes_ = 0;
  std::vector<Item> choices_;
  mutable std::optional<Allocator> allocator_;
};

}  // namespace lquant::plan
