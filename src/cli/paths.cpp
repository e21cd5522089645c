#include "cli/paths.h"

#include <unistd.h>

#include "artifact/record.h"
#include "base/error.h"
#include "hub/names.h"

namespace lquant::cli {
namespace fs = std::filesystem;

namespace {

bool present(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// Even a link that leads nowhere: it is not ours to replace.
bool taken(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

/// "out/" means "out".
fs::path place_of(const fs::path& path) {
  auto place = fs::absolute(path).lexically_normal();
  return place.has_filename() ? place : place.parent_path();
}

void check_writable(const char* flag, const fs::path& folder, const fs::path& what) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored))
    fail("cli", "{}: cannot be made, for {} is no folder; choose another {}", what.string(), folder.string(), flag);
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    fail("cli", "{}: cannot be made, for {} cannot be written to ({}); choose another {}", what.string(), folder.string(),
         std::error_code(errno, std::generic_category()).message(), flag);
}

}  // namespace

void check_new_folder(const char* flag, const fs::path& folder) {
  if (taken(folder)) fail("cli", "{}: exists already; choose another {} or remove it", folder.string(), flag);
  auto parent = place_of(folder).parent_path();
  while (!taken(parent) && parent.has_relative_path()) parent = parent.parent_path();
  check_writable(flag, parent, folder);
}

void check_new_file(const char* flag, const fs::path& file) {
  std::error_code ignored;
  if (fs::is_directory(file, ignored) || !file.has_filename()) fail("cli", "{}: is a folder; name a file by {}", file.string(), flag);
  const auto parent = place_of(file).parent_path();
  if (!taken(parent)) fail("cli", "{}: there is no such folder; make it or choose another {}", parent.string(), flag);
  check_writable(flag, parent, file);
}

void check_folder_to_fill(const char* flag, const fs::path& folder) {
  if (taken(folder))
    check_writable(flag, folder, folder / "*");
  else
    check_new_folder(flag, folder);
}

void check_present(const char* flag, const fs::path& path) {
  if (!present(path)) fail("cli", "{}: cannot be read, for it is not there; check {}", path.string(), flag);
}

void check_model(const char* flag, const fs::path& model) {
  if (present(model) || hub::model_name(model.string())) return;
  if (model.extension() == ".gguf") fail("cli", "{}: cannot be opened (No such file or directory); check {}", model.string(), flag);
  fail("cli", "{}: there is no such folder; check {}", model.string(), flag);
}

void check_text(const char* flag, const fs::path& text) {
  if (present(text) || hub::data_name(text.string())) return;
  fail("cli", "{}: cannot be read, for it is not there; check {}", text.string(), flag);
}

void check_record(const fs::path& model) {
  const auto file = model / artifact::kRecordFile;
  if (!fs::is_regular_file(file))
    fail("cli", "{}: is not there, so --record has nowhere to write; it is for folders that lquant made", file.string());
  check_new_file("--model", file);
}

void check_texts(const char* flag, const std::vector<std::string>& texts) {
  for (const auto& text : texts) {
    if (text == "self" && texts.size() > 1)
      fail("cli", "self is given with other {}; give it alone (a file of that name is ./self)", flag);
    if (text != "self") check_text(flag, text);
  }
}

}  // namespace lquant::cli
