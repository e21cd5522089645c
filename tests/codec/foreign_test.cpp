// What the tools themselves make of weights that they packed (fixtures/foreign.json, made by fixtures/make_foreign.py) must come out of decode.
#include "codec/foreign.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

#include "base/error.h"
#include "base/json.h"
#include "codec/foreign_decode.h"
#include "codec/quantize.h"
#include "kernels/primitive.h"

namespace lquant::codec {
namespace {

using nlohmann::json;

std::string from_base64(const std::string& text) {
  static const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  unsigned bits = 0, value = 0;
  for (char c : text) {
    if (c == '=') break;
    value = value << 6 | static_cast<unsigned>(letters.find(c));
    if ((bits += 6) >= 8) bytes += static_cast<char>(value >> (bits -= 8));
  }
  return bytes;
}

mx::array array_of(const json& entry) {
  static const std::map<std::string, mx::Dtype> dtypes{{"uint8", mx::uint8},    {"int8", mx::int8},       {"int32", mx::int32},
                                                       {"int64", mx::int64},    {"float16", mx::float16}, {"bfloat16", mx::bfloat16},
                                                       {"float32", mx::float32}};
  const auto dtype = dtypes.at(entry["dtype"]);
  mx::Shape shape;
  for (int d : entry["shape"]) shape.push_back(d);
  const auto bytes = from_base64(entry["data"]);
  auto made = mx::array(reinterpret_cast<const std::uint8_t*>(bytes.data()), {static_cast<int>(bytes.size())}, mx::uint8);
  return mx::reshape(mx::view(made, dtype), shape);
}

/// Equal byte for byte.
void expect_same(mx::array a, mx::array b) {
  ASSERT_EQ(a.shape(), b.shape());
  ASSERT_EQ(a.dtype(), b.dtype());
  a = mx::contiguous(a);
  b = mx::contiguous(b);
  mx::eval(a, b);
  ASSERT_EQ(std::memcmp(a.data<char>(), b.data<char>(), a.nbytes()), 0);
}

struct Packing {
  std::string name;
  Foreign foreign;
  int out, in, stack;
  std::map<std::string, mx::array> tensors;
  mx::array expected;

  TensorOf tensor() const {
    return [this](const std::string& suffix) -> const mx::array* {
      const auto found = tensors.find(suffix);
      return found == tensors.end() ? nullptr : &found->second;
    };
  }
  StoredOf stored() const {
    return [this](const std::string& suffix) -> std::optional<Stored> {
      const auto found = tensors.find(suffix);
      if (found == tensors.end()) return std::nullopt;
      return Stored{found->second.shape(), found->second.dtype()};
    };
  }
  mx::array decoded(mx::Dtype dtype) const { return decode(foreign, "a.b", tensor(), out, in, dtype, stack); }
};

const std::vector<Packing>& packings() {
  static const auto all = [] {
    std::ifstream file(LQUANT_SOURCE_DIR "/tests/codec/fixtures/foreign.json");
    std::stringstream text;
    text << file.rdbuf();
    std::vector<Packing> made;
    for (const auto& c : parse_json(text.str())) {
      std::map<std::string, mx::array> tensors;
      for (const auto& [suffix, entry] : c["tensors"].items()) tensors.emplace(suffix, array_of(entry));
      made.push_back(
          {c["name"], *foreign_of({{"quantization_config", c["config"]}}), c["out"], c["in"], c["stack"], tensors, array_of(c["expected"])});
    }
    return made;
  }();
  return all;
}

const Packing& packing(const std::string& name) {
  for (const auto& p : packings())
    if (p.name == name) return p;
  throw std::invalid_argument("no fixture " + name);
}

std::string message(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) {
    return e.what();
  }
  return "no Error";
}

TEST(Foreign, DecodesAsTheToolsDo) {
  ASSERT_EQ(packings().size(), 27u);
  for (const auto& p : packings()) {
    SCOPED_TRACE(p.name);
    EXPECT_TRUE(check_shapes(p.foreign, "a.b", p.stored(), p.out, p.in, p.stack));
    expect_same(p.decoded(p.expected.dtype()), p.expected);
  }
}

TEST(Foreign, TellsTheShapeByTheCodes) {
  for (const auto& p : packings()) {
    SCOPED_TRACE(p.name);
    const auto& scheme = p.foreign.schemes[0];
    auto wanted = p.expected.shape();
    if (scheme.layout == Layout::packed_ints) {  // words are filled
      const int in_word = 32 / scheme.bits;
      wanted.back() = (wanted.back() + in_word - 1) / in_word * in_word;
    }
    EXPECT_EQ(shape_of_weight(p.foreign, "a.b", p.stored()), wanted);
  }
}

TEST(Foreign, DecodesAlikeWithoutKernelsOfOurs) {
  for (const auto& p : packings()) {
    SCOPED_TRACE(p.name);
    kernels::MlxOpsOnly none;
    auto made = p.decoded(p.expected.dtype());
    expect_same(made, p.expected);
  }
}

TEST(Foreign, TakesFp8NumbersThatTheReaderHasDecoded) {
  for (const auto& p : packings()) {
    auto other = p;
    for (const char* suffix : {".weight", ".weight_scale"})
      if (const auto found = other.tensors.find(suffix);
          found != other.tensors.end() && found->second.dtype() == mx::uint8 && p.name.find("mxfp4") == std::string::npos)
        found->second = mx::from_fp8(found->second, mx::bfloat16);
    SCOPED_TRACE(p.name);
    expect_same(other.decoded(p.expected.dtype()), p.expected);
  }
}

TEST(Foreign, RoundsOnceToAnotherDtype) {
  const auto& p = packing("fp8 of the tensor");
  const auto exact = mx::multiply(mx::from_fp8(p.tensors.at(".weight"), mx::float32), p.tensors.at(".weight_scale_inv"));
  expect_same(p.decoded(mx::float32), exact);
  expect_same(p.decoded(mx::float16), mx::astype(exact, mx::float16));
  EXPECT_THROW(p.decoded(mx::int32), std::invalid_argument);
}

TEST(Foreign, GivesMlxTheSameCodes) {
  int affine = 0, mxfp4 = 0;
  for (const auto& p : packings()) {
    SCOPED_TRACE(p.name);
    const auto same = as_mlx(p.foreign, "a.b", p.tensor(), p.out, p.in, p.stack);
    if (!same) continue;
    (same->format.mode == Mode::affine ? affine : mxfp4) += 1;
    const auto dense = dequantize(same->packed, same->format, p.expected.dtype());
    if (p.foreign.schemes[0].layout != Layout::packed_ints) {
      expect_same(dense, p.expected);
    } else {  // the biases of mlx_lm's own loaders; scale · code + bias against (code − zero) · scale: each rounded to the scale's dtype, at most
              // half a unit of |scale · code|
      expect_same(*same->packed.biases,
                  mx::array(p.foreign.schemes[0].bits == 4 ? -8.0f : -128.0f, p.expected.dtype()) * p.tensors.at(".weight_scale"));
      const float unit = p.expected.dtype() == mx::bfloat16 ? 0x1p-8f : 0x1p-11f;
      const auto scales = mx::astype(mx::max(p.tensors.at(".weight_scale")), mx::float32).item<float>();
      const auto off = mx::max(mx::abs(mx::subtract(mx::astype(dense, mx::float32), mx::astype(p.expected, mx::float32)))).item<float>();
      EXPECT_LE(off, 2 * unit * scales * static_cast<float>(1 << same->format.bits));
    }
  }
  EXPECT_EQ(affine, 5);  // AWQ thrice, symmetric compressed-tensors in groups of 32 twice
  EXPECT_EQ(mxfp4, 2);
}

TEST(Foreign, KeepsFp8BytesWithPowersOfTwoAsMxfp8) {
  const auto w = mx::random::normal({40, 64}, mx::float32, mx::random::key(3));
  const auto made = mx::quantize(w, 32, 8, "mxfp8");
  const auto bytes = mx::view(made[0], mx::uint8);
  const auto foreign = *foreign_of({{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {32, 32}}, {"scale_fmt", "ue8m0"}}}});
  for (const char* suffix : {".weight_scale_inv", ".scale"}) {
    const Packing rows{
        "rows", foreign, 40, 64, 0, {{".weight", bytes}, {suffix, made[1]}}, mx::dequantize(made[0], made[1], std::nullopt, 32, 8, "mxfp8")};
    expect_same(rows.decoded(mx::bfloat16), mx::astype(rows.expected, mx::bfloat16));
    const auto same = as_mlx(foreign, "a.b", rows.tensor(), 40, 64);
    ASSERT_TRUE(same);
    EXPECT_EQ(same->format, default_format(Mode::mxfp8));
    expect_same(same->packed.codes, made[0]);
    expect_same(same->packed.scales, made[1]);
  }
  const auto tiles = mx::slice(made[1], {0, 0}, {40, 2}, {32, 1});  // rows 0 and 32: one scale for each 32 × 32
  const Packing p{"tiles", foreign, 40, 64, 0, {{".weight", bytes}, {".scale", tiles}}, w};
  const auto same = as_mlx(foreign, "a.b", p.tensor(), 40, 64);
  ASSERT_TRUE(same);
  expect_same(dequantize(same->packed, same->format, mx::bfloat16), p.decoded(mx::bfloat16));
}

TEST(Foreign, IgnoresScalesOfPaddedBlocks) {
  auto p = packing("fp8 in ragged blocks");
  p.tensors.at(".weight_scale_inv") = mx::concatenate({p.tensors.at(".weight_scale_inv"), mx::full({1, 2}, 7.0f)}, 1);
  expect_same(p.decoded(mx::bfloat16), p.expected);
  p.foreign.schemes[0].block_rows = p.foreign.schemes[0].block_columns = 0;  // the size of blocks is a guess: nothing may be left over
  EXPECT_THROW(p.decoded(mx::bfloat16), Error);
}

TEST(Foreign, ReadsModelOptAndFbgemm) {
  const auto& ct = packing("compressed-tensors: nvfp4");
  auto nv = ct;
  nv.foreign = *foreign_of({{"quantization_config", {{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}, {"group_size", 16}}}});
  nv.tensors = {
      {".weight", ct.tensors.at(".weight_packed")}, {".weight_scale", ct.tensors.at(".weight_scale")}, {".weight_scale_2", mx::array(0.5f)}};
  const auto scales = mx::repeat(mx::from_fp8(ct.tensors.at(".weight_scale"), mx::float32) * mx::array(0.5f), 16, -1);
  expect_same(nv.decoded(mx::float32), foreign::unpack_e2m1(ct.tensors.at(".weight_packed"), mx::float32) * scales);

  const auto& tensor = packing("fp8 of the tensor");
  auto rows = tensor;
  rows.foreign = *foreign_of({{"quantization_config", {{"quant_method", "fbgemm_fp8"}}}});
  const auto scale = mx::reshape(mx::arange(1, 7, mx::float32), {6, 1}) / mx::array(3.0f);
  for (const auto& shape : {mx::Shape{6, 1}, mx::Shape{6}}) {
    rows.tensors = {{".weight", tensor.tensors.at(".weight")}, {".weight_scale", mx::reshape(scale, shape)}};
    expect_same(rows.decoded(mx::float32), mx::from_fp8(tensor.tensors.at(".weight"), mx::float32) * scale);
  }
}

// A stack under a name without ".weight", of matrices whose halves have a scale each.
TEST(Foreign, ReadsNvfp4WithAScaleForEachPartOfAStack) {
  const auto foreign = *foreign_of({{"quantization_config", {{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}}}});
  const auto bytes = mx::random::randint(0, 256, {3, 6, 16}, mx::uint8, mx::random::key(1));
  const auto scales = mx::to_fp8(mx::random::uniform(mx::array(0.5f), mx::array(2.0f), {3, 6, 2}, mx::float32, mx::random::key(2)));
  const auto whole = mx::array({1.0f, 2.0f, 0.3f, 0.7f, 5.0f, 0.01f}, {3, 2});
  Packing p{"stack", foreign, 6, 32, 3, {{"", bytes}, {"_weight_scale", scales}, {"_weight_scale_2", whole}}, bytes};
  const auto numbers = [&](const mx::array& all) {
    return mx::multiply(foreign::unpack_e2m1(bytes, mx::float32), mx::repeat(mx::multiply(mx::from_fp8(scales, mx::float32), all), 16, -1));
  };
  EXPECT_EQ(shape_of_weight(foreign, "a.b", p.stored()), (mx::Shape{3, 6, 32}));
  expect_same(p.decoded(mx::float32), numbers(mx::reshape(mx::repeat(whole, 3, -1), {3, 6, 1})));
  p.tensors.at("_weight_scale_2") = mx::array({1.0f, 2.0f, 0.3f}, {3});
  expect_same(p.decoded(mx::float32), numbers(mx::array({1.0f, 2.0f, 0.3f}, {3, 1, 1})));
  p.tensors.at("_weight_scale_2") = mx::ones({3, 4});  // six rows have no four equal parts
  EXPECT_NE(message([&] { p.decoded(mx::float32); }).find("_weight_scale_2 has the shape [3, 4]"), std::string::npos);
}

TEST(Foreign, ReadsShuffledGroupsOfCompressedTensors) {
  auto p = packing("compressed-tensors: 4 bits, groups of 32");
  p.foreign.schemes[0].act_order = true;
  p.tensors.emplace(".weight_g_idx", mx::remainder(mx::arange(64, mx::int32), mx::array(2)));
  const auto codes = mx::subtract(mx::astype(foreign::unpack(p.tensors.at(".weight_packed"), 4, 64), mx::bfloat16), mx::array(8, mx::bfloat16));
  expect_same(p.decoded(mx::bfloat16), codes * mx::tile(p.tensors.at(".weight_scale"), {1, 32}));
  EXPECT_FALSE(as_mlx(p.foreign, "a.b", p.tensor(), 4, 64));
  p.tensors.at(".weight_g_idx") = mx::full({64}, -1, mx::int32);  // in order
  expect_same(p.decoded(mx::bfloat16), p.expected);
}

TEST(Foreign, LeavesDenseLinearsAsTheyAre) {
  for (const auto& p : packings()) {
    SCOPED_TRACE(p.name);
    auto dense = p;
    dense.stack = 0;
    const auto w = mx::random::normal({p.out, p.in}, mx::bfloat16);
    dense.tensors = {{".weight", w}};
    EXPECT_FALSE(check_shapes(dense.foreign, "a.b", dense.stored(), p.out, p.in));
    expect_same(dense.decoded(mx::bfloat16), w);
    EXPECT_FALSE(as_mlx(dense.foreign, "a.b", dense.tensor(), p.out, p.in));
    dense.tensors.clear();
    EXPECT_NE(message([&] { dense.decoded(mx::bfloat16); }).find("is missing"), std::string::npos);
    dense.tensors = {{".weight", mx::zeros({p.out, p.in + 1}, mx::bfloat16)}};
    EXPECT_NE(message([&] { dense.decoded(mx::bfloat16); }).find("has the shape"), std::string::npos);
  }
}

TEST(Foreign, NamesTheTensorsInOrder) {
  EXPECT_EQ(foreign_tensor_names(packing("GPTQ, 4 bits").foreign, "m.q"),
            (std::vector<std::string>{"m.q.qweight", "m.q.scales", "m.q.qzeros", "m.q.g_idx", "m.q.weight"}));
  EXPECT_EQ(foreign_tensor_names(packing("gpt-oss").foreign, "m.e"), (std::vector<std::string>{"m.e_blocks", "m.e_scales", "m.e.weight"}));
  for (const auto& p : packings()) {
    const auto names = foreign_tensor_names(p.foreign, "m");
    for (const auto& [suffix, tensor] : p.tensors) EXPECT_NE(std::find(names.begin(), names.end(), "m" + suffix), names.end()) << p.name << suffix;
    for (const auto& unused : foreign_unused_names("m")) EXPECT_EQ(std::find(names.begin(), names.end(), unused), names.end());
  }
}

// Whatever one tensor is exchanged for, the answer is an Error or a matrix of the right shape; the sanitizers watch the reads.
TEST(Foreign, RefusesTensorsThatDisagree) {
  const std::vector<mx::Dtype> dtypes{mx::uint8, mx::int8, mx::int32, mx::int64, mx::float32, mx::bfloat16};
  for (const auto& p : packings()) {
    SCOPED_TRACE(p.name);
    int refused = 0;
    for (const auto& [suffix, tensor] : p.tensors) {
      std::vector<mx::Shape> shapes{{}, {0}, {1}, {7}, {3, 0}, {1 << 20, 1}, tensor.shape()};
      for (std::size_t axis = 0; axis < tensor.ndim(); ++axis)
        for (int change : {-1, 1}) {
          shapes.push_back(tensor.shape());
          shapes.back()[axis] += change;
        }
      if (tensor.ndim() == 2) shapes.push_back({tensor.shape(1), tensor.shape(0)});
      for (const auto& shape : shapes) {
        for (const auto dtype : dtypes) {
          auto other = p;
          other.tensors.at(suffix) = mx::full(shape, 3, dtype);
          try {
            auto made = other.decoded(mx::bfloat16);
            made.eval();
            EXPECT_EQ(made.shape(), p.expected.shape());
            if (auto same = as_mlx(other.foreign, "a.b", other.tensor(), p.out, p.in, p.stack)) mx::eval(same->packed.codes, same->packed.scales);
          } catch (const Error& e) {
            ++refused;
            EXPECT_NE(std::string(e.what()).find("a.b"), std::string::npos) << e.what();
            EXPECT_TRUE(std::string(e.what()).starts_with("[codec] "));
          }
        }
      }
      auto without = p;
      without.tensors.erase(suffix);
      try {
        without.decoded(mx::bfloat16).eval();
      } catch (const Error&) {
        ++refused;
      }
    }
    EXPECT_GT(refused, 20);
    EXPECT_THROW(decode(p.foreign, "a.b", p.tensor(), p.out + 1, p.in, mx::bfloat16, p.stack), Error);
    EXPECT_THROW(decode(p.foreign, "a.b", p.tensor(), p.out, p.in + 300, mx::bfloat16, p.stack), Error);
    EXPECT_THROW(decode(p.foreign, "a.b", p.tensor(), 2147483647, 2147483647, mx::bfloat16, p.stack), Error);
    EXPECT_THROW(decode(p.foreign, "a.b", p.tensor(), 0, p.in, mx::bfloat16, p.stack), std::invalid_argument);
    EXPECT_THROW(decode(p.foreign, "a.b", p.tensor(), p.out, p.in, mx::bfloat16, p.stack + 5), Error);
  }
}

TEST(Foreign, RefusesGroupsThatAreNotThere) {
  auto p = packing("GPTQ, 4 bits, act-order");
  for (int bad : {-1, 4, 2147483647}) {
    p.tensors.at(".g_idx") = mx::where(mx::equal(mx::arange(32), mx::array(5)), mx::array(bad), mx::array(0));
    EXPECT_EQ(
        message([&] { p.decoded(mx::float16); }),
        fmt::format("[codec] a.b.g_idx names group {} where there are 4; the checkpoint is damaged or config.json is another model's; get it again",
                    bad));
  }
}

TEST(Foreign, SaysWhatIsWrong) {
  auto p = packing("fp8 in ragged blocks");
  p.tensors.at(".weight_scale_inv") = mx::ones({2, 2});
  EXPECT_EQ(message([&] { check_shapes(p.foreign, "a.b", p.stored(), 3, 260); }),
            "[codec] a.b.weight_scale_inv has the shape [2, 2], but its linear of 3 outputs and 260 inputs needs one scale, one for each output, or "
            "[1, 3] for "
            "blocks of 128 × 128; the checkpoint is damaged or config.json is another model's; get it again");
  auto q = packing("compressed-tensors: 4 bits, rows");
  q.tensors.at(".weight_shape") = mx::array({4, 45}, mx::int64);
  EXPECT_EQ(
      message([&] { q.decoded(mx::bfloat16); }),
      "[codec] a.b.weight_shape is not [4, 44], the shape of its linear; the checkpoint is damaged or config.json is another model's; get it again");
}

}  // namespace
}  // namespace lquant::codec
