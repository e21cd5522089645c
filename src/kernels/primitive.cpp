// One MLX primitive serves every CPU op of this folder: it carries two functions, the computation and its gradient.
// MLX then sees our ops as its own: lazy, freed when unused, differentiated by its vjp and value_and_grad.
//
// MLX encodes an op on the thread that called eval and runs it later on the stream's thread. Ours instead waits until
// the stream is idle and computes on the calling thread. That keeps MLX from allocating the results of dozens of large
// ops ahead of the one that runs, lets an exception travel straight to the caller of eval, and leaves one OpenMP team
// (that of the caller) for all ops; the hand-over costs microseconds where an op takes milliseconds.
#include "kernels/primitive.h"

#include <mlx/allocator.h>
#include <mlx/backend/cuda/cuda.h>
#include <mlx/primitives.h>
#include <mlx/stream.h>
#include <mlx/transforms.h>

#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>

#include "base/error.h"

#ifdef LQUANT_ONEDNN
#include <mlx/backend/cpu/encoder.h>

#include "kernels/parallel.h"
#endif

namespace lquant::kernels {

namespace {

thread_local int mlx_ops_only = 0;

/// LQUANT_KERNELS=mlx in the environment: MLX's own ops everywhere in the process.
bool mlx_ops_by_environment() {
  static const bool asked = [] {
    const char* text = std::getenv("LQUANT_KERNELS");
    const std::string value = text ? text : "";
    if (!value.empty() && value != "mlx")
      throw UsageError("LQUANT_KERNELS=" + value + " is not known; set it to mlx for MLX's own operations, or unset it");
    return value == "mlx";
  }();
  return asked;
}

}  // namespace

MlxOpsOnly::MlxOpsOnly() { ++mlx_ops_only; }
MlxOpsOnly::~MlxOpsOnly() { --mlx_ops_only; }

bool cpu_kernels() {
#ifdef LQUANT_ONEDNN
  return mlx_ops_only == 0 && mx::default_device() == mx::Device::cpu && !mlx_ops_by_environment();
#else
  return false;
#endif
}

bool cuda_kernels() { return mlx_ops_only == 0 && mx::default_device() == mx::Device::gpu && mx::cu::is_available() && !mlx_ops_by_environment(); }

void settle(std::vector<mx::array> arrays) {
  constexpr std::size_t kLarge = std::size_t{1} << 28;
  std::size_t bytes = 0;
  for (const auto& x : arrays) bytes += x.nbytes();
  if (mx::default_device() == mx::Device::gpu && bytes < kLarge)
    mx::async_eval(std::move(arrays));
  else
    mx::eval(std::move(arrays));
}

#ifdef LQUANT_ONEDNN
namespace {

/// Returns when all that MLX has given the stream so far is done.
void wait_until_idle(const mx::Stream& stream) {
  auto reached = std::make_shared<std::promise<void>>();
  auto idle = reached->get_future();
  mx::cpu::get_command_encoder(stream).dispatch([reached = std::move(reached)] { reached->set_value(); });
  try {
    idle.get();
  } catch (const std::future_error&) {
    // The stream drops its tasks once one of MLX's own ops has failed: report that failure.
    mx::scheduler::check_error(stream);
    throw std::runtime_error("[kernels] an earlier operation of the same stream failed");
  }
}

template <class Word>
void copy_strided(const mx::array& from, Word* to) {
  const int axes = static_cast<int>(from.ndim());
  const std::int64_t length = from.shape(-1), step = from.strides(-1), rows = static_cast<std::int64_t>(from.size()) / length;
  const Word* base = reinterpret_cast<const Word*>(from.data<char>());
  const std::int64_t grain = 1 + (1 << 14) / length;  // 16 Ki elements take microseconds, as starting a thread team does
  parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      std::int64_t rest = row, offset = 0;
      for (int axis = axes - 2; axis >= 0; --axis) {
        offset += rest % from.shape(axis) * from.strides(axis);
        rest /= from.shape(axis);
      }
      const Word* source = base + offset;
      Word* target = to + row * length;
      if (step == 1) {
        std::memcpy(target, source, length * sizeof(Word));
      } else {
        for (std::int64_t i = 0; i < length; ++i) target[i] = source[i * step];
      }
    }
  });
}

/// The array itself when its rows lie one after the other, else such a copy. (MLX's contiguous() also copies any part
/// of a larger buffer, one layer of a stack of weights for example.)
mx::array row_contiguous(const mx::array& x) {
  if (x.flags().row_contiguous || x.size() == 0 || x.ndim() == 0) return x;
  mx::array copy(x.shape(), x.dtype(), nullptr, {});
  copy.set_data(mx::allocator::malloc(copy.nbytes()));
  switch (x.itemsize()) {
    case 1:
      copy_strided(x, copy.data<std::uint8_t>());
      break;
    case 2:
      copy_strided(x, reinterpret_cast<std::uint16_t*>(copy.data<char>()));
      break;
    case 4:
      copy_strided(x, reinterpret_cast<std::uint32_t*>(copy.data<char>()));
      break;
    default:
      copy_strided(x, reinterpret_cast<std::uint64_t*>(copy.data<char>()));
      break;
  }
  return copy;
}

class FunctionPrimitive : public mx::Primitive {
 public:
  FunctionPrimitive(mx::Stream stream, const char* name, Compute compute, Vjp vjp)
      : Primitive(stream), name_(name), compute_(std::move(compute)), vjp_(std::move(vjp)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    wait_until_idle(stream());
    std::vector<mx::array> rows;
    rows.reserve(inputs.size());
    for (const auto& x : inputs) rows.push_back(row_contiguous(x));
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    compute_(rows, outputs);
  }
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(std::string("[kernels] ") + name_ + " has no GPU form; it must not be made there");
  }
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override {
    if (!vjp_) throw std::invalid_argument(std::string("[kernels] ") + name_ + " has no gradient");
    return vjp_(primals, cotangents, argnums, outputs);
  }
  const char* name() const override { return name_; }

 private:
  const char* name_;
  Compute compute_;
  Vjp vjp_;
};

}  // namespace
#endif

std::vector<mx::array> make_op(const char* name, const std::vector<mx::array>& inputs, const std::vector<Output>& outputs, Compute compute, Vjp vjp) {
#ifdef LQUANT_ONEDNN
  const auto stream = mx::default_stream(mx::Device::cpu);
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const auto& out : outputs) {
    shapes.push_back(out.shape);
    dtypes.push_back(out.dtype);
  }
  auto primitive = std::make_shared<FunctionPrimitive>(stream, name, std::move(compute), std::move(vjp));
  return mx::array::make_arrays(std::move(shapes), dtypes, primitive, inputs);
#else
  throw std::invalid_argument(std::string("[kernels] ") + name + " needs the CPU kernels, which this build has not");
#endif
}

}  // namespace lquant::kernels
