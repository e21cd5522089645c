// A row's fields become text by the task's templates. Whatever is wrong with a row is said with its file and line, for files
// of ten thousand rows are not searched by eye.
#include "evaluate/rows.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/shown.h"
#include "evaluate/python_text.h"

namespace lquant::evaluate {
using json = nlohmann::json;

namespace {

// The tasks have two to five. Each choice is scored by itself, so that one row with a hundred thousand, which no person wrote, would take minutes.
constexpr std::size_t kMostChoices = 1000;

/// What is wrong with a row; the place is added by who knows it.
struct BadRow {
  std::string what;
};

const json* field(const json& row, const std::string& path) {
  const json* at = &row;
  for (std::size_t begin = 0;;) {
    const auto dot = path.find('.', begin);
    const auto name = path.substr(begin, dot - begin);
    if (!at->is_object() || !at->contains(name)) return nullptr;
    at = &at->at(name);
    if (dot == std::string::npos) return at;
    begin = dot + 1;
  }
}

std::string filtered(const std::string& text, const std::string& filter, const std::string& path) {
  if (filter == "capitalize") return capitalize(text);
  const auto blank = text.find('_');
  if (blank == std::string::npos) throw BadRow{fmt::format("its {} has no blank; mark it by \"_\"", path)};
  if (filter == "before_blank") return text.substr(0, blank);
  if (filter == "after_blank") return std::string(strip(std::string_view(text).substr(blank + 1)));
  throw BadRow{fmt::format("the task asks for the unknown filter {}", filter)};
}

/// nullopt when a field is not there, with its path in `missing`.
std::optional<std::string> rendered(const std::string& text_template, const json& row, std::string& missing) {
  std::string text;
  for (std::size_t at = 0; at < text_template.size();) {
    if (text_template[at] != '{') {
      text += text_template[at++];
      continue;
    }
    const auto end = text_template.find('}', at);
    auto path = text_template.substr(at + 1, end - at - 1);
    std::string filter;
    if (const auto colon = path.find(':'); colon != std::string::npos) filter = path.substr(colon + 1), path = path.substr(0, colon);
    const json* value = field(row, path);
    if (!value) {
      if (!missing.empty()) missing += " or ";
      missing += path;
      return std::nullopt;
    }
    if (!value->is_string()) throw BadRow{fmt::format("its {} is no text", path)};
    const auto found = value->get<std::string>();
    text += filter.empty() ? found : filtered(found, filter, path);
    at = end + 1;
  }
  return text;
}

std::string first_rendered(const std::vector<std::string>& templates, const json& row) {
  std::string missing;
  for (const auto& each : templates)
    if (auto text = rendered(each, row, missing)) return *text;
  throw BadRow{fmt::format("it has no field {}", missing)};
}

std::vector<std::string> each_rendered(const std::vector<std::string>& templates, const json& row) {
  std::vector<std::string> texts;
  for (const auto& each : templates) texts.push_back(first_rendered({each}, row));
  return texts;
}

std::vector<std::string> list_of(const std::vector<std::string>& paths, const json& row) {
  for (const auto& path : paths) {
    const json* value = field(row, path);
    if (!value) continue;
    if (value->is_object()) continue;  // a longer path leads into it, or none does
    if (!value->is_array() || !std::all_of(value->begin(), value->end(), [](const json& v) { return v.is_string(); }))
      throw BadRow{fmt::format("its {} is no list of texts", path)};
    return value->get<std::vector<std::string>>();
  }
  throw BadRow{fmt::format("it has no field {}", fmt::join(paths, " or "))};
}

std::size_t gold_of(const Task& task, const json& row, std::size_t choices) {
  std::string names;
  for (const auto& rule : task.gold) {
    names += (names.empty() ? "" : " or ") + rule.field;
    const json* value = field(row, rule.field);
    if (!value) continue;
    if (!rule.among.empty()) {
      const auto labels = list_of({rule.among}, row);
      const auto label = value->is_string() ? std::string(lstrip(value->get<std::string>())) : value->dump();
      const auto at = std::find(labels.begin(), labels.end(), label);
      if (at == labels.end() || static_cast<std::size_t>(at - labels.begin()) >= choices)
        throw BadRow{fmt::format("its {} {} is none of its {}", rule.field, shown(label), rule.among)};
      return static_cast<std::size_t>(at - labels.begin());
    }
    const auto text = value->is_string() ? value->get<std::string>() : value->dump();
    const bool number = !text.empty() && text.size() < 10 && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    const std::int64_t index = number ? std::stoll(text) - rule.first : -1;
    if (index < 0 || index >= static_cast<std::int64_t>(choices))
      throw BadRow{fmt::format("its {} is {}, which is none of the {} choices (they count from {})", rule.field, shown_json(*value), choices, rule.first)};
    return static_cast<std::size_t>(index);
  }
  throw BadRow{fmt::format("it has no field {}", names)};
}

Question question_of(const Task& task, const json& row) {
  Question q;
  std::vector<std::string> choices;
  if (!task.text_of_choice.empty()) {
    q.texts = choices = each_rendered(task.text_of_choice, row);
    q.endings.assign(choices.size(), first_rendered({task.ending}, row));
  } else {
    q.texts = {first_rendered(task.text, row)};
    q.endings = choices = task.choice_lists.empty() ? each_rendered(task.choice_texts, row) : list_of(task.choice_lists, row);
  }
  if (task.clean == "wikihow") {
    for (auto* list : {&q.texts, &q.endings})
      for (auto& text : *list) text = clean_wikihow(text);
  }
  if (q.endings.size() < 2) throw BadRow{"it has fewer than two choices"};
  if (q.endings.size() > kMostChoices) throw BadRow{fmt::format("it has {} choices, and {} at most are read", q.endings.size(), kMostChoices)};
  for (std::size_t i = 0; i < q.endings.size(); ++i)
    if (q.endings[i].empty())
      throw BadRow{task.text_of_choice.empty() ? fmt::format("its choice {} is empty", i + 1) : std::string("nothing follows its blank")};
  q.gold = gold_of(task, row, choices.size());
  return q;
}

}  // namespace

RowFile::RowFile(const std::filesystem::path& file) : file_(file), bytes_(read_file("evaluate", file)), hash_(sha256(bytes_)) {
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < bytes_.size();) {
    const auto end = std::min(bytes_.find('\n', begin), bytes_.size());
    ++number;
    if (!strip(std::string_view(bytes_).substr(begin, end - begin)).empty()) lines_.push_back({begin, end - begin, number});
    begin = end + 1;
  }
  if (lines_.empty()) fail("evaluate", "{}: holds no row; it needs one JSON object a line", file.string());
}

std::string RowFile::place(std::size_t i) const { return fmt::format("{}:{}", file_.string(), lines_.at(i).number); }

json RowFile::row(std::size_t i) const {
  const auto& line = lines_.at(i);
  const auto text = std::string_view(bytes_).substr(line.begin, line.length);
  try {
    auto row = parse_json(text);
    if (row.is_object()) return row;
  } catch (const JsonFault&) {
  }
  fail("evaluate", "{}: is no JSON object; mend or remove that line", place(i));
}

Question RowFile::question(const Task& task, std::size_t i) const {
  try {
    return question_of(task, row(i));
  } catch (const BadRow& bad) {
    fail("evaluate", "{}: no row of {}: {}; mend or remove that line", place(i), task.name, bad.what);
  }
}

}  // namespace lquant::evaluate
