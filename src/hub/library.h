#pragma once

#include <nlohmann/json.hpp>

#include "base/figures.h"
#include "run/context.h"

namespace lquant::hub {

/// A function of the Rust crate lquant-hub (rust/hub/include/lquant_hub.h): its request and answer as JSON, its progress and remarks in `log`. The
/// library is opened at the first call. Throws Error with the crate's sentence, or one that says how to build the library when it is not there.
nlohmann::json call(const char* function, const nlohmann::json& request, const run::Context& context);

/// Whether the library is there.
bool available();
/// Throws Error when it is not.
void need_library();

}  // namespace lquant::hub
