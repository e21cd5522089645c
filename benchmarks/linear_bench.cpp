// Linear layers as a training step meets them: q/k/v-like and gate/up-like weights reading one input, through MLX's autograd.
#include <benchmark/benchmark.h>
#include <mlx/mlx.h>

#include "kernels/linear.h"

namespace {

namespace mx = mlx::core;
using Arrays = std::vector<mx::array>;

constexpr int kTokens = 1024;

Arrays operands(int hidden, int width) {
  Arrays all{mx::random::normal({kTokens, hidden}), mx::random::normal({width, hidden}), mx::random::normal({width, hidden})};
  for (auto& x : all) x = mx::astype(x, mx::bfloat16);
  mx::eval(all);
  return all;
}

void count(benchmark::State& state, double products) {
  const double one = 2e-9 * kTokens * state.range(0) * state.range(1);
  state.counters["GFLOP/s"] = benchmark::Counter(products * one, benchmark::Counter::kIsIterationInvariantRate);
}

void gate_up_forward(benchmark::State& state) {
  const auto in = operands(state.range(0), state.range(1));
  for (auto _ : state) mx::eval(lquant::kernels::linears(in[0], {{in[1]}, {in[2]}}));
  count(state, 2);
}

void backward(benchmark::State& state, const std::vector<int>& argnums, double products) {
  const auto in = operands(state.range(0), state.range(1));
  auto y = [](const Arrays& x) { return lquant::kernels::linears(x[0], {{x[1]}, {x[2]}}); };
  auto cotangents = y(in);
  mx::eval(cotangents);
  for (auto _ : state) {
    Arrays primals;
    for (int i : argnums) primals.push_back(in[i]);
    auto partial = [&](const Arrays& traced) {
      auto all = in;
      for (std::size_t i = 0; i < argnums.size(); ++i) all[argnums[i]] = traced[i];
      return y(all);
    };
    mx::eval(mx::vjp(partial, primals, cotangents).second);
  }
  count(state, products);
}

// The forward results are known already here: only the gradients are computed.
void gate_up_to_input(benchmark::State& state) { backward(state, {0}, 2); }
void gate_up_to_all(benchmark::State& state) { backward(state, {0, 1, 2}, 4); }

void shapes(benchmark::internal::Benchmark* bench) {
  bench->Args({576, 1536})->Args({1536, 576})->Args({2048, 2048})->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(0.3);
}

BENCHMARK(gate_up_forward)->Apply(shapes);
BENCHMARK(gate_up_to_input)->Apply(shapes);
BENCHMARK(gate_up_to_all)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
