// nlohmann's messages speak to programmers ("[json.exception.type_error.302] …"), and none of them knows the file. What a user reads is
// made here.
#include "base/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/shown.h"

namespace lquant {
namespace {

constexpr int kDeepest = 200;

/// Line and column of the byte before which the parser stopped.
std::string place(std::string_view text, std::size_t byte) {
  const auto before = text.substr(0, std::min(byte == 0 ? 0 : byte - 1, text.size()));
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const auto start = before.rfind('\n');
  const auto column = before.size() - (start == std::string_view::npos ? 0 : start + 1) + 1;
  return fmt::format("line {}, column {}", line, column);
}

}  // namespace

template <class Json>
Json parse_json(std::string_view text) {
  const auto watch = [](int depth, typename Json::parse_event_t event, Json&) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= kDeepest) throw JsonFault(fmt::format("nested more than {} deep", kDeepest));
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const typename Json::parse_error& e) {
    throw JsonFault(place(text, e.byte));
  } catch (const typename Json::exception&) {
    throw JsonFault("it holds a number that is too large");
  }
}
template nlohmann::json parse_json(std::string_view);
template nlohmann::ordered_json parse_json(std::string_view);

std::string with_tagged_floats(std::string_view text) {
  std::string out;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size();) {
    std::string_view word;
    if (!quoted)
      for (const std::string_view one : {"Infinity", "-Infinity", "NaN"})
        if (text.substr(i).starts_with(one)) word = one;
    if (!word.empty()) {
      out += fmt::format(R"({{"__float__": "{}"}})", word);
      i += word.size();
      continue;
    }
    if (quoted && text[i] == '\\' && i + 1 < text.size())
      out += text[i++];
    else if (text[i] == '"')
      quoted = !quoted;
    out += text[i++];
  }
  return out;
}

std::optional<double> number_or_tagged(const nlohmann::json& value) {
  if (value.is_number()) return value.get<double>();
  if (!value.is_object() || value.size() != 1 || !value.contains("__float__") || !value["__float__"].is_string()) return std::nullopt;
  const auto& word = value["__float__"].get_ref<const std::string&>();
  if (word == "NaN") return NAN;
  if (word == "Infinity") return INFINITY;
  if (word == "-Infinity") return -INFINITY;
  return std::nullopt;
}

template <class Json>
std::string shown_json(const Json& value) {
  return shown(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}
template std::string shown_json(const nlohmann::json&);
template std::string shown_json(const nlohmann::ordered_json&);

void JsonView::complain(const std::string& what) const {
  if (path_.empty()) fail(room_, "{}: {}; {}", file_, what, mend_);
  fail(room_, "{}: \"{}\" {}; {}", file_, shown(path_), what, mend_);
}

void JsonView::refuse(const std::string& what) const { complain(fmt::format("is {}, not {}", shown_json(*value_), what)); }

bool JsonView::has(const std::string& key) const {
  if (!value_->is_object()) refuse("an object");
  const auto found = value_->find(key);
  return found != value_->end() && !found->is_null();
}

JsonView JsonView::at(const std::string& key) const {
  const bool found = has(key) || value_->contains(key);
  auto part = *this;
  part.path_ = path_.empty() ? key : path_ + "." + key;
  if (!found) part.complain("is missing");
  part.value_ = &value_->at(key);
  return part;
}

JsonView JsonView::at(std::size_t index) const {
  auto part = *this;
  part.path_ = fmt::format("{}[{}]", path_, index);
  if (index >= size()) part.complain("is missing");
  part.value_ = &value_->at(index);
  return part;
}

std::size_t JsonView::size() const {
  if (!value_->is_array()) refuse("a list");
  return value_->size();
}

std::string JsonView::text() const {
  if (!value_->is_string()) refuse("a text");
  return value_->get<std::string>();
}

double JsonView::number() const {
  if (!value_->is_number()) refuse("a number");
  return value_->get<double>();
}

bool JsonView::flag() const {
  if (!value_->is_boolean()) refuse("true or false");
  return value_->get<bool>();
}

nlohmann::json or_null(double value) { return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(); }
double or_nan(const nlohmann::json& value) { return value.is_number() ? value.get<double>() : NAN; }

std::int64_t JsonView::whole(std::int64_t least, std::int64_t most) const {
  const double value = value_->is_number() ? value_->get<double>() : NAN;
  if (!(value == std::floor(value)) || value < static_cast<double>(least) || value > static_cast<double>(most))
    refuse(fmt::format("a whole number from {} to {}", least, most));
  return value_->is_number_integer() ? value_->get<std::int64_t>() : static_cast<std::int64_t>(value);
}

}  // namespace lquant
