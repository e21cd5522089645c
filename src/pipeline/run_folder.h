#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "model/tensors.h"

namespace lquant::pipeline {

/// The work folder of one run, beside its output ("NAME.lquant-run"): what the run is (hashes of inputs and options) and the
/// units of work that it has finished, so that the same command given again after a kill goes on where it was.
/// Every file in it is written atomically; a unit is there whole or not at all.
class RunFolder {
 public:
  /// `identity` names everything that the result depends on. An existing folder with the same identity is continued; one
  /// with another identity is refused with an Error that names what differs, unless `fresh`, which empties it first.
  /// Throws Error when another process works in it. `active` false (ranks above 0): nothing is read or written.
  RunFolder(const std::filesystem::path& output, nlohmann::json identity, bool fresh, bool active = true);
  /// A folder in which nothing was finished is removed: it would only be in the way.
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  /// True when the folder held finished units of an earlier run.
  bool resumed() const { return resumed_; }
  const std::filesystem::path& path() const { return folder_; }

  struct Unit {
    model::Tensors tensors;
    nlohmann::json meta;
  };
  bool has(const std::string& unit) const;
  /// nullopt when the unit is not there.
  std::optional<Unit> load(const std::string& unit) const;
  /// Replaces the unit of that name.
  void save(const std::string& unit, const model::Tensors& tensors, const nlohmann::json& meta = nlohmann::json::object());

  /// Removes a unit that nothing needs any more, if it is there.
  void drop(const std::string& unit);

  /// Removes the folder: the output stands.
  void remove();

  /// Where the run folder of an output lies.
  static std::filesystem::path folder_of(const std::filesystem::path& output);

 private:
  bool holds_units() const;

  /// A member of its own, so that a constructor that throws lets go of it too.
  struct Lock {
    int descriptor = -1;
    Lock() = default;
    Lock(const Lock&) = delete;
    ~Lock();
  };

  std::filesystem::path folder_;
  bool active_;
  bool resumed_ = false;
  Lock lock_;
};

/// While it lives, Ctrl-C (SIGINT) and SIGTERM set a flag instead of ending the program; a second one ends it at once.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  static bool requested();
};

}  // namespace lquant::pipeline
