// A tensor is read in pieces of whole rows, each by one thread: bytes, floats, the undoing of what the converter did, and the rounding
// all happen in a buffer that stays in the cache, so that beside the result there is never more than a few hundred kilobytes.
#include "checkpoint/gguf/load.h"

#include <mlx/allocator.h>
#include <mlx/types/half_types.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "base/error.h"
#include "base/on_threads.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {
namespace {

// Values in a piece: 256 KiB of floats, a second-level cache's size with room for the bytes. A single longer row is a piece of its own.
constexpr std::size_t kPiece = std::size_t{1} << 16;

/// A tensor as a list of rows, and where each goes.
struct Rows {
  std::size_t count = 1, length = 1;           ///< rows, values in one
  std::size_t per_head = 0;                    ///< rows of a head that is to be put in order; 0: rows stay where they are
  std::size_t group = 0, first = 0, kept = 0;  ///< of each `group` rows only [first, first + kept) are wanted; 0: all

  /// Whether row r is wanted, and then its place in the result.
  bool place(std::size_t r, std::size_t& to) const {
    to = r;
    if (per_head > 0) {  // interleaved (0, h, 1, h + 1, …) with h half a head
      const auto in_head = r % per_head;
      to = r - in_head + in_head % 2 * (per_head / 2) + in_head / 2;
    }
    if (group > 0) {
      const auto in_group = r % group;
      if (in_group < first || in_group >= first + kept) return false;
      to = r / group * kept + in_group - first;
    }
    return true;
  }
};

std::size_t elements(const mx::Shape& shape) {
  std::size_t n = 1;
  for (const auto size : shape) n *= static_cast<std::size_t>(size);
  return n;
}

bool halves(Change change) { return change == Change::first_half || change == Change::second_half; }
bool by_head(Change change) { return change == Change::heads || change == Change::kv_heads; }

Rows rows_of(const Wanted& wanted) {
  const auto& shape = wanted.tensor->shape;
  Rows rows;
  // A list of single values (a bias) is so many rows of one, when rows are to move.
  const bool singles = shape.size() == 1 && wanted.change != Change::none && wanted.change != Change::plus_one;
  rows.length = singles || shape.empty() ? 1 : static_cast<std::size_t>(shape.back());
  rows.count = rows.length == 0 ? 0 : elements(shape) / rows.length;
  if (by_head(wanted.change)) rows.per_head = rows.count / static_cast<std::size_t>(wanted.heads);
  if (halves(wanted.change)) {
    rows.group = static_cast<std::size_t>(shape[shape.size() - 2]);
    rows.kept = rows.group / 2;
    rows.first = wanted.change == Change::first_half ? 0 : rows.kept;
  }
  return rows;
}

std::uint16_t bfloat16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // a NaN stays one, whatever its low bits
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void round_to(mx::Dtype dtype, const float* in, std::size_t n, char* out) {
  if (dtype == mx::float32) {
    std::copy(in, in + n, reinterpret_cast<float*>(out));
  } else if (dtype == mx::bfloat16) {
    std::transform(in, in + n, reinterpret_cast<std::uint16_t*>(out), bfloat16_bits);
  } else {
    std::transform(in, in + n, reinterpret_cast<mx::float16_t*>(out), [](float v) { return static_cast<mx::float16_t>(v); });
  }
}

}  // namespace

void check(const Wanted& wanted, const std::string& name, const std::filesystem::path& file) {
  const auto& tensor = *wanted.tensor;
  const auto refuse = [&](const char* why) {
    fail("checkpoint", "{}: tensor {} {}; the file is damaged, or its converter did what lquant does not know: convert the original model again",
         file.string(), in_quotes(name), why);
  };
  if (!tensor.type->decode && wanted.change != Change::none) refuse("holds whole numbers where weights are needed");
  if (tensor.shape.size() == 1 && tensor.type->elements > 1 && by_head(wanted.change)) refuse("is a packed bias");
  if (by_head(wanted.change)) {
    const auto rows = wanted.heads < 1 ? Rows{} : rows_of(wanted);
    if (wanted.heads < 1 || rows.count % static_cast<std::size_t>(wanted.heads) != 0 || rows.per_head % 2 != 0)
      refuse("cannot be divided into the heads that the metadata name");
  }
  if (halves(wanted.change) && (tensor.shape.size() < 2 || tensor.shape[tensor.shape.size() - 2] % 2 != 0)) refuse("has no two halves");
}

mx::Shape shape_of(const Wanted& wanted) {
  auto shape = wanted.tensor->shape;
  if (halves(wanted.change)) shape[shape.size() - 2] /= 2;
  return shape;
}

mx::Dtype integer_dtype(const BlockType& type) {
  return type.bytes == 1 ? mx::int8 : type.bytes == 2 ? mx::int16 : type.bytes == 4 ? mx::int32 : mx::int64;
}

mx::array read(const File& file, const Wanted& wanted, mx::Dtype dtype) {
  const auto& tensor = *wanted.tensor;
  const auto& type = *tensor.type;
  const auto shape = shape_of(wanted);
  const auto item = mx::size_of(dtype);
  auto data = mx::allocator::malloc(elements(shape) * item);
  auto buffer = data.buffer();
  auto* out = static_cast<char*>(buffer.raw_ptr());
  const auto rows = rows_of(wanted);
  if (tensor.begin == tensor.end) return mx::array(std::move(data), shape, dtype);
  if (!type.decode) {
    file.read(tensor.begin, out, static_cast<std::size_t>(tensor.end - tensor.begin));
    return mx::array(std::move(data), shape, dtype);
  }

  const auto row_bytes = rows.length / type.elements * type.bytes;
  const auto at_once = std::max<std::size_t>(1, kPiece / rows.length);
  on_threads((rows.count + at_once - 1) / at_once, [&](std::size_t piece) {
    const auto begin = piece * at_once, count = std::min(at_once, rows.count - begin);
    std::vector<std::uint8_t> bytes(count * row_bytes);
    std::vector<float> values(count * rows.length);
    file.read(tensor.begin + begin * row_bytes, bytes.data(), bytes.size());
    type.decode(bytes.data(), values.size() / type.elements, values.data());
    if (wanted.change == Change::plus_one)
      for (auto& value : values) value -= 1;
    std::size_t to = 0;
    for (std::size_t r = 0; r < count; ++r)
      if (rows.place(begin + r, to)) round_to(dtype, values.data() + r * rows.length, rows.length, out + to * rows.length * item);
  });
  return mx::array(std::move(data), shape, dtype);
}

}  // namespace lquant::checkpoint::gguf
