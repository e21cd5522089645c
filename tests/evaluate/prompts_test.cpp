// Prompts against lm-eval's own: fixtures/prompts.json holds invented rows and the requests that lm-eval 0.4.13 makes of them
// (tests/lm_eval/make_prompts.py), for all tasks, with and without examples and a chat. One example of most tasks is the scored row itself.
#include "evaluate/prompts.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/files.h"
#include "base/temp.h"

namespace lquant::evaluate {
namespace {

using json = nlohmann::json;

std::filesystem::path write(const std::filesystem::path& file, const json& rows) {
  std::ofstream out(file);
  for (const auto& row : rows) out << row.dump() << "\n\n";  // blank lines are none
  return file;
}

/// The template of the script.
std::string chat(const nlohmann::ordered_json& messages) {
  std::string text;
  for (const auto& m : messages) text += "<" + m.at("role").get<std::string>() + ">" + m.at("content").get<std::string>();
  return text + "<assistant>";
}

TEST(Prompts, AreThoseOfLmEval) {
  const auto fixtures = read_json("test", std::string(LQUANT_SOURCE_DIR) + "/tests/evaluate/fixtures/prompts.json");
  ASSERT_EQ(fixtures.size(), tasks().size());
  const testing::TempFolder folder;
  for (const auto& task : tasks()) {
    const auto& fixture = fixtures.at(task.name);
    const RowFile rows(write(folder / "rows.jsonl", fixture.at("rows").at(task.scored_split())));
    const RowFile examples(write(folder / "train.jsonl", fixture.at("rows").at("train")));
    for (const auto& asked : fixture.at("asked")) {
      SCOPED_TRACE(task.name + " with " + asked.at("shots").dump() + " shots");
      Prompter prompter(task, &examples, {asked.at("shots"), 7, asked.at("multiturn"), asked.at("chat") ? Chat(chat) : nullptr});
      ASSERT_EQ(rows.size(), asked.at("questions").size());
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto prompt = prompter.prompt(rows, i, rows.question(task, i));
        const auto& wanted = asked.at("questions")[i];
        ASSERT_EQ(prompt.continuations.size(), wanted.size());
        for (std::size_t c = 0; c < wanted.size(); ++c) {
          EXPECT_EQ(prompt.context(c), wanted[c][0].get<std::string>());
          EXPECT_EQ(prompt.continuations[c], wanted[c][1].get<std::string>());
        }
      }
    }
  }
}

/// What the error of `act` says.
template <class Act>
std::string complaint(const Act& act) {
  try {
    act();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

void expect_all(const std::string& sentence, const std::vector<std::string>& parts) {
  for (const auto& part : parts) EXPECT_NE(sentence.find(part), std::string::npos) << sentence;
}

// Rows as other collections write them: choices as a list and the right one's index.
TEST(Rows, AreTakenInBothForms) {
  const testing::TempFolder folder;
  const RowFile file(write(folder / "a.jsonl", json::array({{{"question", "Q"}, {"choices", {"a", "b", "c"}}, {"answer_index", 2}}})));
  for (const char* name : {"arc_easy", "arc_challenge", "openbookqa"}) {
    const auto question = file.question(find_task(name), 0);
    EXPECT_EQ(question.gold, 2u);
    EXPECT_EQ(question.endings, (std::vector<std::string>{"a", "b", "c"}));
  }
  const RowFile swag(
      write(folder / "b.jsonl", json::array({{{"activity_label", "Run"}, {"ctx_lm_eval", "A man. He"}, {"endings", {"a", "b"}}, {"label", 1}}})));
  EXPECT_EQ(swag.question(find_task("hellaswag"), 0).texts[0], "Run: A man. He");
}

TEST(Rows, SayWhatIsWrongAndWhere) {
  const testing::TempFolder folder;
  const auto file = folder / "rows.jsonl";
  const auto told = [&](const char* task, const std::string& line) {
    std::ofstream(file) << "\n" << line << "\n";
    return complaint([&] { RowFile(file).question(find_task(task), 0); });
  };
  const auto at = file.string() + ":2";
  expect_all(told("boolq", "{nonsense"), {at, "no JSON object", "mend or remove"});
  expect_all(told("boolq", "[1]"), {at, "no JSON object"});
  expect_all(told("boolq", R"({"passage": "p", "label": 1})"), {at, "boolq", "question"});
  expect_all(told("boolq", R"({"passage": "p", "question": 3, "label": 1})"), {at, "question is no text"});
  expect_all(told("boolq", R"({"passage": "p", "question": "q", "label": 2})"), {at, "label is 2", "2 choices"});
  expect_all(told("boolq", R"({"passage": "p", "question": "q"})"), {at, "no field label"});
  expect_all(told("piqa", R"({"goal": "g", "sol1": "", "sol2": "b", "label": 0})"), {at, "piqa", "choice 1 is empty"});
  expect_all(told("winogrande", R"({"sentence": "none", "option1": "a", "option2": "b", "answer": "1"})"), {at, "no blank"});
  expect_all(told("winogrande", R"({"sentence": "so _", "option1": "a", "option2": "b", "answer": "1"})"), {at, "nothing follows"});
  expect_all(told("winogrande", R"({"sentence": "so _.", "option1": "a", "option2": "b", "answer": "0"})"), {at, "count from 1"});
  expect_all(told("arc_easy", R"({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"})"), {at, "answerKey C"});
  expect_all(told("arc_easy", R"({"question": "q", "choices": ["a"], "answer_index": 0})"), {at, "fewer than two"});
  expect_all(told("arc_easy", R"({"question": "q", "choices": [1, 2], "answer_index": 0})"), {at, "no list of texts"});
  const auto many = json::array_t(1001, "a");
  expect_all(told("arc_easy", json{{"question", "q"}, {"choices", many}, {"answer_index", 0}}.dump()), {at, "1001 choices", "1000 at most"});
  // Neither a deep row, which would overflow the stack, nor a long value gets further than its sentence.
  expect_all(told("boolq", R"({"passage": )" + std::string(50'000, '[') + std::string(50'000, ']') + "}"), {at, "no JSON object"});
  const std::string long_text(100'000, 'x');
  for (const auto& text : {told("boolq", R"({"passage": "p", "question": "q", "label": ")" + long_text + "\"}"),
                           told("arc_easy", R"({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": ")" + long_text + "\"}")}) {
    expect_all(text, {at, "xxx"});
    EXPECT_LT(text.size(), 400u);
  }
  std::ofstream(file) << " \n\n";
  expect_all(complaint([&] { RowFile rows(file); }), {file.string(), "no row"});
  expect_all(complaint([&] { RowFile rows(folder / "missing.jsonl"); }), {"missing.jsonl"});
}

TEST(Prompts, NeedRowsEnough) {
  const testing::TempFolder folder;
  const auto rows = write(folder / "rows.jsonl", json::array({{{"goal", "g"}, {"sol1", "a"}, {"sol2", "b"}, {"label", 0}}}));
  const RowFile file(rows);
  Prompter prompter(find_task("piqa"), &file, {1, 0, false, nullptr});
  expect_all(complaint([&] { prompter.prompt(file, 0, file.question(find_task("piqa"), 0)); }), {rows.string(), "too few", "--num-shots"});
}

TEST(Task, UnknownNamesGetTheNearest) {
  expect_all(complaint([] { find_task("arc_esy"); }), {"arc_esy", "did you mean arc_easy"});
  expect_all(complaint([] { find_task("hellaswagg"); }), {"did you mean hellaswag"});
}

TEST(Task, DefinitionsAreChecked) {
  auto good = find_task("piqa").definition;
  EXPECT_EQ(parse_task(good).version, 1.0);
  for (const char* key : {"text", "choices", "gold", "splits", "metrics"}) {
    auto bad = good;
    bad.erase(key);
    expect_all(complaint([&] { parse_task(bad); }), {"piqa"});
  }
  good["metrics"] = {"f1"};
  expect_all(complaint([&] { parse_task(good); }), {"metrics"});
}

}  // namespace
}  // namespace lquant::evaluate
