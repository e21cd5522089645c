// Causal attention of a 135M-parameter model (9 heads on 3 of 64 features) in bf16, forward, backward and one decoding step. Operations are counted
// for visible pairs alone: 2·T²/2·H·(D + Dv) forward, 2.5 times that backward (five products for two). MLX's own op is there to compare with.
#include <benchmark/benchmark.h>
#include <mlx/mlx.h>

#include "kernels/attention.h"
#include "kernels/attention_paths.h"

namespace {

namespace mx = mlx::core;
using lquant::kernels::attention;

constexpr int kHeads = 9, kKeyHeads = 3, kFeatures = 64;

struct Inputs {
  mx::array q, k, v;
  Inputs(int queries, int keys) : q(make(queries, kHeads)), k(make(keys, kKeyHeads)), v(make(keys, kKeyHeads)) { mx::eval(q, k, v); }
  static mx::array make(int tokens, int heads) { return mx::astype(mx::random::normal({1, tokens, heads, kFeatures}), mx::bfloat16); }
};

void count(benchmark::State& state, double operations) {
  state.counters["GFLOP/s"] = benchmark::Counter(1e-9 * operations, benchmark::Counter::kIsIterationInvariantRate);
}
double forward_operations(double tokens) { return 2 * tokens * tokens / 2 * kHeads * 2 * kFeatures; }

void forward(benchmark::State& state) {
  const int tokens = static_cast<int>(state.range(0));
  const Inputs x(tokens, tokens);
  for (auto _ : state) mx::eval(attention(x.q, x.k, x.v, {.scale = 0.125f}));
  count(state, forward_operations(tokens));
}

void forward_mlx(benchmark::State& state) {
  const int tokens = static_cast<int>(state.range(0));
  const Inputs x(tokens, tokens);
  for (auto _ : state) mx::eval(lquant::kernels::attention_mlx(x.q, x.k, x.v, {.scale = 0.125f}, std::nullopt));
  count(state, forward_operations(tokens));
}

void backward(benchmark::State& state) {
  const int tokens = static_cast<int>(state.range(0));
  const Inputs x(tokens, tokens);
  const auto f = [](const std::vector<mx::array>& in) { return std::vector<mx::array>{attention(in[0], in[1], in[2], {.scale = 0.125f})}; };
  for (auto _ : state) {
    state.PauseTiming();
    auto [out, gradients] = mx::vjp(f, {x.q, x.k, x.v}, {x.q});
    mx::eval(out);
    state.ResumeTiming();
    mx::eval(gradients);
  }
  count(state, 2.5 * forward_operations(tokens));
}

void decode(benchmark::State& state) {
  const int keys = static_cast<int>(state.range(0));
  const Inputs x(1, keys);
  for (auto _ : state) mx::eval(attention(x.q, x.k, x.v, {.scale = 0.125f, .offset = keys - 1}));
  state.counters["GB/s"] = benchmark::Counter(1e-9 * (x.k.nbytes() + x.v.nbytes()), benchmark::Counter::kIsIterationInvariantRate);
}

BENCHMARK(forward)->Arg(512)->Arg(1024)->Arg(2048)->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(0.2);
BENCHMARK(backward)->Arg(512)->Arg(1024)->Arg(2048)->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(0.2);
BENCHMARK(forward_mlx)->Arg(512)->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(1);
BENCHMARK(decode)->Arg(1024)->Arg(4096)->UseRealTime()->Unit(benchmark::kMicrosecond)->MinTime(0.2);

}  // namespace

BENCHMARK_MAIN();
