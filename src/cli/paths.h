#pragma once

#include <filesystem>
#include <string>
#include <vector>

// What can be told of paths before anything is opened or fetched. Hours later it would be told too late.
namespace lquant::cli {

/// A folder to be made, parents included. Throws Error naming the flag when something of that name is there, when what would be its nearest
/// parent is no folder, or cannot be written to.
void check_new_folder(const char* flag, const std::filesystem::path& folder);

/// A file to be written or replaced. Throws Error naming the flag when it is a folder, when there is no folder for it, or that cannot be
/// written to.
void check_new_file(const char* flag, const std::filesystem::path& file);

/// A folder that is there and can be written to, or can be made.
void check_folder_to_fill(const char* flag, const std::filesystem::path& folder);

/// A file or folder to be read. Throws Error naming the flag when it is not there.
void check_present(const char* flag, const std::filesystem::path& path);

/// A model: something that is there, or a name on the hub. Throws Error naming the flag otherwise.
void check_model(const char* flag, const std::filesystem::path& model);

/// A text to score: something that is there, or a data set's name on the hub. Throws Error naming the flag otherwise.
void check_text(const char* flag, const std::filesystem::path& text);

/// A model whose lquant.json gets figures. Throws Error when it has none, or it cannot be replaced.
void check_record(const std::filesystem::path& model);

/// Texts to learn from: each is there or has the form of a data set's name on the hub; or "self" alone. Throws Error naming the flag otherwise.
void check_texts(const char* flag, const std::vector<std::string>& texts);

}  // namespace lquant::cli
