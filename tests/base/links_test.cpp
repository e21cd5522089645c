#include "base/links.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "base/error.h"
#include "base/file_set.h"
#include "base/temp.h"

namespace lquant {
namespace {
namespace fs = std::filesystem;

void put(const fs::path& file) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << "{}";
}

/// The sentence of the refusal; empty when the file is found, "none" when there is no such entry.
std::string refusal(const fs::path& folder, const std::string& name) {
  try {
    return find_file("test", folder, name) ? "" : "none";
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(Links, ThatStayInTheFolderAreFollowed) {
  const testing::TempFolder temp;
  const auto folder = temp / "model";
  put(folder / "sub" / "real.json");
  fs::create_symlink("sub/real.json", folder / "a.json");
  fs::create_symlink("a.json", folder / "b.json");
  fs::create_symlink(fs::absolute(folder) / "sub" / "real.json", folder / "c.json");
  for (const char* name : {"a.json", "b.json", "c.json"}) EXPECT_EQ(refusal(folder, name), "") << name;
  EXPECT_EQ(refusal(folder, "d.json"), "none");
  // The folder may itself be a link, or be named with detours.
  fs::create_directory_symlink("model", temp / "alias");
  for (const auto& name : {temp / "alias", temp / "model" / "sub" / ".."}) EXPECT_EQ(refusal(name, "a.json"), "") << name;
}

TEST(Links, ThatLeaveTheFolderAreRefusedByName) {
  const testing::TempFolder temp;
  const auto folder = temp / "model";
  put(folder / "config.json");
  put(temp / "secret");
  put(temp / "model-2" / "config.json");  // a name that begins alike is another folder
  fs::create_symlink("../secret", folder / "a.json");
  fs::create_symlink("../model-2/config.json", folder / "b.json");
  fs::create_symlink("a.json", folder / "c.json");
  fs::create_directory_symlink("..", folder / "up");
  fs::create_symlink("up/secret", folder / "d.json");
  for (const char* name : {"a.json", "b.json", "c.json", "d.json"}) {
    const auto said = refusal(folder, name);
    EXPECT_TRUE(said.starts_with("[test] " + (folder / name).string() + ": is a link to ")) << said;
    EXPECT_NE(said.find("outside of the folder"), std::string::npos) << said;
    EXPECT_TRUE(has_entry(folder, name));
    EXPECT_THROW(FileSet::of_folder(folder).read("test", name), Error) << name;
  }
}

TEST(Links, OfAHubCacheLeadIntoTheBlobsOfTheSameRepository) {
  const testing::TempFolder temp;
  const auto repository = temp / "models--org--name", snapshot = repository / "snapshots" / "abc";
  put(repository / "blobs" / "1234");
  put(temp / "models--org--other" / "blobs" / "1234");
  put(snapshot / "here.json");
  put(snapshot / "below" / "here.json");
  fs::create_symlink("../../blobs/1234", snapshot / "config.json");
  fs::create_symlink("../../../blobs/1234", snapshot / "below" / "config.json");
  fs::create_symlink("../../../models--org--other/blobs/1234", snapshot / "other.json");
  EXPECT_EQ(refusal(snapshot, "config.json"), "");
  EXPECT_EQ(refusal(snapshot / "below", "config.json"), "");
  fs::create_directory_symlink(snapshot, temp / "alias");
  EXPECT_EQ(refusal(temp / "alias", "config.json"), "");
  EXPECT_NE(refusal(snapshot, "other.json").find("outside"), std::string::npos);
  // blobs/ that leads elsewhere does not take the link along.
  fs::rename(repository / "blobs", temp / "elsewhere");
  fs::create_directory_symlink(temp / "elsewhere", repository / "blobs");
  EXPECT_NE(refusal(snapshot, "config.json").find("outside"), std::string::npos);
}

TEST(Links, WhatIsNoFileIsRefused) {
  const testing::TempFolder temp;
  const auto& folder = temp.path();
  fs::create_directory(folder / "a");
  ASSERT_EQ(::mkfifo((folder / "b").c_str(), 0600), 0);
  fs::create_symlink("nowhere", folder / "c");
  fs::create_symlink("/dev/zero", folder / "d");
  fs::create_symlink("e", folder / "e");
  fs::create_symlink("b", folder / "f");
  EXPECT_NE(refusal(folder, "a").find("is not a regular file but a folder"), std::string::npos);
  EXPECT_NE(refusal(folder, "b").find("is not a regular file but a pipe"), std::string::npos);
  EXPECT_NE(refusal(folder, "c").find("is a link to nowhere, which cannot be reached (No such file"), std::string::npos);
  EXPECT_NE(refusal(folder, "d").find("is a link to /dev/zero, which is outside"), std::string::npos);
  EXPECT_NE(refusal(folder, "e").find("cannot be reached"), std::string::npos);
  EXPECT_NE(refusal(folder, "f").find("but a pipe"), std::string::npos);
  for (const char* name : {"", ".", "..", "a/b", "/etc/passwd"}) EXPECT_THROW(find_file("test", folder, name), std::invalid_argument) << name;
}

TEST(CheckRegular, RefusesWhatWouldWaitOrIsNoFile) {
  const testing::TempFolder temp;
  put(temp / "sub" / "file");
  ASSERT_EQ(::mkfifo((temp / "pipe").c_str(), 0600), 0);
  fs::create_symlink("pipe", temp / "link");
  fs::create_symlink("sub/file", temp / "good");
  EXPECT_NO_THROW(check_regular("test", temp / "sub" / "file"));
  EXPECT_NO_THROW(check_regular("test", temp / "good"));
  EXPECT_NO_THROW(check_regular("test", temp / "missing"));
  for (const auto& [name, kind] : std::vector<std::pair<const char*, const char*>>{{"pipe", "a pipe"}, {"link", "a pipe"}, {"sub", "a folder"}}) {
    try {
      check_regular("test", temp / name);
      ADD_FAILURE() << name;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()), "[test] " + (temp / name).string() + ": is not a regular file but " + kind + "; put the real file there");
    }
  }
}

}  // namespace
}  // namespace lquant
