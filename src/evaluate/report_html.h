#pragma once

#include <string>

#include "evaluate/report.h"

namespace lquant::evaluate {

/// The report as one page: no script, nothing loaded (a content security policy in it says so to browsers), light and dark by the reader's choice,
/// every figure an inline SVG with a title, a description and its numbers as a table. Numbers stand exactly, as to_json gives them, in <data>.
std::string report_html(const Report& report);

/// The frame and the style of the page (src/evaluate/report), built in.
const char* page_html();
const char* page_css();

}  // namespace lquant::evaluate
