// The token by which a run is told to end.
#include "run/stop.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace lquant::run {
namespace {

TEST(Stop, AsksOnce) {
  Stop stop;
  EXPECT_NO_THROW(stop.check());
  stop.request();
  EXPECT_TRUE(stop.requested());
  EXPECT_THROW(stop.check(), Interrupted);
}

TEST(Stop, ARunInsideARunLeavesTheOuterOneHeeding) {
  Stop stop;
  EXPECT_FALSE(stop.heeded());
  {
    const Stop::Heeding outer(stop);
    { const Stop::Heeding inner(stop); }
    EXPECT_TRUE(stop.heeded());
    stop.request();
    const Stop::Heeding later(stop);
    EXPECT_TRUE(stop.requested());  // a run that begins after the request hears of it
  }
  EXPECT_FALSE(stop.heeded());
}

}  // namespace
}  // namespace lquant::run
