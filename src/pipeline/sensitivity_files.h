#pragma once

#include <filesystem>

#include "model/spec.h"
#include "pipeline/sensitivities.h"

namespace lquant::pipeline {

/// What mlx_lm.dynamic_quant's file says of a linear: how much less the loss is with `high` than with `low`, by millions of weights.
std::map<std::string, double> as_mlx_lm(const model::ModelSpec& spec, const Sensitivities& s, const codec::Format& low, const codec::Format& high);

/// Writes NAME_sensitivities.json, a list of [path, value] pairs as mlx_lm.dynamic_quant writes it, and NAME_sensitivities.lquant.json with all that
/// Sensitivities hold.
void write_sensitivities(const std::string& name, const model::ModelSpec& spec, const Sensitivities& s, const codec::Format& low,
                         const codec::Format& high);

/// Reads either file; of mlx_lm's form the fuller one beside it is taken when there is one. Without one, the pairs become costs in `low` and `high`
/// (0). Throws Error, naming the file, when it was made of another model, of other calibration data (where both are known), lacks one of `formats`
/// or a linear, or is neither form.
Sensitivities read_sensitivities(const std::filesystem::path& file, const model::Model& model, const nlohmann::json& data,
                                 const std::vector<codec::Format>& formats, const codec::Format& low, const codec::Format& high);

}  // namespace lquant::pipeline
