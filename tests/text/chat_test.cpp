#include <gtest/gtest.h>

#include "text/temp_folder.h"
#include "text/tokenizer.h"

namespace lquant::text {
namespace {

using Json = nlohmann::ordered_json;

Json say(const char* role, const char* content) { return {{"role", role}, {"content", content}}; }

const Json kHello = Json::array({say("user", "hello")});

/// A tokenizer with this chat template.
Tokenizer with_template(std::string_view source, const Json& config = Json::object()) {
  TempFolder folder;
  folder.write("tokenizer.json", word_tokenizer()).write("tokenizer_config.json", config).write("chat_template.jinja", source);
  return Tokenizer::open(folder.path());
}

std::string render(std::string_view source, const Json& messages = kHello, const Json& tools = nullptr, const Json& extra = nullptr) {
  return with_template(source).apply_chat_template(messages, true, tools, extra);
}

TEST(Chat, TheTemplateHasAName) {
  EXPECT_TRUE(has(with_template("").chat_template_name(), "chat_template.jinja"));
}

TEST(Chat, BlocksAreTrimmedAndVariablesAreSet) {
  const auto tokenizer = with_template(
      "{{ bos_token }}\n"
      "{% for message in messages %}\n"
      "    {% if loop.first %}\n"
      "<{{ message.role }}>{{ message['content'] }}{{ eos_token }}\n"
      "    {% endif %}\n"
      "{% endfor %}\n"
      "{% if add_generation_prompt %}\n"
      "<assistant>\n"
      "{% endif %}\n",
      {{"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}}}});
  EXPECT_EQ(tokenizer.apply_chat_template(kHello, false), "<s>\n<user>hello</s>\n");
  EXPECT_EQ(tokenizer.apply_chat_template(kHello, true), "<s>\n<user>hello</s>\n<assistant>\n");
}

TEST(Chat, NothingIsEscapedForHtml) {
  EXPECT_EQ(render("{{ messages[0].content }}", Json::array({say("user", "<a href='x'>\"&")})), "<a href='x'>\"&");
}

TEST(Chat, ToolsKeepTheOrderOfTheirKeys) {
  const Json tools = Json::array({{{"type", "function"}, {"name", "z<é>"}, {"a", {1, 2.5, true, nullptr}}}});
  EXPECT_EQ(render("{{ tools | tojson }}", kHello, tools), R"([{"type": "function", "name": "z<é>", "a": [1, 2.5, true, null]}])");
  EXPECT_EQ(render("{{ tools[0].a | tojson(indent=2) }}", kHello, tools), "[\n  1,\n  2.5,\n  true,\n  null\n]");
  EXPECT_EQ(render("{{ tools is none }}"), "True");
}

TEST(Chat, ToolTemplateIsChosenForTools) {
  TempFolder folder;
  folder.write("tokenizer.json", word_tokenizer());
  const auto named = [](const char* name) { return Json{{"name", name}, {"template", std::string(name) + " {{ messages[0].content }}"}}; };
  folder.write("tokenizer_config.json", Json{{"chat_template", Json::array({named("tool_use"), named("default")})}});
  const auto tokenizer = Tokenizer::open(folder.path());
  EXPECT_EQ(tokenizer.apply_chat_template(kHello, false), "default hello");
  EXPECT_EQ(tokenizer.apply_chat_template(kHello, false, Json::array()), "tool_use hello");
  folder.write("tokenizer_config.json", Json{{"chat_template", Json::array({named("rag")})}});
  EXPECT_TRUE(has(message_of([&] { Tokenizer::open(folder.path()).apply_chat_template(kHello, false); }), "[text] ", "\"default\""));
}

TEST(Chat, GenerationMarksAreAScopeWithoutText) {
  EXPECT_EQ(render("{% set x = 1 %}a{%- generation %} b{% set x = 2 %}{{ x }} {%- endgeneration -%} c{{ x }}"), "a b2c1");
}

TEST(Chat, EmptyFieldsAreDroppedAndReasoningHasItsNames) {
  const Json messages = Json::array({{{"role", "assistant"}, {"tool_calls", nullptr}, {"content", "x"}, {"reasoning", "why"}}});
  EXPECT_EQ(render("{{ messages[0] | tojson }}", messages),
            R"({"thinking": "why", "role": "assistant", "content": "x", "reasoning": "why", "reasoning_content": "why"})");
}

TEST(Chat, FurtherVariablesWin) {
  EXPECT_EQ(render("{{ enable_thinking }} {{ eos_token }} {{ documents }}"), "False  None");
  EXPECT_EQ(render("{{ enable_thinking }} {{ eos_token }}", kHello, nullptr, {{"enable_thinking", true}, {"eos_token", "!"}}), "True !");
}

TEST(Chat, ThinkingIsOnForAVocabularyThatKnowsIt) {
  TempFolder folder;
  auto content = word_tokenizer();
  content["model"]["vocab"]["<think>"] = 5;
  content["model"]["vocab"]["</think>"] = 6;
  folder.write("tokenizer.json", content).write("chat_template.jinja", std::string_view("{{ enable_thinking }}"));
  EXPECT_EQ(Tokenizer::open(folder.path()).apply_chat_template(kHello, false), "True");
}

TEST(Chat, FaultsNameTheFileAndTheLine) {
  const auto fault = [](std::string_view source) { return message_of([&] { render(source); }); };
  EXPECT_TRUE(has(fault("a\nb\n{{ raise_exception('Roles must alternate') }}"), "[text] ", "chat_template.jinja, line 3: Roles must alternate"));
  EXPECT_TRUE(has(fault("a\n{% if %}"), "chat_template.jinja, line 2", "syntax error"));
  EXPECT_TRUE(has(fault("{{ messages[0].content.nothing() }}"), "line 1", "nothing"));
  EXPECT_TRUE(has(fault("{{ messages | no_such_filter }}"), "line 1", "no_such_filter"));
  EXPECT_TRUE(has(fault("{{ undefined_one.a }}"), "line 1", "undefined"));
  EXPECT_TRUE(has(fault("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}"), "[text] ")) << "endless recursion";
}

TEST(Chat, MissingTemplateSaysWhatToDo) {
  const auto message = message_of([] { Tokenizer::open(tiny_model()).apply_chat_template(kHello, false); });
  EXPECT_TRUE(has(message, "[text] ", "models/tiny", "no chat template", "chat_template.jinja"));
}

TEST(Chat, MessagesOfTheWrongShape) {
  const auto fault = [](const Json& messages) { return message_of([&] { render("x", messages); }); };
  EXPECT_TRUE(has(fault(Json::array()), "[text] ", "at least one message"));
  EXPECT_TRUE(has(fault("hello"), "at least one message"));
  EXPECT_TRUE(has(fault(Json::array({"hello"})), "should be an object", "string"));
  Json deep = "x";
  for (int i = 0; i < 500; ++i) deep = Json::array({std::move(deep)});
  EXPECT_TRUE(has(fault(Json::array({{{"role", "user"}, {"content", deep}}})), "nested"));
  EXPECT_TRUE(has(message_of([&] { render("x", kHello, deep); }), "tools nested"));
  EXPECT_TRUE(has(message_of([&] { render("x", kHello, "tool"); }), "tools should be a list"));
  EXPECT_TRUE(has(message_of([&] { render("x", kHello, nullptr, Json::array()); }), "should be an object"));
}

TEST(Chat, DeepestAllowedNestingIsRendered) {
  Json deep = "x";
  for (int i = 0; i < 117; ++i) deep = Json::array({std::move(deep)});
  EXPECT_EQ(render("{{ messages[0].content | tojson | length }}", Json::array({{{"role", "user"}, {"content", deep}}})), "237");
}

TEST(Chat, ValuesThatATemplateNestsTooDeeplyAreRefused) {
  const auto nest = [](const char* times) {
    return std::string("{% set ns = namespace(x=1) %}{% for i in range(") + times +
           ") %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson | length }}";
  };
  EXPECT_EQ(render(nest("800")), "1601");
  EXPECT_TRUE(has(message_of([&] { render(nest("2000")); }), "tojson", "nested"));
}

TEST(Chat, BadUtf8InAMessageIsReplaced) { EXPECT_EQ(render("{{ messages[0].content }}", Json::array({say("user", "a\xff z")})), "a\uFFFD z"); }

}  // namespace
}  // namespace lquant::text
