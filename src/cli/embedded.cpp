#include "cli/embedded.h"

#include <vector>

#include "base/error.h"

namespace lquant::cli {
namespace fs = std::filesystem;

fs::path embedded_model() {
  std::error_code ec;
  const auto program = fs::canonical("/proc/self/exe", ec);
  std::vector<fs::path> places{fs::path(LQUANT_SOURCE_DIR) / "models" / "tiny"};
  if (!ec) places.insert(places.begin(), program.parent_path().parent_path() / "share" / "lquant" / "models" / "tiny");
  for (const auto& place : places)
    if (fs::exists(place / "config.json")) return place;
  fail("cli", "the embedded model was not found (looked in {}); name a model folder by --model", places.back().string());
}

}  // namespace lquant::cli
