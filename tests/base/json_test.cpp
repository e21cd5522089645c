#include "base/json.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace lquant {
namespace {

using nlohmann::json;

std::string fault_of(std::string_view text) {
  try {
    (void)parse_json(text);
  } catch (const JsonFault& fault) {
    return fault.what();
  }
  return "none";
}

template <class Work>
std::string error_of(Work work) {
  try {
    work();
  } catch (const Error& e) {
    return e.what();
  }
  return "none";
}

std::string nested(const std::string& open, const std::string& close, int depth) {
  std::string text;
  for (int i = 0; i < depth; ++i) text += open;
  text += "1";
  for (int i = 0; i < depth; ++i) text += close;
  return text;
}

TEST(ParseJson, FaultsSayWhere) {
  EXPECT_EQ(fault_of("{\"a\": 1,\n \"b\" 2}"), "line 2, column 6");
  EXPECT_EQ(fault_of(""), "line 1, column 1");
  EXPECT_EQ(fault_of("[NaN]"), "line 1, column 2");
  EXPECT_EQ(fault_of("[1e999]"), "it holds a number that is too large");
  for (const auto* text : {"{", "[1,]", "\"\xff\"", "nul", "{\"a\":1}}", "\"\\ud800\""}) {
    EXPECT_TRUE(fault_of(text).starts_with("line 1, column ")) << text << fault_of(text);
  }
}

// What Python's json writes and reads, and JSON does not know; inside strings words stay words.
TEST(ParseJson, FloatsThatAreNotFiniteAreTagged) {
  const auto value = parse_json(with_tagged_floats(R"({"a": [0.0, Infinity], "NaN": "-Infinity \\\" NaN", "b": -Infinity, "c": NaN, "d\\": 1})"));
  EXPECT_EQ(value.at("a"), (json{0.0, {{"__float__", "Infinity"}}}));
  EXPECT_EQ(value.at("NaN"), "-Infinity \\\" NaN");
  EXPECT_EQ(number_or_tagged(value.at("a")[1]), INFINITY);
  EXPECT_EQ(number_or_tagged(value.at("b")), -INFINITY);
  EXPECT_TRUE(std::isnan(number_or_tagged(value.at("c")).value()));
  EXPECT_EQ(number_or_tagged(value.at("d\\")), 1.0);
  for (const json& other :
       {json("Infinity"), json({{"__float__", "Inf"}}), json({{"__float__", 1}}), json({{"__float__", "NaN"}, {"a", 1}}), json(nullptr)})
    EXPECT_EQ(number_or_tagged(other), std::nullopt) << other;
  EXPECT_EQ(with_tagged_floats("[1, \"x\"]"), "[1, \"x\"]");
  EXPECT_EQ(fault_of(with_tagged_floats("[Infinit]")), "line 1, column 2");
}

TEST(ParseJson, DepthIsBounded) {
  for (const auto& [open, close] : {std::pair<std::string, std::string>{"[", "]"}, {"{\"a\":", "}"}}) {
    EXPECT_EQ(fault_of(nested(open, close, 200)), "none");
    for (const int depth : {201, 50'000, 1'000'000}) {
      EXPECT_EQ(fault_of(nested(open, close, depth)), "nested more than 200 deep");
    }
    EXPECT_EQ(fault_of(nested(open, "", 1'000'000)), "nested more than 200 deep");
  }
  EXPECT_EQ(fault_of("[" + nested("[", "]", 10) + ", " + nested("[", "]", 10) + "]"), "none");
  EXPECT_THROW((void)parse_json<nlohmann::ordered_json>(nested("[", "]", 50'000)), JsonFault);
}

TEST(ParseJson, ReadsWhatTheLibraryReads) {
  const std::string text = R"({"b": [1, -2.5, 1e3, true, null, "é\n"], "a": {}, "b2": 18446744073709551615, "a": {"x": []}})";
  EXPECT_EQ(parse_json(text), json::parse(text));
  EXPECT_EQ(parse_json<nlohmann::ordered_json>(text).dump(), nlohmann::ordered_json::parse(text).dump());
}

TEST(OrNull, AFigureThatIsNotKnownIsNullAndBack) {
  EXPECT_EQ(or_null(0.25).dump(), "0.25");
  EXPECT_TRUE(or_null(NAN).is_null() && or_null(INFINITY).is_null());
  EXPECT_EQ(or_nan(or_null(0.25)), 0.25);
  EXPECT_EQ(or_nan(3), 3);
  EXPECT_TRUE(std::isnan(or_nan(nullptr)) && std::isnan(or_nan("3")));
}

TEST(JsonView, ValuesAndTheirPlaces) {
  const json value = {{"size", 8}, {"scale", 2.0}, {"name", "x"}, {"on", true}, {"none", nullptr}, {"list", {1, {{"deep", "y"}}}}};
  const JsonView view("room", "config.json", value, "get it again");
  EXPECT_EQ(view.at("size").whole(1, 8), 8);
  EXPECT_EQ(view.at("scale").whole(0, 9), 2);
  EXPECT_EQ(view.at("scale").number(), 2.0);
  EXPECT_EQ(view.at("name").text(), "x");
  EXPECT_TRUE(view.at("on").flag());
  EXPECT_FALSE(view.has("none"));
  EXPECT_FALSE(view.has("absent"));
  EXPECT_EQ(view.at("list").at(1).at("deep").text(), "y");
  EXPECT_EQ(error_of([&] { (void)view.at("absent"); }), "[room] config.json: \"absent\" is missing; get it again");
  EXPECT_EQ(error_of([&] { (void)view.at("size").whole(1, 7); }), "[room] config.json: \"size\" is 8, not a whole number from 1 to 7; get it again");
  EXPECT_EQ(error_of([&] { (void)view.at("list").at(1).at("deep").number(); }),
            "[room] config.json: \"list[1].deep\" is \"y\", not a number; get it again");
  EXPECT_EQ(error_of([&] { (void)view.at("list").at(2); }), "[room] config.json: \"list[2]\" is missing; get it again");
  EXPECT_EQ(error_of([&] { (void)view.at("name").at("x"); }), "[room] config.json: \"name\" is \"x\", not an object; get it again");
  EXPECT_EQ(error_of([&] { (void)view.text(); }).substr(0, 25), "[room] config.json: is {\"");
}

TEST(JsonView, HugeValuesAndNamesAreShown) {
  const json value = {{"a", std::string(100'000, 'x')}, {std::string(100'000, 'k'), "\x1b[31m\n"}, {"n", 1e300}};
  const JsonView view("room", "f.json", value);
  for (const auto& message : {error_of([&] { (void)view.at("a").number(); }), error_of([&] { (void)view.at(std::string(100'000, 'k')).flag(); }),
                              error_of([&] { (void)view.at("n").whole(0, INT64_MAX); }), error_of([&] { (void)view.flag(); })}) {
    EXPECT_LT(message.size(), 400u);
    EXPECT_EQ(message.find_first_of("\n\x1b"), std::string::npos);
    EXPECT_TRUE(message.starts_with("[room] f.json: ")) << message;
  }
}

}  // namespace
}  // namespace lquant
