// NVRTC is a library of MLX's CUDA package and no build of ours links it: it is looked for among what the process has loaded.
#include "kernels/cuda_module.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <mlx/mlx.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "kernels/cuda_text.h"

namespace lquant::kernels {
namespace {

// The few functions of NVRTC (docs.nvidia.com/cuda/nvrtc) that are called here. 0 is success.
struct Nvrtc {
  using Program = void*;
  int (*create)(Program*, const char* source, const char* name, int headers, const char* const*, const char* const*);
  int (*compile)(Program, int options, const char* const*);
  int (*log_size)(Program, std::size_t*);
  int (*log)(Program, char*);
  int (*code_size)(Program, std::size_t*);
  int (*code)(Program, char*);
  int (*destroy)(Program*);
};

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) throw std::runtime_error(fmt::format("[kernels] {} is not in this process; MLX's CUDA package brings it (nvidia-cuda-nvrtc)", name));
}

Nvrtc nvrtc() {
  // Where MLX was loaded for itself alone (by Python), what it depends on is not among the program's own symbols but is found through it.
  void* library = RTLD_DEFAULT;
  Dl_info place;
  if (dladdr(reinterpret_cast<void*>(static_cast<void (*)(mx::Stream)>(&mx::synchronize)), &place) && place.dli_fname)
    if (void* own = dlopen(place.dli_fname, RTLD_LAZY | RTLD_NOLOAD)) library = own;
  Nvrtc n{};
  find(library, "nvrtcCreateProgram", n.create);
  find(library, "nvrtcCompileProgram", n.compile);
  find(library, "nvrtcGetProgramLogSize", n.log_size);
  find(library, "nvrtcGetProgramLog", n.log);
  find(library, "nvrtcGetCUBINSize", n.code_size);
  find(library, "nvrtcGetCUBIN", n.code);
  find(library, "nvrtcDestroyProgram", n.destroy);
  return n;
}

/// "sm_90" of the default device.
std::string architecture() {
  const auto& info = mx::device_info(mx::default_device());
  return std::get<std::string>(info.at("architecture"));
}

std::string compiled(const std::string& name, const std::string& source) {
  const auto n = nvrtc();
  Nvrtc::Program program = nullptr;
  if (n.create(&program, source.c_str(), name.c_str(), 0, nullptr, nullptr) != 0) throw std::runtime_error("[kernels] NVRTC has no memory");
  const std::string target = "--gpu-architecture=" + architecture();
  const char* options[] = {target.c_str(), "--std=c++17"};
  const bool good = n.compile(program, 2, options) == 0;
  std::size_t size = 0;
  good ? n.code_size(program, &size) : n.log_size(program, &size);
  std::string text(size, '\0');
  good ? n.code(program, text.data()) : n.log(program, text.data());
  n.destroy(&program);
  if (!good) throw std::runtime_error(fmt::format("[kernels] {} does not compile: {}", name, text));
  return text;
}

/// Compiled once in a process: by the text's address and what was written around it.
const std::string& module_of(const CudaCall& call, const std::string& parameters) {
  static std::mutex mutex;
  static std::map<std::tuple<const char*, std::string, std::string, std::string>, std::string> all;
  const std::lock_guard lock(mutex);
  auto key = std::tuple(call.text, call.name, call.body, parameters);
  auto it = all.find(key);
  if (it == all.end()) {
    const auto source =
        fmt::format("{}{}\nextern \"C\" __global__ void {}({}) {{\n{}\n}}\n", numbers_cu(), call.text, call.name, parameters, call.body);
    it = all.emplace(std::move(key), compiled(call.name, source)).first;
  }
  return it->second;
}

std::string type_of(const mx::fast::ScalarArg& value) {
  return std::holds_alternative<bool>(value) ? "bool" : std::holds_alternative<int>(value) ? "int" : "float";
}

}  // namespace

std::string cuda_type(mx::Dtype dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::float32:
      return "float";
    case mx::Dtype::Val::bfloat16:
      return "lquant::bf16";
    case mx::Dtype::Val::float16:
      return "lquant::f16";
    case mx::Dtype::Val::uint32:
      return "unsigned int";
    case mx::Dtype::Val::uint16:
      return "unsigned short";
    case mx::Dtype::Val::uint8:
      return "unsigned char";
    case mx::Dtype::Val::int32:
      return "int";
    default:
      throw std::invalid_argument("[kernels] no kernel takes this dtype");
  }
}

int compute_capability() { return std::stoi(architecture().substr(std::string("sm_").size())); }

int blocks_for(std::size_t count, int threads) { return static_cast<int>((count + threads - 1) / threads); }

std::vector<mx::array> call(const CudaCall& c) {
  std::string parameters;
  const auto take = [&](const std::string& text) { parameters += (parameters.empty() ? "" : ", ") + text; };
  std::vector<mx::array> inputs;
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  std::vector<mx::fast::ScalarArg> scalars;
  for (const auto& [name, array] : c.inputs) {
    take(fmt::format("const {}* __restrict__ {}", cuda_type(array.dtype()), name));
    inputs.push_back(array);
  }
  for (const auto& [name, shape, dtype] : c.outputs) {
    take(fmt::format("{}* __restrict__ {}", cuda_type(dtype), name));
    shapes.push_back(shape);
    dtypes.push_back(dtype);
  }
  for (const auto& [name, value] : c.scalars) {
    take(fmt::format("{} {}", type_of(value), name));
    scalars.push_back(value);
  }
  return mx::fast::precompiled_cuda_kernel(c.name, module_of(c, parameters), inputs, shapes, dtypes, scalars, {c.blocks * c.threads, 1, 1},
                                           {c.threads, 1, 1}, c.shared_bytes, std::nullopt, true, mx::Device::gpu);
}

}  // namespace lquant::kernels
