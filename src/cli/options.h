#pragma once

#include <CLI/CLI.hpp>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "codec/format.h"
#include "pipeline/rows.h"

// What can be told from options alone is told before a model is opened or fetched: here are the questions that commands have in common.
// An option that would change nothing is refused (exit code 2): whoever gave it expects something else than would come. Said in a line, and
// passed over, are those that mlx_lm's commands pass over, and those made idle by a flag that ends a run early (--targets-only).
namespace lquant::cli {

/// A number above 0 and finite: CLI::PositiveNumber, whose complaint is some 300 digits long, in words.
extern const CLI::Validator kPositive;
/// A count from 1 to 2^30, which leaves room for sums and products.
extern const CLI::Validator kCount;
/// The same, or -1 for all.
extern const CLI::Validator kCountOrAll;

/// A whole number from 0 to 2^63 − 1.
extern const CLI::Validator kSeed;

/// The flags of these that were given, with "and" and "," between; empty when none was.
std::string given_of(const CLI::App& command, std::initializer_list<const char*> flags);

/// Throws UsageError when any of `flags` was given: "--bits has no effect WHERE", in which `where` ends with what to do.
void refuse_idle(const CLI::App& command, std::initializer_list<const char*> flags, const std::string& where);

/// Says the same in a line on stderr.
void remark_idle(const CLI::App& command, std::initializer_list<const char*> flags, const std::string& where);

/// Says in a line that --trust-remote-code, --grad-checkpoint and the like are accepted for mlx_lm's sake, when given.
void remark_accepted(const CLI::App& command, const char* flag, const std::string& why);

/// Throws Error when MLX has no affine format of so many bits or such groups; the sentence names the flag.
void check_bits(const char* flag, int bits);
void check_group(const char* flag, int group_size);
/// Both.
void check_format(const char* bits_flag, const char* group_flag, const codec::Format& format);
/// Each of them, and that none comes twice.
void check_widths(const char* flag, const std::vector<int>& widths);
void check_groups(const char* flag, const std::vector<int>& groups);

/// --expert-tokens of the commands that calibrate, and its check: it needs rows that are not taken already.
void add_expert_tokens(CLI::App& command, std::optional<int>& tokens);
void check_expert_tokens(const CLI::App& command, const pipeline::RowOptions& rows);

/// Throws UsageError when a value comes twice.
void refuse_repeated(const char* flag, const std::vector<std::string>& values);

/// Throws UsageError naming an option of the parsed command whose value is empty; a prompt may be.
void refuse_empty(const CLI::App& command);

}  // namespace lquant::cli
