#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/op.h"

namespace lquant::model {

/// One product in the place of an attention or an MLP (nemotron-nas). Stage 0.
struct Linear final : Op {
  LinearSpec linear;

  void contents(int op, int first_stage, Contents& all) const override { all.readings.push_back({&linear, op, first_stage}); }
  int stages() const override { return 1; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {linear.path}; }
};

}  // namespace lquant::model
