#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace lquant {

/// Valid UTF-8: bytes that make no character are replaced by U+FFFD, one each. Names on the disk and arguments may hold any bytes, JSON may not: what is
/// put into a record, a card or a request goes through this.
std::string utf8(std::string_view bytes);
std::string utf8(const std::filesystem::path& path);
inline std::string utf8(const std::string& bytes) { return utf8(std::string_view(bytes)); }
inline std::string utf8(const char* bytes) { return utf8(std::string_view(bytes)); }
bool is_utf8(std::string_view bytes);

/// The name of a folder or file, as utf8(): that of "out/", "." and "a/.." is what they stand for.
std::string name_of(const std::filesystem::path& path);

/// One word of a POSIX shell: as it is where that is safe, else in single quotes.
std::string shell_quoted(std::string_view text);

}  // namespace lquant
