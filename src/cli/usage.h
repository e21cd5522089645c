#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

// What the program says of how it is used.
namespace lquant::cli {

/// How a command is given, and each command in a line. Ends a line.
std::string overview(const CLI::App& app);

/// The arguments as the parser takes them: `help COMMAND` is `COMMAND --help`, and called through a link named lquant.COMMAND the program is
/// `lquant COMMAND`. `program` is argv[0]. Throws UsageError for an option with "=" and nothing behind it.
std::vector<std::string> arguments_of(const std::string& program, std::vector<std::string> arguments);

/// One sentence about arguments that could not be parsed, for which CLI11 says `error`; it also says where help is. An option or command that is not known goes before
/// everything else, since it may be why something is missing; what was probably meant is offered.
std::string complaint(const CLI::App& app, const std::vector<std::string>& arguments, const std::string& error);

}  // namespace lquant::cli
