#include "evaluate/task.h"

#include <algorithm>

#include "base/error.h"
#include "base/nearest.h"

namespace lquant::evaluate {
using json = nlohmann::json;

namespace {

using Strings = std::vector<std::string>;

std::optional<std::string> split(const json& splits, const char* name) {
  return splits.contains(name) ? std::optional(splits.at(name).get<std::string>()) : std::nullopt;
}

void check(const Task& t) {
  const auto require = [&](bool holds, const char* what) {
    if (!holds) fail("evaluate", "task {}: {}", t.name, what);
  };
  require(t.validation || t.test, "no split to score; name a validation or a test split");
  require(t.text_of_choice.empty() != t.text.empty(), "either text with choices or text_of_choice with an ending is needed");
  require(!t.text_of_choice.empty() || t.choice_lists.empty() != t.choice_texts.empty(), "choices are a list or each a template");
  require(t.clean.empty() || t.clean == "wikihow", "clean knows wikihow alone");
  require(!t.gold.empty(), "no rule for the right choice");
  for (const auto& metric : t.metrics) require(metric == "acc" || metric == "acc_norm", "metrics are acc and acc_norm");
}

}  // namespace

Task parse_task(const json& d) {
  Task t;
  try {
    t.name = d.at("task");
    t.version = d.at("version");
    const auto& splits = d.at("splits");
    t.train = split(splits, "train"), t.validation = split(splits, "validation"), t.test = split(splits, "test");
    t.text = d.value("text", Strings{});
    t.text_of_choice = d.value("text_of_choice", Strings{});
    t.ending = d.value("ending", "");
    if (d.contains("choices")) {
      t.choice_lists = d.at("choices").value("list", Strings{});
      t.choice_texts = d.at("choices").value("each", Strings{});
    }
    t.clean = d.value("clean", "");
    for (const auto& rule : d.at("gold")) t.gold.push_back({rule.at("field"), rule.value("in", ""), rule.value("first", std::int64_t{0})});
    t.target_delimiter = d.at("target_delimiter");
    t.fewshot_delimiter = d.at("fewshot_delimiter");
    t.metrics = d.at("metrics").get<Strings>();
  } catch (const json::exception& e) {
    fail("evaluate", "task definition {}: {}", d.is_object() ? d.value("task", "without a name") : "that is no object", e.what());
  }
  t.definition = d;
  check(t);
  return t;
}

const std::vector<Task>& tasks() {
  static const std::vector<Task> all = [] {
    std::vector<Task> read;
    for (const char* text : embedded_tasks()) read.push_back(parse_task(json::parse(text)));
    std::sort(read.begin(), read.end(), [](const Task& a, const Task& b) { return a.name < b.name; });
    return read;
  }();
  return all;
}

const Task& find_task(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& task : tasks()) {
    if (task.name == name) return task;
    names.push_back(task.name);
  }
  fail("evaluate", "there is no task {}{} (tasks: {})", name, did_you_mean(name, names), fmt::join(names, ", "));
}

}  // namespace lquant::evaluate
