// Hostile and damaged GGUF files: each is refused with a sentence that names the file, the fault and the mend.
#include "checkpoint/gguf/header.h"

#include <random>

#include "fuzz/gguf_target.h"
#include "gguf_bytes.h"
#include "support.h"

namespace lquant::checkpoint {
namespace {

using lquant::fuzz::gguf_target;
using lquant::testing::error_of;
using lquant::testing::expect_sentence;
using lquant::testing::Folder;
using lquant::testing::Gguf;
using lquant::testing::small_model;

struct Hostile {
  std::string name;
  std::string bytes;
  std::string fault;
  std::string mend = "download it again";
};

void PrintTo(const Hostile& file, std::ostream* out) { *out << file.name; }

std::string with_version(std::uint32_t version) {
  Gguf file;
  file.version = version;
  return file.bytes();
}

std::string big_endian() {
  Gguf file;
  file.version = 0x03000000;
  return file.bytes();
}

std::string array(std::uint32_t element, std::uint64_t count, const std::string& rest = "") {
  return Gguf::number(std::uint32_t{9}) + Gguf::number(element) + Gguf::number(count) + rest;
}

std::string one(std::vector<std::uint64_t> shape, std::uint32_t type, std::uint64_t offset, std::size_t bytes) {
  Gguf file;
  file.tensor("w", std::move(shape), type, offset);
  file.data = std::string(bytes, 'x');
  return file.bytes();
}

std::vector<Hostile> hostile_files() {
  const auto sound = one({4}, 0, 0, 16);
  Gguf twice_key, twice_tensor, overlap, many_values, many_tensors, wrong_alignment, zero_alignment, aligned;
  twice_key.value("a", Gguf::u32(1)).value("a", Gguf::u32(2));
  twice_tensor.ones("w", {8}).ones("w", {8});
  overlap.ones("a", {16});
  overlap.tensor("b", {8}, 0, 32);
  many_values.more_values = std::uint64_t{1} << 60;
  many_tensors.more_tensors = std::uint64_t{1} << 60;
  wrong_alignment.value("general.alignment", Gguf::u32(24));
  zero_alignment.value("general.alignment", Gguf::u32(0));
  aligned.value("general.alignment", Gguf::u32(64)).ones("a", {8}).ones("b", {8});
  const auto value = [](const std::string& typed) {
    Gguf file;
    return file.value("key", typed).bytes();
  };
  const auto longest = ~std::uint64_t{0};
  return {
      {"empty", "", "is cut short"},
      {"three_bytes", "GGU", "is cut short"},
      {"other_magic", "GGML" + std::string(60, '\0'), "does not start with \"GGUF\""},
      {"git_lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "is a pointer of git-lfs", "git lfs pull"},
      {"version_0", with_version(0), "is a GGUF file of version 0", "a newer lquant"},
      {"version_1", with_version(1), "is a GGUF file of version 1", "convert the original model"},
      {"version_4", with_version(4), "is a GGUF file of version 4; lquant reads 2 and 3", "a newer lquant"},
      {"big_endian", big_endian(), "is a big-endian GGUF file", "gguf-convert-endian"},
      {"many_values", many_values.bytes(), "entries of metadata, more than fit"},
      {"many_tensors", many_tensors.bytes(), "tensors, more than fit"},
      {"cut_in_values", small_model("maple").head().substr(0, 700), "is cut short: its header goes on past byte 700"},
      {"key_too_long", Gguf{}.bytes().substr(0, 16) + Gguf::number(std::uint64_t{1}) + Gguf::number(longest) + std::string(64, 'x'),
       "bytes of text in one place, more than fit"},
      {"key_twice", twice_key.bytes(), "its metadata name \"a\" twice"},
      {"unknown_value_type", value(Gguf::number(std::uint32_t{13}) + std::string(8, '\0')), "the value of \"key\" has type 13"},
      {"text_too_long", value(Gguf::number(std::uint32_t{8}) + Gguf::number(longest - 7)), "bytes of text in one place, more than fit"},
      {"array_too_long", value(array(4, longest / 2)), "numbers in one list, more than fit"},
      {"array_wraps", value(array(10, std::uint64_t{1} << 61)), "numbers in one list, more than fit"},
      {"array_of_many_texts", value(array(8, std::uint64_t{1} << 40)), "texts in one list, more than fit"},
      {"array_of_unknown", value(array(99, 1, std::string(64, '\0'))), "has type 99"},
      {"array_of_many_arrays", value(array(9, std::uint64_t{1} << 59)), "arrays in one, more than fit"},
      {"arrays_too_deep",
       value(array(
           9, 1, Gguf::number(std::uint32_t{9}) + Gguf::number(std::uint64_t{1}) + Gguf::number(std::uint32_t{9}) + Gguf::number(std::uint64_t{0}))),
       "nests arrays more than 2 deep"},
      {"alignment_24", wrong_alignment.bytes(), "general.alignment is no power of two"},
      {"alignment_0", zero_alignment.bytes(), "general.alignment is no power of two"},
      {"data_not_aligned", aligned.bytes(64), "tensor \"b\" do not start at a multiple of 64"},
      {"unknown_type", one({4}, 77, 0, 16), "tensor \"w\" is of type number 77, which lquant does not read",
       "get a file in one of these: F32, F16, Q4_0"},
      {"type_not_read", one({256}, 16, 0, 66), "tensor \"w\" is of type IQ2_XXS, which lquant does not read", "get a file in one of these"},
      {"five_dimensions", one({1, 1, 1, 1, 4}, 0, 0, 16), "tensor \"w\" has 5 dimensions"},
      {"huge_dimension", one({std::uint64_t{1} << 31}, 0, 0, 16), "a dimension of tensor \"w\" is 2147483648", "cannot be used"},
      {"shape_overflows", one({2147483647, 2147483647, 2147483647}, 0, 0, 16), "has more elements than can be counted"},
      {"shape_of_zero_overflows", one({2147483647, 2147483647, 2147483647, 0}, 0, 0, 16), "has more elements than can be counted"},
      {"half_a_block", one({48}, 2, 0, 27), "rows of 48 values, which are no whole blocks of 32 (Q4_0)"},
      {"offset_wraps", one({4}, 0, longest - 31, 16), "lie beyond any file"},
      {"offset_beyond_file", one({4}, 0, 1024, 16), "is cut short: tensor \"w\" ends at byte"},
      {"cut_short", sound.substr(0, sound.size() - 1), "is cut short: tensor \"w\" ends at byte"},
      {"tensor_twice", twice_tensor.bytes(), "it holds tensor \"w\" twice"},
      {"overlap", overlap.bytes(), "tensor \"b\" overlaps the one before it"},
  };
}

class HostileGguf : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileGguf, IsRefusedWithASentence) {
  const Folder folder;
  folder.put("model.gguf", GetParam().bytes);
  const auto message = error_of([&] { gguf::read_header(File::open(folder / "model.gguf")); });
  expect_sentence(message, {(folder / "model.gguf").string(), GetParam().fault, GetParam().mend});
  EXPECT_LT(message.size(), 700u);
  for (const unsigned char c : message) EXPECT_GE(c, 0x20);
  EXPECT_FALSE(gguf_target(GetParam().bytes));
}

INSTANTIATE_TEST_SUITE_P(Gguf, HostileGguf, ::testing::ValuesIn(hostile_files()), [](const auto& info) { return info.param.name; });

TEST(GgufHeader, IsReadInFull) {
  Gguf file;
  file.version = 2;
  file.value("general.alignment", Gguf::u32(64))
      .value("a.text", Gguf::string("words"))
      .value("a.list", Gguf::strings({"x", "", "yz"}))
      .value("a.float", Gguf::f32(0.5f))
      .value("a.nested", array(9, 1, Gguf::number(std::uint32_t{4}) + Gguf::number(std::uint64_t{1}) + Gguf::number(7)))
      .value("a.bytes", array(1, 3, std::string("\x01\xff\x80", 3)));
  file.tensor("w", {32, 3, 2}, 8, 0).tensor("empty", {0, 5}, 0, 0).tensor("scalar", {}, 0, 256);
  file.data = std::string(260, 'd');
  const Folder folder;
  folder.put("x.gguf", file.bytes(64));
  const auto header = gguf::read_header(File::open(folder / "x.gguf"));
  EXPECT_EQ(header.version, 2u);
  EXPECT_EQ(header.data_begin % 64, 0u);
  EXPECT_EQ(header.metadata.at("a.text").bytes, "words");
  EXPECT_EQ(header.metadata.at("a.list").strings, (std::vector<std::string_view>{"x", "", "yz"}));
  EXPECT_EQ(header.metadata.at("a.float").number(), 0.5);
  EXPECT_EQ(header.metadata.at("a.bytes").number(1), -1.0);
  EXPECT_EQ(header.metadata.at("a.bytes").number(2), -128.0);
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].shape, (gguf::mx::Shape{2, 3, 32}));
  EXPECT_STREQ(header.tensors[0].type->name, "Q8_0");
  EXPECT_EQ(header.tensors[0].begin, header.data_begin);
  EXPECT_EQ(header.tensors[0].end, header.data_begin + 6 * 34);
  EXPECT_EQ(header.tensors[2].end, header.data_begin + 260);
}

// The header is longer than the first piece that is read.
TEST(GgufHeader, MayBeLong) {
  Gguf file;
  file.value("long", Gguf::string(std::string(3 << 20, 'x'))).ones("w", {8});
  const Folder folder;
  folder.put("x.gguf", file.bytes());
  EXPECT_EQ(gguf::read_header(File::open(folder / "x.gguf")).metadata.at("long").bytes.size(), std::size_t{3} << 20);
}

std::string sound_file() {
  auto file = small_model("reed");
  return file.value("scores", array(6, 3, std::string(12, '\0'))).bytes();
}

TEST(GgufMutation, NeverBreaksTheReader) {
  const auto sound = sound_file();
  ASSERT_TRUE(gguf_target(sound));
  std::mt19937 random(20251125);
  int accepted = 0;
  constexpr int kRuns = 20'000;  // about a second
  for (int run = 0; run < kRuns; ++run) {
    auto bytes = sound;
    for (auto changes = 1 + random() % 3; changes > 0; --changes) {
      const auto at = random() % 1400;  // the header, in which the small model's data are of no interest
      switch (random() % 5) {
        case 0:
          bytes[at] ^= static_cast<char>(1u << random() % 8);
          break;
        case 1:
          bytes.erase(at, 1 + random() % 9);
          break;
        case 2:
          bytes.insert(at, bytes.substr(random() % 1400, random() % 40));
          break;
        case 3: {  // a large number where numbers stand
          const std::uint64_t large = ~std::uint64_t{0} >> random() % 64;
          bytes.replace(at, 8, Gguf::number(large));
          break;
        }
        default:
          bytes.resize(bytes.size() - random() % 500);
      }
    }
    accepted += gguf_target(bytes);
  }
  // Names, values and padding may change; most else may not. Both paths were taken many times, or the mutations are no good.
  EXPECT_GT(accepted, kRuns / 100);
  EXPECT_LT(accepted, kRuns / 2);
}

TEST(GgufMutation, EveryPrefixIsRefused) {
  const auto sound = sound_file();
  for (std::size_t size = 0; size < sound.size(); ++size) EXPECT_FALSE(gguf_target(std::string_view(sound).substr(0, size))) << size;
}

}  // namespace
}  // namespace lquant::checkpoint
