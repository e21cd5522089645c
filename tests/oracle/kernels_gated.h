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

/// g·σ(factor·g), and its error likewise.
double swish(double g, double factor);
ActivationError swish_error(double g, double factor);

/// xIELU with its two factors made; its gradients to x and to the factors. Error: the factors off by 6 units (softplus and its rounding), expm1 by 8
/// (4 ulp), every other operation by one; where the slope is made as expm1's gradient, n·(expm1 + 1) − n, of two terms of at most n.
struct Xielu {
  double p, n, beta, eps;
};
struct XieluGradient {
  double x, p, n;
};
double xielu(double x, const Xielu& factors);
XieluGradient xielu_gradient(double x, const Xielu& factors);
ActivationError xielu_error(double x, const Xielu& factors);

}  // namespace lquant::oracle
