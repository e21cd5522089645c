#pragma once

// The text of this folder's .cu files, which cmake/CudaText.cmake puts into the program.
namespace lquant::kernels {

const char* descent_cu();
const char* gated_cu();
const char* head_rows_cu();
const char* numbers_cu();
const char* triangle_cu();

}  // namespace lquant::kernels
