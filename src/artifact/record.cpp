#include "artifact/record.h"

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/links.h"

namespace lquant::artifact {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// A record of a model of hundreds of layers with its plan has some hundred thousand bytes.
constexpr std::size_t kMostRecord = 100'000'000;

json read(const fs::path& folder, const char* name) {
  if (!find_file("artifact", folder, name))
    fail("artifact", "{}: is not there, so there is nowhere to keep figures; they are kept in folders that lquant made", (folder / name).string());
  auto value = read_json("artifact", folder / name);
  if (!value.is_object()) fail("artifact", "{}: is not a JSON object; make the folder anew with lquant", (folder / name).string());
  return value;
}

std::optional<std::string> readme_of(const fs::path& folder) {
  return find_file("artifact", folder, "README.md") ? std::optional(read_file("artifact", folder / "README.md")) : std::nullopt;
}

/// Whether lquant wrote the README.md, as its front matter says.
bool is_own_readme(const fs::path& folder, const std::string& readme) {
  return with_place([&] { return (folder / "README.md").string(); }, [&] { return is_ours(readme); });
}

std::string make_card(const fs::path& folder, const json& record, const CardNames& names) {
  try {
    return model_card(record, read(folder, "config.json"), names);
  } catch (const json::exception&) {
    fail("artifact", "{}: lacks what the model card is made of; make the folder anew with lquant, or write a README.md",
         (folder / kRecordFile).string());
  }
}

/// The record first: a card can be made of it at any time.
void write(const fs::path& folder, const json& record) {
  const auto readme = readme_of(folder);
  const bool ours = readme && is_own_readme(folder, *readme);
  const auto card = ours ? make_card(folder, record, names_of(folder)) : std::string();
  write_file_atomically("artifact", folder / kRecordFile, record.dump(4, ' ', true, json::error_handler_t::replace));
  if (ours) write_file_atomically("artifact", folder / "README.md", card);
}

}  // namespace

json record_of(const FileSet& files) {
  const auto text = files.read("artifact", kRecordFile, kMostRecord);
  try {
    auto record = text ? parse_json(*text) : json();
    return record.is_object() ? record : json::object();
  } catch (const JsonFault&) {
    return json::object();
  }
}

std::string card_of_folder(const fs::path& folder, const CardNames& names) {
  const auto present = readme_of(folder);
  if (present && !present->empty() && !is_own_readme(folder, *present)) return *present;
  if (!has_entry(folder, kRecordFile))
    fail("artifact", "{}: holds neither {}, from which the model card is made, nor a README.md; write a README.md", folder.string(), kRecordFile);
  return make_card(folder, read(folder, kRecordFile), names);
}

void add_measured(const fs::path& folder, json entry) {
  auto record = read(folder, kRecordFile);
  auto& all = record["measured"];
  if (!all.is_array()) all = json::array();
  std::erase_if(all.get_ref<json::array_t&>(), [&](const auto& other) {
    return !other.is_object() || (other.contains("text") && other.at("text") == entry.at("text"));
  });
  all.push_back(std::move(entry));
  write(folder, record);
}

void add_tasks(const fs::path& folder, const json& tasks) {
  auto record = read(folder, kRecordFile);
  auto& all = record["tasks"];
  if (!all.is_object()) all = json::object();
  all.update(tasks);
  write(folder, record);
}

}  // namespace lquant::artifact
