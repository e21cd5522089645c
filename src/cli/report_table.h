#pragma once

#include "evaluate/report.h"

namespace lquant::cli {

/// The report's summary on stdout, a line a folder. On a terminal its head is bold. Names are shown without control characters.
void print_table(const evaluate::Report& report, bool terminal);

}  // namespace lquant::cli
