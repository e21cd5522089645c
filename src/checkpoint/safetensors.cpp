// A safetensors file is eight bytes of length, that much JSON, then the tensors' bytes. The JSON comes from strangers, so nothing
// in it is believed: it is parsed with its depth, its repeated keys and the length of its lists watched while they arrive, each
// tensor is checked on its own, and at last all of them together must tile the rest of the file without a gap. After that the
// loader can trust every offset.
#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <vector>

#include "base/error.h"
#include "base/shown.h"

namespace lquant::checkpoint {
namespace {

using nlohmann::json;

constexpr std::uint64_t kLargestHeader = 100'000'000;  // the reference implementation's MAX_HEADER_SIZE
// The format nests three deep (header, tensor, shape). Unknown fields may go deeper, but nobody honest goes past this.
constexpr std::size_t kDeepest = 8;
// No list in a header is longer than a shape; a bound keeps a hostile 100 MB header from growing into gigabytes of JSON nodes.
constexpr std::size_t kLongestList = 64;

struct StoredDtype {
  const char* name;
  std::size_t bytes;
  mx::Dtype loaded;
};

const StoredDtype kDtypes[] = {
    {"BOOL", 1, mx::bool_},  {"U8", 1, mx::uint8},         {"I8", 1, mx::int8},          {"U16", 2, mx::uint16},
    {"I16", 2, mx::int16},   {"U32", 4, mx::uint32},       {"I32", 4, mx::int32},        {"U64", 8, mx::uint64},
    {"I64", 8, mx::int64},   {"F16", 2, mx::float16},      {"BF16", 2, mx::bfloat16},    {"F32", 4, mx::float32},
    {"F64", 8, mx::float32}, {"F8_E4M3", 1, mx::bfloat16}, {"F8_E5M2", 1, mx::bfloat16}, {"F8_E8M0", 1, mx::uint8},
};

const StoredDtype* find_dtype(std::string_view name) {
  const auto* found = std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](const StoredDtype& d) { return name == d.name; });
  return found == std::end(kDtypes) ? nullptr : found;
}

template <class... Args>
[[noreturn]] void damaged(const std::filesystem::path& file, fmt::format_string<Args...> format, Args&&... args) {
  fail("checkpoint", "{}: {}; the file is damaged or no safetensors file: download it again", file.string(),
       fmt::format(format, std::forward<Args>(args)...));
}

// What is open while the parser runs: for an object the keys seen so far, for a list the number of its elements.
class Watch {
 public:
  explicit Watch(const std::filesystem::path& file) : file_(file) {}

  bool operator()(int, json::parse_event_t event, json& parsed) {
    using Event = json::parse_event_t;
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        count();
        if (open_.size() >= kDeepest) damaged(file_, "its header is nested more than {} deep", kDeepest);
        open_.emplace_back();
        open_.back().list = event == Event::array_start;
        break;
      case Event::object_end:
      case Event::array_end:
        open_.pop_back();
        break;
      case Event::key:
        if (!open_.back().keys.insert(parsed.get<std::string>()).second) {
          damaged(file_, "its header names {} twice", in_quotes(parsed.get_ref<const std::string&>()));
        }
        break;
      case Event::value:
        count();
        break;
    }
    return true;
  }

 private:
  struct Open {
    bool list = false;
    std::size_t elements = 0;
    std::set<std::string> keys;
  };
  void count() {
    if (!open_.empty() && open_.back().list && ++open_.back().elements > kLongestList) {
      damaged(file_, "its header holds a list of more than {} elements", kLongestList);
    }
  }
  const std::filesystem::path& file_;
  std::vector<Open> open_;
};

json parse_json(std::string_view text, const std::filesystem::path& file) {
  if (text.empty() || text.front() != '{') damaged(file, "its header does not start with '{{'");
  try {
    return json::parse(text.begin(), text.end(), Watch(file));
  } catch (const json::parse_error& e) {
    damaged(file, "its header is not valid JSON (at byte {} of the header)", e.byte);
  } catch (const json::exception&) {
    damaged(file, "its header holds a number that is out of range");
  }
}

mx::Shape parse_shape(const json& value, const std::string& name, const std::filesystem::path& file) {
  if (!value.is_array()) damaged(file, "the shape of tensor {} is not a list", name);
  mx::Shape shape;
  for (const auto& element : value) {
    if (!element.is_number_unsigned()) damaged(file, "the shape of tensor {} holds {}, which is not a size", name, in_quotes(element.dump()));
    const auto size = element.get<std::uint64_t>();
    if (size > INT32_MAX) {
      fail("checkpoint", "{}: a dimension of tensor {} is {}; MLX holds at most {} in one dimension: this tensor cannot be used", file.string(), name,
           size, INT32_MAX);
    }
    shape.push_back(static_cast<mx::ShapeElem>(size));
  }
  return shape;
}

TensorInfo parse_tensor(const json& value, const std::string& name, std::uint64_t data_begin, const std::filesystem::path& file) {
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!value.is_object() || !value.contains(field)) damaged(file, "tensor {} has no {}", name, field);
  }
  const auto& dtype = value["dtype"];
  const auto* known = dtype.is_string() ? find_dtype(dtype.get_ref<const std::string&>()) : nullptr;
  if (!known) {
    fail("checkpoint", "{}: tensor {} has dtype {}, which lquant does not read; convert the checkpoint to BF16, F16 or F32 first", file.string(),
         name, in_quotes(dtype.is_string() ? dtype.get_ref<const std::string&>() : dtype.dump()));
  }
  TensorInfo info{known->loaded, known->name, parse_shape(value["shape"], name, file), file};

  const auto& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
    damaged(file, "the data_offsets of tensor {} are not two positions", name);
  }
  const auto begin = offsets[0].get<std::uint64_t>(), end = offsets[1].get<std::uint64_t>();
  std::uint64_t bytes = known->bytes;
  bool overflow = false;
  for (const auto size : info.shape) overflow |= __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes);
  if (overflow) damaged(file, "the shape of tensor {} has more elements than can be counted", name);
  if (begin > end) damaged(file, "the data of tensor {} ends before it begins ({} to {})", name, begin, end);
  if (end - begin != bytes) damaged(file, "tensor {} needs {} bytes by its shape and dtype, and has {}", name, bytes, end - begin);
  if (__builtin_add_overflow(begin, data_begin, &info.begin) || __builtin_add_overflow(end, data_begin, &info.end)) {
    damaged(file, "the data_offsets of tensor {} lie beyond any file", name);
  }
  return info;
}

// The reference implementation allows no hole: sorted by place, each tensor starts where the one before ends.
void check_tiling(const Header& header, std::uint64_t file_size, const std::filesystem::path& file) {
  std::vector<std::pair<const std::string*, const TensorInfo*>> order;
  for (const auto& [name, info] : header.tensors) order.emplace_back(&name, &info);
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end); });
  const auto last = std::max_element(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second->end < b.second->end; });
  if (last != order.end() && last->second->end > file_size) {
    fail("checkpoint", "{}: is cut short: tensor {} ends at byte {}, and the file has {}; download it again", file.string(), in_quotes(*last->first),
         last->second->end, file_size);
  }
  std::uint64_t place = header.data_begin;
  for (const auto& [name, info] : order) {
    if (info->begin < place) damaged(file, "tensor {} overlaps the one before it", in_quotes(*name));
    if (info->begin > place) damaged(file, "{} bytes before tensor {} belong to no tensor", info->begin - place, in_quotes(*name));
    place = info->end;
  }
  if (place != file_size) damaged(file, "{} bytes after its last tensor belong to none", file_size - place);
}

}  // namespace

std::string in_quotes(std::string_view name) {
  constexpr std::size_t kReadable = 160;  // a line and a half of a terminal; true names are under 100
  return fmt::format("\"{}\"", shown(name, kReadable));
}

std::size_t stored_bytes(std::string_view stored) {
  const auto* known = find_dtype(stored);
  return known ? known->bytes : 0;
}

std::string stored_name(mx::Dtype dtype) {
  if (dtype == mx::float64) return "F64";
  for (const auto& known : kDtypes) {
    if (known.loaded == dtype) return known.name;  // the plain dtypes stand before those that are converted to them
  }
  throw std::invalid_argument("[checkpoint] complex64 has no name in safetensors");
}

std::string length_bytes(std::uint64_t header_bytes) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header_bytes >> (8 * i) & 0xff);
  return bytes;
}

std::uint64_t header_length(std::string_view first_bytes, std::uint64_t file_size, const std::filesystem::path& file) {
  if (file_size < 8 || first_bytes.size() < 8) damaged(file, "has {} bytes, fewer than the length of a header takes", file_size);
  if (first_bytes.substr(0, 8) == "version ") {
    fail("checkpoint", "{}: is a pointer of git-lfs and not the file itself; run `git lfs pull` in its folder or download it again", file.string());
  }
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(first_bytes[static_cast<std::size_t>(i)]);
  if (length < 2) damaged(file, "its header has {} bytes", length);
  if (length > kLargestHeader) damaged(file, "its header would have {} bytes, and {} is the most", length, kLargestHeader);
  if (length > file_size - 8) {
    fail("checkpoint", "{}: is cut short: its header takes {} bytes, and the file has {}; download it again", file.string(), 8 + length, file_size);
  }
  return length;
}

Header parse_header(std::string_view text, std::uint64_t file_size, const std::filesystem::path& file) {
  const auto parsed = parse_json(text, file);
  Header header;
  header.data_begin = 8 + text.size();
  for (const auto& [name, value] : parsed.items()) {
    if (name != "__metadata__") {
      header.tensors.emplace(name, parse_tensor(value, in_quotes(name), header.data_begin, file));
      continue;
    }
    if (value.is_null()) continue;  // mlx.core.save_safetensors writes null where it is given no metadata
    if (!value.is_object()) damaged(file, "its __metadata__ is not an object");
    for (const auto& [key, entry] : value.items()) {
      if (!entry.is_string()) damaged(file, "the entry {} of its __metadata__ is not a string", in_quotes(key));
      header.metadata.emplace(key, entry.get<std::string>());
    }
  }
  check_tiling(header, file_size, file);
  return header;
}

Header read_header(const File& file) {
  std::string first(static_cast<std::size_t>(std::min<std::uint64_t>(8, file.size())), '\0');
  file.read(0, first.data(), first.size());
  std::string text(static_cast<std::size_t>(header_length(first, file.size(), file.path())), '\0');
  file.read(8, text.data(), text.size());
  return parse_header(text, file.size(), file.path());
}

}  // namespace lquant::checkpoint
