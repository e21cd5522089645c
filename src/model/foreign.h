#pragma once

#include <mlx/array.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "codec/foreign.h"
#include "model/spec.h"
#include "model/tensors.h"

// Linears that another tool has quantized (codec/foreign.h), found under the names that a checkpoint has for them, and made dense.
namespace lquant::model {

/// The weight of one linear: of which packed (or dense) matrices of the checkpoint it is made, and how.
struct ForeignWeight {
  struct Piece {
    std::string path;  ///< in the checkpoint
    int out = 0, in = 0;
    int stack = 0;  ///< matrices along a leading axis; 0: there is none
  };
  std::vector<Piece> pieces;
  std::vector<Change> changes;  ///< of the dense pieces
};

struct ForeignLinears {
  codec::Foreign description;
  std::map<std::string, ForeignWeight> weights;  ///< by the names of tensors.h ("model.layers.0.mlp.up_proj.weight")
  std::set<std::string> taken;                   ///< tensors of the checkpoint of which weights are made
  std::map<std::string, std::string> left_out;   ///< tensors beside them that hold nothing of a weight, and what they are
};

/// Whether the checkpoint has the tensor, or tensors that stand for it: "x.weight" is there where "x.qweight" is. Without a description: has alone.
bool has_numbers(const checkpoint::Checkpoint& checkpoint, const codec::Foreign* foreign, const std::string& name);

/// Finds the packed tensors of every linear that is not in one of MLX's formats and checks their shapes and dtypes. Reads headers alone, but for
/// biases of a linear that should have none (GPTQ's tools write zeros there). Throws Error naming the tensor that is missing or is not what the
/// description asks for.
ForeignLinears find_foreign(const checkpoint::Checkpoint& checkpoint, const ModelSpec& spec, const Formats& formats,
                            const codec::Foreign& description);

/// The dense weight in `dtype` (f32, bf16 or f16), computed now, a piece after the other: no more than one packed matrix is in memory beside the
/// result, and the pieces of a stack. Throws Error when it holds a NaN or an infinity.
mx::array load_foreign(const checkpoint::Checkpoint& checkpoint, const ForeignLinears& foreign, const std::string& name, mx::Dtype dtype);

}  // namespace lquant::model
