// libFuzzer over the reader of GGUF headers: ./fuzz_gguf -max_len=4096 CORPUS
#include <cstddef>
#include <cstdint>

#include "fuzz/gguf_target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lquant::fuzz::gguf_target({reinterpret_cast<const char*>(data), size});
  return 0;
}
