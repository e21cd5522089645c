#pragma once

#include <string>

#include "evaluate/report.h"

// The figures of a report as HTML: an inline SVG with a title and a description, and behind it, folded away, the table that it shows. `id` is the
// page's prefix for a figure's names.
namespace lquant::evaluate {

/// Blocks downwards, roles of linears across: bits by colour, bits, group and size in writing.
std::string size_map(const FolderReport& folder, int blocks, const std::string& id);
/// The same places: what each brings when it alone is put into the teacher.
std::string alone_map(const FolderReport& folder, int blocks, const std::string& id);
/// How the divergence is spread over tokens, on a logarithmic axis.
std::string histogram(const FolderReport& folder, const std::string& id);
/// KL against bytes of all folders.
std::string curve(const Report& report, const std::string& id);

/// "1.23 MB".
std::string megabytes(std::int64_t bytes);

}  // namespace lquant::evaluate
