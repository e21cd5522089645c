#pragma once

#include <mlx/array.h>

namespace lquant::kernels {

namespace mx = mlx::core;

/// silu: g·σ(g); gelu: g·Φ(g); gelu_tanh: its tanh form, gelu_quick: g·σ(1.702·g) (both arXiv 1606.08415); relu: max(g, 0);
/// relu2: max(g, 0)²; sigmoid: σ(g). In MLX's names: gelu is nn.gelu; gelu_tanh is nn.gelu_approx and nn.GELU("precise" or "tanh");
/// gelu_quick is nn.gelu_fast_approx and nn.GELU("fast").
enum class Activation { silu, gelu, gelu_tanh, gelu_quick, relu, relu2, sigmoid };

/// activation(x), f32, bf16 or f16, any shape: f32 inside, one rounding at the end. Differentiable. Throws std::invalid_argument when x is not float.
mx::array activate(const mx::array& x, Activation activation);

/// xIELU's parameters as mlx_lm keeps them: one float number each, of any shape.
struct XieluParameters {
  mx::array alpha_p, alpha_n, beta, eps;
};

/// xIELU (arXiv 2411.13010): p·x² + beta·x for x > 0, else n·(expm1(min(x, eps)) − x) + beta·x, where p = softplus(alpha_p) and
/// n = beta + softplus(alpha_n) are rounded to the parameters' dtype, as mlx_lm's are. f32 inside, one rounding at the end, in x's dtype.
/// Gradients flow to x, alpha_p and alpha_n; none to beta and eps. Throws std::invalid_argument when x is not float or a parameter is not
/// one float number.
mx::array xielu(const mx::array& x, const XieluParameters& parameters);

}  // namespace lquant::kernels
