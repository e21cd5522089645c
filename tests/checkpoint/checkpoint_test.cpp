// Folders: what is opened, what is refused, and what the fingerprint notices.
#include "checkpoint/checkpoint.h"

#include <mlx/io.h>
#include <mlx/ops.h>

#include "base/hash.h"
#include "support.h"

namespace lquant::checkpoint {
namespace {

namespace fs = std::filesystem;
using lquant::testing::error_of;
using lquant::testing::expect_sentence;
using lquant::testing::Folder;
using lquant::testing::safetensors;

std::string file_with(const std::vector<std::string>& names) {
  std::string header = "{", data;
  for (const auto& name : names) {
    header += fmt::format(R"({}"{}":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}})", header.size() > 1 ? "," : "", name, data.size(),
                          data.size() + 8);
    const float values[] = {static_cast<float>(name.size()), -1.0f};
    data.append(reinterpret_cast<const char*>(values), 8);
  }
  return safetensors(header + "}", data);
}

void put_index(const Folder& folder, const nlohmann::json& map) {
  folder.put("model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
}

void expect_refused(const Folder& folder, const std::vector<std::string>& parts) {
  expect_sentence(error_of([&] { Checkpoint::open(folder); }), parts);
}

TEST(Checkpoint, OpensTheEmbeddedModelLikeMlx) {
  const fs::path folder = fs::path(LQUANT_SOURCE_DIR) / "models" / "tiny";
  const auto checkpoint = Checkpoint::open(folder);
  const auto expected = mx::load_safetensors((folder / "model.safetensors").string()).first;
  EXPECT_EQ(checkpoint.folder(), folder);
  EXPECT_EQ(checkpoint.config()["model_type"], "llama");
  const auto names = checkpoint.names();
  EXPECT_EQ(names.size(), expected.size());
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  std::uint64_t bytes = 0;
  for (const auto& [name, value] : expected) {
    ASSERT_TRUE(checkpoint.has(name));
    EXPECT_EQ(checkpoint.info(name).shape, value.shape());
    EXPECT_TRUE(mx::array_equal(checkpoint.load(name), value).item<bool>()) << name;
    bytes += value.nbytes();
  }
  EXPECT_EQ(checkpoint.bytes(), bytes);
}

TEST(Checkpoint, ReadsEveryShardWithOrWithoutAnIndex) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model-00001-of-00002.safetensors", file_with({"b", "aa"}));
  folder.put("model-00002-of-00002.safetensors", file_with({"ccc", "not.in.index"}));
  folder.put("adapter.safetensors", "no part of the model");
  const std::vector<std::string> all = {"aa", "b", "ccc", "not.in.index"};
  EXPECT_EQ(Checkpoint::open(folder).names(), all);
  put_index(folder,
            {{"b", "model-00001-of-00002.safetensors"}, {"aa", "model-00001-of-00002.safetensors"}, {"ccc", "model-00002-of-00002.safetensors"}});
  const auto checkpoint = Checkpoint::open(folder);
  EXPECT_EQ(checkpoint.names(), all);
  EXPECT_EQ(checkpoint.load("ccc").data<float>()[0], 3.0f);
  EXPECT_EQ(checkpoint.info("ccc").file.filename(), "model-00002-of-00002.safetensors");
}

TEST(Checkpoint, FollowsTheIndexToOtherNames) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("weights.safetensors", file_with({"w"}));
  put_index(folder, {{"w", "weights.safetensors"}});
  EXPECT_TRUE(Checkpoint::open(folder).has("w"));
}

TEST(Checkpoint, KeepsItsFilesWhenTheyAreReplaced) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model.safetensors", file_with({"w"}));
  const auto checkpoint = Checkpoint::open(folder);
  folder.put("new", file_with({"something.else"}));
  fs::rename(folder / "new", folder / "model.safetensors");
  EXPECT_EQ(checkpoint.load("w").data<float>()[0], 1.0f);
}

TEST(Checkpoint, SaysWhatIsMissing) {
  expect_sentence(
      error_of([] { Checkpoint::open("mlx-community/Some-Model-4bit"); }),
      {"mlx-community/Some-Model-4bit: there is no such folder", "hf download mlx-community/Some-Model-4bit --local-dir Some-Model-4bit"});
  for (const char* path : {"/no/such/folder", "./no-such/folder", "nowhere", "a/b/c"}) {
    const auto message = error_of([&] { Checkpoint::open(path); });
    expect_sentence(message, {path, "there is no such folder; check the path"});
  }
  const Folder folder;
  expect_refused(folder, {"there is no config.json in it"});
  folder.put("config.json", "[1, 2");
  expect_refused(folder, {"config.json: not valid JSON"});
  folder.put("config.json", "[1, 2]");
  expect_refused(folder, {"config.json: is not a JSON object"});
  folder.put("config.json", "{}");
  expect_refused(folder, {"there is no model*.safetensors in it"});
  expect_sentence(error_of([&] { Checkpoint::open(folder / "config.json"); }), {"config.json: is a file; give the folder"});
  fs::create_directory(folder / "model.safetensors");
  expect_refused(folder, {"model.safetensors: is not a regular file"});
}

TEST(Checkpoint, RefusesAnIndexThatLeavesTheFolder) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model.safetensors", file_with({"w"}));
  fs::create_directory(folder / "inside");
  fs::copy(folder / "model.safetensors", folder / "inside/model.safetensors");
  for (const std::string name :
       {"../model.safetensors", "/etc/model.safetensors", "inside/model.safetensors", "..", "", "model.bin", "..\\x.safetensors", ".safetensors"}) {
    SCOPED_TRACE(name);
    put_index(folder, {{"w", name}});
    expect_refused(folder, {"model.safetensors.index.json: names ", "is not the name of a safetensors file in the same folder", "do not trust"});
  }
  put_index(folder, {{"w", std::string("x\0.safetensors", 14)}});
  expect_refused(folder, {"is not the name of a safetensors file"});
}

TEST(Checkpoint, RefusesAnIndexThatDoesNotMatch) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model-1.safetensors", file_with({"a"}));
  folder.put("model-2.safetensors", file_with({"b"}));
  put_index(folder, {{"a", "model-3.safetensors"}});
  expect_refused(folder, {"names \"model-3.safetensors\", which is not there; download it"});
  put_index(folder, {{"a", "model-2.safetensors"}});
  expect_refused(folder, {"places tensor \"a\" in \"model-2.safetensors\", which does not hold it"});
  put_index(folder, {{"c", "model-2.safetensors"}});
  expect_refused(folder, {"places tensor \"c\""});
  put_index(folder, {{"a", 1}});
  expect_refused(folder, {"the file of tensor \"a\" is not a name"});
  put_index(folder, "x");
  expect_refused(folder, {"has no weight_map"});
  folder.put("model.safetensors.index.json", "[]");
  expect_refused(folder, {"has no weight_map"});
  folder.put("model.safetensors.index.json", "{");
  expect_refused(folder, {"index.json: not valid JSON"});
}

TEST(Checkpoint, RefusesATensorInTwoFiles) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model-1.safetensors", file_with({"a", "b"}));
  folder.put("model-2.safetensors", file_with({"b"}));
  expect_refused(folder, {"tensor \"b\" lies in both", "model-1.safetensors", "model-2.safetensors", "remove the file"});
}

// What was packed anew keeps an index of files that are gone; mlx_lm, which reads model*.safetensors, loads it.
TEST(Checkpoint, IgnoresAnIndexNoneOfWhoseFilesIsThere) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model.safetensors", file_with({"a", "b"}));
  folder.put("model.safetensors.index.json",
             R"({"weight_map":{"a":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors"}})");
  EXPECT_EQ(Checkpoint::open(folder).names(), (std::vector<std::string>{"a", "b"}));
  // One of them is there: the other is missing.
  folder.put("model-00001-of-00002.safetensors", file_with({"c"}));
  expect_refused(folder, {"names \"model-00002-of-00002.safetensors\", which is not there"});
  // Packed anew into several files; all of them must be there.
  fs::remove(folder / "model-00001-of-00002.safetensors");
  fs::rename(folder / "model.safetensors", folder / "model-00003-of-00003.safetensors");
  folder.put("model-00001-of-00003.safetensors", file_with({"c"}));
  expect_refused(folder, {"names \"model-00001-of-00002.safetensors\", which is not there"});
  folder.put("model-00002-of-00003.safetensors", file_with({"d"}));
  EXPECT_EQ(Checkpoint::open(folder).names(), (std::vector<std::string>{"a", "b", "c", "d"}));
}

TEST(Checkpoint, FollowsNoLinkOutOfTheFolder) {
  for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
                           "chat_template.jinja", "generation_config.json", "README.md", "lquant.json", "model-2.safetensors"}) {
    const Folder folder, outside;
    folder.put("config.json", "{}");
    folder.put("model.safetensors", file_with({"a"}));
    Checkpoint::open(folder);
    outside.put("secret", std::string(name).ends_with(".safetensors") ? file_with({"b"}) : R"({"weight_map":{}})");
    fs::remove(folder / name);
    fs::create_symlink(outside / "secret", folder / name);
    expect_refused(folder, {name, "is a link to", "outside of the folder"});
    fs::remove(folder / name);
    fs::create_directory(folder / name);
    expect_refused(folder, {name, "is not a regular file but a folder"});
  }
}

TEST(Checkpoint, NamesAMissingTensor) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model.safetensors", file_with({"a"}));
  const auto checkpoint = Checkpoint::open(folder);
  EXPECT_FALSE(checkpoint.has("lm_head.weight"));
  expect_sentence(error_of([&] { checkpoint.load("lm_head.weight"); }), {"has no tensor \"lm_head.weight\""});
  expect_sentence(error_of([&] { checkpoint.info("lm_head.weight"); }), {"has no tensor \"lm_head.weight\""});
}

TEST(Checkpoint, ChecksValuesUnlessToldNotTo) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model.safetensors", safetensors(R"({"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})", std::string("\0\0\x80\x7f", 4)));
  const auto checkpoint = Checkpoint::open(folder);
  expect_sentence(error_of([&] { checkpoint.load("w"); }), {"tensor \"w\" holds 1 values of 2"});
  EXPECT_EQ(checkpoint.load("w", CheckFinite::no).shape(), (mx::Shape{2}));
}

// The file is cut after it was opened: an error, and no crash as with a mapped file.
TEST(Checkpoint, NoticesAFileCutWhileOpen) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model.safetensors", file_with({"a", "b"}));
  const auto checkpoint = Checkpoint::open(folder);
  fs::resize_file(folder / "model.safetensors", fs::file_size(folder / "model.safetensors") - 4);
  checkpoint.load("a");
  expect_sentence(error_of([&] { checkpoint.load("b"); }), {"model.safetensors: ends at byte"});
}

TEST(Fingerprint, ChangesWithEveryByteThatMatters) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("tokenizer.json", "{}");
  folder.put("model.safetensors", file_with({"a"}));
  const auto fingerprint = [&] { return Checkpoint::open(folder).fingerprint(); };
  const auto first = fingerprint();
  EXPECT_EQ(first.size(), 64u);
  EXPECT_EQ(fingerprint(), first);
  folder.put("README.md", "prose");
  EXPECT_EQ(fingerprint(), first);
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
    const auto before = folder.get(name);
    auto after = before;
    if (std::string(name) == "model.safetensors") {
      after.back() ^= 1;
    } else {
      after += "\n";
    }
    folder.put(name, after);
    EXPECT_NE(fingerprint(), first) << name;
    folder.put(name, before);
  }
  EXPECT_EQ(fingerprint(), first);
  fs::rename(folder / "tokenizer.json", folder / "vocab.json");
  EXPECT_NE(fingerprint(), first);
}

// The definition in docs/format.md, recomputed.
TEST(Fingerprint, IsTheHashOfNamesAndHashes) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("tokenizer.json", "[]");
  folder.put("model.safetensors", file_with({"a"}));
  const auto checkpoint = Checkpoint::open(folder);
  const auto expected =
      sha256("tokenizer.json " + sha256("[]") + "\nconfig.json " + sha256("{}") + "\nmodel.safetensors " + sha256(file_with({"a"})) + "\n");
  EXPECT_EQ(checkpoint.fingerprint(), expected);
  EXPECT_EQ(checkpoint.fingerprint(), expected);  // remembered
}

}  // namespace
}  // namespace lquant::checkpoint
