#include "hub/names.h"

#include <gtest/gtest.h>

namespace lquant::hub {
namespace {

TEST(Names, ModelsOfTheHub) {
  const auto plain = model_name("Qwen/Qwen3-0.6B");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->repo, "Qwen/Qwen3-0.6B");
  EXPECT_FALSE(plain->revision || plain->file);
  const auto pinned = model_name("Qwen/Qwen3-0.6B@refs/pr/1");
  ASSERT_FALSE(pinned && pinned->repo != "Qwen/Qwen3-0.6B");
  ASSERT_TRUE(pinned);
  EXPECT_EQ(pinned->revision, "refs/pr/1");
  const auto file = model_name("org/name/sub/x.Q4_K_M.gguf@v1");
  ASSERT_TRUE(file);
  EXPECT_EQ(file->repo, "org/name");
  EXPECT_EQ(file->file, "sub/x.Q4_K_M.gguf");
  EXPECT_EQ(file->revision, "v1");
}

TEST(Names, PathsAreNoModels) {
  for (const char* path : {"", "model", "./model", "../org/name", "/org/name", "~/models", "a/b/c", "org/", "/name", "org//name", "-x/y", ".x/y",
                           "org/na me", "org/name@", "org/na--me", "org/a..b", "x.gguf"})
    EXPECT_FALSE(model_name(path)) << path;
}

TEST(Names, DataSets) {
  const auto whole = data_name("allenai/ai2_arc:ARC-Easy/test@main");
  ASSERT_TRUE(whole);
  EXPECT_EQ(whole->repo, "allenai/ai2_arc");
  EXPECT_EQ(whole->config, "ARC-Easy");
  EXPECT_EQ(whole->split, "test");
  EXPECT_EQ(whole->revision, "main");
  EXPECT_FALSE(data_name("allenai/tulu-3-sft-mixture")->config);
  for (const char* path : {"self", "rows.jsonl", "./a/b", "a/b/c", "a/b:", "a/b:c/"}) EXPECT_FALSE(data_name(path)) << path;
}

}  // namespace
}  // namespace lquant::hub
