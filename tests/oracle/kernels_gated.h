#pragma once

#include "kernels/gated.h"

namespace lquant::oracle {

/// activation(g) in double, from its definition.
double activate(double g, kernels::Activation activation);

/// How large the terms are whose roundings make up the error of the value and of the slope, in units of the terms' own rounding; and the
/// absolute error of the approximated Φ where there is one. See the derivations beside each.
struct ActivationError {
  double value_units, slope_units, phi;
};
ActivationError activation_error(double g, kernels::Activation activation);

}  // namespace lquant::oracle
