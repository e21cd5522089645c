#include "hub/card.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "hub/library.h"

namespace lquant::hub {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// A JSON text is a YAML scalar, quoted as YAML understands it.
std::string scalar(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

void add_key(std::string& yaml, const std::string& key, const json& value) {
  if (!value.is_array()) {
    yaml += fmt::format("{}: {}\n", key, scalar(value));
    return;
  }
  yaml += key + ":\n";
  for (const auto& item : value) yaml += fmt::format("- {}\n", scalar(item));
}

/// Whether the card is one that lquant wrote, here or when the folder was made.
bool is_ours(const std::string& text, const run::Context& context) {
  if (!available()) {  // all that is looked for then is what lquant itself writes
    const auto front = text.substr(0, text.find("\n---", 3));
    return front.starts_with("---\n") && (front.find("\n- lquant") != std::string::npos || front.find("\n- \"lquant\"") != std::string::npos);
  }
  const auto tags = call("lquant_hub_front_matter", {{"text", text}}, context).value("tags", json::array());
  return tags.is_array() && std::find(tags.begin(), tags.end(), "lquant") != tags.end();
}

std::string front_matter(const json& record, const json& config, const run::Context& context) {
  const auto source = record.value("source", json::object());
  std::string yaml = "---\n";
  add_key(yaml, "library_name", "mlx");
  add_key(yaml, "pipeline_tag", "text-generation");
  if (source.contains("repo")) {
    add_key(yaml, "base_model", source.at("repo"));
    add_key(yaml, "base_model_relation", "quantized");
  }
  if (source.contains("card") && !available())
    context.line("licence and languages of the base model's card are left out here; `make hub` builds what reads them");
  if (source.contains("card") && available()) {
    const auto base = call("lquant_hub_front_matter", {{"text", source.at("card")}}, context);
    for (const char* key : {"license", "license_name", "license_link", "language"})
      if (base.contains(key) && !base.at(key).is_object()) add_key(yaml, key, base.at(key));
  }
  json tags{"mlx", "lquant"};
  if (config.contains("quantization") && config["quantization"].contains("bits"))
    tags.push_back(fmt::format("{}-bit", config["quantization"]["bits"].get<int>()));
  add_key(yaml, "tags", tags);
  return yaml + "---\n\n";
}

/// The command with the options that every reader asks for; all others stand in lquant.json.
std::string command(const json& record, const std::string& base) {
  const auto name = record.value("command", "");
  const auto& options = record.at("options");
  auto text = fmt::format("lquant {} --model {}", name, base);
  if (name == "convert" && options.value("quantize", false)) text += " -q";
  const std::pair<const char*, const char*> flags[] = {{"bits", name == "convert" ? "--q-bits" : "--bits"},
                                                       {"group_size", name == "convert" ? "--q-group-size" : "--group-size"},
                                                       {"target_bpw", "--target-bpw"},
                                                       {"quant_predicate", "--quant-predicate"},
                                                       {"num_samples", "--num-samples"},
                                                       {"train_blocks", "--train-blocks"}};
  for (const auto& [key, flag] : flags)
    if (options.contains(key) && (options[key].is_string() || (options[key].is_number() && options[key].get<double>() > 0)))
      text += fmt::format(" {} {}", flag, options[key].is_string() ? options[key].get<std::string>() : options[key].dump());
  return text;
}

std::string row(const std::string& what, const std::string& value) { return fmt::format("| {} | {} |\n", what, value); }

std::string measured(const json& record) {
  std::string rows;
  const auto quality = record.value("quality", json::object());
  const auto figure = [&](const json& from, const char* key) { return from.at(key).get<double>(); };
  if (quality.contains("validation_kl"))
    rows += row("KL to the original on held-out rows",
                fmt::format("{:.4f} nats/token (before training {:.4f})", figure(quality, "validation_kl"), figure(quality, "validation_kl_start")));
  if (quality.contains("held_out_kl"))
    rows += row("KL to the original on held-out rows", fmt::format("{:.4f} nats/token", figure(quality, "held_out_kl")));
  for (const auto& m : record.value("measured", json::array())) {
    const auto on = fmt::format("{}, {} tokens", m.value("text", "a text"), m.value("tokens", 0));
    rows +=
        row("perplexity", fmt::format("{:.3f} ({}){}", figure(m, "perplexity"), on,
                                      m.contains("teacher_perplexity") ? fmt::format(", the original {:.3f}", figure(m, "teacher_perplexity")) : ""));
    if (m.contains("kl")) rows += row("KL to the original", fmt::format("{:.4f} ± {:.4f} nats/token ({})", figure(m, "kl"), figure(m, "kl_se"), on));
  }
  return rows;
}

}  // namespace

std::string model_card(const fs::path& folder, const std::string& repo, const run::Context& context) {
  const auto readme = folder / "README.md", record_file = folder / "lquant.json";
  const auto present = fs::is_regular_file(readme) ? read_file("hub", readme) : std::string();
  if (!present.empty() && !is_ours(present, context)) return present;
  if (!fs::is_regular_file(record_file))
    fail("hub", "{}: holds neither lquant.json, from which the model card is made, nor a README.md; write a README.md", folder.string());
  const auto record = read_json("hub", record_file), config = read_json("hub", folder / "config.json");
  try {
    const auto source = record.value("source", json::object());
    const auto base = source.value("repo", source.value("name", "the original"));
    const auto title = repo.substr(repo.find('/') + 1);
    auto card = front_matter(record, config, context);
    card += fmt::format("# {}\n\n", title);
    card += source.contains("repo") ? fmt::format("[{0}](https://huggingface.co/{0})", base) : fmt::format("`{}`", base);
    card += fmt::format(", made small by lquant {}.\n\n| | |\n| --- | --- |\n", record.at("lquant").get<std::string>());
    card += row("bits per weight", fmt::format("{:.3f}", record.at("bits_per_weight").get<double>()));
    card += row("size of the weights", format_bytes(record.at("bytes").get<double>()));
    card += row("parameters", fmt::format("{:.1f} million", record.at("parameters").get<double>() / 1e6));
    card += measured(record);
    card += fmt::format("\n## How it was made\n\n```\n{}\n```\n\nAll options, versions and hashes stand in `lquant.json`.\n", command(record, base));
    card += fmt::format(
        "\n## Use\n\n```\npip install mlx-lm\nmlx_lm.generate --model {0} --prompt \"Hello\"\n```\n\n```python\nfrom mlx_lm import load, generate\n\n"
        "model, tokenizer = load(\"{0}\")\nmessages = [{{\"role\": \"user\", \"content\": \"Hello\"}}]\n"
        "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True) if tokenizer.chat_template else \"Hello\"\n"
        "print(generate(model, tokenizer, prompt=prompt))\n```\n",
        repo);
    return card;
  } catch (const json::exception&) {
    fail("hub", "{}: lacks what the model card is made of; make the folder anew with lquant, or write a README.md", record_file.string());
  }
}

}  // namespace lquant::hub
