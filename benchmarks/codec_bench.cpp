// The codec beside MLX's own ops on the same device. Bytes are those of the dense side (weights read or written), so that the figures of
// all bit widths compare; the range search counts weights.
#include <benchmark/benchmark.h>
#include <mlx/mlx.h>

#include "codec/quantize.h"
#include "codec/range_search.h"

namespace {

namespace mx = mlx::core;
using namespace lquant;

constexpr int kRows = 2048, kColumns = 2048;

mx::array weights(mx::Dtype dtype) {
  auto w = mx::astype(mx::random::normal({kRows, kColumns}, mx::float32, mx::random::key(1)) * mx::array(0.02f), dtype);
  w.eval();
  return w;
}

codec::Packed packed_weights(const codec::Format& f, mx::Dtype dtype) {
  auto p = codec::quantize(weights(dtype), f);
  mx::eval(p.codes, p.scales);
  if (p.biases) p.biases->eval();
  return p;
}

codec::Format format_of(std::int64_t bits) {
  return bits == 0 ? codec::default_format(codec::Mode::nvfp4) : codec::Format{codec::Mode::affine, static_cast<int>(bits), 64};
}

void count(benchmark::State& state, mx::Dtype dtype) {
  state.SetBytesProcessed(state.iterations() * kRows * kColumns * static_cast<std::int64_t>(mx::size_of(dtype)));
}

void Quantize(benchmark::State& state) {
  const auto w = weights(mx::bfloat16);
  for (auto _ : state) codec::quantize(w, format_of(state.range(0))).codes.eval();
  count(state, mx::bfloat16);
}

void QuantizeMlx(benchmark::State& state) {
  const auto w = weights(mx::bfloat16);
  const auto f = format_of(state.range(0));
  for (auto _ : state) mx::quantize(w, f.group_size, f.bits, codec::to_string(f.mode))[0].eval();
  count(state, mx::bfloat16);
}

/// Scales of bf16, or, with a second argument of 1, of f32 (as DWQ trains them); the result is bf16.
void Dequantize(benchmark::State& state) {
  const auto f = format_of(state.range(0));
  const auto p = packed_weights(f, state.range(1) ? mx::float32 : mx::bfloat16);
  for (auto _ : state) codec::dequantize(p, f, mx::bfloat16).eval();
  count(state, mx::bfloat16);
}

void DequantizeMlx(benchmark::State& state) {
  const auto f = format_of(state.range(0));
  const auto p = packed_weights(f, state.range(1) ? mx::float32 : mx::bfloat16);
  for (auto _ : state) mx::dequantize(p.codes, p.scales, p.biases, f.group_size, f.bits, codec::to_string(f.mode), std::nullopt, mx::bfloat16).eval();
  count(state, mx::bfloat16);
}

void Gradient(benchmark::State& state) {
  const auto f = format_of(state.range(0));
  const auto p = packed_weights(f, mx::float32);
  const auto dw = weights(mx::float32);
  for (auto _ : state) mx::eval(kernels::dequantize_affine_gradient(p.codes, dw, f.bits, f.group_size, mx::float32));
  count(state, mx::float32);
}

void GradientMlx(benchmark::State& state) {
  const auto f = format_of(state.range(0));
  const auto p = packed_weights(f, mx::float32);
  const auto dw = weights(mx::float32);
  const auto fun = [&](const std::vector<mx::array>& x) { return std::vector{mx::dequantize(p.codes, x[0], x[1], f.group_size, f.bits)}; };
  for (auto _ : state) mx::eval(mx::vjp(fun, {p.scales, *p.biases}, {dw}).second);
  count(state, mx::float32);
}

void RangeSearch(benchmark::State& state) {
  const auto w = mx::slice(weights(mx::bfloat16), {0, 0}, {kRows / 8, kColumns});
  const auto h = mx::exp(mx::random::normal({kColumns}));
  for (auto _ : state) codec::range_search(w, format_of(state.range(0)), h);
  state.SetItemsProcessed(state.iterations() * kRows / 8 * kColumns);
}

}  // namespace

BENCHMARK(Quantize)->Arg(2)->Arg(3)->Arg(4)->Arg(8)->Arg(0)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(QuantizeMlx)->Arg(3)->Arg(4)->Arg(0)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(Dequantize)->Args({3, 0})->Args({4, 0})->Args({8, 0})->Args({4, 1})->Args({0, 0})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(DequantizeMlx)->Args({3, 0})->Args({4, 0})->Args({4, 1})->Args({0, 0})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(Gradient)->Arg(3)->Arg(4)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(GradientMlx)->Arg(4)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(RangeSearch)->Arg(2)->Arg(4)->Arg(8)->Unit(benchmark::kMillisecond)->UseRealTime();

BENCHMARK_MAIN();
