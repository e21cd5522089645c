// From bytes in a file to an array. Dtypes that MLX has are read where they shall lie; the three that it lacks pass through a small
// block and are converted on the way, so that no tensor is ever held twice.
#include "checkpoint/tensor.h"

#include <mlx/allocator.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/on_threads.h"

namespace lquant::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian, and are read as they lie");

constexpr std::size_t kBlock = std::size_t{1} << 20;  // bytes converted at a time: the second-level cache of the smallest machines

template <class From, class To, class Convert>
void read_converted(const File& file, const TensorInfo& info, To* out, Convert convert) {
  std::vector<From> block(std::min<std::size_t>(kBlock, info.end - info.begin) / sizeof(From));
  for (auto place = info.begin; place < info.end;) {
    const auto n = std::min<std::size_t>(block.size(), (info.end - place) / sizeof(From));
    file.read(place, block.data(), n * sizeof(From));
    out = std::transform(block.data(), block.data() + n, out, convert);
    place += n * sizeof(From);
  }
}

// Counts within a block in the element's own width, so that the loop keeps whole vectors; 4096 fits in 16 bits.
template <class Bits>
std::size_t count_full_exponents(const Bits* bits, std::size_t size, Bits exponent) {
  std::size_t count = 0;
  for (std::size_t begin = 0; begin < size; begin += 4096) {
    Bits in_block = 0;
    for (std::size_t i = begin; i < std::min(begin + 4096, size); ++i) in_block = static_cast<Bits>(in_block + ((bits[i] & exponent) == exponent));
    count += in_block;
  }
  return count;
}

/// The same on several threads: a model's weights are read faster than one core looks at them.
template <class Bits>
std::size_t count_on_threads(const Bits* bits, std::size_t size, Bits exponent) {
  constexpr std::size_t kPart = std::size_t{1} << 21;
  std::atomic<std::size_t> count{0};
  on_threads((size + kPart - 1) / kPart,
             [&](std::size_t i) { count += count_full_exponents(bits + i * kPart, std::min(kPart, size - i * kPart), exponent); });
  return count;
}

// IEEE formats, and bfloat16, mark NaN and infinity by an exponent of ones.
std::size_t count_not_finite(const mx::array& value) {
  const auto size = value.size();
  switch (value.dtype().val()) {
    case mx::Dtype::Val::float16:
      return count_on_threads(reinterpret_cast<const std::uint16_t*>(value.data<mx::float16_t>()), size, std::uint16_t{0x7c00});
    case mx::Dtype::Val::bfloat16:
      return count_on_threads(reinterpret_cast<const std::uint16_t*>(value.data<mx::bfloat16_t>()), size, std::uint16_t{0x7f80});
    case mx::Dtype::Val::float32:
      return count_on_threads(reinterpret_cast<const std::uint32_t*>(value.data<float>()), size, std::uint32_t{0x7f800000});
    case mx::Dtype::Val::float64:
      return count_on_threads(reinterpret_cast<const std::uint64_t*>(value.data<double>()), size, std::uint64_t{0x7ff0000000000000});
    default:
      return 0;
  }
}

// Value of a code with `mantissa` bits of fraction and the rest, less the sign, of exponent. E5M2 follows IEEE 754; E4M3 has no
// infinity and a NaN only where all bits are ones.
float fp8_value(Fp8 format, unsigned code) {
  const int mantissa = format == Fp8::e4m3 ? 3 : 2;
  const int bias = format == Fp8::e4m3 ? 7 : 15;
  const int exponent = static_cast<int>(code & 0x7f) >> mantissa;
  const int fraction = static_cast<int>(code & ((1u << mantissa) - 1));
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  if (format == Fp8::e4m3 ? (code & 0x7f) == 0x7f : exponent == 31 && fraction != 0) {
    return std::copysign(std::numeric_limits<float>::quiet_NaN(), sign);
  }
  if (format == Fp8::e5m2 && exponent == 31) return sign * std::numeric_limits<float>::infinity();
  const int hidden = exponent > 0 ? 1 << mantissa : 0;
  return sign * std::ldexp(static_cast<float>(hidden + fraction), std::max(exponent, 1) - bias - mantissa);
}

std::array<std::uint16_t, 256> table_of(Fp8 format) {
  std::array<std::uint16_t, 256> table{};
  // The upper half of a float32's bits is the bfloat16 that truncates it; these values have at most 4 significant bits, so none are lost.
  for (unsigned code = 0; code < 256; ++code) table[code] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(fp8_value(format, code)) >> 16);
  return table;
}

}  // namespace

const std::array<std::uint16_t, 256>& bfloat16_of(Fp8 format) {
  static const auto e4m3 = table_of(Fp8::e4m3), e5m2 = table_of(Fp8::e5m2);
  return format == Fp8::e4m3 ? e4m3 : e5m2;
}

mx::array read_tensor(const File& file, const TensorInfo& info) {
  const auto elements = static_cast<std::size_t>(info.end - info.begin) / stored_bytes(info.stored);
  auto data = mx::allocator::malloc(elements * mx::size_of(info.dtype));
  auto buffer = data.buffer();
  void* out = buffer.raw_ptr();
  if (elements == 0) {
    // nothing to read, and out may be null
  } else if (info.stored == "F64") {
    read_converted<double>(file, info, static_cast<float*>(out), [](double v) { return static_cast<float>(v); });
  } else if (info.stored == "F8_E4M3" || info.stored == "F8_E5M2") {
    const auto& table = bfloat16_of(info.stored == "F8_E4M3" ? Fp8::e4m3 : Fp8::e5m2);
    read_converted<std::uint8_t>(file, info, static_cast<std::uint16_t*>(out), [&](std::uint8_t code) { return table[code]; });
  } else {
    file.read(info.begin, out, static_cast<std::size_t>(info.end - info.begin));
  }
  if (info.dtype == mx::bool_) {
    auto* bytes = static_cast<std::uint8_t*>(out);
    std::transform(bytes, bytes + elements, bytes, [](std::uint8_t b) { return static_cast<std::uint8_t>(b != 0); });
  }
  return mx::array(std::move(data), info.shape, info.dtype);
}

void check_finite(const mx::array& value, const std::string& name, const std::filesystem::path& file) {
  if (!mx::issubdtype(value.dtype(), mx::floating)) return;
  const auto rows = mx::contiguous(value);
  mx::eval(rows);
  const auto count = count_not_finite(rows);
  if (count > 0) {
    fail("checkpoint", "{}: tensor {} holds {} values of {} that are not finite (NaN or infinity); the file is damaged: download it again",
         file.string(), in_quotes(name), count, value.size());
  }
}

}  // namespace lquant::checkpoint
