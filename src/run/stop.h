#pragma once

#include <atomic>

namespace lquant::run {

/// A request to end early, made by whoever holds the token: the program on a signal, a caller of the library from another thread.
/// The work asks it between units, saves what it has and throws Interrupted.
class Stop {
 public:
  /// Safe from any thread.
  void request() noexcept { requested_ = true; }
  bool requested() const noexcept { return requested_; }
  /// Throws Interrupted when an end was requested: the run's state is saved and the same command continues it.
  void check() const;

  /// Whether somebody is there who heeds a request. Without, nothing could be saved, and the program may simply end.
  bool heeded() const noexcept { return heeding_ > 0; }

  /// While one lives, requests are heeded. Scopes nest: a run inside a run leaves the outer one heeding.
  class Heeding {
   public:
    explicit Heeding(Stop& stop) : stop_(stop) { ++stop_.heeding_; }
    ~Heeding() { --stop_.heeding_; }
    Heeding(const Heeding&) = delete;

   private:
    Stop& stop_;
  };

 private:
  std::atomic<bool> requested_{false};
  std::atomic<int> heeding_{0};
};

}  // namespace lquant::run
