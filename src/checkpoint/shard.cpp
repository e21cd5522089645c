#include "checkpoint/shard.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace lquant::checkpoint {
namespace fs = std::filesystem;

namespace {

// Large enough that the disk sees long transfers, small beside any model's tensor.
constexpr std::size_t kCopyBlock = std::size_t{8} << 20;

void copy(const File& from, File& to) {
  std::vector<char> block(static_cast<std::size_t>(std::min<std::uint64_t>(kCopyBlock, from.size())));
  for (std::uint64_t place = 0; place < from.size();) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), from.size() - place));
    from.read(place, block.data(), n);
    to.append(block.data(), n);
    place += n;
  }
}

}  // namespace

Shard::Shard(fs::path path) : path_(std::move(path)), data_(File::create(path_.string() + ".data")) {}

void Shard::add(const std::string& name, const mx::array& value) {
  const auto shape = nlohmann::json(std::vector<int>(value.shape().begin(), value.shape().end())).dump();
  entries_ += fmt::format(R"(,{}:{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", nlohmann::json(name).dump(), stored_name(value.dtype()), shape,
                          bytes_, bytes_ + value.nbytes());
  names_.push_back(name);
  if (value.nbytes() == 0) return;
  hash_.update(value.data<char>(), value.nbytes());
  data_->append(value.data<char>(), value.nbytes());
  bytes_ += value.nbytes();
}

void Shard::finish() {
  digest_ = hash_.hex();
  std::string text = R"({"__metadata__":{"format":"mlx"})" + entries_ + "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  header_ = length_bytes(text.size()) + text;
  auto file = File::create(path_);
  file.append(header_);
  copy(*data_, file);
  file.sync();
  const auto data_path = data_->path();
  data_.reset();
  std::error_code error;
  if (!fs::remove(data_path, error)) fail("checkpoint", "{}: cannot be removed ({}); check the disk", data_path.string(), error.message());
}

void Shard::verify() const {
  const auto file = File::open(path_);
  const auto found = read_header(file);
  std::string head(header_.size(), '\0');
  file.read(0, head.data(), std::min<std::size_t>(head.size(), static_cast<std::size_t>(found.data_begin)));
  if (head != header_ || file.size() != header_.size() + bytes_ || sha256_from(file, header_.size()) != digest_) {
    fail("checkpoint", "{}: reads back other bytes than were written; check the disk and run again", path_.string());
  }
}

}  // namespace lquant::checkpoint
