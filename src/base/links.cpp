#include "base/links.h"

#include <algorithm>
#include <stdexcept>

#include "base/error.h"

namespace lquant {
namespace fs = std::filesystem;

namespace {

bool is_inside(const fs::path& folder, const fs::path& file) {
  return std::mismatch(folder.begin(), folder.end(), file.begin(), file.end()).first == folder.end();
}

/// The blobs of the repository whose snapshot `folder` is, or lies in; empty when it is none. `folder` has no links in it.
fs::path blobs_of(const fs::path& folder) {
  for (auto at = folder; at.has_relative_path(); at = at.parent_path())
    if (at.parent_path().filename() == "snapshots") return at.parent_path().parent_path() / "blobs";
  return {};
}

const char* kind_of(fs::file_type type) {
  switch (type) {
    case fs::file_type::directory:
      return "a folder";
    case fs::file_type::fifo:
      return "a pipe";
    case fs::file_type::socket:
      return "a socket";
    case fs::file_type::block:
    case fs::file_type::character:
      return "a device";
    default:
      return "something else";
  }
}

void refuse_irregular(const char* room, fs::file_type type, const fs::path& path) {
  if (type != fs::file_type::regular) fail(room, "{}: is not a regular file but {}; put the real file there", path.string(), kind_of(type));
}

}  // namespace

bool has_entry(const fs::path& folder, const std::string& name) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(folder / name, ignored));
}

std::optional<fs::path> find_file(const char* room, const fs::path& folder, const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
    throw std::invalid_argument("[base] " + name + " is no plain name of a file");
  if (!has_entry(folder, name)) return std::nullopt;
  auto place = folder / name;
  std::error_code error;
  if (fs::is_symlink(fs::symlink_status(place, error))) {
    const auto written = fs::read_symlink(place, error).string();
    const auto target = fs::canonical(place, error);
    if (error) fail(room, "{}: is a link to {}, which cannot be reached ({}); put the file itself there", place.string(), written, error.message());
    const auto real = fs::canonical(folder, error);
    if (error || !(is_inside(real, target) || target.parent_path() == blobs_of(real)))
      fail(room, "{}: is a link to {}, which is outside of the folder, and is not followed; put the file itself there if it belongs to the model",
           place.string(), written);
    place = target;
  }
  refuse_irregular(room, fs::status(place, error).type(), folder / name);
  return place;
}

void check_regular(const char* room, const fs::path& path) {
  std::error_code error;
  const auto type = fs::status(path, error).type();
  if (type != fs::file_type::not_found && type != fs::file_type::none) refuse_irregular(room, type, path);
}

}  // namespace lquant
