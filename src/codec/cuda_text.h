#pragma once

// The text of this folder's .cu files, which cmake/CudaText.cmake puts into the program.
namespace lquant::codec {

const char* feedback_cu();
const char* range_search_cu();

}  // namespace lquant::codec
