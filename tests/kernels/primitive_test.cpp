#include "kernels/primitive.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

namespace lquant::kernels {
namespace {

#ifdef LQUANT_ONEDNN

using Arrays = std::vector<mx::array>;

class Primitive : public testing::Test {
 protected:
  void SetUp() override { mx::set_default_device(mx::Device::cpu); }
};

void doubled(const Arrays& in, Arrays& out) {
  for (std::size_t i = 0; i < in[0].size(); ++i) out[0].data<float>()[i] = 2 * in[0].data<float>()[i];
}

mx::array twice(const mx::array& x) {
  Vjp vjp = [](const Arrays&, const Arrays& cotangents, const std::vector<int>&, const Arrays&) {
    return Arrays{mx::multiply(cotangents[0], mx::array(2.0f))};
  };
  return make_op("twice", {x}, {{x.shape(), x.dtype()}}, doubled, vjp)[0];
}

mx::array failing(const mx::array& x) {
  return make_op("failing", {x}, {{x.shape(), x.dtype()}}, [](const Arrays&, Arrays&) { throw std::domain_error("as asked"); })[0];
}

bool equals(const mx::array& a, const mx::array& b) { return mx::array_equal(a, b).item<bool>(); }

TEST_F(Primitive, ComputesAmongMlxOps) {
  const auto x = mx::reshape(mx::arange(6.0), {2, 3});
  EXPECT_TRUE(equals(mx::add(twice(mx::exp(x)), x), mx::add(mx::multiply(mx::exp(x), mx::array(2.0f)), x)));
}

TEST_F(Primitive, SeesRowContiguousInputs) {
  const auto x = mx::reshape(mx::arange(24.0), {2, 3, 4});
  for (const auto& view : {mx::transpose(x), mx::swapaxes(x, 0, 1), mx::slice(x, {1, 0, 1}, {2, 3, 4}), mx::slice(x, {0, 0, 0}, {2, 3, 4}, {1, 2, 3}),
                           mx::broadcast_to(mx::array(3.0f), {4, 5}), mx::slice(x, {2, 0, 0}, {2, 3, 4})}) {
    EXPECT_TRUE(equals(twice(view), mx::multiply(view, mx::array(2.0f))));
  }
}

TEST_F(Primitive, CopiesStridedInputsOfEveryItemSize) {
  for (auto dtype : {mx::uint8, mx::bfloat16, mx::int32, mx::int64}) {
    const auto x = mx::astype(mx::reshape(mx::arange(12), {3, 4}), dtype);
    const auto copy = make_op("copy", {mx::transpose(x)}, {{{4, 3}, dtype}},
                              [](const Arrays& in, Arrays& out) { std::copy_n(in[0].data<char>(), in[0].nbytes(), out[0].data<char>()); })[0];
    EXPECT_TRUE(equals(copy, mx::transpose(x)));
  }
}

TEST_F(Primitive, DoesNotCopyPartsOfLargerBuffers) {
  auto stack = mx::ones({10, 100, 100});
  mx::eval(stack);
  const float* begin = stack.data<float>();
  const float* seen = nullptr;
  auto layer = mx::slice(stack, {3, 0, 0}, {4, 100, 100});
  mx::eval(make_op("look", {layer}, {{{1}, mx::float32}}, [&](const Arrays& in, Arrays& out) {
    seen = in[0].data<float>();
    out[0].data<float>()[0] = 0;
  }));
  EXPECT_EQ(seen, begin + 3 * 100 * 100);
}

TEST_F(Primitive, DifferentiatesThroughVjpAndValueAndGrad) {
  const auto x = mx::array({1.0f, 2.0f, 3.0f});
  auto [value, gradient] = mx::value_and_grad([](const mx::array& v) { return mx::sum(mx::square(twice(v))); })(x);
  EXPECT_EQ(value.item<float>(), 4 * 14.0f);
  EXPECT_TRUE(equals(gradient, mx::array({8.0f, 16.0f, 24.0f})));
  const auto pulled = mx::vjp([](const mx::array& v) { return twice(v); }, x, mx::array({1.0f, 0.0f, -1.0f})).second;
  EXPECT_TRUE(equals(pulled, mx::array({2.0f, 0.0f, -2.0f})));
}

TEST_F(Primitive, AsksOnlyForTracedInputsAndGivesZerosForUnusedOutputs) {
  std::vector<int> asked;
  auto op = [&](const mx::array& a, const mx::array& b) {
    Vjp vjp = [&](const Arrays& in, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays& outputs) {
      asked = argnums;
      EXPECT_EQ(cotangents.size(), 2u);
      EXPECT_EQ(outputs.size(), 2u);
      EXPECT_TRUE(equals(cotangents[1], mx::zeros_like(in[0])));
      EXPECT_TRUE(equals(outputs[1], in[1]));
      return Arrays{cotangents[0]};
    };
    auto both = [](const Arrays& in, Arrays& out) {
      for (int i : {0, 1}) std::copy_n(in[i].data<float>(), in[i].size(), out[i].data<float>());
    };
    return make_op("both", {a, b}, {{a.shape(), a.dtype()}, {b.shape(), b.dtype()}}, both, vjp)[0];
  };
  const auto fixed = mx::array({5.0f, 6.0f});
  const auto gradient = mx::grad([&](const mx::array& a) { return mx::sum(op(a, fixed)); })(mx::array({1.0f, 2.0f}));
  EXPECT_TRUE(equals(gradient, mx::ones({2})));
  EXPECT_EQ(asked, std::vector<int>{0});
}

TEST_F(Primitive, RefusesAGradientThatItLacks) {
  auto function = [](const mx::array& v) { return mx::sum(failing(v)); };
  EXPECT_THROW(mx::grad(function)(mx::ones({2})), std::invalid_argument);
}

TEST_F(Primitive, BringsExceptionsToTheCallerAndLeavesTheGraphUsable) {
  const auto x = mx::full({3}, 2.0f);
  const auto before = twice(x), middle = mx::exp(before), after = mx::add(failing(middle), before);
  EXPECT_THROW(mx::eval(after), std::domain_error);
  EXPECT_THROW(mx::eval(after), std::domain_error);
  EXPECT_TRUE(equals(before, mx::full({3}, 4.0f)));
  EXPECT_TRUE(equals(middle, mx::exp(mx::full({3}, 4.0f))));
  EXPECT_TRUE(equals(twice(before), mx::full({3}, 8.0f)));
}

TEST_F(Primitive, WorksWithAsyncEvalAndManyOpsInFlight) {
  auto x = mx::full({1000}, 1.0f);
  for (int i = 0; i < 20; ++i) {
    x = mx::multiply(twice(mx::add(x, x)), mx::array(0.25f));
    mx::async_eval(x);
  }
  EXPECT_TRUE(equals(x, mx::full({1000}, 1.0f)));
}

TEST_F(Primitive, EvaluatesInsideAComputation) {
  auto nested = make_op("nested", {mx::ones({1})}, {{{1}, mx::float32}}, [](const Arrays&, Arrays& out) {
    auto inner = mx::sum(twice(mx::ones({4})));
    mx::eval(inner);
    out[0].data<float>()[0] = inner.item<float>();
  });
  EXPECT_EQ(nested[0].item<float>(), 8.0f);
}

TEST_F(Primitive, RunsOnSeveralThreads) {
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) right += equals(twice(mx::add(mx::ones({10}), mx::ones({10}))), mx::full({10}, 4.0f));
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, 60);
}

TEST_F(Primitive, FreesItsMemory) {
  auto held = std::make_shared<int>(0);
  const auto before = mx::get_active_memory();
  {
    auto x = make_op("hold", {mx::ones({1 << 16})}, {{{1 << 16}, mx::float32}}, [held](const Arrays& in, Arrays& out) { doubled(in, out); })[0];
    mx::eval(x);
    EXPECT_GE(mx::get_active_memory(), before + (4 << 16));
  }
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_LT(mx::get_active_memory(), before + (4 << 16));
}

TEST_F(Primitive, StepsAsideForMlxOps) {
  const char* asked = std::getenv("LQUANT_KERNELS");  // mlx in one of CTest's configurations
  const bool serve = !asked || std::string(asked) != "mlx";
  EXPECT_EQ(cpu_kernels(), serve);
  {
    const MlxOpsOnly mlx;
    EXPECT_FALSE(cpu_kernels());
  }
  EXPECT_EQ(cpu_kernels(), serve);
}

#else

TEST(Primitive, IsRefusedWithoutCpuKernels) {
  EXPECT_FALSE(cpu_kernels());
  EXPECT_THROW(make_op("none", {}, {}, nullptr), std::invalid_argument);
}

#endif

}  // namespace
}  // namespace lquant::kernels
