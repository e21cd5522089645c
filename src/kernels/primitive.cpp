// One MLX primitive serves every CPU op of this folder: it carries two functions, the computation and its gradient.
// MLX then sees our ops as its own: lazy, freed when unused, differentiated by its vjp and value_and_grad.
#include "kernels/primitive.h"

#include <mlx/mlx.h>

#include <future>
#include <stdexcept>

#ifdef LQUANT_ONEDNN
#include <mlx/backend/cpu/encoder.h>
#endif

namespace lquant::kernels {

bool cpu_kernels() {
#ifdef LQUANT_ONEDNN
  return mx::default_device() == mx::Device::cpu;
#else
  return false;
#endif
}

#ifdef LQUANT_ONEDNN
namespace {

class FunctionPrimitive : public mx::Primitive {
 public:
  FunctionPrimitive(mx::Stream stream, const char* name, Compute compute, Vjp vjp)
      : Primitive(stream), name_(name), compute_(std::move(compute)), vjp_(std::move(vjp)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    // Waiting here keeps MLX from encoding, and so allocating, dozens of large ops ahead of the one that runs; the
    // hand-over costs microseconds where an op takes milliseconds. It also brings exceptions back to the caller.
    std::promise<void> done;
    auto finished = done.get_future();
    mx::cpu::get_command_encoder(stream()).dispatch([&] {
      try {
        compute_(inputs, outputs);
        done.set_value();
      } catch (...) {
        done.set_exception(std::current_exception());
      }
    });
    finished.get();
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
  std::vector<mx::array> rows;
  rows.reserve(inputs.size());
  for (const auto& x : inputs) rows.push_back(mx::contiguous(x, false, stream));
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const auto& out : outputs) {
    shapes.push_back(out.shape);
    dtypes.push_back(out.dtype);
  }
  auto primitive = std::make_shared<FunctionPrimitive>(stream, name, std::move(compute), std::move(vjp));
  return mx::array::make_arrays(std::move(shapes), dtypes, primitive, rows);
#else
  throw std::invalid_argument(std::string("[kernels] ") + name + " needs the CPU kernels, which this build has not");
#endif
}

}  // namespace lquant::kernels
