// One card, made here and nowhere else: when a folder is made, when figures are added to its record, and when it is published under another name.
// Everything in it comes from lquant.json and config.json, which travel with the weights, so that it can be made anew at any time.
#include "artifact/card.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/figures.h"
#include "base/json.h"
#include "base/words.h"
#include "lquant/version.h"
#include "text/front_matter.h"

namespace lquant::artifact {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// A JSON text is a YAML scalar, and a Python string, quoted as both understand it.
std::string scalar(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

void add_key(std::string& yaml, const std::string& key, const json& value) {
  if (!value.is_array()) {
    yaml += fmt::format("{}: {}\n", key, scalar(value));
    return;
  }
  yaml += key + ":\n";
  for (const auto& item : value) yaml += fmt::format("- {}\n", scalar(item));
}

/// The base model's front matter; what is wrong with another's card is no reason to have none.
json base_card(const json& source) {
  try {
    return source.contains("card") ? text::front_matter(source.at("card").get<std::string>()) : json::object();
  } catch (const Error&) {
    return json::object();
  }
}

/// The widths of all quantized linears.
std::set<int> widths(const json& record, const json& config) {
  std::set<int> found;
  if (record.contains("formats")) {
    for (const auto& format : record.at("formats")) found.insert(format.at("bits").get<int>());
  } else if (config.contains("quantization")) {  // written before records had the formats
    const auto& block = config.at("quantization");
    if (block.contains("bits")) found.insert(block.at("bits").get<int>());
    for (const auto& [path, entry] : block.items())
      if (entry.is_object() && entry.contains("bits")) found.insert(entry.at("bits").get<int>());
  }
  return found;
}

std::string front_matter(const json& record, const json& config) {
  const auto source = record.value("source", json::object());
  const auto bits = widths(record, config);
  std::string yaml = "---\n";
  add_key(yaml, "library_name", "mlx");
  add_key(yaml, "pipeline_tag", "text-generation");
  if (source.contains("repo")) {
    add_key(yaml, "base_model", source.at("repo"));
    if (!bits.empty()) add_key(yaml, "base_model_relation", "quantized");
  }
  const auto base = base_card(source);
  for (const char* key : {"license", "license_name", "license_link", "language"})
    if (base.contains(key) && !base.at(key).is_object()) add_key(yaml, key, base.at(key));
  json tags{"mlx", "lquant"};
  if (!bits.empty()) tags.push_back("quantized");
  if (bits.size() == 1) tags.push_back(fmt::format("{}-bit", *bits.begin()));
  add_key(yaml, "tags", tags);
  return yaml + "---\n\n";
}

std::string method(const json& record) {
  const auto command = record.value("command", "");
  if (command == "convert") return record.contains("formats") ? "rounding to the nearest value" : "conversion";
  if (command == "gptq") return "GPTQ";
  if (command == "awq") return "AWQ";
  if (command == "dwq") return "DWQ: trained to predict what the original predicts";
  if (command == "dynamic_quant") return "bits where the model is sensitive, by range search";
  if (command != "auto") return command;
  std::string kept;
  for (const auto& step : record.value("quality", json::object()).value("steps", json::array()))
    if (step.value("kept", false)) kept += (kept.empty() ? "" : ", ") + step.value("step", "");
  return kept.empty() ? "auto" : fmt::format("auto: {}", kept);
}

/// The command with the options that every reader asks for; all others stand in lquant.json.
std::string command(const json& record, const CardNames& names) {
  const auto name = record.at("command").get<std::string>();
  const auto& options = record.at("options");
  const auto source = record.value("source", json::object());
  const auto made_from = shell_quoted(names.source.value_or(source.value("repo", source.value("name", "MODEL"))));
  auto text = fmt::format("lquant {} --model {}", name, made_from);
  if (options.contains("quantized_model")) {  // what was trained has a teacher of its own
    text = fmt::format("lquant {} --model {} --quantized-model {}", name, shell_quoted(source.value("repo", "MODEL")), made_from);
  }
  const bool convert = name == "convert";
  if (convert && options.value("quantize", false)) text += " -q";
  if (convert && options.value("dequantize", false)) text += " -d";
  const std::pair<const char*, const char*> flags[] = {{"bits", convert ? "--q-bits" : "--bits"},
                                                       {"group_size", convert ? "--q-group-size" : "--group-size"},
                                                       {"mode", "--q-mode"},
                                                       {"dtype", "--dtype"},
                                                       {"target_bpw", "--target-bpw"},
                                                       {"quant_predicate", "--quant-predicate"},
                                                       {"num_samples", "--num-samples"},
                                                       {"train_blocks", "--train-blocks"}};
  for (const auto& [key, flag] : flags) {
    if (!options.contains(key)) continue;
    const auto& value = options.at(key);
    if (value.is_string())
      text += fmt::format(" {} {}", flag, shell_quoted(value.get<std::string>()));
    else if (value.is_number() && value.get<double>() > 0)
      text += fmt::format(" {} {}", flag, value.dump());
  }
  if (options.contains("plan")) text += " --plan PLAN";
  return text + fmt::format(" --mlx-path {}", shell_quoted(names.title.starts_with('-') ? "./" + names.title : names.title));
}

std::string row(const std::string& what, const std::string& value) { return fmt::format("| {} | {} |\n", what, value); }

/// "0.4500 ± 0.0210"; without the error where it is not known: null, or 0 in records that were written when 0 stood for that.
std::string with_error(const json& value, const json& error) {
  const double known = or_nan(error);
  return plus_minus(value.get<double>(), known > 0 ? known : NAN, 4);
}

std::string formats(const json& record) {
  std::string words;
  for (const auto& f : record.at("formats"))
    words += fmt::format("{}{} {} bits, groups of {}", words.empty() ? "" : "; ", f.at("mode").get<std::string>(), f.at("bits").get<int>(),
                         f.at("group_size").get<int>());
  return words;
}

/// A cell or a title of somebody's words: no line breaks, no bars.
std::string cell(std::string text) {
  for (auto& c : text)
    if (static_cast<unsigned char>(c) < ' ' || c == '|') c = ' ';
  return text;
}

/// Parts that are not quantized and that size, parameters and bits per weight do not count.
std::string kept(const json& record) {
  std::string words;
  for (const auto& [what, bytes] : record.at("kept").items())
    words += fmt::format("{}{}, {}", words.empty() ? "" : "; ", cell(what), format_bytes(bytes.get<double>()));
  return words;
}

std::string measured(const json& record) {
  std::string rows;
  const auto quality = record.value("quality", json::object());
  const std::string held_out = "KL to the original on held-out rows";
  if (quality.contains("validation_kl"))
    rows += row(held_out, fmt::format("{:.4f} nats/token (before training {:.4f})", quality.at("validation_kl").get<double>(),
                                      quality.at("validation_kl_start").get<double>()));
  if (quality.contains("held_out_kl")) rows += row(held_out, fmt::format("{:.4f} nats/token", quality.at("held_out_kl").get<double>()));
  for (const auto& m : record.value("measured", json::array())) {
    const auto on = fmt::format("{}, {} tokens", cell(m.value("text", "a text")), m.value("tokens", 0));
    const auto original = m.contains("teacher_perplexity") ? fmt::format(", the original {:.3f}", m.at("teacher_perplexity").get<double>()) : "";
    rows += row("perplexity", fmt::format("{:.3f} ({}){}", m.at("perplexity").get<double>(), on, original));
    if (m.contains("kl")) rows += row("KL to the original", fmt::format("{} nats/token ({})", with_error(m.at("kl"), m.value("kl_se", json())), on));
  }
  return rows;
}

std::string tasks(const json& record) {
  const auto all = record.value("tasks", json::object());
  if (all.empty()) return "";
  bool compared = false;
  for (const auto& [name, task] : all.items()) compared |= task.contains("original");
  std::string text = fmt::format("\n## Tasks\n\n| task | examples | rows | metric | this model |{}\n| --- | --- | --- | --- | --- |{}\n",
                                 compared ? " the original |" : "", compared ? " --- |" : "");
  for (const auto& [name, task] : all.items())
    for (const auto& [metric, figure] : task.at("metrics").items()) {
      text += fmt::format("| {} | {} | {} | {} | {} |", cell(name), task.value("examples", 0), task.value("rows", 0), cell(metric),
                          with_error(figure.at("value"), figure.value("error", json())));
      if (compared) {
        const auto original = task.value("original", json::object()).value(metric, json());
        text += original.is_object() ? fmt::format(" {} |", with_error(original.at("value"), original.value("error", json()))) : " |";
      }
      text += "\n";
    }
  return text;
}

std::string use(const CardNames& names) {
  return fmt::format(
      "\n## Use with mlx_lm\n\n```sh\npip install mlx-lm\nmlx_lm.generate --model {} --prompt \"Hello\"\n```\n\n```python\nfrom mlx_lm import load, "
      "generate\n\nmodel, tokenizer = load({})\nmessages = [{{\"role\": \"user\", \"content\": \"Hello\"}}]\nprompt = "
      "tokenizer.apply_chat_template(messages, add_generation_prompt=True) if tokenizer.chat_template else \"Hello\"\nprint(generate(model, tokenizer, "
      "prompt=prompt))\n```\n",
      shell_quoted(names.place), scalar(names.place));
}

}  // namespace

CardNames names_of(const fs::path& folder) {
  auto place = utf8(folder.lexically_normal());
  while (place.size() > 1 && place.ends_with('/')) place.pop_back();
  return {name_of(folder), place.starts_with('-') ? "./" + place : place, std::nullopt};
}

CardNames names_of_repository(const std::string& repo) { return {repo.substr(repo.find('/') + 1), repo, std::nullopt}; }

std::string model_card(const json& record, const json& config, const CardNames& names) {
  const auto source = record.value("source", json::object());
  auto card = front_matter(record, config) + fmt::format("# {}\n\n", cell(names.title));
  card += source.contains("repo") ? fmt::format("[{0}](https://huggingface.co/{0})", source.at("repo").get<std::string>())
                                  : fmt::format("`{}`", cell(source.value("name", "A model")));
  card += fmt::format(", made {} by [lquant]({}) {}.\n\n| | |\n| --- | --- |\n", widths(record, config).empty() ? "ready for MLX" : "small", LQUANT_HOME,
                      record.at("lquant").get<std::string>());
  card += row("bits per weight", fmt::format("{:.3f}", record.at("bits_per_weight").get<double>()));
  card += row("size of the weights", format_bytes(record.at("bytes").get<double>()));
  if (record.contains("kept")) card += row("beside it, as they are", kept(record));
  card += row("parameters", fmt::format("{:.1f} million", record.at("parameters").get<double>() / 1e6));
  card += row("method", method(record));
  if (record.contains("formats")) card += row("format", formats(record));
  card += measured(record) + tasks(record) + use(names);
  return card + fmt::format("\n## How it was made\n\n```sh\n{}\n```\n\nAll options, versions and hashes stand in `lquant.json`.\n", command(record, names));
}

bool is_ours(const std::string& readme) {
  const auto tags = text::front_matter(readme).value("tags", json::array());
  return tags.is_array() && std::find(tags.begin(), tags.end(), "lquant") != tags.end();
}

}  // namespace lquant::artifact
