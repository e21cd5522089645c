#pragma once

#include <vector>

namespace lquant::oracle {

using Matrix = std::vector<std::vector<double>>;

/// A symmetric positive definite matrix's inverse by Gauss-Jordan, and the spectral condition number by power iteration.
Matrix inverse(const Matrix& a);
double condition(const Matrix& a);

/// The upper triangular C with Cᵀ · C = a, column by column.
Matrix upper_cholesky(const Matrix& a);

struct TextbookGptq {
  std::vector<std::vector<int>> codes;
  /// How far each weight stood from the nearest border between two codes when it was rounded, in weights (infinite where only one code
  /// was possible), and Σ |error so far| · |feedback|, the size of what it had taken up.
  Matrix margin, feedback;
};

/// GPTQ as its paper's algorithm 1 has it (arXiv 2210.17323), without blocks and in double: C with CᵀC = H⁻¹; column after
/// column is rounded with its group's given scale and bias, and error / C_jj · C_jk is taken from every later column k. H is damped already.
/// Values are scale · code + bias without further rounding. `taken` [N, K] are the codes whose errors are handed on: those of the program under
/// test, so that after a close call, which f32 may decide otherwise, the two go on from the same place.
TextbookGptq textbook_gptq(Matrix w, const Matrix& hessian, const Matrix& scales, const Matrix& biases, int group, int top, const Matrix& taken);

/// What each weight aims at, w_j + Σ_{i<j} e_i · U_ij with e = w − values, and Σ_{i<j} |e_i · U_ij|, the size of what it takes up.
struct Aims {
  Matrix aim, taken_up;
};
Aims aims_of(const Matrix& w, const Matrix& unit_upper, const Matrix& values);

/// Σ_rows e · H · eᵀ.
double quadratic_error(const Matrix& e, const Matrix& hessian);

}  // namespace lquant::oracle
