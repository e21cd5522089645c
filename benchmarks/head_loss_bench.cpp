// The losses over a vocabulary at 1,024 tokens. Operations counted: the products alone (two for the logits of student and
// teacher, one for each gradient), so that the distance to gemm_bench is what everything else costs.
#include <benchmark/benchmark.h>
#include <mlx/mlx.h>

#include "kernels/head_loss.h"
#include "kernels/head_loss_rows.h"

namespace {

namespace mx = mlx::core;
namespace kernels = lquant::kernels;
using Arrays = std::vector<mx::array>;

constexpr int kTokens = 1024;

struct Problem {
  explicit Problem(const benchmark::State& state)
      : hidden(make({kTokens, int(state.range(1))})), head(make({int(state.range(0)), int(state.range(1))})), mask(mx::ones({kTokens})) {
    mx::eval(mask);
  }
  static mx::array make(const mx::Shape& shape) {
    auto x = mx::astype(mx::multiply(mx::random::normal(shape), mx::array(0.2f)), mx::bfloat16);
    mx::eval(x);
    return x;
  }
  mx::array hidden, head, mask;
};

void count(benchmark::State& state, double products) {
  const double one = 2e-9 * kTokens * state.range(0) * state.range(1);
  state.counters["GFLOP/s"] = benchmark::Counter(products * one, benchmark::Counter::kIsIterationInvariantRate);
}

void kl(benchmark::State& state, bool gradient, bool head_gradient) {
  const Problem p(state);
  const auto teacher = kernels::TeacherHidden{Problem::make(p.hidden.shape()), p.head};
  auto loss = [&](const Arrays& in) { return kernels::kl_loss(in[0], in[1], std::nullopt, teacher, p.mask, {}, gradient, head_gradient); };
  for (auto _ : state) {
    if (gradient) {
      mx::eval(mx::grad(loss, head_gradient ? std::vector{0, 1} : std::vector{0})({p.hidden, p.head}));
    } else {
      mx::eval(loss({p.hidden, p.head}));
    }
  }
  count(state, 2 + gradient + head_gradient);
}

/// The elementwise pass alone, on one core, over rows that lie in memory.
void rows(benchmark::State& state) {
  const std::int64_t v = state.range(0);
  std::vector<float> s(v * 64), t(v * 64);
  for (std::size_t i = 0; i < s.size(); ++i) s[i] = static_cast<float>(i % 13) - 6, t[i] = static_cast<float>(i % 11) - 5;
  for (auto _ : state) {
    for (std::int64_t row = 0; row < 64; ++row) {
      float *a = &s[row * v], *b = &t[row * v];
      const float top_a = kernels::finish_logits(a, v, 1, 0, 1), top_b = kernels::finish_logits(b, v, 1, 0, 1);
      const auto figures = kernels::kl_row(a, b, v, top_a, top_b);
      kernels::loss_gradient_row(a, b, v, figures.student_lse, figures.teacher_lse, 1, 0);
    }
  }
  // Of a student's and a teacher's logit together, in nanoseconds.
  state.counters["ns"] = benchmark::Counter(1e-9 * v * 64, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void shapes(benchmark::internal::Benchmark* bench) { bench->Args({49152, 576})->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(2); }

BENCHMARK_CAPTURE(kl, value, false, false)->Apply(shapes);
BENCHMARK_CAPTURE(kl, to_hidden, true, false)->Apply(shapes);
BENCHMARK_CAPTURE(kl, to_hidden_and_head, true, true)->Apply(shapes);
BENCHMARK(rows)->Args({49152})->MeasureProcessCPUTime()->Unit(benchmark::kMillisecond)->MinTime(0.3);

}  // namespace

BENCHMARK_MAIN();
