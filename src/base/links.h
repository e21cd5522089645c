#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace lquant {

/// A model folder may come from anybody, and what lies in it is read, copied and published: a link in it must not reach this machine's other
/// files. Followed are links that end inside the folder, and those of a Hugging Face hub cache (…/snapshots/COMMIT/…), which end in the
/// blobs/ of the same repository. The folder itself may be a link, or lie behind one.
///
/// Whether `name` is one of the folder's entries; no link is followed.
bool has_entry(const std::filesystem::path& folder, const std::string& name);

/// Where the bytes of the folder's file `name` (a plain name) lie; nothing when there is no such entry. Nothing is read. Throws Error (tag
/// `room`), naming the file, for a link that leads out or to nothing, and for what is no regular file: a folder, a pipe, a device.
std::optional<std::filesystem::path> find_file(const char* room, const std::filesystem::path& folder, const std::string& name);

/// Throws Error (tag `room`), naming the path, for something that is there and is no regular file: a folder, a pipe, a device. Links are followed. To
/// open a named pipe for reading would wait, for ever, for somebody to write to it.
void check_regular(const char* room, const std::filesystem::path& path);

}  // namespace lquant
