#include "run/stop.h"

#include "base/error.h"

namespace lquant::run {

void Stop::check() const {
  if (requested()) throw Interrupted("[run] interrupted; give the same command again to continue");
}

}  // namespace lquant::run
