// What a warp does on tensor cores, in the words of PTX (docs.nvidia.com/cuda/parallel-thread-execution, sm_80 and later): copies to shared memory
// that do not wait, 8 × 8 matrices of 16-bit floats from there into registers, and products of 16 × 16 by 16 × 8. A text of its own, for a CPU
// that tests the texts behind it has other words for these.
namespace lquant {

// The address of shared memory that instructions take.
__device__ unsigned int shared_address(const void* at) {
  unsigned long long address;
  asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(at));
  return static_cast<unsigned int>(address);
}

// Begins to copy 16 bytes, both ends aligned to them; zeros where `inside` is false.
__device__ void copy_16_bytes(void* shared, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(from), "r"(inside ? 16 : 0));
}
// What was begun since the last call is one batch.
__device__ void end_batch() { asm volatile("cp.async.commit_group;"); }
// Waits until no more than n batches of this thread are under way.
template <int n>
__device__ void wait_for_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// Four matrices of 8 × 8 in shared memory: lane l gives where row l % 8 of matrix l / 8 begins. It gets of each the elements (l / 4, 2 (l % 4)) and
// the next, of the transposed matrix if asked for.
template <bool transposed>
__device__ void load_matrices(unsigned int (&to)[4], const void* row) {
  const unsigned int at = shared_address(row);
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at));
}

// sum [16, 8] += a [16, 16] · b [16, 8]. Of a: rows 0 … 7 and 8 … 15 of columns 0 … 7, then both of columns 8 … 15; of b, transposed: rows 0 … 7, 8 … 15.
// Lane l has of the sum (l / 4, 2 (l % 4)), the next, and the two eight rows below.
__device__ void multiply_add(float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1, bf16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ void multiply_add(float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1, f16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace lquant
