#include "checkpoint/hub_origin.h"

#include <vector>

namespace lquant::checkpoint {
namespace fs = std::filesystem;

std::optional<HubOrigin> hub_origin(const fs::path& path) {
  const std::string kind = "models--", snapshots = "snapshots";
  std::vector<std::string> parts;
  for (const auto& part : fs::absolute(path).lexically_normal()) parts.push_back(part.string());
  for (std::size_t i = 0; i + 2 < parts.size(); ++i) {
    if (!parts[i].starts_with(kind) || parts[i + 1] != snapshots || parts[i + 2].empty()) continue;
    auto id = parts[i].substr(kind.size());
    if (const auto dashes = id.find("--"); dashes != std::string::npos) id.replace(dashes, 2, "/");
    return HubOrigin{id, parts[i + 2]};
  }
  return std::nullopt;
}

}  // namespace lquant::checkpoint
