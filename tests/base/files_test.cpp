// Reading with limits, writing whole or not at all, and the sentences in between.
#include "base/files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <fstream>

#include "base/error.h"
#include "base/temp.h"

namespace lquant {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;

void put(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::vector<std::string> entries(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// `run` throws an Error of the room "plan" that holds both parts.
template <class Run>
void expect_error(Run run, const std::string& path, const std::string& sentence) {
  try {
    run();
    ADD_FAILURE() << "no Error";
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(message.rfind("[plan] ", 0), 0u) << message;
    EXPECT_NE(message.find(path), std::string::npos) << message;
    EXPECT_NE(message.find(sentence), std::string::npos) << message;
  }
}

TEST(Fail, TagsTheSentenceWithTheRoom) {
  try {
    fail("codec", "{} bits: choose {}", 7, "8");
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[codec] 7 bits: choose 8");
  }
}

TEST(Fail, KindsOfErrorsAreErrors) {
  EXPECT_THROW(throw UsageError("x"), Error);
  EXPECT_THROW(throw Interrupted("x"), Error);
}

TEST(ReadFile, ReadsEveryByte) {
  const TempFolder folder;
  const std::string bytes("a\0\r\n\xff", 5);
  put(folder / "f", bytes);
  EXPECT_EQ(read_file("plan", folder / "f"), bytes);
  put(folder / "empty", "");
  EXPECT_EQ(read_file("plan", folder / "empty"), "");
}

TEST(ReadFile, SaysWhatIsWrong) {
  const TempFolder folder;
  expect_error([&] { read_file("plan", folder / "none"); }, "none", "cannot be read (No such file or directory)");
  expect_error([&] { read_file("plan", folder.path()); }, folder.path().string(), "is not a regular file but a folder");
}

TEST(ReadFile, KeepsToTheLimit) {
  const TempFolder folder;
  put(folder / "f", "12345");
  EXPECT_EQ(read_file("plan", folder / "f", 5), "12345");
  expect_error([&] { read_file("plan", folder / "f", 4); }, "f: ", "5 bytes is more than the 4");
}

TEST(ReadJson, ParsesOrNamesFileAndPlace) {
  const TempFolder folder;
  put(folder / "good.json", R"({"a": [1, 2.5, "ü"]})");
  EXPECT_EQ(read_json("plan", folder / "good.json"), (nlohmann::json{{"a", {1, 2.5, "ü"}}}));
  put(folder / "bad.json", "{\n  \"a\": 1,\n  \"b\": }\n");
  expect_error([&] { read_json("plan", folder / "bad.json"); }, "bad.json: not valid JSON", "line 3, column 8");
  put(folder / "empty.json", "");
  expect_error([&] { read_json("plan", folder / "empty.json"); }, "empty.json", "not valid JSON");
  put(folder / "latin1.json", "\"\xfc\"");
  expect_error([&] { read_json("plan", folder / "latin1.json"); }, "latin1.json", "download or write the file again");
  put(folder / "number.json", "1e999");
  expect_error([&] { read_json("plan", folder / "number.json"); }, "number.json", "not valid JSON");
  expect_error([&] { read_json("plan", folder / "none.json"); }, "none.json", "cannot be read");
}

// Neither reading nor refusing it may exhaust the stack.
TEST(ReadJson, SurvivesDepth) {
  const TempFolder folder;
  put(folder / "deep.json", std::string(1'000'000, '['));
  expect_error([&] { read_json("plan", folder / "deep.json"); }, "deep.json", "not valid JSON");
}

TEST(WriteFileAtomically, WritesAndReplaces) {
  const TempFolder folder;
  const std::string bytes("one\0\xff", 5);
  write_file_atomically("plan", folder / "f", bytes);
  EXPECT_EQ(read_file("plan", folder / "f"), bytes);
  write_file_atomically("plan", folder / "f", "two");
  EXPECT_EQ(read_file("plan", folder / "f"), "two");
  write_file_atomically("plan", folder / "f", "");
  EXPECT_EQ(read_file("plan", folder / "f"), "");
  EXPECT_EQ(entries(folder.path()), std::vector<std::string>{"f"});
}

TEST(WriteFileAtomically, LeavesNothingWhenItFails) {
  const TempFolder folder;
  expect_error([&] { write_file_atomically("plan", folder / "none/f", "x"); }, "none/f", "No such file or directory");
  fs::create_directories(folder / "taken/inside");
  expect_error([&] { write_file_atomically("plan", folder / "taken", "x"); }, "taken", "cannot be written");
  EXPECT_EQ(entries(folder.path()), std::vector<std::string>{"taken"});
}

// A limit on file sizes stands for a full disk. Runs in a copy of this program, since a limit cannot be raised again.
TEST(WriteFileAtomically, KeepsTheOldFileWhenTheDiskIsFull) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto write_too_much = [] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) std::_Exit(3);
    const TempFolder folder;
    write_file_atomically("plan", folder / "f", "old");
    std::string message;
    try {
      write_file_atomically("plan", folder / "f", std::string(1001, 'x'));
    } catch (const Error& e) {
      message = e.what();
    }
    const bool told = message.find("f.partial: cannot be written (File too large); free space") != std::string::npos;
    const bool kept = read_file("plan", folder / "f") == "old" && entries(folder.path()).size() == 1;
    std::error_code ignored;
    fs::remove_all(folder.path(), ignored);
    std::_Exit(told && kept ? 0 : 2);
  };
  EXPECT_EXIT(write_too_much(), ::testing::ExitedWithCode(0), "");
}

TEST(SyncPath, TakesFilesAndFolders) {
  const TempFolder folder;
  put(folder / "f", "x");
  sync_path("plan", folder / "f");
  sync_path("plan", folder.path());
  expect_error([&] { sync_path("plan", folder / "none"); }, "none", "cannot be opened");
}

}  // namespace
}  // namespace lquant
