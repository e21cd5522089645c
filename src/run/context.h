#pragma once

#include <mlx/distributed/distributed.h>

#include <optional>
#include <string>

#include "run/events.h"
#include "run/stop.h"

namespace lquant::run {

namespace mx = mlx::core;

/// What a run is given by whoever starts it: where it tells what it does, how it is told to end, and with whom it shares the work.
/// Everything in it is somebody's object; there is no state besides. A cheap handle.
class Context {
 public:
  /// `events` and `stop` outlive it. `group`: the processes that share the work; none: this one alone.
  Context(Events& events, Stop& stop, std::optional<mx::distributed::Group> group = std::nullopt)
      : events_(&events), stop_(&stop), group_(std::move(group)) {}

  Events& events() const { return *events_; }
  Stop& stop() const { return *stop_; }

  void line(const std::string& text) const { events_->line(text); }
  void warn(const std::string& text) const { events_->warning(text); }
  /// Throws Interrupted when an end was requested.
  void check() const { stop_->check(); }

  int rank() const { return group_ ? group_->rank() : 0; }
  int ranks() const { return group_ ? group_->size() : 1; }
  /// The processes that share the work; a group of one when none was given.
  mx::distributed::Group group() const { return group_ ? *group_ : mx::distributed::init(); }

  /// The same run, told by nobody: what it would say has been said already.
  Context silent() const {
    static NoEvents none;  // holds nothing
    return Context(none, *stop_, group_);
  }

 private:
  Events* events_;
  Stop* stop_;
  std::optional<mx::distributed::Group> group_;
};

}  // namespace lquant::run
