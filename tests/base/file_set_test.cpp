#include "base/file_set.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/temp.h"

namespace lquant {
namespace {

TEST(FileSet, OfAFolderReadsItsFiles) {
  const testing::TempFolder folder;
  std::ofstream(folder.path() / "a.json") << "{}";
  const auto files = FileSet::of_folder(folder.path());
  EXPECT_TRUE(files.has("a.json"));
  EXPECT_EQ(files.read("test", "a.json"), "{}");
  EXPECT_EQ(files.read("test", "b.json"), std::nullopt);
  EXPECT_EQ(files.label("a.json"), (folder.path() / "a.json").string());
  EXPECT_THROW(files.read("test", "a.json", 1), Error);
}

TEST(FileSet, OfMemoryMakesEachFileOnce) {
  int made = 0;
  const auto files = FileSet::of_memory(
      "x/model.gguf", {{"a.json", [&] { return std::to_string(++made); }}, {"bad.json", []() -> std::string { fail("test", "cannot be made"); }}});
  EXPECT_TRUE(files.has("a.json"));
  EXPECT_EQ(made, 0);
  const auto copy = files;
  EXPECT_EQ(files.read("test", "a.json"), "1");
  EXPECT_EQ(copy.read("test", "a.json"), "1");
  EXPECT_EQ(files.read("test", "b.json"), std::nullopt);
  EXPECT_THROW(files.read("test", "bad.json"), Error);
  EXPECT_EQ(files.label("a.json"), "x/model.gguf (a.json)");
  EXPECT_EQ(files.label(), "x/model.gguf");
  try {
    files.read("test", "a.json", 0);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[test] x/model.gguf (a.json): 1 bytes is more than the 0 such a file may have");
  }
}

}  // namespace
}  // namespace lquant
