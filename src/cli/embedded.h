#pragma once

#include <filesystem>

namespace lquant::cli {

/// The model that comes with the program: beside the sources when built there, under share/ when installed. Throws Error when it is in neither place.
std::filesystem::path embedded_model();

}  // namespace lquant::cli
