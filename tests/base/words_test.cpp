#include "base/words.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <nlohmann/json.hpp>

namespace lquant {
namespace {

TEST(Words, BytesThatAreNoTextBecomeText) {
  EXPECT_EQ(utf8("plain öü 模型"), "plain öü 模型");
  EXPECT_EQ(utf8("a\xff" "b"), "a\xef\xbf\xbd" "b");
  EXPECT_FALSE(is_utf8("\xc3"));
  EXPECT_TRUE(is_utf8("ö"));
  for (int byte = 0; byte < 256; ++byte) EXPECT_NO_THROW(nlohmann::json(utf8(std::string(3, static_cast<char>(byte)))).dump()) << byte;
}

TEST(Words, AFolderIsCalledByItsOwnName) {
  for (const char* path : {"a/out", "a/out/", "a/b/../out", "./out/.", "out"}) EXPECT_EQ(name_of(path), "out") << path;
  EXPECT_EQ(name_of("."), std::filesystem::current_path().filename());
}

// The shell is the judge.
TEST(Words, AQuotedWordIsOneWordToTheShell) {
  for (const std::string text : {"plain", "a b", "", "it's", "$HOME", "`id`", "a\"b", "*", "~", "a;b", "模型", "a\\b", "-x", "#a", "a\nb"}) {
    auto* pipe = ::popen(("printf %s " + shell_quoted(text)).c_str(), "r");
    ASSERT_TRUE(pipe);
    std::string said(256, '\0');
    said.resize(std::fread(said.data(), 1, said.size(), pipe));
    ::pclose(pipe);
    EXPECT_EQ(said, text);
  }
  EXPECT_EQ(shell_quoted("models/tiny-4bit"), "models/tiny-4bit");
}

}  // namespace
}  // namespace lquant
