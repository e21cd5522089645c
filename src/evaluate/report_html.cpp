#include "evaluate/report_html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/figures.h"
#include "evaluate/html.h"
#include "evaluate/report_figures.h"

namespace lquant::evaluate {
using json = nlohmann::ordered_json;

namespace {

// A page of records would be no page: what is longer is cut, and the folder has the whole.
constexpr std::size_t kMostValue = 300, kMostRecord = 40000, kMostRows = 60, kMostColumns = 8;

std::string compact(const json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string value_html(const json& value) {
  if (value.is_number_float()) return data(value.get<double>(), fmt::format("{:.6g}", value.get<double>()));
  return "<bdi>" + escape(beginning(compact(value), kMostValue)) + "</bdi>";
}

/// An object as a table of two columns.
std::string object_table(const json& object, const std::string& caption) {
  Table table{caption, {}, {}, "text"};
  for (const auto& [key, value] : object.items()) {
    if (table.rows.size() == kMostRows) {
      table.rows.push_back({"…", fmt::format("{} more", object.size() - kMostRows)});
      break;
    }
    table.rows.push_back({escape(beginning(key, kMostValue)), value_html(value)});
  }
  return table.html();
}

bool is_steps(const json& value) {
  if (!value.is_array() || value.empty()) return false;
  for (const auto& step : value)
    if (!step.is_object()) return false;
  return true;
}

/// A list of objects, such as auto's steps: a row each, a column for every key.
std::string list_table(const json& list, const std::string& caption) {
  std::vector<std::string> keys;
  for (const auto& item : list)
    for (const auto& [key, value] : item.items())
      if (std::find(keys.begin(), keys.end(), key) == keys.end() && keys.size() < kMostColumns) keys.push_back(key);
  // Records are sorted by key; a step's name heads its row.
  std::stable_partition(keys.begin(), keys.end(), [](const auto& key) { return key == "step" || key == "file"; });
  Table table{caption, {}, {}, "list"};
  for (const auto& key : keys) {
    const bool error = key == "kl_se" || key == "kl_difference_se";
    table.head.push_back(error ? "standard error" : escape(beginning(key, kMostValue)));
  }
  for (const auto& item : list) {
    if (table.rows.size() == kMostRows) break;
    std::vector<std::string> row;
    for (const auto& key : keys) {
      const auto found = item.find(key);
      row.push_back(found == item.end() || found->is_null() ? "–" : found->is_boolean() ? (found->get<bool>() ? "yes" : "no") : value_html(*found));
    }
    table.rows.push_back(std::move(row));
  }
  return table.html();
}

std::string recipe(const FolderReport& folder) {
  if (!folder.record.is_object()) return "<p class=\"note\">" + escape(folder.record_note) + "</p>\n";
  std::string out, steps, lists;
  json rest = json::object();
  const auto& record = folder.record;
  for (const auto& [key, value] : record.items()) {
    if (key == "options" || key == "data" || key == "quality") continue;
    if (value.is_object() && key == "source")
      for (const auto& [inner, what] : value.items()) rest["source " + inner] = what;
    else
      rest[key] = value;
  }
  out += object_table(rest, "How it was made");
  for (const auto& [key, caption] : {std::pair{"options", "Options"}, {"data", "Calibration data"}, {"quality", "Measured when it was made"}}) {
    const auto part = record.find(key);
    if (part == record.end() || part->is_null()) continue;
    if (!part->is_object()) {
      out += object_table(json{{key, *part}}, caption);
      continue;
    }
    auto plain = *part;
    for (const auto& [inner, value] : part->items())
      if (is_steps(value)) {
        (inner == "steps" ? steps : lists) += list_table(value, inner == "steps"   ? "Steps"
                                                                : inner == "files" ? "Files"
                                                                                   : escape(beginning(inner, kMostValue)));
        plain.erase(inner);
      }
    if (!plain.empty()) out += object_table(plain, caption);
  }
  const auto whole = beginning(record.dump(1, ' ', false, json::error_handler_t::replace), kMostRecord);
  return steps + "<div class=\"pair\">\n" + out + "</div>\n" + lists + folded("lquant.json", "<pre>" + escape(whole) + "</pre>\n");
}

/// Two digits that count: what a model thought impossible is not 0.
std::string percent(double share) { return short_exponent(fmt::format("{:.2g}", 100 * share)) + " %"; }

std::string predicted(const std::vector<Prediction>& list, const std::string& token) {
  std::string out = "<ol>";
  for (const auto& p : list)
    out += fmt::format("<li><span{}>{}</span> {}</li>", p.token == token ? " class=\"hit\"" : "", visible(p.token, 24),
                       data(p.probability, fmt::format("{:.1f} %", 100 * p.probability)));
  return out + "</ol>";
}

std::string worst_table(const FolderReport& folder) {
  constexpr std::size_t kContext = 160;
  Table table{
      "", {"KL", "context and <mark>token</mark>", "its probability", "teacher expects", "student expects"}, {}, "tokens", "the worst tokens"};
  for (const auto& w : folder.worst)
    table.rows.push_back({data(w.kl, number(w.kl)), visible(w.before, kContext) + "<mark>" + visible(w.token) + "</mark>",
                          "<ol><li>teacher " + data(w.teacher_probability, percent(w.teacher_probability)) + "</li><li>student " +
                              data(w.student_probability, percent(w.student_probability)) + "</li></ol>",
                          predicted(w.teacher, w.token), predicted(w.student, w.token)});
  return table.html();
}

std::string summary(const Report& report) {
  Table table{"", {"folder", "size", "bits/weight", "perplexity", "KL (nats/token)", "KL p99", "same top-1"}, {}, "names", "summary"};
  for (const auto& f : report.folders) {
    const auto& q = f.quality;
    table.rows.push_back(
        {visible(f.name, 200), data(f.bytes, megabytes(f.bytes)), data(f.bits_per_weight(), fmt::format("{:.3f}", f.bits_per_weight())),
         data(q.perplexity(), plus_minus(q.perplexity(), q.perplexity_se(), 2)), data(q.kl, with_error(q.kl, q.kl_se)),
         data(q.kl_p99, number(q.kl_p99)), data(q.top1, fmt::format("{:.2f} %", 100 * q.top1))});
  }
  const auto& q = report.folders.front().quality;
  table.rows.push_back({visible(report.teacher, 200) + " (teacher)", data(report.teacher_bytes, megabytes(report.teacher_bytes)), "–",
                        data(q.teacher_perplexity(), fmt::format("{:.2f}", q.teacher_perplexity())), "0", "0", "100 %"});
  Table hashes{"SHA-256", {}, {}, "text"};
  hashes.rows.push_back({visible(report.teacher, 200), "<code>" + escape(report.teacher_sha256) + "</code>"});
  for (const auto& f : report.folders) hashes.rows.push_back({visible(f.name, 200), "<code>" + escape(f.sha256) + "</code>"});
  hashes.rows.push_back({visible(report.data, 200), "<code>" + escape(report.data_sha256) + "</code>"});
  return table.html() +
         "<p class=\"note\">" +
         std::string(std::isfinite(q.nll_se) ? "± is one standard error, over rows." : "One row has no standard error.") +
         " KL is the divergence of the folder's next-token distribution from the teacher's; p99 "
         "is the value "
         "that one token in a hundred exceeds; same top-1 is the share of tokens at which both expect the same token most.</p>\n" +
         folded("Hashes", hashes.html());
}

std::string folder_section(const Report& report, std::size_t i) {
  const auto& f = report.folders[i];
  std::string out = fmt::format("<section id=\"f{}\" aria-labelledby=\"f{}-h\">\n<h2 id=\"f{}-h\">{}</h2>\n", i, i, i, visible(f.name, 200));
  out += "<h3>Bits and size by layer</h3>\n" + size_map(f, report.blocks, fmt::format("f{}-size", i));
  if (report.layers != "none") {
    out += report.layers == "block" ? "<h3>KL by block, replaced alone</h3>\n" : "<h3>KL by linear, replaced alone</h3>\n";
    out += fmt::format("<p class=\"note\">On the first {} of {} rows.</p>\n", report.alone_rows, report.rows);
    out += alone_map(f, report.blocks, fmt::format("f{}-alone", i));
  }
  out +=
      "<h3>The worst tokens</h3>\n<p class=\"note\">Where the folder is farthest from its teacher. Underlined is the token that the text has.</p>\n";
  out += worst_table(f);
  return out + "<h3>Recipe</h3>\n" + recipe(f) + "</section>\n";
}

}  // namespace

std::string report_html(const Report& report) {
  std::string contents = "<ul>\n<li><a href=\"#summary\">Summary</a></li>\n<li><a href=\"#distribution\">KL over tokens</a></li>\n", sections;
  std::string body = "<section id=\"summary\" aria-labelledby=\"summary-h\">\n<h2 id=\"summary-h\">Summary</h2>\n" + summary(report);
  if (report.folders.size() > 1) body += "<h3>KL against size</h3>\n" + curve(report, "curve");
  body += "</section>\n<section id=\"distribution\" aria-labelledby=\"distribution-h\">\n<h2 id=\"distribution-h\">KL over tokens</h2>\n";
  for (std::size_t i = 0; i < report.folders.size(); ++i) {
    const auto& name = report.folders[i].name;
    body += "<h3>" + visible(name, 200) + "</h3>\n" + histogram(report.folders[i], fmt::format("f{}-tokens", i));
    contents += fmt::format("<li><a href=\"#f{}\">{}</a></li>\n", i, visible(name, 60));
    sections += folder_section(report, i);
  }
  body += "</section>\n";
  const auto lead = fmt::format("{} against {} on {}: {} rows of {} tokens.",
                                report.folders.size() == 1 ? visible(report.folders[0].name, 200) : fmt::format("{} folders", report.folders.size()),
                                visible(report.teacher, 200), visible(report.data, 200), report.rows, report.sequence_length);
  return filled(page_html(), {{"title", "Quantization report"},
                              {"style", page_css()},
                              {"lead", lead},
                              {"contents", contents + "</ul>\n"},
                              {"body", body + sections},
                              {"version", escape(report.lquant)}});
}

}  // namespace lquant::evaluate
