#include "checkpoint/shard.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace lquant::checkpoint {
namespace fs = std::filesystem;

namespace {

// Large enough that the disk sees long transfers, small beside any model's tensor.
constexpr std::size_t kCopyBlock = std::size_t{8} << 20;

/// Hands bytes [begin, end) of the file to `take` in pieces.
template <class Take>
void in_pieces(const File& from, std::uint64_t begin, std::uint64_t end, const Take& take) {
  std::vector<char> block(static_cast<std::size_t>(std::min<std::uint64_t>(kCopyBlock, end - begin)));
  for (auto place = begin; place < end;) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), end - place));
    from.read(place, block.data(), n);
    take(block.data(), n);
    place += n;
  }
}

}  // namespace

Shard::Shard(fs::path path) : path_(std::move(path)), data_(File::create(path_.string() + ".data")) {}

void Shard::enter(const std::string& name, const std::string& stored, const mx::Shape& shape, std::uint64_t bytes) {
  const auto lengths = nlohmann::json(std::vector<int>(shape.begin(), shape.end())).dump();
  entries_ += fmt::format(R"(,{}:{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", nlohmann::json(name).dump(), stored, lengths, bytes_, bytes_ + bytes);
  names_.push_back(name);
  bytes_ += bytes;
}

void Shard::add(const std::string& name, const mx::array& value) {
  enter(name, stored_name(value.dtype()), value.shape(), value.nbytes());
  if (value.nbytes() == 0) return;
  hash_.update(value.data<char>(), value.nbytes());
  data_->append(value.data<char>(), value.nbytes());
}

void Shard::copy(const std::string& name, const TensorInfo& info, const File& from) {
  enter(name, info.stored, info.shape, info.end - info.begin);
  in_pieces(from, info.begin, info.end, [&](const char* bytes, std::size_t n) {
    hash_.update(bytes, n);
    data_->append(bytes, n);
  });
}

void Shard::finish() {
  digest_ = hash_.hex();
  std::string text = R"({"__metadata__":{"format":"mlx"})" + entries_ + "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  header_ = length_bytes(text.size()) + text;
  auto file = File::create(path_);
  file.append(header_);
  in_pieces(*data_, 0, data_->size(), [&](const char* bytes, std::size_t n) { file.append(bytes, n); });
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
