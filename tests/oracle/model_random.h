#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "model/model.h"

// Random tiny models for tests: a config.json of each family, tensors to go with it, and folders on disk.
namespace lquant::oracle {

/// Fields that real checkpoints of this model_type have, at a size that a test can afford: 64 wide, 2 or more layers, vocabulary 48.
nlohmann::json tiny_config(const std::string& model_type);

/// What spec_from_config says of that config with these fields changed; empty where it takes it.
std::string refusal_of(const std::string& model_type, const nlohmann::json& changes);

/// Dense f32 tensors of every linear and norm: products keep the size of their input, norms and biases are far from neutral.
model::Tensors random_tensors(const model::ModelSpec& spec, std::uint64_t seed);

/// The same model with keys and values as they are where it rounds them to steps: near a boundary two sound computations are a whole step apart.
model::ModelSpec without_steps(model::ModelSpec spec);
/// The same model with mixtures whose tokens go to every expert and attention that reads every key: choosing some is a step function, which has no
/// gradient.
model::ModelSpec with_all_experts(model::ModelSpec spec);

/// The same model whose products in MLPs have no limits: at a limit a gradient has a step.
model::ModelSpec without_limits(model::ModelSpec spec);

/// f32, bf16 and f16: every dtype that a checkpoint's numbers may have; and their names, for names of tests.
inline const std::vector<mlx::core::Dtype> kDtypes = {mlx::core::float32, mlx::core::bfloat16, mlx::core::float16};
std::string name_of(mlx::core::Dtype dtype);
/// A model_type as a part of a test's name, which has no hyphens.
std::string name_of(std::string model_type);

/// Half the distance from 1 to the next number of a dtype.
double unit_of(mlx::core::Dtype dtype);

/// How far two computations of the same hidden states may be from each other, as ‖a − b‖ / ‖b‖, when they round at other places: each of `blocks`
/// blocks leaves about ten tensors in `dtype`, each rounded by up to a unit u of a value, on average by u/2; as errors of random signs 10·blocks of
/// them add up to √(10·blocks)·u. Twice that, for what norms and softmax make of them; of f32's own sums, of up to a hundred terms, a hundred units
/// more.
double rounding_of(int blocks, mlx::core::Dtype dtype);

/// ‖a − b‖ / ‖b‖.
double distance_between(const mlx::core::array& a, const mlx::core::array& b);

/// Packs one linear in place with MLX's own quantizer.
void pack(model::Tensors& tensors, model::Formats& formats, const std::string& path, codec::Format format);

/// config.json and model.safetensors in a fresh folder under the system's temporary one; removed with the object.
class Folder {
 public:
  Folder(const nlohmann::json& config, const model::Tensors& tensors);
  ~Folder();
  Folder(const Folder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace lquant::oracle
