// The host's side of norm.cu and rope.cu.
#include "kernels/norm_rope_cuda.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <string>
#include <vector>

#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"

namespace lquant::kernels::cuda {
namespace {

using Arrays = std::vector<mx::array>;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWide = 8;

/// y, or with `dy` dx.
mx::array norm(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& dy, float eps, float offset) {
  const int width = x.shape(-1), rows = static_cast<int>(x.size() / width);
  std::vector<CudaInput> inputs{{"x", x}};
  if (weight) inputs.push_back({"weight", *weight});
  if (dy) inputs.push_back({"dy", *dy});
  const auto body = fmt::format("lquant::{}<{}, {}, {}>(x, {}, {}eps, offset, rows, width, y);", dy ? "rms_norm_gradient" : "rms_norm",
                                cuda_type(x.dtype()), weight ? cuda_type(weight->dtype()) : "float", width % kWide == 0 ? kWide : 1,
                                weight ? "weight" : "static_cast<const float*>(nullptr)", dy ? "dy, " : "");
  return call({dy ? "lquant_rms_norm_gradient" : "lquant_rms_norm",
               norm_cu(),
               body,
               inputs,
               {{"y", x.shape(), x.dtype()}},
               {{"eps", eps}, {"offset", offset}, {"rows", rows}, {"width", width}},
               blocks_for(static_cast<std::size_t>(rows) * kWarp, kThreads),
               kThreads})[0];
}

struct Rotation {
  mx::array inv_freq;
  int offset;
  float magnitude;
  bool interleaved;
  std::optional<mx::array> positions;
};

mx::array rotated(const mx::array& x, const Rotation& r, float sign) {
  const int pairs = r.inv_freq.shape(0), width = x.shape(3), tokens = x.shape(0) * x.shape(1), n = pairs % 2 == 0 && width % 2 == 0 ? 2 : 1;
  std::vector<CudaInput> inputs{{"x", x}, {"inv_freq", r.inv_freq}};
  if (r.positions) inputs.push_back({"positions", *r.positions});
  const auto body = fmt::format("lquant::rotate<{}, {}, {}>(x, inv_freq, {}, offset, magnitude, sign, tokens, length, heads, width, pairs, y);",
                                cuda_type(x.dtype()), r.interleaved, n, r.positions ? "positions" : "nullptr");
  return call({"lquant_rotate",
               rope_cu(),
               body,
               inputs,
               {{"y", x.shape(), x.dtype()}},
               {{"offset", r.offset},
                {"magnitude", r.magnitude},
                {"sign", sign},
                {"tokens", tokens},
                {"length", x.shape(1)},
                {"heads", x.shape(2)},
                {"width", width},
                {"pairs", pairs}},
               blocks_for(static_cast<std::size_t>(tokens) * (pairs / n), kThreads),
               kThreads})[0];
}

}  // namespace

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps, float weight_offset) {
  const auto weight_of = [](const Arrays& in) { return in.size() > 1 ? std::optional(in[1]) : std::nullopt; };
  const auto forward = [=](const Arrays& in) { return Arrays{norm(in[0], weight_of(in), std::nullopt, eps, weight_offset)}; };
  const auto backward = [=](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    const auto dy = mx::astype(cotangents[0], in[0].dtype());
    Arrays gradients{norm(in[0], weight_of(in), dy, eps, weight_offset)};
    if (in.size() > 1) {
      const auto unscaled = mx::astype(mx::fast::rms_norm(in[0], std::nullopt, eps), mx::float32);
      const auto by_row = mx::reshape(mx::multiply(unscaled, mx::astype(dy, mx::float32)), {-1, in[1].shape(0)});
      gradients.push_back(mx::astype(mx::sum(by_row, 0), in[1].dtype()));
    }
    return gradients;
  };
  Arrays inputs{x};
  if (weight) inputs.push_back(*weight);
  return mx::custom_vjp(forward, backward)(inputs)[0];
}

mx::array rope(const mx::array& x, const mx::array& inv_freq, int offset, float magnitude, bool interleaved,
               const std::optional<mx::array>& positions) {
  const Rotation r{inv_freq, offset, magnitude, interleaved, positions};
  const auto forward = [r](const Arrays& in) { return Arrays{rotated(in[0], r, 1)}; };
  const auto backward = [r](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    return Arrays{rotated(mx::astype(cotangents[0], in[0].dtype()), r, -1)};
  };
  return mx::custom_vjp(forward, backward)({x})[0];
}

}  // namespace lquant::kernels::cuda
