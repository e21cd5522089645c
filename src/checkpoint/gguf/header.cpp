// A GGUF file is a list of typed values, a list of tensors, then their bytes. It comes from strangers, so nothing in it is believed: a
// length is compared with what is left of the file before anything of that size is made, and all tensors together are
// checked for overlaps at the end. How long the header is stands nowhere, so it is parsed from a piece of the file that is doubled until it
// suffices.
#include "checkpoint/gguf/header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian, and are read as they lie");

// Gemma 3's 262,144 tokens with scores and types take 7 MB; a header that is forty times as long is none.
constexpr std::uint64_t kLargestHeader = std::uint64_t{1} << 28;
constexpr std::size_t kFirstPiece = std::size_t{1} << 20;
// The most dimensions that ggml knows.
constexpr std::uint32_t kDimensions = 4;
// No writer nests arrays; two levels deep nobody honest goes.
constexpr int kDeepest = 2;
// What the smallest entries take: a key's length, a type, a byte; a name's length, a number of dimensions, a type, an offset.
constexpr std::uint64_t kSmallestValue = 8 + 4 + 1, kSmallestTensor = 8 + 4 + 4 + 8;
constexpr std::uint64_t kDefaultAlignment = 32;

template <class... Args>
[[noreturn]] void damaged(const std::filesystem::path& file, fmt::format_string<Args...> format, Args&&... args) {
  fail("checkpoint", "{}: {}; the file is damaged or no GGUF file: download it again", file.string(),
       fmt::format(format, std::forward<Args>(args)...));
}

/// The piece is used up and the file is not: the caller tries a longer one.
struct Incomplete {};

std::size_t size_of(ValueType type) {
  switch (type) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean:
      return 1;
    case ValueType::u16:
    case ValueType::i16:
      return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32:
      return 4;
    case ValueType::u64:
    case ValueType::i64:
    case ValueType::f64:
      return 8;
    case ValueType::string:
    case ValueType::array:
      return 0;
  }
  return 0;
}

class Cursor {
 public:
  Cursor(std::string_view bytes, std::uint64_t file_size, const std::filesystem::path& file) : bytes_(bytes), file_size_(file_size), file_(file) {}

  std::uint64_t place() const { return place_; }
  const std::filesystem::path& file() const { return file_; }

  std::string_view take(std::uint64_t size) {
    if (size > file_size_ - place_)
      fail("checkpoint", "{}: is cut short: its header goes on past byte {}, where the file ends; download it again", file_.string(), file_size_);
    if (size > bytes_.size() - place_) throw Incomplete{};
    const auto taken = bytes_.substr(place_, size);
    place_ += size;
    return taken;
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  /// A number of things that take at least `smallest` bytes each.
  std::uint64_t count(std::uint64_t smallest, const char* what) {
    const auto n = number<std::uint64_t>();
    if (n > (file_size_ - place_) / smallest)
      fail("checkpoint",
           "{}: it would have {} {}, more than fit into its {} bytes; the file is cut short, damaged or no GGUF file: download it again",
           file_.string(), n, what, file_size_);
    return n;
  }
  std::string_view text() { return take(count(1, "bytes of text in one place")); }

  ValueType type(std::string_view key) {
    const auto id = number<std::uint32_t>();
    if (id >= kValueTypes) damaged(file_, "the value of {} has type {}, which the format does not have", in_quotes(key), id);
    return static_cast<ValueType>(id);
  }

 private:
  std::string_view bytes_;
  std::uint64_t place_ = 0, file_size_;
  const std::filesystem::path& file_;
};

void read_array(Cursor& in, std::string_view key, Value& value, int depth) {
  value.element = in.type(key);
  if (value.element == ValueType::array) {
    if (depth == kDeepest) damaged(in.file(), "the value of {} nests arrays more than {} deep", in_quotes(key), kDeepest);
    value.count = in.count(4 + 8, "arrays in one");
    for (std::uint64_t i = 0; i < value.count; ++i) {
      Value inner;  // checked and dropped: nothing that lquant reads is an array of arrays
      read_array(in, key, inner, depth + 1);
    }
  } else if (value.element == ValueType::string) {
    value.count = in.count(8, "texts in one list");
    // Grown as they come: the piece of the file at hand bounds them, not what the count claims.
    for (std::uint64_t i = 0; i < value.count; ++i) value.strings.push_back(in.text());
  } else {
    value.count = in.count(size_of(value.element), "numbers in one list");
    value.bytes = in.take(value.count * size_of(value.element));
  }
}

Value read_value(Cursor& in, std::string_view key) {
  Value value;
  value.type = in.type(key);
  if (value.type == ValueType::array) {
    read_array(in, key, value, 1);
  } else {
    value.bytes = value.type == ValueType::string ? in.text() : in.take(size_of(value.type));
  }
  return value;
}

std::uint32_t read_version(Cursor& in) {
  const auto magic = in.take(4);
  const auto version = in.number<std::uint32_t>();
  if (magic != "GGUF") damaged(in.file(), "does not start with \"GGUF\"");
  if (version == 2 || version == 3) return version;
  // A small number in its upper half is what the other byte order makes of a version.
  if (version != 0 && (version & 0xffff) == 0)
    fail("checkpoint", "{}: is a big-endian GGUF file; download the little-endian one, or convert it with gguf-convert-endian", in.file().string());
  if (version == 1)
    fail("checkpoint", "{}: is a GGUF file of version 1, which nothing writes any more; convert the original model with a current llama.cpp",
         in.file().string());
  fail("checkpoint", "{}: is a GGUF file of version {}; lquant reads 2 and 3: get a file of these, or a newer lquant", in.file().string(), version);
}

std::uint64_t alignment_of(const Header& header, const std::filesystem::path& file) {
  const auto found = header.metadata.find("general.alignment");
  if (found == header.metadata.end()) return kDefaultAlignment;
  const auto& value = found->second;
  const double number = value.type == ValueType::u32 ? value.number() : 0;
  if (number < 1 || !std::has_single_bit(static_cast<std::uint32_t>(number))) damaged(file, "its general.alignment is no power of two");
  return static_cast<std::uint64_t>(number);
}

/// `begin` is counted from the data's start here.
Tensor read_tensor(Cursor& in) {
  Tensor tensor;
  tensor.name = in.text();
  const auto name = in_quotes(tensor.name);
  const auto dimensions = in.number<std::uint32_t>();
  if (dimensions > kDimensions) damaged(in.file(), "tensor {} has {} dimensions, and {} are the most", name, dimensions, kDimensions);
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto size = in.number<std::uint64_t>();
    if (size > INT32_MAX)
      fail("checkpoint", "{}: a dimension of tensor {} is {}; MLX holds at most {} in one dimension: this tensor cannot be used", in.file().string(),
           name, size, INT32_MAX);
    tensor.shape.insert(tensor.shape.begin(), static_cast<mx::ShapeElem>(size));
  }
  const auto id = in.number<std::uint32_t>();
  tensor.type = find_type(id);
  if (!tensor.type) {
    std::string known;
    for (const auto& type : type_names()) known += (known.empty() ? "" : ", ") + type;
    fail("checkpoint", "{}: tensor {} is of type {}, which lquant does not read; get a file in one of these: {}", in.file().string(), name,
         type_name(id), known);
  }
  tensor.begin = in.number<std::uint64_t>();

  const std::uint64_t row = tensor.shape.empty() ? 1 : static_cast<std::uint64_t>(tensor.shape.back());
  if (row % tensor.type->elements != 0)
    damaged(in.file(), "tensor {} has rows of {} values, which are no whole blocks of {} ({})", name, row, tensor.type->elements, tensor.type->name);
  // As if no dimension were 0, so that strides too can be counted.
  std::uint64_t bytes = tensor.type->bytes;
  bool overflow = __builtin_mul_overflow(bytes, std::max<std::uint64_t>(1, row / tensor.type->elements), &bytes), empty = row == 0;
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    overflow |= __builtin_mul_overflow(bytes, std::max<std::uint64_t>(1, static_cast<std::uint64_t>(tensor.shape[i])), &bytes);
    empty |= tensor.shape[i] == 0;
  }
  if (overflow) damaged(in.file(), "the shape of tensor {} has more elements than can be counted", name);
  if (empty) bytes = 0;
  if (__builtin_add_overflow(tensor.begin, bytes, &tensor.end)) damaged(in.file(), "the data of tensor {} lie beyond any file", name);
  return tensor;
}

void place_tensors(Header& header, std::uint64_t alignment, std::uint64_t file_size, const std::filesystem::path& file) {
  std::vector<const Tensor*> order;
  for (auto& tensor : header.tensors) {
    const auto name = in_quotes(tensor.name);
    if (tensor.begin % alignment != 0) damaged(file, "the data of tensor {} do not start at a multiple of {} bytes", name, alignment);
    if (__builtin_add_overflow(tensor.begin, header.data_begin, &tensor.begin) || __builtin_add_overflow(tensor.end, header.data_begin, &tensor.end))
      damaged(file, "the data of tensor {} lie beyond any file", name);
    if (tensor.end > file_size)
      fail("checkpoint", "{}: is cut short: tensor {} ends at byte {}, and the file has {}; download it again", file.string(), name, tensor.end,
           file_size);
    if (tensor.begin < tensor.end) order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) { return a->begin < b->begin; });
  for (std::size_t i = 1; i < order.size(); ++i)
    if (order[i]->begin < order[i - 1]->end) damaged(file, "tensor {} overlaps the one before it", in_quotes(order[i]->name));
  std::vector<std::string_view> names;
  for (const auto& tensor : header.tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end())
    damaged(file, "it holds tensor {} twice", in_quotes(*twice));
}

Header parse(std::shared_ptr<const std::string> bytes, std::uint64_t file_size, const std::filesystem::path& file) {
  Cursor in(*bytes, file_size, file);
  Header header;
  header.text = bytes;
  header.version = read_version(in);
  // Of the tensors' count only what cannot be is refused here: their entries come after the metadata.
  const auto tensors = in.count(kSmallestTensor, "tensors");
  const auto values = in.count(kSmallestValue, "entries of metadata");
  for (std::uint64_t i = 0; i < values; ++i) {
    const auto key = in.text();
    auto value = read_value(in, key);
    if (!header.metadata.emplace(key, std::move(value)).second) damaged(file, "its metadata name {} twice", in_quotes(key));
  }
  const auto alignment = alignment_of(header, file);
  for (std::uint64_t i = 0; i < tensors; ++i) header.tensors.push_back(read_tensor(in));
  // Adding less than an alignment of at most 2^31 to a place within a file cannot overflow.
  header.data_begin = (in.place() + alignment - 1) / alignment * alignment;
  place_tensors(header, alignment, file_size, file);
  return header;
}

}  // namespace

const char* describe(ValueType type) {
  constexpr const char* names[kValueTypes] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "true or false", "text", "list", "u64", "i64", "f64"};
  return names[static_cast<std::uint32_t>(type)];
}

bool Value::numeric() const {
  const auto t = type == ValueType::array ? element : type;
  return t != ValueType::string && t != ValueType::array;
}

double Value::number(std::uint64_t i) const {
  const auto t = type == ValueType::array ? element : type;
  const auto as = [&]<class T>(T value) {
    std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    return static_cast<double>(value);
  };
  switch (t) {
    case ValueType::u8:
    case ValueType::boolean:
      return as(std::uint8_t{});
    case ValueType::i8:
      return as(std::int8_t{});
    case ValueType::u16:
      return as(std::uint16_t{});
    case ValueType::i16:
      return as(std::int16_t{});
    case ValueType::u32:
      return as(std::uint32_t{});
    case ValueType::i32:
      return as(std::int32_t{});
    case ValueType::f32:
      return as(float{});
    case ValueType::u64:
      return as(std::uint64_t{});
    case ValueType::i64:
      return as(std::int64_t{});
    case ValueType::f64:
      return as(double{});
    default:
      return std::numeric_limits<double>::quiet_NaN();
  }
}

std::optional<Header> parse_header(std::shared_ptr<const std::string> first_bytes, std::uint64_t file_size, const std::filesystem::path& file) {
  if (std::string_view(*first_bytes).substr(0, 8) == "version ")
    fail("checkpoint", "{}: is a pointer of git-lfs and not the file itself; run `git lfs pull` in its folder or download it again", file.string());
  try {
    return parse(std::move(first_bytes), file_size, file);
  } catch (const Incomplete&) {
    return std::nullopt;
  }
}

Header read_header(const File& file) {
  for (std::uint64_t size = kFirstPiece;; size *= 2) {
    const auto piece = std::min({size, file.size(), kLargestHeader});
    auto bytes = std::make_shared<std::string>(static_cast<std::size_t>(piece), '\0');
    file.read(0, bytes->data(), bytes->size());
    if (auto header = parse_header(bytes, file.size(), file.path())) return std::move(*header);
    if (piece == kLargestHeader) damaged(file.path(), "its header would have more than {} bytes", kLargestHeader);
  }
}

}  // namespace lquant::checkpoint::gguf
