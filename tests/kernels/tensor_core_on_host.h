#pragma once

// The functions of tensor_core.cu on a CPU, from what PTX's manual says of them; included in its place, behind numbers.cu, in the same namespace.
// Copies are done at once: the kernels' own waits and barriers keep what they read and write apart.
namespace lquant {

inline void copy_16_bytes(void* shared, const void* from, bool inside) {
  if (inside)
    std::memcpy(shared, from, 16);
  else
    std::memset(shared, 0, 16);
}
inline void end_batch() {}
template <int n>
void wait_for_all_but() {}

// A pointer's 48 bits fit into the double that lanes exchange.
inline const std::uint16_t* row_of_lane(const void* own, int lane) {
  return reinterpret_cast<const std::uint16_t*>(
      static_cast<std::uintptr_t>(cuda_on_host::from_lane(static_cast<double>(reinterpret_cast<std::uintptr_t>(own)), lane)));
}

template <bool transposed>
void load_matrices(unsigned int (&to)[4], const void* row) {
  const int lane = threadIdx.x % 32, r = lane / 4, c = lane % 4 * 2;
  for (int matrix = 0; matrix < 4; ++matrix) {
    unsigned int low, high;
    if constexpr (transposed) {
      low = row_of_lane(row, matrix * 8 + c)[r];
      high = row_of_lane(row, matrix * 8 + c + 1)[r];
    } else {
      const auto* at = row_of_lane(row, matrix * 8 + r);
      low = at[c], high = at[c + 1];
    }
    to[matrix] = low | high << 16;
  }
}

// a [16, 16] in quarters as in tensor_core.cu, b [16, 8]; every lane shows what it holds to the others of its warp.
inline void multiply_add(float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1, bf16) {
  static unsigned int shown[64][32][6];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  auto& held = shown[warp];
  for (int i = 0; i < 4; ++i) held[lane][i] = a[i];
  held[lane][4] = b0, held[lane][5] = b1;
  __syncwarp();
  const auto number = [](unsigned int pair, int which) {
    bf16 x;
    x.bits = static_cast<unsigned short>(which ? pair >> 16 : pair);
    return static_cast<float>(x);
  };
  const auto of_a = [&](int row, int k) { return number(held[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2); };
  const auto of_b = [&](int k, int column) { return number(held[column * 4 + k % 8 / 2][4 + k / 8], k % 2); };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) sum[i] += of_a(row, k) * of_b(k, column);
  }
  __syncwarp();
}

}  // namespace lquant
