// A tokenizer is one file, tokenizer.json, and a few more around it that say which token plays which role and how a chat is
// written down. Those were made by many versions of many programs, so the same fact may stand in several places and shapes;
// the order of precedence here is that of transformers 5, by which mlx_lm reads the same folder.

#include "text/folder.h"

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/shown.h"

namespace lquant::text {
using json = nlohmann::ordered_json;  // tokens that no file gives an id get theirs in the order in which they are written

namespace {

// The largest tokenizer.json in use (a 262,144-token vocabulary) has 33 MB; what is 15 times that is no tokenizer.
constexpr std::size_t kLargestTokenizer = std::size_t{1} << 29;

std::optional<json> read_object(const FileSet& files, const std::string& name) {
  const auto bytes = files.read("text", name, kLargestTokenizer);
  if (!bytes) return std::nullopt;
  try {
    auto value = parse_json<json>(name == "config.json" ? with_tagged_floats(*bytes) : *bytes);
    if (!value.is_object()) fail("text", "{}: should hold a JSON object; download or write the file again", files.label(name));
    return value;
  } catch (const JsonFault& fault) {
    fail("text", "{}: not valid JSON ({}); download or write the file again", files.label(name), fault.what());
  }
}

/// A token is written as its text, or as an object whose "content" is the text.
std::optional<std::string> token_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) return value["content"].get<std::string>();
  return std::nullopt;
}

/// With the defaults of the `tokenizers` package for what is left out: a special token is matched before normalization.
json added_token(const json& value, bool special, const char* on_clash) {
  const json fields = value.is_object() ? value : json::object();
  const auto flag = [&](const char* name, bool otherwise) {
    const auto found = fields.find(name);
    return found != fields.end() && found->is_boolean() ? found->get<bool>() : otherwise;
  };
  special = flag("special", false) || special;
  return {{"content", *token_text(value)},
          {"single_word", flag("single_word", false)},
          {"lstrip", flag("lstrip", false)},
          {"rstrip", flag("rstrip", false)},
          {"normalized", flag("normalized", !special)},
          {"special", special},
          {"on_clash", on_clash}};
}

/// added_tokens_decoder maps ids, written as text, to tokens; they are added in the order of the ids.
void read_added_tokens_decoder(const json& decoder, const std::string& file, json& added) {
  if (!decoder.is_object()) fail("text", "{}: added_tokens_decoder should be an object; mend the file", file);
  std::map<long long, json> by_id;
  for (const auto& [id, token] : decoder.items()) {
    if (id.empty() || id.size() > 10 || id.find_first_not_of("0123456789") != std::string::npos || !token.is_object() || !token_text(token)) {
      fail("text", "{}: entry \"{}\" of added_tokens_decoder should be an id with a token's \"content\"; mend the file", file, shown(id));
    }
    by_id[std::stoll(id)] = added_token(token, false, "replace");
  }
  for (auto& [id, token] : by_id) added.push_back(std::move(token));
}

/// The roles that every tokenizer may fill, in the order in which transformers goes through them. Models add more of their own.
constexpr std::array kRoles = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};

/// Roles, and with them the tokens that must exist because something names them.
void read_special_tokens(const FileSet& files, json fields, TokenizerFolder& out) {
  if (fields.contains("added_tokens_decoder")) {
    read_added_tokens_decoder(fields["added_tokens_decoder"], files.label("tokenizer_config.json"), out.added_tokens);
  } else if (const auto legacy = read_object(files, "special_tokens_map.json")) {
    fields.update(*legacy);
  }
  json extra = fields.value("extra_special_tokens", json());
  if (extra.empty()) extra = fields.value("additional_special_tokens", json());
  if (extra.is_object()) fields.update(extra);
  const auto take_role = [&](const std::string& role) {
    const auto text = fields.contains(role) ? token_text(fields[role]) : std::nullopt;
    if (text && out.special_tokens.emplace(role, *text).second) out.added_tokens.push_back(added_token(fields[role], true, "make_special"));
  };
  for (const auto* role : kRoles) take_role(role);
  for (const auto& [role, value] : fields.items()) {
    if (role.ends_with("_token") || (extra.is_object() && extra.contains(role))) take_role(role);
  }
  if (!extra.is_array()) return;
  for (const auto& token : extra) {
    if (token_text(token)) out.added_tokens.push_back(added_token(token, true, "keep"));
  }
}

std::vector<int> read_ids(const json& value, const std::string& file) {
  std::vector<int> ids;
  for (const auto& id : value.is_array() ? value : json::array({value})) {
    if (id.is_null()) continue;
    const bool fits = id.is_number_unsigned() && id.get<std::uint64_t>() <= std::numeric_limits<int>::max();
    const bool none = id.is_number_integer() && !id.is_number_unsigned() && id.get<std::int64_t>() < 0;  // how some models say it
    if (fits) {
      ids.push_back(id.get<int>());
    } else if (!none) {
      fail("text", "{}: eos_token_id should be a token id or a list of them, not {}; mend the file", file, shown_json(id));
    }
  }
  return ids;
}

std::vector<int> read_model_eos_ids(const FileSet& files) {
  for (const auto* name : {"generation_config.json", "config.json"}) {
    const auto object = read_object(files, name);
    if (!object || !object->contains("eos_token_id")) continue;
    auto ids = read_ids(object->at("eos_token_id"), files.label(name));
    if (!ids.empty()) return ids;
  }
  return {};
}

/// One template, or a list of {"name", "template"}.
void read_template_field(const json& field, const std::string& file, std::map<std::string, ChatTemplate>& out) {
  if (field.is_null()) return;
  if (field.is_string()) {
    out["default"] = {file + " (chat_template)", field.get<std::string>()};
    return;
  }
  const auto wrong = [&] { fail("text", "{}: chat_template should be a text or a list of {{\"name\", \"template\"}}; mend the file", file); };
  if (!field.is_array()) wrong();
  for (const auto& entry : field) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() || !entry.contains("template") ||
        !entry["template"].is_string()) {
      wrong();
    }
    const auto name = entry["name"].get<std::string>();
    out[name] = {file + " (chat_template \"" + shown(name) + "\")", entry["template"].get<std::string>()};
  }
}

/// chat_template.json is for processors of images and sound: neither transformers' tokenizers nor mlx_lm look at it.
void read_templates(const FileSet& files, const json& config, TokenizerFolder& out) {
  if (auto source = files.read("text", "chat_template.jinja", kLargestTokenizer)) {
    out.templates["default"] = {files.label("chat_template.jinja"), std::move(*source)};
    return;
  }
  read_template_field(config.value("chat_template", json()), files.label("tokenizer_config.json"), out.templates);
}

}  // namespace

TokenizerFolder read_tokenizer_folder(const FileSet& files) {
  auto tokenizer = files.read("text", "tokenizer.json", kLargestTokenizer);
  if (!tokenizer) {
    fail("text",
         "{}: not found; lquant reads the tokenizer from this file: download it, or write it with "
         "transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…)",
         files.label("tokenizer.json"));
  }
  TokenizerFolder out;
  out.tokenizer_json = std::move(*tokenizer);
  const auto config = read_object(files, "tokenizer_config.json").value_or(json::object());
  out.config = config;
  out.added_tokens = json::array();
  read_special_tokens(files, config, out);
  out.model_eos_ids = read_model_eos_ids(files);
  read_templates(files, config, out);
  return out;
}

}  // namespace lquant::text
