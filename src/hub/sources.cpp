#include "hub/sources.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "hub/library.h"
#include "hub/names.h"

namespace lquant::hub {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// Of a data set when nothing says how many: what dwq trains on by default.
constexpr int kRows = 1024;

bool is_here(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

json or_null(const std::optional<std::string>& text) { return text ? json(*text) : json(); }

}  // namespace

fs::path model(const fs::path& given, const run::Context& context) {
  if (is_here(given)) return given;
  const auto name = model_name(given.string());
  if (!name) return given;
  const auto answer = call("lquant_hub_model", {{"repo", name->repo}, {"revision", or_null(name->revision)}, {"file", or_null(name->file)}}, context);
  return answer.at(name->file ? "file" : "folder").get<std::string>();
}

std::optional<fs::path> model(const std::optional<fs::path>& given, const run::Context& context) { return given ? std::optional(model(*given, context)) : std::nullopt; }

fs::path rows(const fs::path& given, int count, std::uint64_t seed, const run::Context& context) {
  if (is_here(given)) {
    if (given.extension() != ".parquet") return given;
    return call("lquant_hub_parquet", {{"file", given.string()}}, context).at("file").get<std::string>();
  }
  const auto name = data_name(given.string());
  if (!name) return given;
  const json request{{"repo", name->repo},
                     {"config", or_null(name->config)},
                     {"split", or_null(name->split)},
                     {"revision", or_null(name->revision)},
                     {"rows", count > 0 ? count : kRows},
                     {"seed", seed}};
  return call("lquant_hub_rows", request, context).at("file").get<std::string>();
}

std::vector<std::string> rows(std::vector<std::string> given, int count, std::uint64_t seed, const run::Context& context) {
  for (auto& path : given) path = rows(fs::path(path), count, seed, context).string();
  return given;
}

fs::path split(const std::string& repo, const std::optional<std::string>& config, const std::string& split, const run::Context& context) {
  const json request{{"repo", repo}, {"config", or_null(config)}, {"split", split}, {"revision", nullptr}, {"rows", nullptr}, {"seed", 0}};
  return call("lquant_hub_rows", request, context).at("file").get<std::string>();
}

}  // namespace lquant::hub
