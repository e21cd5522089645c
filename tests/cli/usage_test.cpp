#include "cli/usage.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "cli/options.h"

namespace lquant::cli {
namespace {

using Words = std::vector<std::string>;

TEST(Arguments, ALinksNameIsACommand) {
  EXPECT_EQ(arguments_of("/usr/bin/lquant.dwq", {"--bits", "3"}), (Words{"dwq", "--bits", "3"}));
  EXPECT_EQ(arguments_of("lquant", {"dwq"}), Words{"dwq"});
  EXPECT_EQ(arguments_of("other.dwq", {"dwq"}), Words{"dwq"});
}

TEST(Arguments, HelpIsWrittenBothWays) {
  EXPECT_EQ(arguments_of("lquant", {"help"}), Words{"--help"});
  EXPECT_EQ(arguments_of("lquant", {"help", "dwq"}), (Words{"dwq", "--help"}));
}

TEST(Arguments, AnEqualsSignWithNothingBehindItIsNoValue) { EXPECT_THROW(arguments_of("lquant", {"dwq", "--model=", "--bits"}), UsageError); }

/// What is said of arguments to a program with two commands.
std::string said(const Words& arguments) {
  CLI::App app{"says things"};
  app.require_subcommand(1);
  int bits = 0;
  std::string model;
  auto* dwq = app.add_subcommand("dwq", "trains");
  dwq->add_option("--model,-m", model)->required();
  dwq->add_option("--bits", bits);
  app.add_subcommand("generate", "writes");
  try {
    app.parse(Words(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& e) {
    return complaint(app, arguments, e.what());
  }
  return "";
}

TEST(Complaint, AnUnknownOptionGoesBeforeWhatIsMissing) {
  EXPECT_EQ(said({"dwq", "--modle", "x"}), "dwq has no option --modle; did you mean --model? (lquant dwq --help lists all)");
  EXPECT_EQ(said({"dwq", "-m", "x", "--bit", "3"}), "dwq has no option --bit; did you mean --bits? (lquant dwq --help lists all)");
  EXPECT_EQ(said({"dwq", "-m", "x", "--bit=3"}), "dwq has no option --bit; did you mean --bits? (lquant dwq --help lists all)");
  EXPECT_EQ(said({"dwq", "-m", "x", "--abacus"}), "dwq has no option --abacus (lquant dwq --help lists all)");
  EXPECT_EQ(said({"dwq", "-m", "x", "-b"}), "dwq has no option -b (lquant dwq --help lists all)");
}

TEST(Complaint, WordsThatNobodyAskedFor) { EXPECT_EQ(said({"dwq", "-m", "x", "three"}), "three: belongs to no option of dwq; see lquant dwq --help"); }

TEST(Complaint, AForgottenValue) {
  EXPECT_EQ(said({"dwq", "--model", "--bits", "3"}), "--model has no value, for --bits comes right behind it; see lquant dwq --help");
}

TEST(Complaint, CommandsAreOfferedWhenTheyAreClose) {
  EXPECT_EQ(said({"dqw", "--bits", "3"}), "there is no command dqw; did you mean dwq? (commands: dwq, generate)");
  EXPECT_EQ(said({"convert"}), "there is no command convert (commands: dwq, generate)");
  EXPECT_EQ(said({"--bits", "3", "dwq"}), "there is no option --bits before a command (commands: dwq, generate)");
}

TEST(Counts, LeaveRoomForSums) {
  const auto complains = [](const CLI::Validator& validator, std::string text) { return !validator(text).empty(); };
  for (const char* text : {"0", "-2", "1073741825", "99999999999999999999", "1e3", "x", ""}) {
    EXPECT_TRUE(complains(kCount, text)) << text;
    EXPECT_TRUE(complains(kCountOrAll, text)) << text;
  }
  for (const char* text : {"1", "1073741824"}) EXPECT_FALSE(complains(kCount, text) || complains(kCountOrAll, text)) << text;
  EXPECT_TRUE(complains(kCount, "-1"));
  EXPECT_FALSE(complains(kCountOrAll, "-1"));
  for (const char* text : {"-1", "0.5", "x", "", "99999999999999999999"}) EXPECT_TRUE(complains(kSeed, text)) << text;
  for (const char* text : {"0", "9223372036854775807"}) EXPECT_FALSE(complains(kSeed, text)) << text;
  for (const char* text : {"0", "-1", "nan", "inf", "x"}) EXPECT_TRUE(complains(kPositive, text)) << text;
  EXPECT_FALSE(complains(kPositive, "0.5"));
}

}  // namespace
}  // namespace lquant::cli
