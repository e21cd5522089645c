// Chats. A template is a program that came with the model; what it may count on is transformers' apply_chat_template, so the
// messages are put in the shape that function gives them (empty fields dropped, reasoning under its current names) and the
// same variables are set, then the Rust crate renders.

#include <lquant_text.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/shown.h"
#include "text/shim.h"
#include "text/tokenizer.h"

namespace lquant::text {

using Json = nlohmann::ordered_json;

namespace {

// The JSON reader behind the border follows 128 levels, of which the variables and the messages' array take two. Deeper
// input is refused here, because printing it recurses too.
constexpr int kDeepest = 120;

bool deeper_than(const Json& value, int levels) {
  if (!value.is_structured()) return false;
  return levels == 0 || std::ranges::any_of(value, [&](const Json& part) { return deeper_than(part, levels - 1); });
}

void check_depth(const Json& value, const char* what) {
  if (deeper_than(value, kDeepest)) fail("text", "{} nested more than {} levels deep; flatten them", what, kDeepest);
}

/// The names that a message's reasoning goes by, the current one first. It is offered under the first two: the second is for
/// templates of gpt-oss.
constexpr std::array kReasoning = {"reasoning_content", "thinking", "reasoning"};

Json prepare_message(const Json& message) {
  Json kept = Json::object();
  for (const auto& [key, value] : message.items()) {
    if (!value.is_null()) kept[key] = value;
  }
  const auto named = std::ranges::find_if(kReasoning, [&](const char* name) { return kept.contains(name); });
  if (named == kReasoning.end()) return kept;
  Json out = {{"thinking", kept[*named]}};
  for (const auto& [key, value] : kept.items()) out[key] = value;
  out["reasoning_content"] = kept[*named];
  return out;
}

Json prepare_messages(const Json& messages) {
  if (!messages.is_array() || messages.empty()) {
    fail("text", "a chat should be a list of at least one message {{\"role\": …, \"content\": …}}; correct the messages");
  }
  check_depth(messages, "messages");
  Json out = Json::array();
  for (const auto& message : messages) {
    if (!message.is_object()) {
      fail("text", "a chat message should be an object {{\"role\": …, \"content\": …}}, not a {}; correct the messages", message.type_name());
    }
    out.push_back(prepare_message(message));
  }
  return out;
}

}  // namespace

bool Tokenizer::has_thinking_tokens() const {
  // The marks of thinking that mlx_lm knows; each row is one model family's.
  static const std::vector<std::vector<const char*>> marks = {
      {"<think>", "</think>"},
      {"<longcat_think>", "</longcat_think>"},
      {"<|think:start|>", "<|think:end|>"},
      {"<|channel>", "<channel|>"},
      {"<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"},
  };
  return std::ranges::any_of(
      marks, [&](const auto& row) { return std::ranges::all_of(row, [&](const char* token) { return token_id(token).has_value(); }); });
}

const ChatTemplate& Tokenizer::choose_template(bool with_tools) const {
  if (templates_.empty()) {
    fail("text", "{}: the tokenizer has no chat template; use plain text, an instruction-tuned model, or put a chat_template.jinja in the folder",
         origin_);
  }
  auto chosen = with_tools ? templates_.find("tool_use") : templates_.end();
  if (chosen == templates_.end()) chosen = templates_.find("default");
  if (chosen == templates_.end()) {
    fail("text", "{}: none of the chat templates is named \"default\"; put the one to use in chat_template.jinja", origin_);
  }
  return chosen->second;
}

std::string Tokenizer::apply_chat_template(const Json& messages, bool add_generation_prompt, const Json& tools, const Json& extra) const {
  const auto& chosen = choose_template(!tools.is_null());
  Json variables = Json::object();
  for (const auto& [role, token] : special_tokens_) variables[role] = token;
  variables["documents"] = nullptr;
  variables["enable_thinking"] = enable_thinking_;
  if (!extra.is_null()) {
    if (!extra.is_object()) fail("text", "further template variables should be an object, not a {}; pass name and value pairs", extra.type_name());
    check_depth(extra, "template variables");
    variables.update(extra);
  }
  if (!tools.is_null() && !tools.is_array()) fail("text", "tools should be a list of JSON schemas, not a {}; correct them", tools.type_name());
  check_depth(tools, "tools");
  variables["messages"] = prepare_messages(messages);
  variables["tools"] = tools;
  variables["add_generation_prompt"] = add_generation_prompt;

  const auto context = variables.dump(-1, ' ', false, Json::error_handler_t::replace);
  lquant_string text{}, error{};
  if (!lquant_chat_render(slice(chosen.source), slice(context), &text, &error)) {
    const auto said = take(error);
    fail("text", "{}{} {}; change the messages or the chat template", chosen.name, said.starts_with("line ") ? "," : ":", shown(said, 300));
  }
  return take(text);
}

}  // namespace lquant::text
