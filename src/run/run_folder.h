#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <unordered_map>

#include "run/context.h"

namespace lquant::run {

namespace mx = mlx::core;

/// The work folder of one run, beside its output ("NAME.lquant-run"): what the run is (its identity: hashes of inputs, and options) and the
/// units of work that it has finished, so that the same command given again after a kill goes on where it was and ends in the same bytes.
///
///     journal.json       the identity, sealed by its SHA-256; without it nothing in the folder is anybody's
///     NAME.safetensors   a unit: tensors and JSON, sealed (checkpoint/sealed.h)
///     steps/NAME         a step: a whole output folder of another run; a unit of the same name holds the SHA-256 of its files
///     lock               held while a process works there
///
/// A unit or a step is there whole or not at all. What is not as it was written is found when the folder is opened, said, removed and so made
/// again. The folder goes by one rename, before anything in it is removed: a kill leaves all of it or nothing under its name.
class RunFolder {
 public:
  /// `identity` names everything that the result depends on. An existing folder with the same identity is continued; one with another is
  /// refused with an Error that names what differs, unless `fresh`, which starts over. Throws Error, and leaves everything as it was, when
  /// another process works there, when the folder is a link, or when it would have to go and holds files that are not a run's.
  /// `active` false (ranks above 0): nothing is read or written.
  RunFolder(const std::filesystem::path& output, nlohmann::json identity, bool fresh, const Context& context, bool active = true);
  /// A folder in which nothing was finished is removed: it would only be in the way.
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  /// True when the folder held finished work of an earlier process; the context was told so.
  bool resumed() const { return resumed_; }
  const std::filesystem::path& path() const { return folder_; }

  struct Unit {
    std::unordered_map<std::string, mx::array> tensors;
    nlohmann::json meta;
  };
  bool has(const std::string& unit) const;
  /// nullopt when the unit is not there. Throws Error when it has changed since the folder was opened.
  std::optional<Unit> load(const std::string& unit) const;
  /// load() of a unit that must be there: has() was asked, or this run saved it. Throws Error when it is not.
  Unit need(const std::string& unit) const;
  /// Replaces the unit of that name.
  void save(const std::string& unit, const std::unordered_map<std::string, mx::array>& tensors,
            const nlohmann::json& meta = nlohmann::json::object());
  /// Removes a unit that nothing needs any more, if it is there.
  void drop(const std::string& unit);

  /// Whether the step of that name is finished.
  bool has_step(const std::string& step) const;
  /// Where a finished step lies.
  std::filesystem::path step(const std::string& step) const;
  /// Where a step that is not finished is to be made: an output folder (or a folder to fill) that is not there yet.
  std::filesystem::path begin_step(const std::string& step);
  /// The folder that begin_step named is whole: hashes its files and makes it the step. `meta` goes with it.
  void finish_step(const std::string& step, const nlohmann::json& meta = nlohmann::json::object());
  /// What finish_step was given.
  nlohmann::json step_meta(const std::string& step) const;

  /// Removes the folder: the output stands.
  void remove();

  /// Removes what a kill in the middle of remove() has left beside an output.
  static void clear_removed(const std::filesystem::path& output);

  /// Where the run folder of an output lies.
  static std::filesystem::path folder_of(const std::filesystem::path& output);

 private:
  bool holds_work() const;
  bool take_lock();
  void start_over();
  void drop_damaged(const Context& context);
  std::filesystem::path file_of(const std::string& unit) const;

  /// A member of its own, so that a constructor that throws lets go of it too.
  struct Lock {
    int descriptor = -1;
    Lock() = default;
    Lock(const Lock&) = delete;
    ~Lock();
  };

  std::filesystem::path folder_;
  nlohmann::json identity_;
  bool active_;
  bool resumed_ = false;
  Lock lock_;
};

}  // namespace lquant::run
