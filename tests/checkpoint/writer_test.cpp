// The writer against MLX's own reader, and against everything that can go wrong between the first byte and the last rename.
#include "checkpoint/writer.h"

#include <mlx/io.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <limits>

#include "checkpoint/checkpoint.h"
#include "support.h"

namespace lquant::checkpoint {
namespace {

namespace fs = std::filesystem;
using lquant::testing::error_of;
using lquant::testing::expect_sentence;
using lquant::testing::Folder;
using Names = std::vector<std::string>;

mx::array words(int count, unsigned seed = 0) { return mx::random::bits({count}, 4, mx::random::key(seed)); }

TEST(Writer, IsReadBackByMlx) {
  const Folder folder;
  const auto numbers = mx::random::normal({6, 10}, mx::float32, 0.0f, 30.0f, mx::random::key(1));
  std::unordered_map<std::string, mx::array> added;
  for (const auto dtype : {mx::uint8, mx::int8, mx::uint16, mx::int16, mx::uint32, mx::int32, mx::uint64, mx::int64, mx::float16, mx::bfloat16,
                           mx::float32, mx::bool_}) {
    added.insert({"t." + stored_name(dtype), mx::astype(mx::abs(numbers), dtype)});
  }
  added.insert({"transposed", mx::transpose(numbers)});
  added.insert({"slice", mx::slice(numbers, {1, 2}, {5, 9}, {2, 3})});
  added.insert({"broadcast", mx::broadcast_to(mx::array({1.0f, 2.0f}), {3, 2})});
  added.insert({"lazy", mx::exp(numbers)});
  added.insert({"scalar", mx::array(2.5f)});
  added.insert({"naïve \"quoted\" \n name", mx::array({1, 2, 3})});

  Writer writer(folder / "out");
  for (const auto& [name, value] : added) writer.add(name, value);
  writer.commit();
  EXPECT_EQ(folder.entries(), Names{"out"});
  EXPECT_EQ(folder.entries("out"), (Names{"model.safetensors", "model.safetensors.index.json"}));
  const auto [loaded, metadata] = mx::load_safetensors((folder / "out/model.safetensors").string());
  EXPECT_EQ(metadata, (std::unordered_map<std::string, std::string>{{"format", "mlx"}}));
  ASSERT_EQ(loaded.size(), added.size());
  for (const auto& [name, value] : added) {
    EXPECT_EQ(loaded.at(name).dtype(), value.dtype()) << name;
    EXPECT_TRUE(mx::array_equal(loaded.at(name), value).item<bool>()) << name;
  }
}

TEST(Writer, IsReadBackByCheckpoint) {
  const Folder folder;
  Writer writer(folder / "out");
  writer.write_json("config.json", {{"model_type", "x"}});
  writer.add("empty", mx::zeros({0, 3}, mx::bfloat16));
  writer.add("w", words(5));
  writer.add("d", mx::astype(mx::array({1.5f}), mx::float64, mx::Device::cpu));
  writer.commit();
  const auto checkpoint = Checkpoint::open(folder / "out");
  EXPECT_EQ(checkpoint.names(), (Names{"d", "empty", "w"}));
  EXPECT_TRUE(mx::array_equal(checkpoint.load("w"), words(5)).item<bool>());
  EXPECT_EQ(checkpoint.load("empty").shape(), (mx::Shape{0, 3}));
  EXPECT_EQ(checkpoint.load("d").item<float>(), 1.5f);
}

// Four-byte words and shards of at most 40 bytes: 4 + 6 words fill one exactly, 1 starts the next, 11 are too many for any.
TEST(Writer, CopiesTensorsByteForByte) {
  const Folder folder;
  Writer first(folder / "first");
  first.write_json("config.json", {{"model_type", "x"}});
  first.add("a", words(5));
  first.add("b", mx::full({3, 4}, std::numeric_limits<float>::quiet_NaN()));
  first.add("none", mx::zeros({0, 3}));
  first.commit();
  const auto source = Checkpoint::open(folder / "first");
  Writer writer(folder / "out", 60);
  writer.write_json("config.json", {{"model_type", "x"}});
  for (const char* name : {"a", "b", "none"}) writer.copy(std::string("tower.") + name, source.info(name), source.file_of(name));
  EXPECT_THROW(writer.copy("tower.a", source.info("a"), source.file_of("a")), std::invalid_argument);
  writer.commit();
  const auto copy = Checkpoint::open(folder / "out");
  EXPECT_EQ(copy.names(), (Names{"tower.a", "tower.b", "tower.none"}));
  EXPECT_NE(copy.info("tower.a").file, copy.info("tower.b").file);  // shards as for any tensor
  for (const char* name : {"a", "b", "none"}) {
    const auto &from = source.info(name), &to = copy.info(std::string("tower.") + name);
    EXPECT_EQ(from.shape, to.shape);
    EXPECT_EQ(from.stored, to.stored);
    EXPECT_EQ(sha256_from(source.file_of(name), from.begin, from.end), sha256_from(copy.file_of(std::string("tower.") + name), to.begin, to.end))
        << name;
  }
}

TEST(Writer, StartsAShardWhenTheNextTensorDoesNotFit) {
  const Folder folder;
  Writer writer(folder / "out", 40);
  const std::vector<std::pair<std::string, int>> sizes = {{"e", 4}, {"d", 6}, {"c", 1}, {"b", 11}, {"a", 10}};
  for (const auto& [name, size] : sizes) writer.add(name, words(size));
  writer.set_total_parameters(1234);
  writer.commit();
  const auto file = [](int i) { return fmt::format("model-0000{}-of-00004.safetensors", i); };
  EXPECT_EQ(folder.entries("out"), (Names{file(1), file(2), file(3), file(4), "model.safetensors.index.json"}));
  const auto index = nlohmann::json::parse(folder.get("out/model.safetensors.index.json"));
  const nlohmann::json expected = {{"metadata", {{"total_size", 4 * 32}, {"total_parameters", 1234}}},
                                   {"weight_map", {{"e", file(1)}, {"d", file(1)}, {"c", file(2)}, {"b", file(3)}, {"a", file(4)}}}};
  EXPECT_EQ(index, expected);
  const auto first = read_header(File::open(folder / ("out/" + file(1))));
  EXPECT_LT(first.tensors.at("e").begin, first.tensors.at("d").begin);  // in the order added
  folder.put("out/config.json", "{}");
  EXPECT_EQ(Checkpoint::open(folder / "out").bytes(), 4u * 32);
}

TEST(Writer, WritesTheSameBytesEveryTime) {
  const Folder folder;
  const auto write = [&](const std::string& name) {
    Writer writer(folder / name, 64);
    for (int i = 0; i < 5; ++i) writer.add(fmt::format("layer.{}", i), words(6 + i, static_cast<unsigned>(i)));
    writer.write_json("config.json", {{"b", 1}, {"a", {1, 2.5}}});
    writer.commit();
  };
  write("one");
  write("two");
  EXPECT_EQ(folder.entries("one"), folder.entries("two"));
  for (const auto& name : folder.entries("one")) EXPECT_EQ(folder.get("one/" + name), folder.get("two/" + name)) << name;
}

TEST(Writer, AlignsTheDataAndPadsWithSpaces) {
  const Folder folder;
  for (const std::string name : {"n", "na", "nam", "name", "name.", "name.o", "name.of", "name.of."}) {
    Writer writer(folder / ("out" + name));
    writer.add(name, words(1));
    writer.commit();
    const auto bytes = folder.get("out" + name + "/model.safetensors");
    const auto begin = read_header(File::open(folder / ("out" + name + "/model.safetensors"))).data_begin;
    EXPECT_EQ(begin % 8, 0u);
    const auto header = bytes.substr(8, static_cast<std::size_t>(begin) - 8);
    EXPECT_LT(header.size() - header.find_last_not_of(' '), 9u);
    EXPECT_EQ(header.substr(0, 34), R"({"__metadata__":{"format":"mlx"},")");
  }
}

TEST(Writer, CarriesTexts) {
  const Folder folder;
  const std::string any("a\0\xff\n", 4);
  folder.put("tokenizer.model", any);
  folder.put("nothing", "");
  Writer writer(folder / "out");
  writer.add("w", words(1));
  writer.write_text("README.md", "# Grüße\n");
  writer.write_json("config.json", nlohmann::json{{"z", {1, 2}}, {"a", "ü"}});
  writer.write_json("ordered.json", nlohmann::ordered_json{{"z", true}, {"a", nullptr}});
  writer.copy_file(folder / "tokenizer.model", "tokenizer.model");
  writer.copy_file(folder / "nothing", "empty.txt");
  expect_sentence(error_of([&] { writer.copy_file(folder / "absent", "absent"); }), {"absent: cannot be opened"});
  writer.commit();
  EXPECT_EQ(folder.get("out/README.md"), "# Grüße\n");
  EXPECT_EQ(folder.get("out/config.json"), "{\n    \"a\": \"\\u00fc\",\n    \"z\": [\n        1,\n        2\n    ]\n}");
  EXPECT_EQ(folder.get("out/ordered.json"), "{\n    \"z\": true,\n    \"a\": null\n}");
  EXPECT_EQ(folder.get("out/tokenizer.model"), any);
  EXPECT_TRUE(fs::exists(folder / "out/empty.txt"));
}

TEST(Writer, ShowsNothingBeforeCommitAndLeavesNothingWithout) {
  const Folder folder;
  {
    Writer writer(folder / "out");
    writer.add("w", words(1000));
    writer.write_text("README.md", "x");
    EXPECT_EQ(folder.entries(), Names{".out.partial"});
  }
  EXPECT_EQ(folder.entries(), Names{});
}

TEST(Writer, MakesTheFoldersAboveAndTakesATrailingSlash) {
  const Folder folder;
  Writer writer(fs::path((folder / "a/b/out").string() + "/"));
  writer.add("w", words(1));
  writer.commit();
  EXPECT_TRUE(fs::exists(folder / "a/b/out/model.safetensors"));
  EXPECT_EQ(folder.entries("a/b"), Names{"out"});
}

TEST(Writer, NeverReplacesWhatIsThere) {
  const Folder folder;
  fs::create_directory(folder / "empty");
  folder.put("file", "mine");
  fs::create_symlink(folder / "nowhere", folder / "link");
  for (const char* name : {"empty", "file", "link"}) {
    expect_sentence(error_of([&] { Writer writer(folder / name); }), {name, "exists; choose another --mlx-path or remove it"});
  }
  EXPECT_EQ(folder.entries(), (Names{"empty", "file", "link"}));
  EXPECT_EQ(folder.get("file"), "mine");
  expect_sentence(error_of([] { Writer writer("/"); }), {"--mlx-path"});

  Writer writer(folder / "late");
  writer.add("w", words(1));
  folder.put("late", "mine");
  expect_sentence(error_of([&] { writer.commit(); }), {"late: exists"});
  EXPECT_EQ(folder.get("late"), "mine");
}

TEST(Writer, RefusesASecondWriterOfTheSameOutput) {
  const Folder folder;
  Writer first(folder / "out");
  first.add("w", words(1));
  expect_sentence(error_of([&] { Writer second(folder / "out"); }), {"out: is being written by another run"});
  first.commit();  // and did not disturb the first
  expect_sentence(error_of([&] { Writer third(folder / "out"); }), {"out: exists"});
}

TEST(Writer, LeavesFoldersThatAreNotItsOwn) {
  const Folder folder;
  fs::create_directories(folder / ".out.partial/output");
  folder.put(".out.partial/output/thesis.txt", "years");
  expect_sentence(error_of([&] { Writer writer(folder / "out"); }), {".out.partial: is in the way, and was not made by lquant; move it away"});
  folder.put(".out.partial/lock", "");
  folder.put(".out.partial/more", "");
  expect_sentence(error_of([&] { Writer writer(folder / "out"); }), {"is in the way"});
  EXPECT_EQ(folder.get(".out.partial/output/thesis.txt"), "years");
  folder.put("plain", "file");
  expect_sentence(error_of([&] { Writer writer(folder / "plain/out"); }), {"plain", "choose another --mlx-path"});
}

TEST(Writer, RefusesWrongUse) {
  const Folder folder;
  Writer writer(folder / "out");
  EXPECT_THROW(writer.commit(), std::invalid_argument);
  writer.add("w", words(1));
  EXPECT_THROW(writer.add("w", words(1)), std::invalid_argument);
  EXPECT_THROW(writer.add("__metadata__", words(1)), std::invalid_argument);
  EXPECT_THROW(writer.add("c", mx::zeros({1}, mx::complex64)), std::invalid_argument);
  writer.write_text("a.txt", "");
  for (const char* name : {"a.txt", "", ".", "..", "../a", "b/c", "/a", "model.safetensors"})
    EXPECT_THROW(writer.write_text(name, ""), std::invalid_argument) << name;
  writer.commit();
  EXPECT_THROW(writer.commit(), std::invalid_argument);
  EXPECT_THROW(writer.add("v", words(1)), std::invalid_argument);
  EXPECT_THROW(writer.write_text("b.txt", ""), std::invalid_argument);
  EXPECT_EQ(Names({"a.txt", "model.safetensors", "model.safetensors.index.json"}), folder.entries("out"));
}

// The disk is made to lie: between writing and committing a byte of the data changes.
TEST(Writer, ComparesWhatItReadsBack) {
  const Folder folder;
  Writer writer(folder / "out", 4);
  writer.add("a", words(1));
  writer.add("b", words(1));  // the first shard is finished now
  const auto path = ".out.partial/output/shard-1.safetensors";
  auto bytes = folder.get(path);
  bytes.back() ^= 1;
  folder.put(path, bytes);
  expect_sentence(error_of([&] { writer.commit(); }), {"model-00001-of-00002.safetensors: reads back other bytes than were written"});
  EXPECT_FALSE(fs::exists(folder / "out"));

  Writer texts(folder / "texts");
  texts.add("a", words(1));
  texts.write_text("README.md", "true");
  folder.put(".texts.partial/output/README.md", "liar");
  expect_sentence(error_of([&] { texts.commit(); }), {"README.md: reads back other bytes"});
  EXPECT_FALSE(fs::exists(folder / "texts"));
}

// Tests that end a process run it as a copy of this program (gtest's "threadsafe" style); the copy finds the parent's folder here.
constexpr const char* kChildFolder = "LQUANT_TEST_CHILD_FOLDER";

struct Killed : ::testing::Test {
  Killed() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    ::setenv(kChildFolder, fs::path(folder).c_str(), 0);  // not in the copy, which has it from its parent
  }
  ~Killed() override { ::unsetenv(kChildFolder); }
  static fs::path output() { return fs::path(std::getenv(kChildFolder)) / "out"; }
  Folder folder;
};

void write_and_die() {
  Writer writer(Killed::output(), 64);
  for (int i = 0; i < 10; ++i) writer.add(fmt::format("w{}", i), words(10));
  std::raise(SIGKILL);
}

TEST_F(Killed, LeavesNothingUnderTheOutputsName) {
  EXPECT_EXIT(write_and_die(), ::testing::KilledBySignal(SIGKILL), "");
  EXPECT_EQ(folder.entries(), Names{".out.partial"});
  EXPECT_GT(folder.entries(".out.partial/output").size(), 5u);  // it did die in the middle
  Writer writer(folder / "out");                                // the next run takes over and clears
  writer.add("w", words(1));
  writer.commit();
  EXPECT_EQ(folder.entries(), Names{"out"});
  EXPECT_EQ(folder.entries("out"), (Names{"model.safetensors", "model.safetensors.index.json"}));
}

// A limit on the size of files stands for a full disk: write() says EFBIG where it would say ENOSPC, at any byte we like. Exit status
// 0 is for the error that should come.
void write_against_a_limit(rlim_t bytes) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{bytes, bytes};
  if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) std::_Exit(3);
  std::string message;
  try {
    Writer writer(Killed::output(), 1 << 20);
    for (int i = 0; i < 4; ++i) writer.add(fmt::format("w{}", i), words(1000));
    writer.commit();
  } catch (const Error& e) {
    message = e.what();
  }
  const bool told = message.find(".out.partial/output/") != std::string::npos &&
                    message.find("cannot be written (File too large); free space") != std::string::npos;
  std::_Exit(told ? 0 : 2);
}

// 16000 bytes of data and about 350 of header: the first limit stops the second tensor, the second one the copy behind the header.
TEST_F(Killed, FullDiskWhileAddingIsAnErrorThatNamesTheFile) {
  EXPECT_EXIT(write_against_a_limit(5000), ::testing::ExitedWithCode(0), "");
  EXPECT_EQ(folder.entries(), Names{});
}

TEST_F(Killed, FullDiskWhileCommittingIsAnErrorThatNamesTheFile) {
  EXPECT_EXIT(write_against_a_limit(16010), ::testing::ExitedWithCode(0), "");
  EXPECT_EQ(folder.entries(), Names{});
}

TEST_F(Killed, RoomEnoughIsNoError) {
  EXPECT_EXIT(write_against_a_limit(1 << 20), ::testing::ExitedWithCode(2), "");
  EXPECT_EQ(folder.entries(), Names{"out"});
}

}  // namespace
}  // namespace lquant::checkpoint
