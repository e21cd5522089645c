#include "hub/upload.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "artifact/record.h"
#include "base/error.h"
#include "base/links.h"
#include "base/words.h"
#include "checkpoint/checkpoint.h"
#include "hub/library.h"
#include "hub/names.h"

namespace lquant::hub {
namespace fs = std::filesystem;
using nlohmann::json;

void check_repository(const std::string& repo) {
  const auto name = model_name(repo);
  if (!name || name->file || name->revision)
    throw UsageError(fmt::format("--upload-repo {} is no name of a repository; write user/name, with letters, digits, '-', '_' and '.'", repo));
}

UploadPlan plan_upload(const Upload& upload) {
  check_repository(upload.repo);
  const auto model = checkpoint::Checkpoint::open(upload.folder);  // every shard is there and whole
  if (!is_utf8(upload.folder.string()))
    fail("hub", "{}: its path has bytes that are not UTF-8, which the hub's library cannot open; rename it", utf8(upload.folder));
  UploadPlan plan;
  plan.card = artifact::card_of_folder(upload.folder, artifact::names_of_repository(upload.repo));
  for (const auto& entry : fs::directory_iterator(upload.folder)) {
    const auto file = entry.path().filename().string();
    std::error_code ignored;
    if (!is_utf8(file)) fail("hub", "{}: its name has bytes that are not UTF-8, which the hub cannot hold; rename it", utf8(entry.path()));
    if (file.starts_with('.') || file == "README.md" || entry.is_directory(ignored)) continue;
    plan.files.emplace_back(file, fs::file_size(*find_file("hub", upload.folder, file)));  // what a link leads to outside is not ours to publish
  }
  plan.files.emplace_back("README.md", plan.card.size());
  std::sort(plan.files.begin(), plan.files.end());
  return plan;
}

std::string send(const Upload& upload, const UploadPlan& plan, const run::Context& context) {
  json names = json::array();
  for (const auto& [name, bytes] : plan.files) names.push_back(name);
  const json request{{"repo", upload.repo},
                     {"folder", upload.folder.string()},
                     {"files", names},
                     {"replaced", {{"README.md", plan.card}}},
                     {"private", upload.is_private},
                     {"revision", upload.revision ? json(*upload.revision) : json()},
                     {"message", upload.message}};
  const auto answer = call("lquant_hub_upload", request, context);
  context.line(fmt::format("{} of {} files were sent, {} were there already", answer.at("sent").size(), plan.files.size(), answer.at("kept").size()));
  return answer.at("url").get<std::string>();
}

}  // namespace lquant::hub
