#pragma once

#include <filesystem>

namespace lquant::checkpoint {

/// A folder that grows beside its final place and appears there all at once, or not at all.
///
/// For the output DIR/NAME there is DIR/.NAME.partial with two entries: "lock", held with flock while this object lives, and
/// "output", the folder that publish() renames to DIR/NAME. What a killed run left there is removed by the next one.
class PartialFolder {
 public:
  /// Makes the folder (and DIR). Throws Error when the output exists in any form, when another process writes the same
  /// output, when .NAME.partial holds anything that is not ours, or when the place cannot be written.
  explicit PartialFolder(const std::filesystem::path& output);
  /// Removes everything unless published.
  ~PartialFolder();
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

  /// Where to write.
  const std::filesystem::path& path() const { return inside_; }
  /// Renames to the output and syncs its parent. Throws Error, changing nothing, when something has appeared there.
  void publish();

 private:
  void take_lock();
  void clear();
  std::filesystem::path output_, partial_, inside_;
  int lock_ = -1;
};

}  // namespace lquant::checkpoint
