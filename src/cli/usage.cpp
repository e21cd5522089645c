#include "cli/usage.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/nearest.h"
#include "cli/table.h"

namespace lquant::cli {

namespace {

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const auto* command : commands_of(app)) names.push_back(command->get_name());
  return names;
}

/// Without dashes, which say nothing of what was meant.
std::string bare(const std::string& option) { return option.substr(std::min(option.find_first_not_of('-'), option.size())); }

/// "; did you mean --model?" for an option of several letters.
std::string meant_option(const CLI::App& command, const std::string& given) {
  if (!given.starts_with("--")) return "";
  std::vector<std::string> names;
  for (const auto* option : command.get_options())
    for (const auto& name : option->get_lnames()) names.push_back(name);
  const auto found = nearest(bare(given), names);
  return found ? fmt::format("; did you mean --{}?", *found) : "";
}

/// What is wrong when an option has another's name for its value: its own was forgotten. Empty when nothing is.
std::string missing_value(const CLI::App& command) {
  for (const auto* option : command.get_options())
    for (const auto& value : option->results())
      if (value.starts_with('-') && command.get_option_no_throw(value))
        return fmt::format("{} has no value, for {} comes right behind it", option->get_name(), value);
  return "";
}

/// The first of what no option took; an option rather than the values behind it.
std::string unknown(const std::vector<std::string>& left) {
  const auto option = std::find_if(left.begin(), left.end(), [](const auto& text) { return text.size() > 1 && text.front() == '-'; });
  return option == left.end() ? left.front() : *option;
}

}  // namespace

std::string overview(const CLI::App& app) {
  Table table({Align::left, Align::left});
  for (const auto* command : commands_of(app)) table.add({"  " + command->get_name(), command->get_description()});
  return fmt::format(
      "{}.\n\nUsage: lquant COMMAND [OPTIONS]\n\nCommands:\n{}\n"
      "lquant COMMAND --help (or lquant help COMMAND) lists the options of one, lquant --version says which lquant this is.\n"
      "-m is --model, but in generate --max-tokens, as in mlx_lm.\n",
      app.get_description(), table.text());
}

std::vector<std::string> arguments_of(const std::string& program, std::vector<std::string> arguments) {
  const auto name = std::filesystem::path(program).filename().string();
  if (const auto dot = name.find('.'); dot != std::string::npos && name.compare(0, dot, "lquant") == 0)
    arguments.insert(arguments.begin(), name.substr(dot + 1));
  // CLI11 would take the next argument for the value.
  for (const auto& argument : arguments)
    if (argument.starts_with("--") && argument.find('=') == argument.size() - 1)
      throw UsageError(fmt::format("{} has no value; write one behind it, or leave it out", argument));
  if (arguments.empty() || arguments.front() != "help") return arguments;
  if (arguments.size() == 1) return {"--help"};
  return {arguments[1], "--help"};
}

std::string complaint(const CLI::App& app, const std::vector<std::string>& arguments, const std::string& error) {
  const auto names = command_names(app);
  if (const auto left = app.remaining(); !left.empty() && left.front().starts_with('-')) {
    const auto name = left.front().substr(0, left.front().find('='));
    return fmt::format("there is no option {}{} before a command (commands: {})", name, meant_option(app, name), fmt::join(names, ", "));
  }
  if (const auto chosen = app.get_subcommands(); !chosen.empty()) {
    const auto& command = *chosen.front();
    const auto name = command.get_name();
    if (const auto option = missing_value(command); !option.empty()) return fmt::format("{}; see lquant {} --help", option, name);
    const auto left = command.remaining();
    if (left.empty()) return fmt::format("{}; see lquant {} --help", error, name);
    const auto given = unknown(left);
    if (given.front() != '-') return fmt::format("{}: belongs to no option of {}; see lquant {} --help", given, name, name);
    const auto option = given.substr(0, given.find('='));
    return fmt::format("{} has no option {}{} (lquant {} --help lists all)", name, option, meant_option(command, option), name);
  }
  const auto& first = arguments.front();
  return fmt::format("there is no command {}{} (commands: {})", first, did_you_mean(first, names), fmt::join(names, ", "));
}

}  // namespace lquant::cli
