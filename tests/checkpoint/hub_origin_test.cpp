#include "checkpoint/hub_origin.h"

#include <gtest/gtest.h>

namespace lquant::checkpoint {
namespace {

TEST(HubOrigin, IsReadOffThePathInTheCache) {
  const auto origin = hub_origin("/cache/hub/models--Qwen--Qwen3-0.6B/snapshots/0123abc/x.gguf");
  ASSERT_TRUE(origin);
  EXPECT_EQ(origin->id, "Qwen/Qwen3-0.6B");
  EXPECT_EQ(origin->revision, "0123abc");
  EXPECT_EQ(hub_origin("/cache/models--gpt2/snapshots/0123abc")->id, "gpt2");
}

TEST(HubOrigin, OtherFoldersHaveNone) {
  for (const char* path : {"models/tiny", "/x/models--a--b", "/x/models--a--b/blobs/1", "/x/snapshots/1", "."})
    EXPECT_FALSE(hub_origin(path)) << path;
}

}  // namespace
}  // namespace lquant::checkpoint
