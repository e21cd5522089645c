// oneDNN's matmul is fastest when its second matrix has a blocked layout of its own choosing, and its reorder primitive
// changes layout and dtype in one pass at a fraction of a product's cost. So a product is cut into blocks, small enough
// that scratch memory stays bounded whatever the shape; per block the second matrix is reordered, the first is converted
// or transposed if it has to be, and a cached primitive multiplies. Sums over blocks of K are kept in f32.
#include <dnnl.hpp>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/parallel.h"

namespace lquant::kernels {
namespace {

namespace mx = mlx::core;
using Type = dnnl::memory::data_type;
using Dims = dnnl::memory::dims;
using Desc = dnnl::memory::desc;

// The largest block: with 2,048 summands or columns the converted operands cost below 2 % of the product, and scratch
// stays at 8 MiB (A), 16 MiB (B) and 8 MiB (C) a calling thread.
constexpr std::int64_t kBlockM = 1024, kBlockN = 2048, kBlockK = 2048;
// A reorder costs 0.35 ns an element of B once, the faster product that it allows saves 0.004 to 0.01 ns an element and row:
// it pays from some 40 (bf16 through f32) to 90 rows (f32) on.
constexpr std::int64_t kReorderRows = 64;
// A thread forgets its primitives when it holds this many; a training step of a large model uses some dozens. The experts of a mixture see another
// number of rows each time: what is kept of those only takes memory, 40 kB each and more with AMX, and a new one takes 0.2 ms.
constexpr std::size_t kCachedPrimitives = 64;

dnnl::engine& engine() {
  // It outlives the caches of all threads.
  static auto* cpu = [] {
    dnnl::set_primitive_cache_capacity(kCachedPrimitives);  // oneDNN's own, beneath ours
    return new dnnl::engine(dnnl::engine::kind::cpu, 0);
  }();
  return *cpu;
}

bool has_isa(dnnl::cpu_isa isa) {
  static const int effective = static_cast<int>(dnnl::get_effective_cpu_isa());
  return (effective & static_cast<int>(isa)) == static_cast<int>(isa);
}

/// Whether bf16 products beat f32 ones for large matrices: with AMX by far, and on AMD twice. Intel's vdpbf16ps without AMX (as
/// on virtual machines that hide it) reaches 85 GFLOP/s a core where f32 reaches 140.
bool fast_bf16() {
  static const bool fast = has_isa(dnnl::cpu_isa::avx512_core_amx) || (has_isa(dnnl::cpu_isa::avx512_core_bf16) && __builtin_cpu_is("amd") != 0);
  return fast;
}

Type type_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return Type::f32;
  if (dtype == mx::bfloat16) return Type::bf16;
  throw std::invalid_argument("[kernels] gemm takes float32 and bfloat16");
}

std::int64_t size_of(Type type) { return type == Type::f32 ? 4 : 2; }

/// Memory that grows and is kept, one piece a purpose and thread.
class Scratch {
 public:
  void* get(std::size_t bytes) {
    if (bytes > size_) {
      data_.reset();
      size_ = (bytes + 63) / 64 * 64;
      data_.reset(std::aligned_alloc(64, size_));
      if (!data_) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t size_ = 0;
};

/// A view of a matrix in memory: element (i, j) at data + i·rows + j·columns.
struct View {
  char* data;
  Type type;
  std::int64_t rows, columns;

  View at(std::int64_t i, std::int64_t j) const { return {data + (i * rows + j * columns) * size_of(type), type, rows, columns}; }
  Desc desc(std::int64_t m, std::int64_t n) const { return Desc(Dims{m, n}, type, Dims{rows, columns}); }
  auto key() const { return std::tuple(static_cast<int>(type), rows, columns); }
};

View view(const Matrix& x) {
  char* data = static_cast<char*>(const_cast<void*>(x.data));
  return x.transposed ? View{data, type_of(x.dtype), 1, x.row} : View{data, type_of(x.dtype), x.row, 1};
}

/// Row-major scratch for an m × n block. The odd row length keeps rows from meeting in the same cache sets.
View dense(Scratch& scratch, std::int64_t m, std::int64_t n, Type type) {
  const std::int64_t row = (n + 15) / 16 * 16 + 16;
  return {static_cast<char*>(scratch.get(m * row * size_of(type))), type, row, 1};
}

struct Product {
  dnnl::matmul primitive;
  dnnl::memory a, b, c, bias, scratchpad;
};
struct Reorder {
  dnnl::reorder primitive;
  dnnl::memory from, to;
};
/// What distinguishes primitives: the number of threads, sizes, views, constants.
using Key = std::tuple<int, std::array<std::int64_t, 3>, std::tuple<int, std::int64_t, std::int64_t>, std::tuple<int, std::int64_t, std::int64_t>,
                       std::tuple<int, std::int64_t, std::int64_t>, float, float, bool>;

/// Everything a calling thread keeps: no locks, and memory objects can be pointed at new data without care.
struct ThreadState {
  dnnl::stream stream{engine()};
  std::map<Key, Product> products;
  std::map<Key, Reorder> reorders;
  Scratch a, b, c, bias, scratchpad;
};

ThreadState& state() {
  thread_local ThreadState mine;
  return mine;
}

int threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

/// The layout of a second matrix that oneDNN chooses itself is marked by strides of 0.
View blocked(Type type) { return {nullptr, type, 0, 0}; }
bool is_blocked(const View& x) { return x.columns == 0; }

Product& product(ThreadState& s, std::int64_t m, std::int64_t n, std::int64_t k, const View& a, const View& b, const View& c, float alpha, float beta,
                 bool with_bias) {
  const Key key{threads(), {m, n, k}, a.key(), b.key(), c.key(), alpha, beta, with_bias};
  if (auto found = s.products.find(key); found != s.products.end()) return found->second;
  if (s.products.size() >= kCachedPrimitives) s.products.clear();
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops after;
  const Desc bias = with_bias ? Desc(Dims{1, n}, Type::f32, dnnl::memory::format_tag::ab) : Desc();
  // oneDNN adds its own bias before it scales, so next to an alpha the bias is an addition after it.
  // Its fast kernels want the sum first: alpha · (A·B + beta/alpha · C).
  if (beta != 0 && alpha != 0) after.append_sum(beta / alpha);
  if (alpha != 1) after.append_eltwise(dnnl::algorithm::eltwise_linear, alpha, 0);
  if (beta != 0 && alpha == 0) after.append_sum(beta);
  if (with_bias && alpha != 1) after.append_binary(dnnl::algorithm::binary_add, bias);
  attr.set_post_ops(after);
  const Desc b_desc = is_blocked(b) ? Desc(Dims{k, n}, b.type, dnnl::memory::format_tag::any) : b.desc(k, n);
  const auto pd = with_bias && alpha == 1 ? dnnl::matmul::primitive_desc(engine(), a.desc(m, k), b_desc, bias, c.desc(m, n), attr)
                                          : dnnl::matmul::primitive_desc(engine(), a.desc(m, k), b_desc, c.desc(m, n), attr);
  Product made{dnnl::matmul(pd),
               dnnl::memory(pd.src_desc(), engine(), nullptr),
               dnnl::memory(pd.weights_desc(), engine(), nullptr),
               dnnl::memory(pd.dst_desc(), engine(), nullptr),
               dnnl::memory(bias, engine(), nullptr),
               dnnl::memory(pd.scratchpad_desc(), engine(), nullptr)};
  return s.products.emplace(key, std::move(made)).first->second;
}

/// Copies an m × n block from one view to another, or into the layout `target` when that is given.
void reorder(ThreadState& s, std::int64_t m, std::int64_t n, const View& from, const View& to, const Desc* target = nullptr, std::int64_t rows = 0) {
  // The blocked layout is a function of the product's row count too, which `rows` therefore brings into the key.
  const Key key{threads(), {m, n, rows}, from.key(), to.key(), {}, 0, 0, target != nullptr};
  auto found = s.reorders.find(key);
  if (found == s.reorders.end() || (target && found->second.to.get_desc() != *target)) {
    if (s.reorders.size() >= kCachedPrimitives) s.reorders.clear();
    dnnl::memory source(from.desc(m, n), engine(), nullptr), result(target ? *target : to.desc(m, n), engine(), nullptr);
    dnnl::reorder primitive(source, result);
    found = s.reorders.insert_or_assign(key, Reorder{std::move(primitive), std::move(source), std::move(result)}).first;
  }
  auto& [primitive, source, result] = found->second;
  source.set_data_handle(from.data);
  result.set_data_handle(to.data);
  primitive.execute(s.stream, {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, result}});
}

/// One block's product; `b` may be blocked(), else all views are in place.
struct Operands {
  std::int64_t m, n, k;
  View a, b, c;
};

/// `ready` is the layout in which s.b holds this very block of B already, if it does; it is brought up to date.
void multiply(ThreadState& s, const Operands& x, bool reorder_b, std::optional<Desc>& ready, Type compute, float alpha, float beta,
              const float* bias) {
  View a = x.a;
  if (a.type != compute || a.columns != 1) {
    a = dense(s.a, x.m, x.k, compute);
    reorder(s, x.m, x.k, x.a, a);
  }
  auto& p = product(s, x.m, x.n, x.k, a, reorder_b ? blocked(compute) : x.b, x.c, alpha, beta, bias != nullptr);
  const void* b = x.b.data;
  if (reorder_b) {
    const Desc layout = p.b.get_desc();
    View target = blocked(compute);
    b = target.data = static_cast<char*>(s.b.get(layout.get_size()));
    if (!ready || *ready != layout) reorder(s, x.k, x.n, x.b, target, &layout, x.m);
    ready = layout;
  }
  p.a.set_data_handle(a.data);
  p.b.set_data_handle(const_cast<void*>(b));
  p.c.set_data_handle(x.c.data);
  p.scratchpad.set_data_handle(s.scratchpad.get(p.scratchpad.get_desc().get_size()));
  std::unordered_map<int, dnnl::memory> args{{DNNL_ARG_SRC, p.a}, {DNNL_ARG_WEIGHTS, p.b}, {DNNL_ARG_DST, p.c}, {DNNL_ARG_SCRATCHPAD, p.scratchpad}};
  if (bias) {
    p.bias.set_data_handle(const_cast<float*>(bias));
    args.emplace(alpha == 1 ? DNNL_ARG_BIAS : DNNL_ARG_ATTR_MULTIPLE_POST_OP((beta != 0) + 1) | DNNL_ARG_SRC_1, p.bias);
  }
  p.primitive.execute(s.stream, args);
}

/// Calls body(begin, size) on equal parts of [0, n), each at most `most` and all but the last a multiple of 64 long.
template <class Body>
void for_blocks(std::int64_t n, std::int64_t most, const Body& body) {
  const std::int64_t parts = (n + most - 1) / most, length = parts == 1 ? n : ((n + parts - 1) / parts + 63) / 64 * 64;
  for (std::int64_t begin = 0; begin < n; begin += length) body(begin, std::min(length, n - begin));
}

/// C = beta · C + bias, what is left of a product over nothing.
void scale_only(std::int64_t m, std::int64_t n, float beta, const View& c, const float* bias) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      char* at = c.at(i, j).data;
      const float old = beta == 0 ? 0 : c.type == Type::f32 ? *reinterpret_cast<float*>(at) : float(*reinterpret_cast<mx::bfloat16_t*>(at));
      const float value = (beta == 0 ? 0 : beta * old) + (bias ? bias[j] : 0);
      if (c.type == Type::f32) {
        *reinterpret_cast<float*>(at) = value;
      } else {
        *reinterpret_cast<mx::bfloat16_t*>(at) = mx::bfloat16_t(value);
      }
    }
  }
}

const float* bias_in_f32(ThreadState& s, std::int64_t n, const void* bias, mx::Dtype dtype) {
  if (!bias || type_of(dtype) == Type::f32) return static_cast<const float*>(bias);
  auto* values = static_cast<float*>(s.bias.get(n * sizeof(float)));
  std::copy_n(static_cast<const mx::bfloat16_t*>(bias), n, values);
  return values;
}

void run(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const View& a, const View& b, float beta, const View& c, const float* bias) {
  auto& s = state();
  const bool both_bf16 = a.type == Type::bf16 && b.type == Type::bf16;
  const bool few_rows = m < kReorderRows;
  const bool native = both_bf16 && (fast_bf16() || (few_rows && has_isa(dnnl::cpu_isa::avx512_core_bf16)));
  const Type compute = native ? Type::bf16 : Type::f32;
  const bool reorder_b = !few_rows || b.type != compute;
  for_blocks(n, kBlockN, [&](std::int64_t j, std::int64_t columns) {
    std::optional<Desc> ready;  // with one block of K, all blocks of rows meet the same block of B
    for_blocks(m, kBlockM, [&](std::int64_t i, std::int64_t rows) {
      // A bf16 result is summed in f32 scratch unless a native product writes it in one go.
      const View target = c.at(i, j);
      const bool through_scratch = c.type == Type::bf16 && (!native || k > kBlockK);
      const View sum = through_scratch ? dense(s.c, rows, columns, Type::f32) : target;
      if (through_scratch && beta != 0) reorder(s, rows, columns, target, sum);
      for_blocks(k, kBlockK, [&](std::int64_t l, std::int64_t depth) {
        const bool last = l + depth == k;
        if (k > kBlockK) ready.reset();
        multiply(s, {rows, columns, depth, a.at(i, l), b.at(l, j), sum}, reorder_b, ready, compute, alpha, l == 0 ? beta : 1.0f,
                 last && bias ? bias + j : nullptr);
      });
      if (through_scratch) reorder(s, rows, columns, sum, target);
    });
  });
  s.stream.wait();
}

}  // namespace

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const Matrix& a, const Matrix& b, float beta, void* c, mx::Dtype c_dtype,
          std::int64_t ldc, const void* bias, mx::Dtype bias_dtype) {
  if (m <= 0 || n <= 0) return;
  const View result{static_cast<char*>(c), type_of(c_dtype), ldc, 1};
  const float* bias_values = bias_in_f32(state(), n, bias, bias_dtype);
  if (k <= 0) return scale_only(m, n, beta, result, bias_values);
  try {
    run(m, n, k, alpha, view(a), view(b), beta, result, bias_values);
  } catch (const dnnl::error& e) {
    throw std::runtime_error(std::string("[kernels] oneDNN: ") + e.what());
  }
}

void copy_matrix(std::int64_t m, std::int64_t n, const Matrix& from, void* to, mx::Dtype to_dtype, std::int64_t to_row) {
  if (m <= 0 || n <= 0) return;
  try {
    reorder(state(), m, n, view(from), {static_cast<char*>(to), type_of(to_dtype), to_row, 1});
    state().stream.wait();
  } catch (const dnnl::error& e) {
    throw std::runtime_error(std::string("[kernels] oneDNN: ") + e.what());
  }
}

}  // namespace lquant::kernels
