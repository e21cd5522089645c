#pragma once

// The text of this folder's .cu files, which cmake/CudaText.cmake puts into the program.
namespace lquant::kernels {

const char* causal_conv_cu();
const char* chunk_carry_cu();
const char* delta_chunks_cu();
const char* descent_cu();
const char* gated_cu();
const char* grouped_product_cu();
const char* head_rows_cu();
const char* moe_cu();
const char* norm_cu();
const char* numbers_cu();
const char* rope_cu();
const char* tensor_core_cu();
const char* triangle_cu();

}  // namespace lquant::kernels
