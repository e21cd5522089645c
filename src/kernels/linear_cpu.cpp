// Every gradient is an op of its own, so that what nobody asks for (a frozen weight's) is never computed: the vjp only
// names them. Several weights reading one input add their share of its gradient to one f32 buffer, rounded once.
#include "kernels/linear_cpu.h"

#include <mlx/ops.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "kernels/gemm.h"
#include "kernels/multiversion.h"
#include "kernels/parallel.h"
#include "kernels/primitive.h"

namespace lquant::kernels::cpu {
namespace {

using Arrays = std::vector<mx::array>;

// From this many rows on a product keeps all cores busy by itself; smaller experts run side by side, one a core.
constexpr std::int64_t kRowsForAllCores = 512;

const char* data(const mx::array& x) { return x.data<char>(); }
char* data(mx::array& x) { return x.data<char>(); }

std::int64_t rows_of(const mx::array& x) { return x.shape(-1) == 0 ? 0 : static_cast<std::int64_t>(x.size()) / x.shape(-1); }

/// A row-major array [..., columns] from its row `row` on.
Matrix from_row(const mx::array& x, std::int64_t row = 0, bool transposed = false) {
  const std::int64_t columns = x.shape(-1);
  return {data(x) + row * columns * x.itemsize(), x.dtype(), columns, transposed};
}

template <class T>
void add_rows(const T* y, std::int64_t rows, std::int64_t columns, float* sums) {
  // Column stripes a thread: each sum has one owner and one order.
  parallel_for(columns, 256, [&](std::int64_t begin, std::int64_t end) {
    std::fill(sums + begin, sums + end, 0.0f);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t j = begin; j < end; ++j) sums[j] += static_cast<float>(y[r * columns + j]);
    }
  });
}

void column_sums(const mx::array& y, std::int64_t first_row, std::int64_t rows, float* sums) {
  const std::int64_t columns = y.shape(-1);
  if (y.dtype() == mx::float32) {
    add_rows(y.data<float>() + first_row * columns, rows, columns, sums);
  } else {
    add_rows(y.data<mx::bfloat16_t>() + first_row * columns, rows, columns, sums);
  }
}

/// dX = Σ_i dY_i · W_i. Inputs: the cotangents, then their weights.
void input_gradient(const Arrays& in, Arrays& out) {
  const std::size_t count = in.size() / 2;
  auto& dx = out[0];
  const std::int64_t columns = dx.shape(-1), rows = columns == 0 ? 0 : static_cast<std::int64_t>(dx.size()) / columns;
  std::unique_ptr<float[]> sum;
  if (count > 1 && dx.dtype() != mx::float32) sum = std::make_unique_for_overwrite<float[]>(rows * columns);
  void* target = sum ? static_cast<void*>(sum.get()) : data(dx);
  const auto dtype = sum ? mx::float32 : dx.dtype();
  for (std::size_t i = 0; i < count; ++i) {
    const auto& weight = in[count + i];
    gemm(rows, columns, weight.shape(0), 1, from_row(in[i]), from_row(weight), i == 0 ? 0.0f : 1.0f, target, dtype, columns);
  }
  if (sum) copy_matrix(rows, columns, {sum.get(), mx::float32, columns}, data(dx), dx.dtype(), columns);
}

/// dW = dYᵀ · X in f32.
void weight_gradient(const Arrays& in, Arrays& out) {
  const std::int64_t n = out[0].shape(0), k = out[0].shape(1);
  gemm(n, k, rows_of(in[0]), 1, from_row(in[0], 0, true), from_row(in[1]), 0, data(out[0]), mx::float32, k);
}

void bias_gradient(const Arrays& in, Arrays& out) { column_sums(in[0], 0, rows_of(in[0]), out[0].data<float>()); }

mx::array single(const char* name, const Arrays& inputs, const mx::Shape& shape, mx::Dtype dtype, Compute compute) {
  return make_op(name, inputs, {{shape, dtype}}, std::move(compute))[0];
}

/// Where each weight's arrays stand among the op's inputs: x, all weights, the biases that exist, the residual.
struct Layout {
  int weights = 0;
  std::vector<int> bias;  ///< per weight: its bias among the inputs, or −1
  int residual = -1;
};

Arrays linears_vjp(const Layout& layout, const Arrays& in, const Arrays& cotangents, const std::vector<int>& argnums) {
  Arrays gradients;
  for (int arg : argnums) {
    if (arg == 0) {
      Arrays all(cotangents);
      all.insert(all.end(), in.begin() + 1, in.begin() + 1 + layout.weights);
      gradients.push_back(single("linears_dx", all, in[0].shape(), in[0].dtype(), input_gradient));
    } else if (arg <= layout.weights) {
      gradients.push_back(single("linears_dw", {cotangents[arg - 1], in[0]}, in[arg].shape(), mx::float32, weight_gradient));
    } else if (arg == layout.residual) {
      gradients.push_back(cotangents[0]);
    } else {
      const auto owner = std::find(layout.bias.begin(), layout.bias.end(), arg) - layout.bias.begin();
      gradients.push_back(single("linears_db", {cotangents[owner]}, in[arg].shape(), mx::float32, bias_gradient));
    }
  }
  return gradients;
}

/// Runs body(e) for every expert: the large ones in turn on all cores, the others side by side.
template <class Body>
void for_experts(const mx::array& offsets, std::int64_t rows, const Body& body) {
  const auto* at = offsets.data<std::int32_t>();
  const int experts = offsets.shape(0) - 1;
  if (at[0] != 0 || at[experts] != rows || !std::is_sorted(at, at + experts + 1)) {
    throw std::invalid_argument("[kernels] grouped_linear: offsets must ascend from 0 to the number of rows");
  }
  auto large = [&](int e) { return at[e + 1] - at[e] >= kRowsForAllCores; };
  for (int e = 0; e < experts; ++e) {
    if (large(e)) body(e, at[e], at[e + 1] - at[e]);
  }
  std::exception_ptr failure;
  std::mutex mutex;
#pragma omp parallel for schedule(dynamic)
  for (int e = 0; e < experts; ++e) {
    if (large(e)) continue;
    try {
      body(e, at[e], at[e + 1] - at[e]);
    } catch (...) {  // an exception must not leave a parallel region
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

/// Inputs: x, W, offsets, and the bias when there is one.
void grouped_forward(const Arrays& in, Arrays& out) {
  const std::int64_t n = in[1].shape(1), k = in[1].shape(2);
  for_experts(in[2], in[0].shape(0), [&](int e, std::int64_t first, std::int64_t rows) {
    const void* bias = in.size() > 3 ? data(in[3]) + e * n * in[3].itemsize() : nullptr;
    gemm(rows, n, k, 1, from_row(in[0], first), from_row(in[1], e * n, true), 0, data(out[0]) + first * n * out[0].itemsize(), out[0].dtype(), n,
         bias, in[0].dtype());
  });
}

/// Inputs: dY, W, offsets.
void grouped_input_gradient(const Arrays& in, Arrays& out) {
  const std::int64_t n = in[1].shape(1), k = in[1].shape(2);
  for_experts(in[2], in[0].shape(0), [&](int e, std::int64_t first, std::int64_t rows) {
    gemm(rows, k, n, 1, from_row(in[0], first), from_row(in[1], e * n), 0, data(out[0]) + first * k * out[0].itemsize(), out[0].dtype(), k);
  });
}

/// Inputs: dY, x, offsets. An expert without rows gets zeros.
void grouped_weight_gradient(const Arrays& in, Arrays& out) {
  const std::int64_t n = out[0].shape(1), k = out[0].shape(2);
  for_experts(in[2], in[0].shape(0), [&](int e, std::int64_t first, std::int64_t rows) {
    gemm(n, k, rows, 1, from_row(in[0], first, true), from_row(in[1], first), 0, out[0].data<float>() + e * n * k, mx::float32, k);
  });
}

// Rows of an expert's gradient that are squared at once: enough for a fast product, and a megabyte or two.
constexpr std::int64_t kSquaredRows = 256;

/// Where the sums of one expert's squares go.
struct SquareTargets {
  float *columns, *groups, *rows;
  std::int64_t group, step, k;
};

/// Rows first … first + count of a gradient, columns of groups begin … end.
LQUANT_MULTIVERSION void add_squares(const SquareTargets& to, const float* g, std::int64_t first, std::int64_t count, std::int64_t begin,
                                     std::int64_t end) {
  for (std::int64_t n = first; n < first + count; ++n) {
    const float* row = g + (n - first) * to.k;
    float* own = n % to.step == 0 ? to.rows + n / to.step * to.k : nullptr;
    for (std::int64_t i = begin; i < end; ++i) {
      float sum = 0;
      for (std::int64_t j = i * to.group; j < (i + 1) * to.group; ++j) {
        const float square = row[j] * row[j];
        to.columns[j] += square;
        sum += square;
        if (own) own[j] = square;
      }
      to.groups[n * (to.k / to.group) + i] = sum;
    }
  }
}

/// Inputs: dY, x, offsets. Outputs: as SquareSums.
void grouped_square_sums(const Arrays& in, Arrays& out, std::int64_t group, std::int64_t step) {
  const std::int64_t n = in[0].shape(1), k = in[1].shape(1);
  for (auto& x : out) std::memset(data(x), 0, x.nbytes());
  for_experts(in[2], in[0].shape(0), [&](int e, std::int64_t first, std::int64_t rows) {
    if (rows == 0) return;
    const auto block = std::min(n, kSquaredRows);
    const auto g = std::make_unique_for_overwrite<float[]>(block * k);
    const SquareTargets to{
        out[0].data<float>() + e * k, out[1].data<float>() + e * n * (k / group), out[2].data<float>() + e * out[2].shape(1) * k, group, step, k};
    for (std::int64_t at = 0; at < n; at += block) {
      const auto count = std::min(block, n - at);
      auto dy = from_row(in[0], first, true);
      dy.data = static_cast<const char*>(dy.data) + at * in[0].itemsize();
      gemm(count, k, rows, 1, dy, from_row(in[1], first), 0, g.get(), mx::float32, k);
      // Stripes of columns: each sum has one owner and one order.
      parallel_for(k / group, 4, [&](std::int64_t begin, std::int64_t end) { add_squares(to, g.get(), at, count, begin, end); });
    }
  });
}

/// Inputs: dY, offsets.
void grouped_bias_gradient(const Arrays& in, Arrays& out) {
  const std::int64_t n = out[0].shape(1);
  for_experts(in[1], in[0].shape(0),
              [&](int e, std::int64_t first, std::int64_t rows) { column_sums(in[0], first, rows, out[0].data<float>() + e * n); });
}

Arrays grouped_vjp(const Arrays& in, const Arrays& cotangents, const std::vector<int>& argnums) {
  Arrays gradients;
  const auto &dy = cotangents[0], &offsets = in[2];
  for (int arg : argnums) {
    const auto& shape = in[arg].shape();
    if (arg == 0) {
      gradients.push_back(single("grouped_linear_dx", {dy, in[1], offsets}, shape, in[0].dtype(), grouped_input_gradient));
    } else if (arg == 1) {
      gradients.push_back(single(kGroupedWeightGradient, {dy, in[0], offsets}, shape, mx::float32, grouped_weight_gradient));
    } else if (arg == 3) {
      gradients.push_back(single("grouped_linear_db", {dy, offsets}, shape, mx::float32, grouped_bias_gradient));
    } else {
      gradients.push_back(mx::zeros_like(offsets));
    }
  }
  return gradients;
}

}  // namespace

Arrays linears(const mx::array& x, const std::vector<LinearWeight>& weights, const std::optional<mx::array>& residual) {
  Layout layout;
  layout.weights = static_cast<int>(weights.size());
  Arrays inputs{x};
  std::vector<Output> outputs;
  for (const auto& w : weights) {
    inputs.push_back(w.weight);
    auto shape = x.shape();
    shape.back() = w.weight.shape(0);
    outputs.push_back({shape, x.dtype()});
  }
  for (const auto& w : weights) {
    layout.bias.push_back(w.bias ? static_cast<int>(inputs.size()) : -1);
    if (w.bias) inputs.push_back(*w.bias);
  }
  if (residual) {
    layout.residual = static_cast<int>(inputs.size());
    inputs.push_back(*residual);
  }
  auto forward = [layout](const Arrays& in, Arrays& out) {
    if (layout.residual >= 0 && out[0].size() > 0) std::memcpy(data(out[0]), data(in[layout.residual]), out[0].nbytes());
    for (int i = 0; i < layout.weights; ++i) {
      const auto& weight = in[1 + i];
      const std::int64_t n = weight.shape(0), rows = n == 0 ? 0 : static_cast<std::int64_t>(out[i].size()) / n;
      const void* bias = layout.bias[i] >= 0 ? data(in[layout.bias[i]]) : nullptr;
      gemm(rows, n, weight.shape(1), 1, from_row(in[0]), from_row(weight, 0, true), layout.residual >= 0 ? 1.0f : 0.0f, data(out[i]), out[i].dtype(),
           n, bias, in[0].dtype());
    }
  };
  auto vjp = [layout](const Arrays& in, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) {
    return linears_vjp(layout, in, cotangents, argnums);
  };
  return make_op("linears", inputs, outputs, std::move(forward), std::move(vjp));
}

mx::array grouped_linear(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets) {
  Arrays inputs{x, weight, offsets};
  if (bias) inputs.push_back(*bias);
  auto vjp = [](const Arrays& in, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) {
    return grouped_vjp(in, cotangents, argnums);
  };
  return make_op("grouped_linear", inputs, {{{x.shape(0), weight.shape(1)}, x.dtype()}}, grouped_forward, std::move(vjp))[0];
}

SquareSums square_sums(const GroupedGradient& gradient, int group, int step) {
  const int experts = gradient.offsets.shape(0) - 1, n = gradient.dy.shape(1), k = gradient.x.shape(1);
  const auto sums = make_op("grouped_square_sums", {gradient.dy, gradient.x, gradient.offsets},
                            {{{experts, k}, mx::float32}, {{experts, n, k / group}, mx::float32}, {{experts, (n + step - 1) / step, k}, mx::float32}},
                            [group, step](const Arrays& in, Arrays& out) { grouped_square_sums(in, out, group, step); });
  return {sums[0], sums[1], sums[2]};
}

}  // namespace lquant::kernels::cpu
