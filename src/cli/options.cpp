#include "cli/options.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>
#include <set>

#include "base/error.h"
#include "cli/terminal.h"

namespace lquant::cli {

namespace {

constexpr std::int64_t kMostCounted = std::int64_t{1} << 30;

std::string not_a_count(const std::string& text, const char* more) { return fmt::format("{} is no number from 1 to {}{}", text, kMostCounted, more); }

/// nullopt when the text is not a whole number, or one that 64 bits do not hold.
std::optional<std::int64_t> whole_number(const std::string& text) {
  std::int64_t number = 0;
  const auto* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  return error == std::errc() && rest == end ? std::optional(number) : std::nullopt;
}

bool is_count(const std::string& text) {
  const auto number = whole_number(text);
  return number && *number >= 1 && *number <= kMostCounted;
}

/// codec's complaint about a format, with the flag that it comes from.
void check_named(const char* flag, const codec::Format& format) {
  try {
    codec::check(format);
  } catch (const Error& e) {
    throw Error(fmt::format("{} for {}", e.what(), flag));
  }
}

/// "--model" for an option of several names.
std::string long_name(const CLI::Option& option) { return option.get_lnames().empty() ? option.get_name() : "--" + option.get_lnames().front(); }

}  // namespace

const CLI::Validator kPositive(
    [](std::string& text) {
      double number = 0;
      const bool fine = CLI::detail::lexical_cast(text, number) && number > 0 && std::isfinite(number);
      return fine ? std::string() : text + " is not above 0";
    },
    "POSITIVE");

const CLI::Validator kCount([](std::string& text) { return is_count(text) ? std::string() : not_a_count(text, ""); }, "COUNT");

const CLI::Validator kCountOrAll(
    [](std::string& text) { return text == "-1" || is_count(text) ? std::string() : not_a_count(text, ", nor -1 for all"); }, "COUNT");

const CLI::Validator kSeed(
    [](std::string& text) { return whole_number(text).value_or(-1) >= 0 ? std::string() : text + " is no whole number from 0 on"; }, "SEED");

std::string given_of(const CLI::App& command, std::initializer_list<const char*> flags) {
  std::vector<std::string> given;
  for (const char* flag : flags)
    if (command.count(flag) > 0) given.emplace_back(flag);
  std::string text;
  for (std::size_t i = 0; i < given.size(); ++i) text += (i == 0 ? "" : i + 1 == given.size() ? " and " : ", ") + given[i];
  return text;
}

namespace {

std::string idle(const std::string& given, const std::string& where) {
  const bool several = given.find(' ') != std::string::npos;
  return fmt::format("{} {} no effect {}", given, several ? "have" : "has", where);
}

}  // namespace

void refuse_idle(const CLI::App& command, std::initializer_list<const char*> flags, const std::string& where) {
  if (const auto given = given_of(command, flags); !given.empty()) throw UsageError(idle(given, where));
}

void remark_idle(const CLI::App& command, std::initializer_list<const char*> flags, const std::string& where) {
  if (const auto given = given_of(command, flags); !given.empty()) remark(idle(given, where));
}

void remark_accepted(const CLI::App& command, const char* flag, const std::string& why) {
  if (command.count(flag) > 0) remark(fmt::format("{} is not needed: {}", flag, why));
}

void check_bits(const char* flag, int bits) { check_named(flag, {codec::Mode::affine, bits, 64}); }

void check_group(const char* flag, int group_size) { check_named(flag, {codec::Mode::affine, 4, group_size}); }

void check_format(const char* bits_flag, const char* group_flag, const codec::Format& format) {
  check_bits(bits_flag, format.bits);
  check_group(group_flag, format.group_size);
}

namespace {

template <class Value>
void refuse_twice(const char* flag, const std::vector<Value>& values) {
  std::set<Value> seen;
  for (const auto& value : values)
    if (!seen.insert(value).second) throw UsageError(fmt::format("{} names {} twice; once is enough", flag, value));
}

}  // namespace

void check_widths(const char* flag, const std::vector<int>& widths) {
  for (const int bits : widths) check_bits(flag, bits);
  refuse_twice(flag, widths);
}

void check_groups(const char* flag, const std::vector<int>& groups) {
  for (const int group : groups) check_group(flag, group);
  refuse_twice(flag, groups);
}

void add_expert_tokens(CLI::App& command, std::optional<int>& tokens) {
  command
      .add_option("--expert-tokens", tokens,
                  "Of mixtures: rows are exchanged for further ones of the data, so that as many experts as possible see so many tokens; 0: none are "
                  "(default: a quarter of what each would see if all saw as many)")
      ->check(CLI::Range(0, 1 << 30));
}

void check_expert_tokens(const CLI::App& command, const pipeline::RowOptions& rows) {
  if (rows.expert_tokens == 0) return;  // nothing was asked for
  if (rows.data == std::vector<std::string>{"self"})
    refuse_idle(command, {"--expert-tokens"}, "on texts sampled from the model, which are as many as are asked for; give --data-path");
  if (rows.num_samples < 0) refuse_idle(command, {"--expert-tokens"}, "without --num-samples, for all rows are taken; give fewer than the data has");
}

void refuse_repeated(const char* flag, const std::vector<std::string>& values) { refuse_twice(flag, values); }

void refuse_empty(const CLI::App& command) {
  static const std::set<std::string> may_be_empty{"--prompt", "--system-prompt"};
  for (const auto* option : command.get_options()) {
    const auto name = long_name(*option);
    if (may_be_empty.contains(name)) continue;
    for (const auto& value : option->results())
      if (value.empty()) throw UsageError(fmt::format("{} is given an empty value; name one, or leave the option out", name));
  }
}

}  // namespace lquant::cli
