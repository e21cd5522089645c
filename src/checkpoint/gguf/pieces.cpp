#include "checkpoint/gguf/pieces.h"

#include <algorithm>
#include <optional>

#include "base/error.h"

namespace lquant::checkpoint::gguf {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kEnding = ".gguf";
// gguf-split writes both numbers with five digits.
constexpr std::size_t kDigits = 5;

/// "dir/NAME-00002-of-00003.gguf"
struct SplitName {
  std::string stem;  ///< NAME
  int number = 1, count = 1;
};

std::optional<int> five_digits(std::string_view text) {
  if (text.size() != kDigits || text.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  return std::stoi(std::string(text));
}

std::optional<SplitName> split_name(const fs::path& path) {
  const auto name = path.filename().string();
  const std::string_view middle = "-of-";
  const auto tail = 1 + kDigits + middle.size() + kDigits + kEnding.size();
  if (name.size() <= tail || !is_gguf(path)) return std::nullopt;
  const auto rest = std::string_view(name).substr(name.size() - tail);
  const auto number = five_digits(rest.substr(1, kDigits)), count = five_digits(rest.substr(1 + kDigits + middle.size(), kDigits));
  if (rest[0] != '-' || rest.substr(1 + kDigits, middle.size()) != middle || !number || !count || *number < 1 || *number > *count)
    return std::nullopt;
  return SplitName{name.substr(0, name.size() - tail), *number, *count};
}

/// What the piece says of itself; without an entry, `otherwise`.
std::uint64_t own_number(const Piece& piece, std::string_view key, std::uint64_t otherwise) {
  const auto found = piece.header.metadata.find(key);
  if (found == piece.header.metadata.end()) return otherwise;
  const double number = found->second.numeric() && found->second.count > 0 ? found->second.number() : -1;
  return number >= 0 && number < 1e9 ? static_cast<std::uint64_t>(number) : ~std::uint64_t{0};
}

Piece open_piece(const fs::path& path) {
  auto file = File::open(path);
  auto header = read_header(file);
  return {std::move(file), std::move(header)};
}

}  // namespace

bool is_gguf(const fs::path& path) {
  auto name = path.filename().string();
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name.size() > kEnding.size() && name.ends_with(kEnding);
}

std::string model_name(const fs::path& path) {
  const auto split = split_name(path);
  return split ? split->stem : path.stem().string();
}

std::vector<Piece> open_pieces(const fs::path& path) {
  std::vector<Piece> pieces;
  const auto split = split_name(path);
  if (!split) {
    pieces.push_back(open_piece(path));
    if (const auto count = own_number(pieces[0], "split.count", 1); count > 1)
      fail("checkpoint", "{}: is one of {} pieces of a model, and its name does not say so; give the pieces the names NAME-00001-of-{:05}.gguf, …",
           path.string(), count, count);
    return pieces;
  }
  std::uint64_t tensors = 0;
  for (int i = 1; i <= split->count; ++i) {
    const auto file = path.parent_path() / fmt::format("{}-{:05}-of-{:05}.gguf", split->stem, i, split->count);
    std::error_code ignored;
    if (!fs::exists(file, ignored))
      fail("checkpoint", "{}: is not there, and the model was split into {} pieces; download it too", file.string(), split->count);
    auto& piece = pieces.emplace_back(open_piece(file));
    const auto number = own_number(piece, "split.no", 0) + 1, count = own_number(piece, "split.count", 1);
    if (number != static_cast<std::uint64_t>(i) || count != static_cast<std::uint64_t>(split->count))
      fail("checkpoint", "{}: says of itself that it is piece {} of {}, and its name says {} of {}; download the pieces again, under their own names",
           file.string(), number, count, i, split->count);
    tensors += piece.header.tensors.size();
  }
  if (const auto all = own_number(pieces[0], "split.tensors.count", tensors); all != tensors)
    fail("checkpoint", "{}: its pieces hold {} tensors, and {} were split; the pieces do not belong together: download them again",
         pieces[0].file.path().string(), tensors, all);
  return pieces;
}

}  // namespace lquant::checkpoint::gguf
