// Chat templates come from strangers too. Whatever a template does ends soon in a text or in one short sentence that names the file.

#include <gtest/gtest.h>

#include <chrono>

#include "text/temp_folder.h"
#include "text/tokenizer.h"

namespace lquant::text {
namespace {

using Json = nlohmann::ordered_json;

const Json kHello = Json::array({{{"role", "user"}, {"content", "hello"}}});

std::string repeated(std::string_view part, std::size_t times) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += part;
  return out;
}

std::string render(std::string_view source, const Json& messages = kHello) {
  TempFolder folder;
  folder.write("tokenizer.json", word_tokenizer()).write("chat_template.jinja", source);
  return Tokenizer::open(folder.path()).apply_chat_template(messages, true);
}

/// The text, or what is said in its place.
std::string said(std::string_view source) {
  std::string text;
  const auto message = message_of([&] { text = render(source); });
  return text.empty() ? message : text;
}

/// Renders and expects a refusal: one line, short, with the file's name and each of the words, within seconds.
void refused(const std::string& source, const char* word) {
  const auto name = source.substr(0, 80);
  const auto begin = std::chrono::steady_clock::now();
  const auto message = message_of([&] { render(source); });
  EXPECT_TRUE(has(message, "[text] ", "chat_template.jinja", word)) << name << "\n" << message.substr(0, 300);
  EXPECT_EQ(message.find('\n'), std::string::npos) << name;
  EXPECT_LT(message.size(), 600u) << name;
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20)) << name;
}

TEST(HostileTemplate, WritesNoMoreThanTheMessagesExplain) {
  refused("{{ 'a,' * 1000000 }}", "the template writes 2000000 bytes");
  EXPECT_EQ(render("{{ 'a' * 1000000 }}").size(), 1'000'000u);
  const Json long_chat = Json::array({{{"role", "user"}, {"content", std::string(3'000'000, 'x')}}});
  EXPECT_EQ(render("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", long_chat).size(), 6'000'000u);
}

TEST(HostileTemplate, LongChains) {
  constexpr std::size_t kMany = 100'000;
  for (const auto* link : {"+1", " and 1", "~1", "**1", "<1", "|int", ".a", "[0]", "()", " is odd"}) {
    refused("{{ 1" + repeated(link, kMany) + " }}", "operators");
  }
  refused("{{ 1" + repeated(" if 1 else 1", 50'000) + " }}", "operators");
  refused("{{ " + repeated("-", kMany) + "1 }}", "operators");
  refused("{{ " + repeated("not ", kMany) + "1 }}", "operators");
  refused("{% set x" + repeated(".a", kMany) + " = 1 %}", "operators");
  refused("{% if 0 %}" + repeated("{% elif 0 %}", 50'000) + "{% endif %}", "elif");
  refused("{{ " + repeated("[", kMany) + repeated("]", kMany) + " }}", "");
  refused("{{ " + repeated("(", kMany) + "1" + repeated(")", kMany) + " }}", "");
  refused(repeated("{% if 1 %}", 20'000), "");
  refused("{{ 'a' }}" + repeated(" ", 2 << 20), "bytes");
}

TEST(HostileTemplate, WhatFitsIsRendered) {
  EXPECT_EQ(render("{{ 0" + repeated("+1", 900) + " }}"), "900");
  EXPECT_EQ(render("{{ 'a'" + repeated("|trim", 900) + " }}"), "a");
  EXPECT_EQ(render("{{ [" + repeated("0, ", 5000) + "0]|length }}"), "5001");
  EXPECT_EQ(render("{% if 0 %}" + repeated("{% elif 0 %}", 500) + "{% else %}x{% endif %}"), "x");
}

TEST(HostileTemplate, MemoryWithoutEnd) {
  for (const auto* source : {
           "{{ 'a'|indent(10000000000) }}",
           "{{ 'a\nb'|indent(10000000000, true) }}",
           "{{ '%10000000000d'|format(1) }}",
           "{{ '%.10000000000f'|format(1.5) }}",
           "{{ '{:>10000000000}'.format('x') }}",
           "{{ '{:.10000000000f}'.format(1.5) }}",
           "{{ 'ab' * 10000000000 }}",
           "{{ 10000000000 * 'ab' }}",
           "{{ ([0] * 100000000000)|list }}",
           "{{ [0] * 100000000000 }}",
           "{{ ','.join([[0] * 100000000000]) }}",
           "{{ ([0] * 100000000000)|join(',') }}",
           "{{ ([0] * 100000000000)|tojson }}",
           "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
           "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
           "{{ ('a' * 100000).join('b' * 100000) }}",
           "{{ 'a'|center(10000000000) }}",
           "{{ [1]|batch(10000000000, 0)|list }}",
           "{{ range(1000000000)|list }}",
           "{% set ns = namespace(x='ab') %}{% for i in range(1000) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
           "{% set ns = namespace(x=[1]) %}{% for i in range(1000) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
           "{% set ns = namespace(x=[1]) %}{% for i in range(1000) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
           "{% for i in range(90000) %}{{ 'x' * 2000 }}{% endfor %}",
       }) {
    refused(source, "");
  }
}

TEST(HostileTemplate, WorkWithoutEnd) {
  refused(repeated("{% for i in range(99999) %}", 8) + repeated("{% endfor %}", 8), "steps");
  refused("{% macro f(n) %}{% for i in range(1000) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(1) }}", "");
  refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion");
  refused("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion");
  refused("{% block a %}{{ self.a() }}{% endblock %}", "recursion");
  // Two values that share their parts are compared part by part: no engine counts that, so the clock ends it.
  refused("{% macro f(x, y, n) %}{% if n %}{{ f([x, x], [y, y], n - 1) }}{% else %}{{ x == y }}{% endif %}{% endmacro %}{{ f([1], [1], 60) }}",
          "seconds");
}

TEST(HostileTemplate, ValuesThatNest) {
  const std::string begin = "{% set ns = namespace(x=1) %}{% for i in range(90000) %}", end = "{% endfor %}{{ ns.x }}";
  for (const auto* value : {"[ns.x]", "(ns.x,)", "{'a': ns.x}", "[[[[ns.x]]]]", "dict(a=ns.x)", "[[ns.x][::-1]]", "[[[ns.x]]|map('list')]"}) {
    refused(begin + "{% set ns.x = " + value + " %}" + end, "nested");
  }
  EXPECT_EQ(render("{% set ns = namespace(x=[1, 2]) %}{% for i in range(9000) %}{% set ns.x = ns.x[::-1] %}{% endfor %}{{ ns.x }}"), "[1, 2]");
  refused(repeated("{% set x = [[[[x]]]] %}", 30'000) + "{{ x }}", "nested");
  refused("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "namespace");
  refused("{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}", "namespace");
  refused("{% set ns = namespace() %}{% set y = {'a': ns} %}{% set ns.x = y %}{{ ns }}", "namespace");
  refused("{% set ns = namespace(x=1) %}{% for i in range(90000) %}{% for y in [ns.x] %}{% set ns.x = loop %}{% endfor %}{% endfor %}", "loop");
  // Through calls: each costs a level of recursion, of which there are some hundred.
  const auto deep = repeated("[", 70) + "x" + repeated("]", 70);
  refused("{% macro f(x) %}{{ x }}{{ f(" + deep + ") }}{% endmacro %}{{ f(1) }}", "recursion");
  refused("{% for x in [1] recursive %}{{ x }}{{ loop([" + deep + "]) }}{% endfor %}", "");
}

TEST(HostileTemplate, KeptValuesStayWhatTheyWere) {
  EXPECT_EQ(said("{% set a, b = 1, 'x' %}{{ a }}{{ b }}{% set t = (1, 2) %}{{ t }}{% set u = 1, [2] %}{{ u }}"), "1x(1, 2)(1, [2])");
  EXPECT_EQ(said("{% set x = nothing %}{{ x is defined }}{% set x = none %}{{ x is none }}{% set x = 'a' if false %}{{ x is defined }}"),
            "FalseTrueFalse");
  EXPECT_EQ(said("{%- set x = messages|map(attribute='role') -%} {{ x|list }}{{ x|list }}{{ x is iterable }}"), "['user']['user']True");
  EXPECT_EQ(said("{% set ns = namespace(n=[]) %}{% for m in messages %}{% set ns.n = ns.n + [m] %}{% endfor %}{{ ns.n|tojson }}"),
            R"([{"role": "user", "content": "hello"}])");
  EXPECT_EQ(said("{% set x | replace('a', 'b') %}a{% endset %}{{ x }}{% set f = 'set x = 1 %}' %}{{ f }}"), "bset x = 1 %}");
  EXPECT_EQ(said("{% set d = {'a': (1, 2), 'b': messages[:1]} %}{{ d }}{% set m = messages[0] %}{{ m == messages[0] }}"),
            "{'a': (1, 2), 'b': [{'role': 'user', 'content': 'hello'}]}True");
  EXPECT_EQ(said("{% for x in [1] %}{% set l = loop %}{{ l.index }}{% endfor %}"), "1");
  EXPECT_EQ(said("{% set c = cycler([1, 2]) %}{{ c.next() }}{{ c.next() }}"), "12");
  EXPECT_EQ(said("{% macro f(x) %}<{{ x }}>{% endmacro %}{% set g = f %}{{ g(1) }}"), "<1>");
  EXPECT_EQ(said("{# {% set x = 1 %} #}{% raw %}{% set x = 1 %}{% generation %}{% endraw %}"), "{% set x = 1 %}{% generation %}");
}

TEST(HostileTemplate, LongChatsAreNotHostile) {
#ifdef LQUANT_SANITIZED  // ten times slower, and the work is the square of the messages
  constexpr int count = 300;
#else
  constexpr int count = 1000;
#endif
  Json messages = Json::array();
  for (int i = 0; i < count; ++i) messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", "message " + std::to_string(i)}});
  const auto text = render(
      "{% set ns = namespace(seen=[]) %}{% for m in messages %}{% set ns.seen = ns.seen + [m] %}{% for n in messages[loop.index:] %}"
      "{% if n.role == 'none' %}x{% endif %}{% endfor %}{{ m.content }}\n{% endfor %}{{ ns.seen|length }}",
      messages);
  EXPECT_TRUE(text.ends_with("message " + std::to_string(count - 1) + "\n" + std::to_string(count)));
}

TEST(HostileTemplate, MessagesAreShort) {
  const auto word = repeated("x", 100'000);
  refused("{{ 1|" + word + " }}", "unknown");
  refused("{{ raise_exception('" + word + "') }}", "xxx");
  refused("{% " + word + " %}", "unknown");
  refused("{{ raise_exception('two\nlines \\u001b[31m') }}", "two");
}

}  // namespace
}  // namespace lquant::text
