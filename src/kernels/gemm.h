#pragma once

#include <cstdint>

#include <mlx/dtype.h>

// oneDNN's matrix product behind one function, for the CPU kernels of this folder (built on x86-64 Linux only).
namespace lquant::kernels {

/// One matrix in memory: `row` is the distance between rows in elements; `transposed` means that it is used as its transpose.
struct Matrix {
  const void* data;
  mlx::core::Dtype dtype;  ///< float32 or bfloat16
  std::int64_t row;
  bool transposed = false;
};

/// C[M, N] = alpha · A[M, K] · B[K, N] + beta · C (+ bias[N]); accumulates in f32. C is f32 or bf16, rows `ldc` apart.
/// From inside a parallel region it runs on the calling thread alone, else on all cores. bf16 runs natively where the
/// processor is faster so (AMX, AMD's AVX-512), and through f32 elsewhere; the same machine always decides alike.
/// A and B may differ in dtype. Primitives are cached per shape and thread. Any size may be 0.
/// With beta 0 the old C is never read. Scratch is bounded and kept by the calling thread.
/// Throws std::runtime_error with oneDNN's message, std::invalid_argument for other dtypes.
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const Matrix& a, const Matrix& b, float beta, void* c,
          mlx::core::Dtype c_dtype, std::int64_t ldc, const void* bias = nullptr, mlx::core::Dtype bias_dtype = mlx::core::float32);

/// Copies an m × n matrix between dtypes and row lengths (or transposes it), with the threads that gemm would use.
void copy_matrix(std::int64_t m, std::int64_t n, const Matrix& from, void* to, mlx::core::Dtype to_dtype, std::int64_t to_row);

}  // namespace lquant::kernels
