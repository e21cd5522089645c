#pragma once

#include <mlx/array.h>

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/spec.h"
#include "model/tensors.h"

// Which number format each linear of a checkpoint is in, and what tensors follow.
namespace lquant::model {

/// Reads the "quantization" block and the tensors' headers as mlx_lm's loader does: a path that the block names is as it says (false:
/// dense); any other is packed when it has scales, with bits, group and mode told by the shapes. Linears that other tools have
/// packed (AWQ, GPTQ, …; model/foreign.h) are not among them. Throws Error for a format that MLX lacks.
Formats read_formats(const checkpoint::Checkpoint& checkpoint, const ModelSpec& spec);

/// The format that the config's quantization block has for the paths that it does not name, as it stands there: it may be one that MLX lacks.
/// None when there is no block. Throws Error for fields of the wrong type.
std::optional<codec::Format> common_format(const nlohmann::json& config);

enum class Holds { numbers, codes, bytes };  ///< floats, u32 codes, u8 scales

struct Expected {
  std::string name;
  mx::Shape shape;
  Holds holds = Holds::numbers;
};

/// The tensors of one linear in its format, of one norm, and a parameter.
std::vector<Expected> expected_tensors(const LinearSpec& linear, const Formats& formats);
std::vector<Expected> expected_tensors(const NormSpec& norm);
Expected expected_tensor(const ParameterSpec& parameter);

}  // namespace lquant::model
