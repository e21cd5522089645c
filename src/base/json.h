#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace lquant {

/// What is wrong with a text that should be JSON, to stand in brackets behind "not valid JSON": "line 3, column 7".
class JsonFault : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The only reader of JSON that comes from files. Lists and objects nest at most 200 deep, since printing, comparing and copying a
/// value recurse; files of models nest some ten deep. `Json` is nlohmann::json or nlohmann::ordered_json. Throws JsonFault.
template <class Json = nlohmann::json>
Json parse_json(std::string_view text);
extern template nlohmann::json parse_json(std::string_view);
extern template nlohmann::ordered_json parse_json(std::string_view);

/// Python writes floats that are not finite as bare words, which are no JSON, and transformers as {"__float__": "Infinity"}; config.json may have
/// either ("time_step_limit"). The text with the second in place of the first: Infinity, -Infinity and NaN outside strings.
std::string with_tagged_floats(std::string_view text);
/// A number, or what such an object stands for; none for anything else.
std::optional<double> number_or_tagged(const nlohmann::json& value);

/// A value in a JSON file that knows its place there, so that what is wrong with it can be said:
/// "config.json: \"rope_scaling.factor\" is \"x\", not a number". All failures are an Error with the tag `room`.
class JsonView {
 public:
  /// `file` is how messages name the file, `mend` what they advise. `value` must outlive the view; `path`
  /// is its place in the file when it is not the whole ("text_config").
  JsonView(const char* room, std::string file, const nlohmann::json& value, const char* mend = "mend the file or get it again", std::string path = {})
      : room_(room), file_(std::move(file)), mend_(mend), value_(&value), path_(std::move(path)) {}

  /// Whether the object has the key with a value other than null. Fails when this is no object.
  bool has(const std::string& key) const;
  JsonView at(const std::string& key) const;
  JsonView at(std::size_t index) const;
  /// Entries of the list; fails when this is none.
  std::size_t size() const;

  std::string text() const;
  double number() const;
  bool flag() const;
  /// A whole number of this range; 8.0 is one too.
  std::int64_t whole(std::int64_t least, std::int64_t most) const;

  const nlohmann::json& value() const { return *value_; }
  /// "FILE: \"a.b\" `what`; …".
  [[noreturn]] void complain(const std::string& what) const;
  /// complain with the value, shortened: "FILE: \"a.b\" is [1, 2], not `what`; …".
  [[noreturn]] void refuse(const std::string& what) const;

 private:
  const char* room_;
  std::string file_;
  const char* mend_;
  const nlohmann::json* value_;
  std::string path_;  ///< empty: the file's whole value
};

/// A figure for a file: null where it is not a finite number, such as a standard error that is not known.
nlohmann::json or_null(double value);
/// What or_null wrote: NaN for null, and for whatever else is no number.
double or_nan(const nlohmann::json& value);

/// A JSON value in a message: as it stands in the file, on one line, shortened.
template <class Json>
std::string shown_json(const Json& value);
extern template std::string shown_json(const nlohmann::json&);
extern template std::string shown_json(const nlohmann::ordered_json&);

}  // namespace lquant
