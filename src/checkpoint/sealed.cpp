// The digest stands at the end, where it can be written in one pass, and covers everything: header, names, shapes and data. The file stays an
// ordinary safetensors file, for whoever wants to look into it.
#include "checkpoint/sealed.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <map>

#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor.h"

namespace lquant::checkpoint {
namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

constexpr const char* kSeal = "lquant.sha256";
constexpr const char* kMeta = "lquant";
constexpr std::uint64_t kSealBytes = 32;

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

/// Appends and hashes.
class Hashed {
 public:
  explicit Hashed(File& file) : file_(file) {}
  void append(const void* data, std::size_t size) {
    hash_.update(data, size);
    file_.append(data, size);
  }
  void append(std::string_view text) { append(text.data(), text.size()); }
  void seal() { file_.append(from_hex(hash_.hex())); }

 private:
  File& file_;
  Sha256 hash_;
};

json entry(const std::string& dtype, const mx::Shape& shape, std::uint64_t begin, std::uint64_t end) {
  return {{"dtype", dtype}, {"shape", std::vector<int>(shape.begin(), shape.end())}, {"data_offsets", {begin, end}}};
}

void write(const fs::path& path, const std::map<std::string, mx::array>& tensors, const json& meta) {
  json header{{"__metadata__", {{"format", "mlx"}, {kMeta, meta.dump()}}}};
  std::uint64_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    header[name] = entry(stored_name(tensor.dtype()), tensor.shape(), at, at + tensor.nbytes());
    at += tensor.nbytes();
  }
  header[kSeal] = entry("U8", {static_cast<int>(kSealBytes)}, at, at + kSealBytes);
  auto text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  auto file = File::create(path);
  Hashed out(file);
  out.append(length_bytes(text.size()) + text);
  for (const auto& [name, tensor] : tensors)
    if (tensor.nbytes() > 0) out.append(tensor.data<char>(), tensor.nbytes());
  out.seal();
  file.sync();
}

bool intact(const File& file) {
  if (file.size() < kSealBytes) return false;
  const auto covered = file.size() - kSealBytes;
  std::string seal(kSealBytes, '\0');
  file.read(covered, seal.data(), seal.size());
  return seal == from_hex(sha256_from(file, 0, covered));
}

}  // namespace

void write_sealed(const fs::path& file, const std::unordered_map<std::string, mx::array>& tensors, const json& meta) {
  std::map<std::string, mx::array> rows;  // in the order of their names, as they lie in memory
  for (const auto& [name, tensor] : tensors) {
    auto flat = mx::contiguous(tensor, false, mx::Device::cpu);
    flat.eval();
    rows.insert({name, std::move(flat)});
  }
  const auto partial = fs::path(file.string() + ".partial");
  std::error_code error;
  fs::remove(partial, error);  // a killed run's
  try {
    write(partial, rows, meta);
    fs::rename(partial, file, error);
    if (error) fail("checkpoint", "{}: cannot be given its name ({}); free space on that disk", file.string(), error.message());
    sync_path("checkpoint", file.parent_path());
  } catch (...) {
    std::error_code ignored;
    fs::remove(partial, ignored);
    throw;
  }
}

bool is_intact(const fs::path& file) { return intact(File::open(file)); }

Sealed read_sealed(const fs::path& path) {
  const auto file = File::open(path);
  if (!intact(file)) throw Damaged(fmt::format("[checkpoint] {}: has other bytes than were written to it", path.string()));
  // The seal alone says nothing of who wrote the rest: whoever can hash can seal.
  const auto header = read_header(file);
  const auto meta = header.metadata.find(kMeta);
  if (meta == header.metadata.end() || !header.tensors.contains(kSeal))
    throw Damaged(fmt::format("[checkpoint] {}: was not written by lquant", path.string()));
  Sealed sealed;
  try {
    sealed.meta = lquant::parse_json(meta->second);
  } catch (const JsonFault& fault) {
    throw Damaged(fmt::format("[checkpoint] {}: its JSON is not valid ({})", path.string(), fault.what()));
  }
  for (const auto& [name, info] : header.tensors)
    if (name != kSeal) sealed.tensors.insert({name, read_tensor(file, info)});
  return sealed;
}

}  // namespace lquant::checkpoint
