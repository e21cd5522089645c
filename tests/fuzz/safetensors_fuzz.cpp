// libFuzzer over the reader of safetensors headers: ./fuzz_safetensors -max_len=4096 CORPUS
#include <cstddef>
#include <cstdint>

#include "fuzz/header_target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lquant::fuzz::header_target({reinterpret_cast<const char*>(data), size});
  return 0;
}
