// Speed of the ops between the matrix products, in bytes of input and output a second, beside a plain memcpy on one core and on all of the same
// size in the same run: these ops do so little arithmetic that memory bounds them. Every op allocates its result, as it does in training.
#include <benchmark/benchmark.h>
#include <mlx/mlx.h>

#include <cstring>
#include <functional>
#include <vector>

#include "kernels/elementwise.h"
#include "kernels/moe.h"
#include "kernels/parallel.h"

namespace {

namespace mx = mlx::core;
using namespace lquant::kernels;
using Arrays = std::vector<mx::array>;

mx::array normal(mx::Shape shape, int seed) {
  auto x = mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), mx::bfloat16);
  mx::eval(x);
  return x;
}

/// `tensors` is how many [rows, width] tensors the op must read and write.
void measure(benchmark::State& state, double tensors, const std::function<Arrays()>& make) {
  for (auto _ : state) mx::eval(make());
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * tensors * state.range(0) * state.range(1) * 2));
}

/// The same with x and a cotangent, for gradients of f alone: the forward pass is not part of the graph that is evaluated.
void measure_vjp(benchmark::State& state, double tensors, const std::function<Arrays(const Arrays&)>& f, const Arrays& primals,
                 const Arrays& cotangents) {
  measure(state, tensors, [&] { return mx::vjp(f, primals, cotangents).second; });
}

void Copy(benchmark::State& state, bool threaded) {
  const std::size_t bytes = state.range(0) * state.range(1) * 2;
  std::vector<char> from(bytes, 1), to(bytes);
  for (auto _ : state) {
    parallel_for(bytes, threaded ? 1 << 15 : bytes,
                 [&](std::int64_t begin, std::int64_t end) { std::memcpy(&to[begin], &from[begin], end - begin); });
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * 2 * bytes));
}

struct Tensors {
  explicit Tensors(const benchmark::State& s)
      : rows(s.range(0)),
        width(s.range(1)),
        x(normal({rows, width}, 1)),
        y(normal({rows, width}, 2)),
        g(normal({rows, width}, 3)),
        w(normal({width}, 4)) {}
  int rows, width;
  mx::array x, y, g, w;
};

void RmsNorm(benchmark::State& state) {
  Tensors t(state);
  measure(state, 2, [&] { return Arrays{rms_norm(t.x, t.w, 1e-5f)}; });
}
void RmsNormOfMlx(benchmark::State& state) {
  Tensors t(state);
  measure(state, 2, [&] { return Arrays{mx::fast::rms_norm(t.x, t.w, 1e-5f)}; });
}
void ResidualNormGradient(benchmark::State& state) {
  Tensors t(state);
  measure_vjp(state, 4,
              [](const Arrays& in) {
                const auto both = residual_norm(in[0], in[1], 1e-5f);
                return Arrays{both.first, both.second};
              },
              {t.x, t.w}, {t.y, t.g});
}
void Add(benchmark::State& state) {
  Tensors t(state);
  measure(state, 3, [&] { return Arrays{lquant::kernels::add(t.x, t.y)}; });
}
void Gated(benchmark::State& state, Activation activation) {
  Tensors t(state);
  measure(state, 3, [&] { return Arrays{gated(t.x, t.y, activation)}; });
}
void GatedGradient(benchmark::State& state, Activation activation) {
  Tensors t(state);
  measure_vjp(state, 5, [&](const Arrays& in) { return Arrays{gated(in[0], in[1], activation)}; }, {t.x, t.y}, {t.g});
}
void Rope(benchmark::State& state) {
  Tensors t(state);
  const auto x = mx::reshape(t.x, {1, t.rows, t.width / 64, 64}),
             inv_freq = mx::power(mx::array(1e-4f), mx::divide(mx::arange(32), mx::array(32.0f)));
  mx::eval(x, inv_freq);
  measure(state, 2, [&] { return Arrays{rope(x, inv_freq, 0)}; });
}
void SecondMoment(benchmark::State& state) {
  Tensors t(state);
  measure(state, 1, [&] { return Arrays{second_moment(t.x)}; });
}
void CombineRows(benchmark::State& state) {  // the tensor is [T·2, width] in sorted order
  Tensors t(state);
  const auto experts = mx::astype(mx::random::randint(mx::array(0), mx::array(16), {t.rows / 2, 2}, mx::int32, mx::random::key(5)), mx::int32);
  const auto routing = sort_by_expert(experts, 16);
  const auto weights = mx::ones({t.rows / 2, 2}, mx::float32);
  mx::eval(routing.order, weights);
  measure(state, 1.5, [&] { return Arrays{combine_rows(t.y, weights, routing, 2)}; });
}

void Sizes(benchmark::internal::Benchmark* b) { b->Args({1024, 576})->Args({4096, 576})->Args({1024, 1536})->UseRealTime()->MinTime(0.1); }

BENCHMARK_CAPTURE(Copy, one_core, false)->Apply(Sizes);
BENCHMARK_CAPTURE(Copy, all_cores, true)->Apply(Sizes);
BENCHMARK(RmsNorm)->Apply(Sizes);
BENCHMARK(RmsNormOfMlx)->Apply(Sizes);
BENCHMARK(ResidualNormGradient)->Apply(Sizes);
BENCHMARK(Add)->Apply(Sizes);
BENCHMARK_CAPTURE(Gated, silu, Activation::silu)->Apply(Sizes);
BENCHMARK_CAPTURE(Gated, gelu, Activation::gelu)->Apply(Sizes);
BENCHMARK_CAPTURE(GatedGradient, silu, Activation::silu)->Apply(Sizes);
BENCHMARK(Rope)->Apply(Sizes);
BENCHMARK(SecondMoment)->Apply(Sizes);
BENCHMARK(CombineRows)->Apply(Sizes);

}  // namespace

BENCHMARK_MAIN();
