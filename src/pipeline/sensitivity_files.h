#pragma once

#include <filesystem>

#include "model/spec.h"
#include "pipeline/sensitivities.h"

namespace lquant::pipeline {

/// What mlx_lm.dynamic_quant's file says of a linear: how much less the loss is with `high` than with `low`, by millions of weights.
std::map<std::string, double> as_mlx_lm(const model::ModelSpec& spec, const Sensitivities& s, const codec::Format& low, const codec::Format& high);

/// NAME in the names of a model's files of sensitivities. A model of the hub has it as mlx_lm gives it: "org/name" is "org_name". A model at a path
/// has the folder's or file's own name (name_of), without leading dots: the files are never hidden.
std::string sensitivities_name(const std::string& model, bool is_path);

/// For before any work: throws Error naming a file that write_sensitivities would replace and that neither lquant nor mlx_lm has written of this
/// model, or the working directory when it cannot be written to.
void check_sensitivity_files(const std::string& name, const model::Model& model);

/// Writes NAME_sensitivities.json, a list of [path, value] pairs as mlx_lm.dynamic_quant writes it, and NAME_sensitivities.lquant.json with all that
/// Sensitivities hold, in the working directory, and says so.
void write_sensitivities(const std::string& name, const model::ModelSpec& spec, const Sensitivities& s, const codec::Format& low,
                         const codec::Format& high, const run::Context& context);

/// Reads either file; of mlx_lm's form the fuller one beside it is taken when there is one. Without one, the pairs become costs in `low` and `high`
/// (0). Throws Error, naming the file and the place in it, when it was made of another model, of other calibration data (where both are known), lacks
/// one of `formats` or a linear, holds a value that no measurement gives, or is neither form; and when it is no regular file.
Sensitivities read_sensitivities(const std::filesystem::path& file, const model::Model& model, const nlohmann::json& data,
                                 const std::vector<codec::Format>& formats, const codec::Format& low, const codec::Format& high);

}  // namespace lquant::pipeline
