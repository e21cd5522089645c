// A prompt is a list of turns; as plain text each turn is followed by its delimiter, in a chat the template stands between them.
#include "evaluate/prompts.h"

#include "base/error.h"

namespace lquant::evaluate {
namespace {

struct Turn {
  const char* role;
  std::string content, delimiter;
};

std::string plain(const std::vector<Turn>& turns) {
  std::string text;
  for (const auto& turn : turns) text += turn.content + turn.delimiter;
  return text;
}

std::string rendered(const std::vector<Turn>& turns, const PromptOptions& options) {
  if (!options.chat) return plain(turns);
  auto messages = nlohmann::ordered_json::array();
  if (options.multiturn) {
    for (const auto& turn : turns) messages.push_back({{"role", turn.role}, {"content", turn.content}});
  } else {
    messages.push_back({{"role", "user"}, {"content", plain(turns)}});
  }
  return options.chat(messages);
}

}  // namespace

Prompter::Prompter(const Task& task, const RowFile* examples, PromptOptions options)
    : task_(task), examples_(examples), options_(std::move(options)), random_(options_.seed) {}

std::vector<std::size_t> Prompter::draw(const RowFile& rows, std::size_t i) {
  const auto wanted = static_cast<std::size_t>(options_.shots);
  const std::size_t spare = task_.draws_spare_example() ? 1 : 0;
  if (examples_->size() < wanted + spare)
    fail("evaluate", "{}: {} rows are too few to draw {} examples from; add rows or lower --num-shots", examples_->place(0), examples_->size(),
         wanted);
  auto drawn = random_.sample(examples_->size(), wanted + spare);
  if (!spare) return drawn;
  // The scored row itself, should the examples hold it, is no example.
  const auto own = rows.row(i);
  std::erase_if(drawn, [&](std::size_t at) { return examples_->row(at) == own; });
  if (drawn.size() < wanted) {
    std::vector<std::size_t> others;
    for (std::size_t at = 0; at < examples_->size(); ++at)
      if (examples_->row(at) != own) others.push_back(at);
    if (others.size() < wanted)
      fail("evaluate", "{}: too few rows that differ from {}; add rows or lower --num-shots", examples_->place(0), rows.place(i));
    drawn.clear();
    for (const auto at : random_.sample(others.size(), wanted)) drawn.push_back(others[at]);
  }
  drawn.resize(wanted);
  return drawn;
}

Prompt Prompter::prompt(const RowFile& rows, std::size_t i, const Question& question) {
  std::vector<Turn> turns;
  if (options_.shots > 0) {
    for (const auto at : draw(rows, i)) {
      const auto example = examples_->question(task_, at);
      turns.push_back({"user", example.text(example.gold), task_.target_delimiter});
      turns.push_back({"assistant", example.endings[example.gold], task_.fewshot_delimiter});
    }
  }
  Prompt prompt;
  for (const auto& text : question.texts) {
    turns.push_back({"user", text, ""});
    // A chat template can refuse what a row holds.
    prompt.contexts.push_back(with_place([&] { return rows.place(i); }, [&] { return rendered(turns, options_); }));
    turns.pop_back();
  }
  // A chat's answer begins where the template ends, so nothing is put between.
  const std::string delimiter = options_.chat ? "" : task_.target_delimiter;
  for (const auto& ending : question.endings) prompt.continuations.push_back(delimiter + ending);
  return prompt;
}

}  // namespace lquant::evaluate
