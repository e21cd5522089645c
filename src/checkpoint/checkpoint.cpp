// Opening reads only headers: which tensors there are, where they lie, and whether the files agree with each other and with the
// index. The files stay open, so that what is loaded later is what was checked here, even if someone replaces the folder meanwhile.
#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/links.h"
#include "base/on_threads.h"
#include "checkpoint/gguf/source.h"
#include "checkpoint/hub_origin.h"
#include "checkpoint/tensor.h"

namespace lquant::checkpoint {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kIndex = "model.safetensors.index.json";

// "org/name" that is no folder here is most likely meant as a model of the Hugging Face hub.
bool looks_like_hub_id(const std::string& text) {
  const auto slash = text.find('/');
  if (slash == std::string::npos || slash == 0 || slash + 1 == text.size() || text.find('/', slash + 1) != std::string::npos) return false;
  if (text[0] == '.' || text[0] == '~') return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) || c == '/' || c == '-' || c == '_' || c == '.'; });
}

void check_folder(const fs::path& folder) {
  std::error_code ignored;
  if (fs::is_directory(folder, ignored)) return;
  const auto text = folder.string();
  if (fs::exists(folder, ignored) && gguf::is_gguf(folder))
    fail("checkpoint", "{}: is a GGUF file where only the folder of a model will do; make one of it: lquant convert --model {}", text, text);
  if (fs::exists(folder, ignored))
    fail("checkpoint", "{}: is a file; give the folder that holds config.json and model.safetensors, or a .gguf file", text);
  if (looks_like_hub_id(text)) {
    fail("checkpoint",
         "{}: there is no such folder. If a model of the Hugging Face hub is meant, download it first (hf download {} --local-dir {}) and give that "
         "folder",
         text, text, text.substr(text.find('/') + 1));
  }
  fail("checkpoint", "{}: there is no such folder; check the path", text);
}

// What mlx_lm reads: the glob model*.safetensors.
std::set<std::string> weight_files(const fs::path& folder) {
  std::set<std::string> files;
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  if (error) fail("checkpoint", "{}: cannot be listed ({}); check its permissions", folder.string(), error.message());
  for (const auto& entry : entries) {
    const auto name = entry.path().filename().string();
    if (name.starts_with("model") && name.ends_with(".safetensors")) files.insert(name);
  }
  return files;
}

using WeightMap = std::map<std::string, std::string>;  // from tensor to file

// The index's map, its file names checked to be plain names.
WeightMap read_index(const fs::path& folder) {
  const auto path = folder / kIndex;
  if (!find_file("checkpoint", folder, kIndex)) return {};
  const auto index = read_json("checkpoint", path);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    fail("checkpoint", "{}: has no weight_map from tensors to files; download it again", path.string());
  }
  WeightMap map;
  for (const auto& [tensor, value] : index["weight_map"].items()) {
    if (!value.is_string()) fail("checkpoint", "{}: the file of tensor {} is not a name; download it again", path.string(), in_quotes(tensor));
    const auto& file = value.get_ref<const std::string&>();
    if (file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos || !file.ends_with(".safetensors") || file.starts_with('.')) {
      fail("checkpoint", "{}: names {}, which is not the name of a safetensors file in the same folder; do not trust this checkpoint", path.string(),
           in_quotes(file));
    }
    map.emplace(tensor, file);
  }
  return map;
}

// Whether the names alone say that nothing is missing: model.safetensors, or all of model-00001-of-0000N.safetensors to the N-th.
bool is_whole(const std::set<std::string>& weights) {
  if (weights.contains("model.safetensors")) return true;
  for (std::size_t n = 1; n <= weights.size(); ++n) {
    std::size_t found = 0;
    for (std::size_t i = 1; i <= n; ++i) found += weights.count(fmt::format("model-{:05}-of-{:05}.safetensors", i, n));
    if (found == n) return true;
  }
  return false;
}

// Repositories exist whose model was packed anew and whose index was forgotten: not one of the files that it names is there, and the whole model is
// in others. mlx_lm never looks at an index, and this one says nothing of the folder that it lies in.
bool is_left_over(const WeightMap& index, const std::set<std::string>& weights, const fs::path& folder) {
  return is_whole(weights) && std::none_of(index.begin(), index.end(), [&](const auto& row) { return has_entry(folder, row.second); });
}

// All that any command reads of a model folder besides its tensors: a link that leads out is refused here, before any work.
void check_small_files(const fs::path& folder) {
  for (const auto& name : copied_files()) find_file("checkpoint", folder, name);
  for (const char* name : {"config.json", "README.md", "lquant.json", kIndex}) find_file("checkpoint", folder, name);
}

}  // namespace

struct Checkpoint::State {
  fs::path folder;
  json config;
  std::map<std::string, File> files;  // by name in the folder
  std::map<std::string, TensorInfo, std::less<>> tensors;
  FileSet small_files;
  std::optional<gguf::Source> gguf;  // then `files` is empty
  mutable std::mutex fingerprint_mutex;
  mutable std::string fingerprint;

  void add_file(const std::string& name);
  void check_index(const WeightMap& index) const;
};

void Checkpoint::State::add_file(const std::string& name) {
  const auto& file = files.emplace(name, File::open(folder, name)).first->second;
  for (auto& [tensor, info] : read_header(file).tensors) {
    const auto [place, is_new] = tensors.emplace(tensor, std::move(info));
    if (!is_new) {
      fail("checkpoint", "tensor {} lies in both {} and {}; remove the file that does not belong to this model", in_quotes(tensor),
           place->second.file.string(), file.path().string());
    }
  }
}

void Checkpoint::State::check_index(const WeightMap& index) const {
  for (const auto& [tensor, file] : index) {
    const auto found = tensors.find(tensor);
    if (found == tensors.end() || found->second.file.filename() != file) {
      fail("checkpoint", "{}: places tensor {} in {}, which does not hold it; download the folder again", (folder / kIndex).string(),
           in_quotes(tensor), in_quotes(file));
    }
  }
}

Checkpoint Checkpoint::open(const fs::path& path, const std::vector<gguf::Architecture>& architectures) {
  std::error_code ignored;
  if (!gguf::is_gguf(path) || fs::is_directory(path, ignored)) return open(path);
  auto state = std::make_shared<State>();
  state->folder = path;
  state->gguf = gguf::Source::open(path, architectures);
  state->config = state->gguf->config();
  state->tensors = state->gguf->tensors();
  state->small_files = state->gguf->files();
  return Checkpoint(std::move(state));
}

Checkpoint Checkpoint::open(const fs::path& folder) {
  check_folder(folder);
  auto state = std::make_shared<State>();
  state->folder = folder;
  state->small_files = FileSet::of_folder(folder);
  check_small_files(folder);
  const auto config = folder / "config.json";
  if (!has_entry(folder, "config.json"))
    fail("checkpoint", "{}: there is no config.json in it; give the folder of a model, or download the file", folder.string());
  state->config = read_config_json("checkpoint", config);
  if (!state->config.is_object()) fail("checkpoint", "{}: is not a JSON object; download it again", config.string());

  auto files = weight_files(folder);
  auto index = read_index(folder);
  if (is_left_over(index, files, folder)) index.clear();
  for (const auto& [tensor, file] : index) {
    if (!has_entry(folder, file)) fail("checkpoint", "{}: names {}, which is not there; download it", (folder / kIndex).string(), in_quotes(file));
    files.insert(file);
  }
  if (files.empty()) {
    fail("checkpoint", "{}: there is no model*.safetensors in it; download the weights, or convert them to safetensors first", folder.string());
  }
  for (const auto& file : files) state->add_file(file);
  state->check_index(index);
  return Checkpoint(std::move(state));
}

const json& Checkpoint::config() const { return state_->config; }
const fs::path& Checkpoint::folder() const { return state_->folder; }
const FileSet& Checkpoint::files() const { return state_->small_files; }

std::string Checkpoint::name() const {
  if (state_->gguf) return gguf::model_name(state_->folder);
  if (const auto origin = hub_origin(state_->folder)) return origin->id.substr(origin->id.find('/') + 1);
  const auto whole = fs::absolute(state_->folder).lexically_normal();  // "." has a name too
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
}

bool Checkpoint::has(std::string_view name) const { return state_->tensors.find(name) != state_->tensors.end(); }

const TensorInfo& Checkpoint::info(const std::string& name) const {
  const auto found = state_->tensors.find(name);
  if (found == state_->tensors.end()) {
    fail("checkpoint", "{}: has no tensor {}; the download is not complete, or config.json belongs to another model", state_->folder.string(),
         in_quotes(name));
  }
  return found->second;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& entry : state_->tensors) names.push_back(entry.first);
  return names;
}

mx::array Checkpoint::load(const std::string& name, CheckFinite check) const {
  const auto& tensor = info(name);
  auto value = state_->gguf ? state_->gguf->read(name) : read_tensor(state_->files.at(tensor.file.filename().string()), tensor);
  if (check == CheckFinite::yes) check_finite(value, name, tensor.file);
  return value;
}

const File& Checkpoint::file_of(const std::string& name) const {
  if (state_->gguf) throw std::invalid_argument("[checkpoint] " + name + " lies in a GGUF file");
  return state_->files.at(info(name).file.filename().string());
}

std::string Checkpoint::fingerprint() const {
  const std::lock_guard lock(state_->fingerprint_mutex);
  if (!state_->fingerprint.empty()) return state_->fingerprint;
  std::deque<File> opened;
  std::vector<std::pair<std::string, const File*>> all;
  if (state_->gguf) {
    for (const auto& piece : state_->gguf->pieces()) all.emplace_back(piece.file.path().filename().string(), &piece.file);
  } else {
    auto texts = tokenizer_files();
    texts.push_back("config.json");
    for (const auto& name : texts) {
      if (has_entry(state_->folder, name)) all.emplace_back(name, &opened.emplace_back(File::open(state_->folder, name)));
    }
    for (const auto& [name, file] : state_->files) all.emplace_back(name, &file);
  }
  std::vector<std::string> digests(all.size());
  on_threads(all.size(), [&](std::size_t i) { digests[i] = sha256_from(*all[i].second, 0); });
  Sha256 hash;
  for (std::size_t i = 0; i < all.size(); ++i) hash.update(fmt::format("{} {}\n", all[i].first, digests[i]));
  return state_->fingerprint = hash.hex();
}

std::uint64_t Checkpoint::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& entry : state_->tensors) sum += entry.second.end - entry.second.begin;
  return sum;
}

const std::vector<std::string>& copied_files() {
  static const std::vector<std::string> names = [] {
    auto all = tokenizer_files();
    for (const char* name : {"generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"})
      all.push_back(name);
    return all;
  }();
  return names;
}

void check_copied_files(const FileSet& files) {
  for (const auto& name : copied_files()) {
    if (!name.ends_with(".json")) continue;
    const auto bytes = files.read("checkpoint", name, kLargestCopied);
    if (bytes && !json::accept(*bytes)) fail("checkpoint", "{}: is not valid JSON; download or write the file again", files.label(name));
  }
}

const std::vector<std::string>& tokenizer_files() {
  static const std::vector<std::string> names = {"added_tokens.json",       "chat_template.jinja", "chat_template.json", "merges.txt",
                                                 "special_tokens_map.json", "tiktoken.model",      "tokenizer.json",     "tokenizer.model",
                                                 "tokenizer_config.json",   "vocab.json"};
  return names;
}

}  // namespace lquant::checkpoint
