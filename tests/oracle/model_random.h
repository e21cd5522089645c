#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "model/model.h"

// Random tiny models for tests: a config.json of each family, tensors to go with it, and folders on disk.
namespace lquant::oracle {

/// Fields that real checkpoints of this model_type have, at a size that a test can afford: 64 wide, 2 or more layers, vocabulary 48.
nlohmann::json tiny_config(const std::string& model_type);

/// Dense f32 tensors of every linear and norm: products keep the size of their input, norms and biases are far from neutral.
model::Tensors random_tensors(const model::ModelSpec& spec, std::uint64_t seed);

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
