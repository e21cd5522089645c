#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace lquant::checkpoint {

/// Where a path in the cache of the Hugging Face hub comes from.
struct HubOrigin {
  std::string id;        ///< "org/name"
  std::string revision;  ///< the commit
};

/// Read off the path: …/models--ORG--NAME/snapshots/COMMIT[/FILE] (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
std::optional<HubOrigin> hub_origin(const std::filesystem::path& path);

}  // namespace lquant::checkpoint
