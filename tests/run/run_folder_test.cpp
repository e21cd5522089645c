#include "run/run_folder.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "base/temp.h"
#include "run/contents.h"

namespace lquant::run {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;
using json = nlohmann::json;

const json kIdentity = {{"command", "dwq"}, {"options", {{"bits", 4}}}, {"rate", 0.1}, {"seed", 7}, {"model", "abc"}};

template <class Work>
std::string message_of(Work work) {
  try {
    work();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

class RunFolderTest : public ::testing::Test {
 protected:
  std::string opening_fails(const json& identity) {
    return message_of([&] { RunFolder(output, identity, false, context); });
  }
  lquant::testing::TempFolder temp;
  /// What the run told.
  struct Told : NoEvents {
    void line(const std::string& text) override { all += text + "\n"; }
    void warning(const std::string& text) override { all += "warning: " + text + "\n"; }
    std::string all;
  } told;
  Stop stop;
  Context context{told, stop};
  fs::path output = temp / "out";
  fs::path folder = temp / "out.lquant-run";
};

TEST_F(RunFolderTest, LiesBesideTheOutput) {
  EXPECT_EQ(RunFolder::folder_of("a/b"), "a/b.lquant-run");
  EXPECT_EQ(RunFolder::folder_of("a/b/"), "a/b.lquant-run");
  EXPECT_EQ(RunFolder::folder_of("a/../b"), "b.lquant-run");
}

TEST_F(RunFolderTest, UnitsComeBackAsTheyWere) {
  {
    RunFolder run(output, kIdentity, false, context);
    EXPECT_FALSE(run.resumed());
    EXPECT_EQ(run.path(), folder);
    EXPECT_FALSE(run.has("a"));
    EXPECT_FALSE(run.load("a").has_value());
    run.save("a", {{"x", mx::array({1.5f, -0.0f})}, {"u", mx::array({65535, 3}, mx::uint16)}, {"h", mx::astype(mx::array({0.1f}), mx::bfloat16)}},
             {{"step", 3}, {"losses", {0.1, 1e-300}}});
    run.save("b", {}, {{"nothing", true}});
    run.save("b", {}, {{"nothing", "but words"}});  // replaces
  }
  RunFolder again(output, kIdentity, false, context);
  EXPECT_TRUE(again.resumed());
  ASSERT_TRUE(again.has("a"));
  const auto a = again.load("a");
  EXPECT_EQ(a->meta, (json{{"step", 3}, {"losses", {0.1, 1e-300}}}));
  ASSERT_EQ(a->tensors.size(), 3u);
  EXPECT_EQ(a->tensors.at("h").dtype(), mx::bfloat16);
  EXPECT_EQ(a->tensors.at("u").dtype(), mx::uint16);
  EXPECT_TRUE(mx::array_equal(a->tensors.at("u"), mx::array({65535, 3}, mx::uint16)).item<bool>());
  EXPECT_TRUE(mx::array_equal(a->tensors.at("x"), mx::array({1.5f, -0.0f})).item<bool>());
  const auto b = again.load("b");
  EXPECT_TRUE(b->tensors.empty());
  EXPECT_EQ(b->meta.at("nothing"), "but words");
}

TEST_F(RunFolderTest, ALoadedUnitOutlivesItsReplacement) {
  RunFolder run(output, kIdentity, false, context);
  run.save("state", {{"x", mx::full({1000}, 1.0f)}});
  const auto before = run.load("state");
  run.save("state", {{"x", mx::full({1000}, 2.0f)}});
  EXPECT_EQ(mx::sum(before->tensors.at("x")).item<float>(), 1000);
  EXPECT_EQ(mx::sum(run.load("state")->tensors.at("x")).item<float>(), 2000);
}

TEST_F(RunFolderTest, NothingFinishedLeavesNothing) {
  { RunFolder run(output, kIdentity, false, context); }
  EXPECT_FALSE(fs::exists(folder));
}

TEST_F(RunFolderTest, NothingFinishedIsNothingToSpoil) {
  // As a kill leaves it: a journal, part of the first unit.
  fs::create_directories(folder);
  std::ofstream(folder / "journal.json") << json{{"seed", 8}};
  std::ofstream(folder / "b.safetensors.partial") << "half a f";
  RunFolder run(output, kIdentity, false, context);
  EXPECT_FALSE(run.resumed());
  EXPECT_FALSE(run.has("b"));
  run.save("b", {});
  EXPECT_TRUE(run.has("b"));
  EXPECT_EQ(read_journal(folder)->at("seed"), 7);
}

TEST_F(RunFolderTest, AnotherIdentityIsRefusedAndNamed) {
  {
    RunFolder run(output, kIdentity, false, context);
    run.save("a", {});
  }
  auto other = kIdentity;
  other["seed"] = 8;
  EXPECT_TRUE(has(opening_fails(other), "differs in seed (was 7, now 8); repeat that command to continue it, or add --fresh"))
      << opening_fails(other);
  other = kIdentity;
  other["options"]["bits"] = 3;
  EXPECT_TRUE(has(opening_fails(other), "differs in options;")) << opening_fails(other);
  other = kIdentity;
  other["new"] = 1;
  EXPECT_TRUE(has(opening_fails(other), "differs in new")) << opening_fails(other);
  other = kIdentity;
  other.erase("model");
  EXPECT_TRUE(has(opening_fails(other), "differs in model")) << opening_fails(other);
  // Refusing leaves everything, and the lock, as it was.
  EXPECT_TRUE(RunFolder(output, kIdentity, false, context).has("a"));
}

TEST_F(RunFolderTest, FractionsCompareEqualToThemselves) {
  auto identity = kIdentity;
  identity["rate"] = 0.1f;  // becomes 0.10000000149011612 on its way through text
  RunFolder(output, identity, false, context).save("a", {});
  EXPECT_EQ(opening_fails(identity), "no error");
}

TEST_F(RunFolderTest, FreshStartsOver) {
  {
    RunFolder run(output, kIdentity, false, context);
    run.save("a", {});
  }
  auto other = kIdentity;
  other["seed"] = 8;
  {
    RunFolder run(output, other, true, context);
    EXPECT_FALSE(run.resumed());
    EXPECT_FALSE(run.has("a"));
    run.save("b", {});
  }
  EXPECT_EQ(opening_fails(other), "no error");
  EXPECT_TRUE(has(opening_fails(kIdentity), "seed (was 8, now 7)"));
}

TEST_F(RunFolderTest, OneAtATime) {
  {
    RunFolder run(output, kIdentity, false, context);
    EXPECT_TRUE(has(opening_fails(kIdentity), "another run is working there"));
    EXPECT_TRUE(has(message_of([&] { RunFolder(output, kIdentity, true, context); }), "another run is working there"));
    run.save("a", {});
    EXPECT_TRUE(run.has("a"));  // the refused one, fresh as it was, took nothing away
  }
  // A lock of another process counts; it goes with that process.
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const int lock = ::open((folder / "lock").c_str(), O_RDWR);
    const char told = ::flock(lock, LOCK_EX | LOCK_NB) == 0 ? 'y' : 'n';
    if (::write(ready[1], &told, 1) == 1) ::pause();
    ::_exit(0);
  }
  char told = 0;
  ASSERT_EQ(::read(ready[0], &told, 1), 1);
  EXPECT_EQ(told, 'y');
  EXPECT_TRUE(has(opening_fails(kIdentity), "another run is working there"));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(ready[0]), ::close(ready[1]);
  EXPECT_EQ(opening_fails(kIdentity), "no error");
}

TEST_F(RunFolderTest, LeftoversOfAKillAreIgnoredAndRemoved) {
  {
    RunFolder run(output, kIdentity, false, context);
    run.save("a", {{"x", mx::array({1.0f})}});
  }
  std::ofstream(folder / "b.safetensors.partial") << "half a f";
  std::ofstream(folder / "journal.json.partial") << "{";
  RunFolder run(output, kIdentity, false, context);
  EXPECT_TRUE(run.has("a"));
  EXPECT_FALSE(run.has("b"));
  EXPECT_FALSE(fs::exists(folder / "b.safetensors.partial"));
  EXPECT_FALSE(fs::exists(folder / "journal.json.partial"));
}

/// Changes one byte of a file.
void flip(const fs::path& file, std::uintmax_t at) {
  std::fstream io(file, std::ios::in | std::ios::out | std::ios::binary);
  io.seekg(static_cast<std::streamoff>(at));
  const char changed = static_cast<char>(io.get() ^ 0x10);
  io.seekp(static_cast<std::streamoff>(at));
  io.put(changed);
}

TEST_F(RunFolderTest, AUnitWithAnyByteChangedIsFoundAndMadeAgain) {
  const auto file = folder / "a.safetensors";
  {
    RunFolder run(output, kIdentity, false, context);
    run.save("a", {{"x", mx::array({1.0f, 2.0f})}}, {{"step", 3}});
    run.save("b", {});
  }
  const auto whole = read_file("test", file);
  for (std::uintmax_t at = 0; at < whole.size(); ++at) {
    flip(file, at);
    told.all.clear();
    RunFolder run(output, kIdentity, false, context);
    ASSERT_FALSE(run.has("a")) << "byte " << at;
    ASSERT_TRUE(run.has("b"));
    ASSERT_TRUE(has(told.all, "a.safetensors: is not as it was written; what it held is computed again")) << told.all;
    write_file_atomically("test", file, whole);
  }
  for (const auto size : {std::size_t{0}, std::size_t{20}, whole.size() - 1}) {
    write_file_atomically("test", file, whole.substr(0, size));
    RunFolder run(output, kIdentity, false, context);
    EXPECT_FALSE(run.has("a")) << size << " bytes";
  }
  // A sound file that lquant has not sealed.
  mx::save_safetensors(file.string(), {{"x", mx::array({1.0f})}});
  EXPECT_FALSE(RunFolder(output, kIdentity, false, context).has("a"));
}

TEST_F(RunFolderTest, AUnitThatChangesUnderARunIsNamed) {
  RunFolder run(output, kIdentity, false, context);
  run.save("a", {{"x", mx::array({1.0f})}});
  flip(folder / "a.safetensors", 100);
  const auto message = message_of([&] { run.load("a"); });
  EXPECT_TRUE(has(message, "[run]") && has(message, "a.safetensors: has changed") && has(message, "give the same command again")) << message;
}

TEST_F(RunFolderTest, WithoutASoundJournalUnitsAreNobodys) {
  const auto journal = folder / "journal.json";
  std::string whole;
  {
    RunFolder run(output, kIdentity, false, context);
    run.save("a", {});
    whole = read_file("test", journal);
  }
  const std::string deep = "{\"identity\":" + std::string(100'000, '[') + std::string(100'000, ']') + ",\"sha256\":\"\"}";
  for (const auto& text : {std::string(), std::string("{"), std::string("null"), kIdentity.dump(), whole.substr(0, whole.size() / 2), deep}) {
    told.all.clear();
    fs::remove(journal);
    if (!text.empty()) write_file_atomically("test", journal, text);
    auto other = kIdentity;
    other["seed"] = 8;
    {
      RunFolder run(output, other, false, context);
      EXPECT_FALSE(run.has("a")) << text;
      EXPECT_FALSE(run.resumed());
      run.save("a", {});
    }
    EXPECT_TRUE(has(told.all, "no journal that can be trusted; starting over")) << told.all;
    EXPECT_EQ(read_journal(folder)->at("seed"), 8);
    write_file_atomically("test", journal, whole);
  }
  // Any byte of it: another identity or none, never a silent yes.
  for (std::uintmax_t at = 0; at < whole.size(); ++at) {
    flip(journal, at);
    const auto found = read_journal(folder);
    EXPECT_TRUE(!found || json::parse(whole).at("identity") == *found) << "byte " << at;
    flip(journal, at);
  }
}

TEST_F(RunFolderTest, WhatIsNotARunsIsNeverRemoved) {
  fs::create_directories(folder);
  for (const char* name : {"thesis.txt", "model.safetensors", "photos/a.png"}) {
    fs::create_directories((folder / name).parent_path());
    std::ofstream(folder / name) << "mine";
    for (const bool fresh : {false, true}) {
      const auto message = message_of([&] { RunFolder(output, kIdentity, fresh, context); });
      EXPECT_TRUE(has(message, "was not made by a run of lquant") && has(message, "move it away")) << message;
      EXPECT_TRUE(fs::exists(folder / name));
    }
    fs::remove_all(folder / fs::path(name).begin()->string());
  }
  // Put there while a run worked: the run's own files go.
  RunFolder run(output, kIdentity, false, context);
  run.save("a", {});
  std::ofstream(folder / "thesis.txt") << "mine";
  run.remove();
  EXPECT_TRUE(fs::exists(folder / "thesis.txt"));
  EXPECT_FALSE(fs::exists(folder / "a.safetensors") || fs::exists(folder / "journal.json"));
}

TEST_F(RunFolderTest, ALinkIsRefused) {
  fs::create_directories(temp / "elsewhere");
  std::ofstream(temp / "elsewhere" / "precious.safetensors") << "mine";
  fs::create_directory_symlink(temp / "elsewhere", folder);
  for (const bool fresh : {false, true})
    EXPECT_TRUE(has(message_of([&] { RunFolder(output, kIdentity, fresh, context); }), "out.lquant-run: is a link"));
  EXPECT_TRUE(fs::exists(temp / "elsewhere" / "precious.safetensors"));
  fs::remove(folder);
  std::ofstream(folder) << "a file";
  EXPECT_TRUE(has(opening_fails(kIdentity), "is no folder"));
}

TEST_F(RunFolderTest, StepsAreTrustedByTheirFiles) {
  const auto make = [&](RunFolder& run, const std::string& text) {
    const auto place = run.begin_step("awq");
    EXPECT_FALSE(fs::exists(place));
    fs::create_directories(place / "sub");
    std::ofstream(place / "sub" / "weights") << text;
    EXPECT_FALSE(run.has_step("awq"));
    return place;
  };
  {
    RunFolder run(output, kIdentity, false, context);
    make(run, "half");
    make(run, "whole");  // the first was never finished
    run.finish_step("awq", {{"rows", 3}});
    EXPECT_TRUE(run.has_step("awq"));
  }
  {
    RunFolder run(output, kIdentity, false, context);
    ASSERT_TRUE(run.has_step("awq"));
    EXPECT_EQ(read_file("test", run.step("awq") / "sub" / "weights"), "whole");
    EXPECT_EQ(run.step_meta("awq").at("rows"), 3);
  }
  flip(folder / "steps" / "awq" / "sub" / "weights", 2);
  {
    RunFolder run(output, kIdentity, false, context);
    EXPECT_FALSE(run.has_step("awq"));
    EXPECT_TRUE(has(told.all, "steps/awq: is not as it was written")) << told.all;
    make(run, "whole");
    run.finish_step("awq");
  }
  // Without the unit that vouches for it, and with a file too many.
  fs::remove(folder / "step-awq.safetensors");
  {
    RunFolder run(output, kIdentity, false, context);
    EXPECT_FALSE(run.has_step("awq"));
    make(run, "whole");
    run.finish_step("awq");
  }
  std::ofstream(folder / "steps" / "awq" / "more") << "x";
  EXPECT_FALSE(RunFolder(output, kIdentity, false, context).has_step("awq"));
}

TEST_F(RunFolderTest, APlaceThatCannotBeMadeIsNamed) {
  std::ofstream(temp / "file") << "x";
  output = temp / "file" / "out";
  const auto message = opening_fails(kIdentity);
  EXPECT_TRUE(has(message, "out.lquant-run: cannot be made") && has(message, "another place")) << message;
}

TEST_F(RunFolderTest, WhatAKillWhileRemovingLeftGoesLater) {
  fs::create_directories(temp / "out.lquant-run.removed");
  std::ofstream(temp / "out.lquant-run.removed" / "a.safetensors") << "half removed";
  RunFolder run(output, kIdentity, false, context);
  EXPECT_FALSE(fs::exists(temp / "out.lquant-run.removed"));
  EXPECT_FALSE(run.has("a"));
}

TEST_F(RunFolderTest, RemovedWhenTheOutputStands) {
  RunFolder run(output, kIdentity, false, context);
  run.save("a", {});
  run.remove();
  EXPECT_FALSE(fs::exists(folder) || fs::exists(temp / "out.lquant-run.removed"));
  run.save("a", {});  // nothing comes back
  EXPECT_FALSE(fs::exists(folder));
}

TEST_F(RunFolderTest, APassiveRankTouchesNothing) {
  RunFolder run(output, kIdentity, false, context, false);
  run.save("a", {});
  EXPECT_FALSE(run.has("a"));
  EXPECT_FALSE(run.load("a").has_value());
  run.remove();
  EXPECT_FALSE(fs::exists(folder));
}

}  // namespace
}  // namespace lquant::run
