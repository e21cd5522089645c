#include "pipeline/sensitivity_files.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace lquant::pipeline {
namespace {

TEST(SensitivitiesName, IsTheHubsWithUnderscoresOrThePathsLast) {
  EXPECT_EQ(sensitivities_name("org/name", false), "org_name");
  EXPECT_EQ(sensitivities_name("org/name/file.gguf", false), "org_name_file.gguf");
  const std::pair<const char*, const char*> paths[] = {{"org/name", "name"}, {"./tiny", "tiny"},       {"tiny/", "tiny"},   {"/a/b/../c/", "c"},
                                                       {"a/..//b", "b"},     {"/data/.cache", "cache"}, {"/data/...", "model"}, {"/", "model"}};
  for (const auto& [path, name] : paths) EXPECT_EQ(sensitivities_name(path, true), name) << path;
  EXPECT_EQ(sensitivities_name(".", true), std::filesystem::current_path().filename());
}

TEST(SensitivitiesName, LeavesRoomForWhatFollows) {
  EXPECT_EQ(sensitivities_name(std::string(255, 'a'), true), std::string(220, 'a'));
  std::string name;
  while (name.size() < 255) name += "€";  // three bytes each
  EXPECT_EQ(sensitivities_name(name, true).size(), 219u);
}

}  // namespace
}  // namespace lquant::pipeline
