// Matrix products in the shapes of a training step of 1,024 tokens: forward (A·Bᵀ), to the input (A·B), to the weight (Aᵀ·B, f32).
// The counter is in 10⁹ operations a second; the best row is the peak that other benchmarks are held against.
#include <benchmark/benchmark.h>

#include <vector>

#include "kernels/gemm.h"

namespace {

namespace mx = mlx::core;
using lquant::kernels::gemm;

enum Kind { forward, to_input, to_weight };

void run(benchmark::State& state, Kind kind, mx::Dtype dtype) {
  const std::int64_t tokens = 1024, n = state.range(0), k = state.range(1);
  std::vector<float> a(tokens * std::max(n, k), 0.5f), b(std::max(n * k, tokens * k), 0.5f), c(std::max(tokens * std::max(n, k), n * k));
  const std::int64_t sizes[][3] = {{tokens, n, k}, {tokens, k, n}, {n, k, tokens}};
  const auto [rows, columns, depth] = sizes[kind];
  const auto c_dtype = kind == to_weight ? mx::float32 : dtype;
  for (auto _ : state) {
    gemm(rows, columns, depth, 1, {a.data(), dtype, kind == to_weight ? rows : depth, kind == to_weight},
         {b.data(), dtype, kind == forward ? depth : columns, kind == forward}, 0, c.data(), c_dtype, columns);
  }
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * rows * columns * depth, benchmark::Counter::kIsIterationInvariantRate);
}

void shapes(benchmark::internal::Benchmark* bench) {
  for (auto [n, k] : {std::pair{576, 576}, {1536, 576}, {576, 1536}, {256, 256}, {704, 256}, {2048, 2048}, {49152, 576}}) bench->Args({n, k});
  bench->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(0.1);
}

BENCHMARK_CAPTURE(run, forward_bf16, forward, mx::bfloat16)->Apply(shapes);
BENCHMARK_CAPTURE(run, to_input_bf16, to_input, mx::bfloat16)->Apply(shapes);
BENCHMARK_CAPTURE(run, to_weight_bf16, to_weight, mx::bfloat16)->Apply(shapes);
BENCHMARK_CAPTURE(run, forward_f32, forward, mx::float32)->Apply(shapes);
BENCHMARK_CAPTURE(run, to_input_f32, to_input, mx::float32)->Apply(shapes);
BENCHMARK_CAPTURE(run, to_weight_f32, to_weight, mx::float32)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
