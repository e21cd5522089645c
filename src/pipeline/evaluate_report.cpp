#include "pipeline/evaluate_report.h"

#include <fmt/format.h>

#include <cmath>

namespace lquant::pipeline {
using json = nlohmann::ordered_json;

namespace {

/// 1 for each row that is answered rightly.
std::vector<double> correct(const TaskRows& rows, const std::vector<evaluate::Likelihoods>& scores, const std::string& metric) {
  std::vector<double> values;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const auto choice = metric == "acc" ? evaluate::likeliest(scores[i]) : evaluate::likeliest(scores[i], rows.lengths[i]);
    values.push_back(choice == rows.gold[i] ? 1 : 0);
  }
  return values;
}

void put(json& to, const std::string& metric, const evaluate::Mean& mean) {
  to[metric + ",none"] = mean.value;
  to[metric + "_stderr,none"] = std::isnan(mean.error) ? json("N/A") : json(mean.error);
}

}  // namespace

void summarize(const std::vector<TaskScores>& scores, const EvaluateRun& run, const json& config, EvaluateResult& result) {
  auto& report = result.report;
  report = {{"results", json::object()}, {"configs", json::object()},          {"versions", json::object()},
            {"n-shot", json::object()},  {"higher_is_better", json::object()}, {"n-samples", json::object()},
            {"config", config}};
  json comparison = json::object(), teacher_results = json::object();
  for (const auto& [rows, model, teacher] : scores) {
    const auto& task = *rows->task;
    json of{{"name", task.name}, {"alias", task.name}, {"sample_len", model.size()}};
    json of_teacher = of, paired = json::object(), better = json::object();
    for (const auto& metric : task.metrics) {
      EvaluateFigure figure{task.name, metric, {}, {}, {}};
      const auto values = correct(*rows, model, metric);
      figure.model = evaluate::mean_of(values);
      put(of, metric, figure.model);
      better[metric] = true;
      if (!teacher.empty()) {
        const auto others = correct(*rows, teacher, metric);
        figure.teacher = evaluate::mean_of(others);
        put(of_teacher, metric, *figure.teacher);
        const auto p = evaluate::compare(values, others);
        figure.paired = p;
        paired[metric + ",none"] = {
            {"difference", p.difference}, {"ci95", {p.low, p.high}}, {"gained", p.gained}, {"lost", p.lost}, {"p_mcnemar", p.p}};
      }
      result.figures.push_back(std::move(figure));
    }
    report["results"][task.name] = of;
    report["configs"][task.name] = task.definition;
    report["configs"][task.name]["num_fewshot"] = run.shots.value_or(0);
    report["configs"][task.name]["data_sha256"] = rows->hash;
    report["versions"][task.name] = task.version;
    report["n-shot"][task.name] = run.shots.value_or(0);
    report["higher_is_better"][task.name] = better;
    report["n-samples"][task.name] = {{"original", rows->total}, {"effective", model.size()}};
    if (!teacher.empty()) {
      teacher_results[task.name] = of_teacher;
      comparison[task.name] = paired;
    }
  }
  if (!comparison.empty()) {
    report["teacher_results"] = teacher_results;
    report["comparison"] = comparison;
  }
}

std::string row_lines(const std::vector<TaskScores>& scores) {
  std::string lines;
  for (const auto& [rows, model, teacher] : scores) {
    const auto& task = *rows->task;
    std::vector<std::vector<double>> values;
    for (const auto& metric : task.metrics) values.push_back(correct(*rows, model, metric));
    for (std::size_t i = 0; i < model.size(); ++i) {
      json line{{"task", task.name}, {"row", i}, {"gold", rows->gold[i]}, {"loglikelihoods", model[i]}};
      for (std::size_t m = 0; m < task.metrics.size(); ++m) line[task.metrics[m]] = static_cast<int>(values[m][i]);
      if (!teacher.empty()) line["teacher_loglikelihoods"] = teacher[i];
      lines += line.dump() + "\n";
    }
  }
  return lines;
}

}  // namespace lquant::pipeline
