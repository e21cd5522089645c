#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/figures.h"
#include "run/context.h"

namespace lquant::hub {

struct Upload {
  std::filesystem::path folder = "mlx_model";
  std::string repo;  ///< "user/name"
  std::optional<std::string> revision;
  std::string message = "Upload by lquant";
  bool is_private = false;
};

/// What an upload would send: a model that opens as a whole, its files, and the card that becomes README.md.
struct UploadPlan {
  std::vector<std::pair<std::string, std::uint64_t>> files;  ///< names and bytes, sorted; README.md is the card
  std::string card;
};

/// Throws UsageError when `repo` is no name of a repository, "user/name".
void check_repository(const std::string& repo);

/// Throws Error when the folder is no complete model, or holds a link that leads out of it or what is neither file nor folder; UsageError when the
/// repository's name is none.
UploadPlan plan_upload(const Upload& upload);

/// Sends it: the repository is made when it is not there; large files are a commit each and the small ones the last, so a call that failed is
/// continued by the same call. Returns the model's address.
std::string send(const Upload& upload, const UploadPlan& plan, const run::Context& context);

}  // namespace lquant::hub
