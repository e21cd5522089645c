#pragma once

#include <mlx/array.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "calibration/counted.h"

namespace lquant::calibration {

namespace mx = mlx::core;

/// What a layer's inputs x̂ say about its weight's errors: Σ over tokens. The layer's output error is Σ (e · x̂)² = e · H · eᵀ.
struct Hessian {
  mx::array moment;  ///< Σ x̂ᵀ x̂, f32 [K, K]
  /// Σ (x − x̂)ᵀ x̂, f32 [K, K], with x the inputs that the full-precision model has in the same place; absent when nobody asked.
  std::optional<mx::array> shift = std::nullopt;
  double tokens = 0;
};

/// What the experts of a stack have read, batch after batch. Their Hessians together may be larger than the model's block, so each is summed when it
/// is asked for.
class ExpertInputs {
 public:
  /// As HessianStore::add. Evaluated; of rows with a source nothing is copied.
  void add(const mx::array& input, const model::ExpertRows& experts, const mx::array* tokens);
  int experts() const { return batches_.empty() ? 0 : batches_.front().experts(); }
  /// That an expert has seen.
  double tokens(int expert) const;
  Hessian of(int expert) const;

 private:
  std::vector<CountedRows> batches_;
};

/// Sums the Hessians of the linears that an observer hears of, batch after batch. Linears that read one and the same array share
/// one sum. Everything is evaluated as it comes: nothing but the sums, and the inputs of experts, is kept.
class HessianStore {
 public:
  /// One batch's input of a linear, as a model::Observer is told of it: [..., K], of stacked experts [R, K] with `experts`. `reference`,
  /// of the same shape, makes the shift too (not for experts). `tokens`, int32, names the tokens that count (else all): padding does not.
  void add(const std::string& path, const mx::array& input, const model::ExpertRows* experts, const mx::array* reference, const mx::array* tokens);

  bool has(const std::string& path) const { return owner_.count(path) > 0; }
  /// The path of the linear, seen first, with which it shares its input. Here and below std::invalid_argument is thrown for a path that was never
  /// seen, or not in this way.
  const std::string& owner(const std::string& path) const;
  /// Whether the matrices of a stack have inputs of their own.
  bool by_expert(const std::string& path) const { return experts_.contains(owner(path)); }
  /// Of a linear, or of a stack that shares one input.
  const Hessian& of(const std::string& path) const;
  const ExpertInputs& experts(const std::string& path) const;
  void clear();

 private:
  std::map<std::string, std::string> owner_;  ///< path → the path that the sum is kept under
  std::map<std::string, Hessian> sums_;
  std::map<std::string, ExpertInputs> experts_;
  std::map<std::string, mx::array> last_;  ///< what an owner saw last: kept, for another array could get the id of one that is gone
};

/// a + b, of the same linear. Where one lacks a shift, the sum has the other's.
Hessian together(const Hessian& a, const Hessian& b);

/// Of each input, over the tokens: f32 [K]. Lazy.
mx::array mean_squares(const Hessian& h);

/// That of the same linear when its inputs are divided by `columns`, f32 [K].
Hessian rescaled(const Hessian& h, const mx::array& columns);

}  // namespace lquant::calibration
