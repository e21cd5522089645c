// Hostile and damaged safetensors files: each is refused with a sentence that names the file, the fault and the mend.
#include <sys/stat.h>

#include "checkpoint/safetensors.h"
#include "support.h"

namespace lquant::checkpoint {
namespace {

using lquant::testing::error_of;
using lquant::testing::expect_sentence;
using lquant::testing::Folder;
using lquant::testing::safetensors;

struct Hostile {
  std::string name;
  std::string bytes;
  std::string fault;
  std::string mend = "download it again";
};

void PrintTo(const Hostile& file, std::ostream* out) { *out << file.name; }

// One tensor's entry.
std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape, offsets);
}
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets, std::size_t bytes) {
  return safetensors("{" + tensor("w", dtype, shape, offsets) + "}", std::string(bytes, 'x'));
}
std::string with_length(std::uint64_t length, const std::string& rest) {
  auto bytes = safetensors("", rest);
  for (int i = 0; i < 8; ++i) bytes[static_cast<std::size_t>(i)] = static_cast<char>(length >> (8 * i) & 0xff);
  return bytes;
}
std::string nested(int deep) {
  return safetensors("{\"a\":" + std::string(static_cast<std::size_t>(deep), '[') + std::string(static_cast<std::size_t>(deep), ']') + "}");
}
std::string repeat(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

std::vector<Hostile> hostile_files() {
  const auto sound = one("U8", "[4]", "[0,4]", 4);
  return {
      {"empty", "", "has 0 bytes"},
      {"seven_bytes", "1234567", "has 7 bytes"},
      {"length_zero", with_length(0, "{}"), "its header has 0 bytes"},
      {"length_one", with_length(1, "{}"), "its header has 1 bytes"},
      {"length_beyond_file", with_length(1000, "{}"), "is cut short: its header takes 1008 bytes, and the file has 10"},
      {"length_over_limit", with_length(100'000'001, "{}"), "its header would have 100000001 bytes"},
      {"length_2_63", with_length(std::uint64_t{1} << 63, "{}"), "its header would have 9223372036854775808 bytes"},
      {"length_wraps", with_length(~std::uint64_t{0} - 7, "{}"), "its header would have 18446744073709551608 bytes"},
      {"git_lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "is a pointer of git-lfs", "git lfs pull"},
      {"list", safetensors("[1]"), "its header does not start with '{'"},
      {"leading_space", safetensors(" {}"), "its header does not start with '{'"},
      {"half_json", safetensors("{\"w\":{\"dtype\""), "is not valid JSON (at byte 1"},
      {"two_documents", safetensors("{}{}"), "is not valid JSON"},
      {"bad_utf8", safetensors("{\"\xff\":{}}"), "is not valid JSON"},
      {"huge_number", one("U8", "[1e999]", "[0,4]", 4), "a number that is out of range"},
      {"twice_the_same_tensor", safetensors("{" + tensor("w", "U8", "[1]", "[0,1]") + "," + tensor("w", "U8", "[1]", "[0,1]") + "}", "x"),
       "its header names \"w\" twice"},
      {"twice_the_same_field", safetensors(R"({"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"),
       "its header names \"dtype\" twice"},
      {"deep", nested(8), "nested more than 8 deep"},
      {"very_deep", nested(1'000'000), "nested more than 8 deep"},
      {"deep_objects", safetensors(repeat("{\"a\":", 100'000)), "nested more than 8 deep"},
      {"long_list", one("U8", "[" + repeat("1,", 100) + "1]", "[0,1]", 1), "a list of more than 64 elements"},
      {"tensor_is_number", safetensors(R"({"w":1})"), "tensor \"w\" has no dtype"},
      {"no_shape", safetensors(R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", "x"), "tensor \"w\" has no shape"},
      {"no_offsets", safetensors(R"({"w":{"dtype":"U8","shape":[1]}})", "x"), "tensor \"w\" has no data_offsets"},
      {"unknown_dtype", one("F4", "[4]", "[0,2]", 2), "tensor \"w\" has dtype \"F4\", which lquant does not read",
       "convert the checkpoint to BF16, F16 or F32"},
      {"dtype_is_number", safetensors(R"({"w":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", "x"), "has dtype \"7\"", "convert the checkpoint"},
      {"shape_is_object", one("U8", "{}", "[0,4]", 4), "the shape of tensor \"w\" is not a list"},
      {"negative_size", one("U8", "[-4]", "[0,4]", 4), "the shape of tensor \"w\" holds \"-4\""},
      {"fraction", one("U8", "[4.0]", "[0,4]", 4), "the shape of tensor \"w\" holds \"4.0\""},
      {"size_is_text", one("U8", "[\"4\"]", "[0,4]", 4), "which is not a size"},
      {"size_too_large", one("U8", "[2147483648]", "[0,4]", 4), "a dimension of tensor \"w\" is 2147483648", "cannot be used"},
      {"product_overflows", one("F32", "[2147483647,2147483647,2147483647]", "[0,4]", 4), "more elements than can be counted"},
      {"product_wraps_to_zero", one("U8", "[1073741824,1073741824,16]", "[0,0]", 0), "more elements than can be counted"},
      {"offsets_are_text", one("U8", "[4]", "[\"0\",\"4\"]", 4), "data_offsets of tensor \"w\" are not two positions"},
      {"three_offsets", one("U8", "[4]", "[0,4,4]", 4), "data_offsets of tensor \"w\" are not two positions"},
      {"negative_offset", one("U8", "[4]", "[-4,0]", 4), "data_offsets of tensor \"w\" are not two positions"},
      {"backwards", one("U8", "[4]", "[4,0]", 4), "ends before it begins (4 to 0)"},
      {"too_few_bytes", one("F32", "[4]", "[0,4]", 4), "tensor \"w\" needs 16 bytes by its shape and dtype, and has 4"},
      {"too_many_bytes", one("U8", "[4]", "[0,8]", 8), "tensor \"w\" needs 4 bytes by its shape and dtype, and has 8"},
      {"offsets_wrap", one("U8", "[4]", "[18446744073709551608,18446744073709551612]", 4), "lie beyond any file"},
      {"cut_short", sound.substr(0, sound.size() - 1),
       fmt::format("is cut short: tensor \"w\" ends at byte {}, and the file has {}", sound.size(), sound.size() - 1)},
      {"trailing_bytes", sound + "yy", "2 bytes after its last tensor belong to none"},
      {"hole_in_front", one("U8", "[2]", "[2,4]", 4), "2 bytes before tensor \"w\" belong to no tensor"},
      {"hole_between", safetensors("{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("b", "U8", "[1]", "[3,4]") + "}", "xxxx"),
       "2 bytes before tensor \"b\" belong to no tensor"},
      {"overlap", safetensors("{" + tensor("a", "U8", "[3]", "[0,3]") + "," + tensor("b", "U8", "[2]", "[2,4]") + "}", "xxxx"),
       "tensor \"b\" overlaps the one before it"},
      {"same_place", safetensors("{" + tensor("a", "U8", "[4]", "[0,4]") + "," + tensor("b", "U8", "[4]", "[0,4]") + "}", "xxxx"),
       "overlaps the one before it"},
      {"metadata_number", safetensors(R"({"__metadata__":{"format":1}})"), "the entry \"format\" of its __metadata__ is not a string"},
      {"metadata_list", safetensors(R"({"__metadata__":[]})"), "its __metadata__ is not an object"},
      {"control_characters", safetensors("{\"\\u001b[2J\\n" + std::string(500, 'n') + "\":1}"), R"(tensor "\u001b[2J\n)"},
  };
}

class HostileFile : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileFile, IsRefusedWithASentence) {
  const Folder folder;
  folder.put("model.safetensors", GetParam().bytes);
  const auto message = error_of([&] { read_header(File::open(folder / "model.safetensors")); });
  expect_sentence(message, {(folder / "model.safetensors").string(), GetParam().fault, GetParam().mend});
  EXPECT_LT(message.size(), 700u);  // a file cannot flood the terminal, nor (below) steer it
  for (const unsigned char c : message) EXPECT_GE(c, 0x20);
}

INSTANTIATE_TEST_SUITE_P(Header, HostileFile, ::testing::ValuesIn(hostile_files()), [](const auto& info) { return info.param.name; });

TEST(Header, MayHoldNullForNoMetadata) {
  const Folder folder;
  folder.put("x.safetensors", safetensors(R"({"__metadata__":null,"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"));
  const auto found = read_header(File::open(folder / "x.safetensors"));
  EXPECT_TRUE(found.metadata.empty());
  EXPECT_EQ(found.tensors.size(), 1u);
}

TEST(Header, IsReadInFull) {
  const Folder folder;
  const std::string header = R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[5,17],"note":[[1]]},"__metadata__":{"format":"pt"},)"
                             R"("a":{"dtype":"F32","shape":[],"data_offsets":[1,5]},"z":{"dtype":"I64","shape":[0,7],"data_offsets":[5,5]},)"
                             R"("c":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}   )";
  folder.put("x.safetensors", safetensors(header, std::string(17, 'x')));
  const auto found = read_header(File::open(folder / "x.safetensors"));
  EXPECT_EQ(found.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(found.data_begin, 8 + header.size());
  ASSERT_EQ(found.tensors.size(), 4u);
  const auto& b = found.tensors.at("b");
  EXPECT_EQ(b.dtype, mx::bfloat16);
  EXPECT_EQ(b.stored, "BF16");
  EXPECT_EQ(b.shape, (mx::Shape{2, 3}));
  EXPECT_EQ(b.file, folder / "x.safetensors");
  EXPECT_EQ(b.begin, 8 + header.size() + 5);
  EXPECT_EQ(b.end, 8 + header.size() + 17);
  EXPECT_EQ(found.tensors.at("a").shape, mx::Shape{});
  EXPECT_EQ(found.tensors.at("z").shape, (mx::Shape{0, 7}));
}

TEST(Header, OfNoTensorsIsSound) {
  EXPECT_TRUE(parse_header("{}", 10, "x").tensors.empty());
  expect_sentence(error_of([] { parse_header("{}", 11, "x"); }), {"1 bytes after its last tensor"});
}

TEST(OpenFile, RefusesWhatIsNoRegularFile) {
  const Folder folder;
  expect_sentence(error_of([&] { File::open(folder / "none"); }), {"none", "cannot be opened (No such file or directory)"});
  expect_sentence(error_of([&] { File::open(folder); }), {"is not a regular file"});
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_sentence(error_of([&] { File::open(folder / "pipe"); }), {"pipe", "is not a regular file"});  // and does not wait for a writer
}

TEST(OpenFile, NoticesThatItShrank) {
  const Folder folder;
  folder.put("f", "0123456789");
  const auto file = File::open(folder / "f");
  std::filesystem::resize_file(folder / "f", 4);
  std::string bytes(10, ' ');
  expect_sentence(error_of([&] { file.read(0, bytes.data(), 10); }), {"f: ends at byte 4", "download it again"});
}

TEST(StoredName, NamesEveryDtypeOfMlxButComplex) {
  EXPECT_EQ(stored_name(mx::bfloat16), "BF16");
  EXPECT_EQ(stored_name(mx::float32), "F32");
  EXPECT_EQ(stored_name(mx::float64), "F64");
  EXPECT_EQ(stored_name(mx::uint8), "U8");
  EXPECT_THROW(stored_name(mx::complex64), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::checkpoint
