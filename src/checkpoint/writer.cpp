// Nobody should have to wonder whether a folder that exists is whole. So everything grows in a partial folder; what has been
// written is hashed from memory on its way, synced, read back from the disk and compared; and only then does one rename make it visible.
#include "checkpoint/writer.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "checkpoint/partial_folder.h"
#include "checkpoint/shard.h"

namespace lquant::checkpoint {
namespace fs = std::filesystem;

struct Writer::State {
  State(const fs::path& output, std::uint64_t limit) : folder(output), shard_bytes(limit) {}

  PartialFolder folder;
  std::uint64_t shard_bytes;
  std::deque<Shard> shards;  // a shard stays where it is
  std::set<std::string> tensors;
  std::map<std::string, std::string> texts;  // SHA-256 by file name
  std::uint64_t elements = 0;
  std::optional<std::uint64_t> parameters;
  bool committed = false;

  void claim(const std::string& file);
  void claim_tensor(const std::string& name);
  Shard& shard_for(std::uint64_t bytes);
  void name_shards();
  nlohmann::ordered_json index() const;
  void verify() const;
};

// Names a file that is about to be written, which may not be there yet and may not leave the folder.
void Writer::State::claim(const std::string& file) {
  if (committed) throw std::invalid_argument("[checkpoint] " + file + " written after commit");
  if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos || file.ends_with(".safetensors")) {
    throw std::invalid_argument("[checkpoint] " + file + " is no name for a text file of a model folder");
  }
  if (!texts.emplace(file, "").second) throw std::invalid_argument("[checkpoint] " + file + " written twice");
}

Shard& Writer::State::shard_for(std::uint64_t bytes) {
  const bool full = !shards.empty() && !shards.back().names().empty() && shards.back().data_bytes() + bytes > shard_bytes;
  if (full) shards.back().finish();
  if (full || shards.empty()) shards.emplace_back(folder.path() / fmt::format("shard-{}.safetensors", shards.size() + 1));
  return shards.back();
}

// The number of shards is part of their names, and known at the end.
void Writer::State::name_shards() {
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const auto name = shards.size() == 1 ? std::string("model.safetensors") : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::error_code error;
    fs::rename(shards[i].path(), folder.path() / name, error);
    if (error) fail("checkpoint", "{}: cannot be renamed ({}); check the disk", shards[i].path().string(), error.message());
    shards[i].renamed(folder.path() / name);
  }
}

nlohmann::ordered_json Writer::State::index() const {
  std::uint64_t bytes = 0;
  std::map<std::string, std::string> files;
  for (const auto& shard : shards) {
    bytes += shard.data_bytes();
    for (const auto& name : shard.names()) files[name] = shard.path().filename().string();
  }
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = bytes;
  index["metadata"]["total_parameters"] = parameters.value_or(elements);
  index["weight_map"] = files;
  return index;
}

void Writer::State::verify() const {
  for (const auto& shard : shards) shard.verify();
  for (const auto& [name, digest] : texts) {
    if (sha256_from(File::open(folder.path() / name), 0) != digest) {
      fail("checkpoint", "{}: reads back other bytes than were written; check the disk and run again", (folder.path() / name).string());
    }
  }
}

Writer::Writer(const fs::path& output, std::uint64_t shard_bytes) : state_(std::make_unique<State>(output, shard_bytes)) {}
Writer::~Writer() = default;

void Writer::State::claim_tensor(const std::string& name) {
  if (committed) throw std::invalid_argument("[checkpoint] " + name + " added after commit");
  if (name == "__metadata__" || !tensors.insert(name).second) throw std::invalid_argument("[checkpoint] " + name + " added twice, or reserved");
}

void Writer::add(const std::string& name, const mx::array& value) {
  state_->claim_tensor(name);
  const auto rows = mx::contiguous(value);
  mx::eval(rows);
  state_->shard_for(rows.nbytes()).add(name, rows);
  state_->elements += rows.size();
}

void Writer::copy(const std::string& name, const TensorInfo& info, const File& from) {
  state_->claim_tensor(name);
  state_->shard_for(info.end - info.begin).copy(name, info, from);
  std::uint64_t elements = 1;
  for (const auto length : info.shape) elements *= static_cast<std::uint64_t>(length);
  state_->elements += elements;
}

void Writer::write_text(const std::string& file, std::string_view content) {
  state_->claim(file);
  auto out = File::create(state_->folder.path() / file);
  out.append(content);
  out.sync();
  state_->texts[file] = sha256(content);
}

void Writer::write_json(const std::string& file, const nlohmann::ordered_json& value) { write_text(file, value.dump(4, ' ', true, nlohmann::ordered_json::error_handler_t::replace)); }

void Writer::write_tensors(const std::string& file, const std::vector<std::pair<std::string, mx::array>>& tensors) {
  state_->claim(file);
  Shard shard(state_->folder.path() / file);
  for (const auto& [name, value] : tensors) {
    auto flat = mx::contiguous(value, false, mx::Device::cpu);
    flat.eval();
    shard.add(name, flat);
  }
  shard.finish();
  shard.verify();
  state_->texts[file] = sha256_from(File::open(shard.path()), 0);
}

void Writer::copy_file(const fs::path& from, const std::string& as) {
  const auto file = File::open(from);
  std::string bytes(static_cast<std::size_t>(file.size()), '\0');  // a tokenizer, tens of megabytes at most
  file.read(0, bytes.data(), bytes.size());
  write_text(as, bytes);
}

void Writer::set_total_parameters(std::uint64_t count) { state_->parameters = count; }

void Writer::commit() {
  auto& state = *state_;
  if (state.committed) throw std::invalid_argument("[checkpoint] committed twice");
  if (state.shards.empty()) throw std::invalid_argument("[checkpoint] committed without a tensor");
  state.shards.back().finish();
  state.name_shards();
  write_json("model.safetensors.index.json", state.index());
  state.verify();
  sync_path("checkpoint", state.folder.path());
  state.folder.publish();
  state.committed = true;
}

}  // namespace lquant::checkpoint
