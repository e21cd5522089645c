// The host's side of causal_conv.cu.
#include <fmt/format.h>
#include <mlx/mlx.h>

#include <vector>

#include "kernels/causal_conv_paths.h"
#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"

namespace lquant::kernels {
namespace {

using Arrays = std::vector<mx::array>;

constexpr int kRun = 16;  // as in causal_conv.cu
constexpr int kThreads = 128;
constexpr int kWide = 4;

mx::array launch(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments, bool backward) {
  const int rows = x.shape(0), tokens = x.shape(1), channels = x.shape(2), n = channels % kWide == 0 ? kWide : 1;
  std::vector<CudaInput> inputs{{"x", x}, {"taps", taps}};
  if (segments) inputs.push_back({"segments", *segments});
  const auto body = fmt::format("lquant::causal_conv<{}, {}, {}, {}>(x, taps, {}, rows, tokens, channels, y);", cuda_type(x.dtype()), n,
                                taps.shape(1), backward, segments ? "segments" : "nullptr");
  const auto threads = static_cast<std::size_t>(rows) * ((tokens + kRun - 1) / kRun) * (channels / n);
  return call({backward ? "lquant_causal_conv_back" : "lquant_causal_conv",
               causal_conv_cu(),
               body,
               inputs,
               {{"y", x.shape(), x.dtype()}},
               {{"rows", rows}, {"tokens", tokens}, {"channels", channels}},
               blocks_for(threads, kThreads),
               kThreads})[0];
}

}  // namespace

/// The taps' gradient is made of MLX's operations, and only when somebody asks for it: taps are not trained.
mx::array causal_conv_cuda(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments) {
  const auto forward = [segments](const Arrays& in) { return Arrays{launch(in[0], in[1], segments, false)}; };
  const auto backward = [segments](const Arrays& in, const Arrays& cotangents, const Arrays&) {
    const auto dy = mx::astype(cotangents[0], in[0].dtype());
    const auto of_taps = [&](const Arrays& t) { return Arrays{causal_conv_mlx(in[0], t[0], segments)}; };
    return Arrays{launch(dy, in[1], segments, true), mx::vjp(of_taps, {in[1]}, {dy}).second[0]};
  };
  return mx::custom_vjp(forward, backward)({x, taps})[0];
}

}  // namespace lquant::kernels
