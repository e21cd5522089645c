#include "kernels/ssm.h"

#include <algorithm>
#include <array>

#include "kernels/elementwise_testing.h"
#include "oracle/kernels_ssm.h"

namespace lquant::kernels {
namespace {

using namespace testing;
using oracle::StateSpaceSize;

mx::array steps(const mx::Shape& shape, int seed) { return mx::exp(mx::multiply(normal(shape, mx::float32, seed), mx::array(0.7f))); }

struct Case {
  StateSpaceSize size;
  StateSpace in;
  oracle::StateSpaceInput values;
};

Case make(const StateSpaceSize& s, mx::Dtype dtype, bool segments, bool first) {
  Case made{s,
            {normal({s.batch, s.tokens, s.heads, s.width}, dtype, 1), mx::multiply(mx::array(0.2f), steps({s.batch, s.tokens, s.heads}, 2)),
             mx::negative(steps({s.heads}, 3)), normal({s.batch, s.tokens, s.groups, s.state}, dtype, 4),
             normal({s.batch, s.tokens, s.groups, s.state}, dtype, 5)},
            {}};
  auto& in = made.in;
  if (segments) {  // texts of 1, 2, 3 … tokens, numbers that come again, and a text over several chunks
    std::vector<int> numbers;
    for (int b = 0; b < s.batch; ++b)
      for (int t = 0; t < s.tokens; ++t)
        numbers.push_back(static_cast<int>(std::sqrt(2.0 * t)) < 20 + b ? static_cast<int>(std::sqrt(2.0 * t)) % 3 : 7);
    in.segments = mx::array(numbers.data(), {s.batch, s.tokens}, mx::int32);
    made.values.segments = numbers;
  }
  if (first) {
    in.state = normal({s.batch, s.heads, s.width, s.state}, mx::float32, 6);
    made.values.first = doubles(*in.state);
  }
  made.values.x = doubles(in.x), made.values.dt = doubles(in.dt), made.values.a = doubles(in.a);
  made.values.b = doubles(in.b), made.values.c = doubles(in.c);
  return made;
}

const StateSpaceSize kSizes[] = {{1, 1, 2, 3, 1, 4}, {2, 5, 4, 3, 2, 5}, {1, 64, 2, 8, 1, 4}, {2, 65, 4, 5, 4, 3}, {1, 333, 6, 4, 3, 16}};

/// Of each value the same sum of absolute terms. Each term passes one product for the decay, whose exponent is a difference of sums of at most a
/// chunk's 64 steps (each sum errs by 64 units of itself), and the adding up over states and tokens: n + 64 at most, in any order.
Values bounds(const Case& c, const Values& sizes) {
  double steepest = 0;
  for (std::size_t i = 0; i < c.values.dt.size(); ++i) steepest = std::max(steepest, c.values.dt[i] * std::abs(c.values.a[i % c.size.heads]));
  const double units = 8 + c.size.state + 64 + c.size.tokens / 64 + 2 * 64 * std::min(64, c.size.tokens) * steepest;
  auto all = sizes;
  for (auto& v : all) v *= units * kF32;
  return all;
}

TEST(StateSpace, IsTheRecurrence) {
  for (const auto& size : kSizes)
    for (const auto dtype : kDtypes)
      for (const bool segments : {false, true}) {
        for (const bool first : {false, true}) {
          if (segments && first) continue;
          const auto made = make(size, dtype, segments, first);
          const auto want = oracle::state_space(size, made.values);
          auto absolute = made.values;
          for (auto* all : {&absolute.x, &absolute.b, &absolute.c, &absolute.first})
            for (auto& v : *all) v = std::abs(v);
          const auto sizes = oracle::state_space(size, absolute);
          const auto [y, state] = state_space(made.in);
          expect_close(y, want.y, bounds(made, sizes.y), "y");
          expect_close(state, want.state, bounds(made, sizes.state), "state");
        }
      }
}

// Whatever stands before a border, packed texts are what each is alone; a decay that f32 rounds to 0 is no exception.
TEST(StateSpace, NothingPassesABorder) {
  const StateSpaceSize size{1, 150, 2, 3, 1, 4};
  auto made = make(size, mx::float32, false, false);
  made.in.dt = mx::where(mx::less(made.in.dt, mx::array(0.1f)), mx::array(0.0f), mx::multiply(made.in.dt, mx::array(100.0f)));
  const auto part = [](const mx::array& x, int from, int to) {
    auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
    start[1] = from, stop[1] = to;
    return mx::slice(x, start, stop);
  };
  const int border = 70;
  std::vector<int> numbers(150, 0);
  std::fill(numbers.begin() + border, numbers.end(), 1);
  auto packed = made.in;
  packed.segments = mx::array(numbers.data(), {1, 150}, mx::int32);
  auto noisy = packed;
  noisy.x = mx::concatenate({mx::multiply(part(packed.x, 0, border), mx::array(1e30f)), part(packed.x, border, 150)}, 1);
  const auto quiet = state_space(packed), loud = state_space(noisy);
  EXPECT_TRUE(same_bytes(part(quiet.first, border, 150), part(loud.first, border, 150)));
  EXPECT_TRUE(same_bytes(quiet.second, loud.second));
  EXPECT_TRUE(mx::all(mx::isfinite(quiet.first)).item<bool>());
}

TEST(StateSpace, GoesOnFromAState) {
  const StateSpaceSize size{2, 100, 4, 3, 2, 5};
  const auto made = make(size, mx::float32, false, false);
  const auto whole = state_space(made.in);
  auto state = std::optional<mx::array>();
  std::vector<mx::array> pieces;
  for (const auto& [from, to] : {std::pair{0, 70}, {70, 71}, {71, 100}}) {
    const auto part = [&, from = from, to = to](const mx::array& x) {
      auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
      start[1] = from, stop[1] = to;
      return mx::slice(x, start, stop);
    };
    const auto [y, last] = state_space({part(made.in.x), part(made.in.dt), made.in.a, part(made.in.b), part(made.in.c), std::nullopt, state});
    pieces.push_back(y);
    state = last;
  }
  const auto want = oracle::state_space(size, made.values);
  auto absolute = made.values;
  for (auto* all : {&absolute.x, &absolute.b, &absolute.c})
    for (auto& v : *all) v = std::abs(v);
  const auto sizes = oracle::state_space(size, absolute);
  expect_close(mx::concatenate(pieces, 1), want.y, bounds(made, sizes.y), "y");
  expect_close(*state, want.state, bounds(made, sizes.state), "state");
}

TEST(StateSpace, GradientsAreDifferences) {
  for (const bool segments : {false, true}) {
    const StateSpaceSize size{1, 70, 2, 2, 1, 2};
    const auto made = make(size, mx::float32, segments, !segments);
    const auto to_y = normal({1, 70, 2, 2}, mx::float32, 8), to_state = normal({1, 2, 2, 2}, mx::float32, 9);
    auto cotangent = doubles(to_y);
    for (const double v : doubles(to_state)) cotangent.push_back(v);
    std::vector<mx::array> inputs = {made.in.x, made.in.dt, made.in.a, made.in.b, made.in.c};
    if (made.in.state) inputs.push_back(*made.in.state);
    const auto got = mx::vjp(
        [&](const std::vector<mx::array>& in) {
          StateSpace one{in[0], in[1], in[2], in[3], in[4], made.in.segments};
          if (in.size() > 5) one.state = in[5];
          const auto [y, state] = state_space(one);
          return std::vector<mx::array>{y, state};
        },
        inputs, {to_y, to_state});
    std::vector<Values oracle::StateSpaceInput::*> fields = {&oracle::StateSpaceInput::x, &oracle::StateSpaceInput::dt,
                                                             &oracle::StateSpaceInput::a, &oracle::StateSpaceInput::b,
                                                             &oracle::StateSpaceInput::c, &oracle::StateSpaceInput::first};
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto values = [&](const Values& one) {
        auto in = made.values;
        in.*fields[i] = one;
        auto out = oracle::state_space(size, in);
        out.y.insert(out.y.end(), out.state.begin(), out.state.end());
        return out.y;
      };
      const auto want = numeric_gradient(values, made.values.*fields[i], cotangent);
      // Gradients sum as many terms as values do, of sizes that the largest of them tells within the few dozens of tokens that a state outlives.
      double largest = 1;
      for (const double v : want) largest = std::max(largest, std::abs(v));
      expect_close(got.second[i], want, Values(want.size(), largest * (kDifference * 10 + 1000 * kF32)), "gradient");
    }
  }
}

TEST(StateSpace, RefusesWhatDoesNotFit) {
  const auto made = make({1, 4, 4, 2, 2, 3}, mx::float32, false, false);
  const auto with = [&](auto change) {
    auto in = made.in;
    change(in);
    return in;
  };
  EXPECT_THROW(state_space(with([](auto& in) { in.b = mx::zeros({1, 4, 3, 3}); })), std::invalid_argument);
  EXPECT_THROW(state_space(with([](auto& in) { in.b = in.c = mx::zeros({1, 4, 3, 3}); })), std::invalid_argument);
  EXPECT_THROW(state_space(with([](auto& in) { in.dt = mx::zeros({1, 4, 4}, mx::bfloat16); })), std::invalid_argument);
  EXPECT_THROW(state_space(with([](auto& in) { in.a = mx::zeros({2}); })), std::invalid_argument);
  EXPECT_THROW(state_space(with([](auto& in) { in.segments = mx::zeros({1, 3}, mx::int32); })), std::invalid_argument);
  EXPECT_THROW(state_space(with([](auto& in) { in.state = mx::zeros({1, 4, 3, 2}); })), std::invalid_argument);
}

struct ScanCase {
  SelectiveScan in;
  oracle::SelectiveScanInput values;
};

ScanCase make_scan(int batch, int tokens, int channels, int size, bool segments, bool first) {
  ScanCase made{
      {normal({batch, tokens, channels}, mx::float32, 1), mx::multiply(mx::array(0.3f), steps({batch, tokens, channels}, 2)),
       mx::negative(steps({channels, size}, 3)), normal({batch, tokens, size}, mx::float32, 4), normal({batch, tokens, size}, mx::float32, 5)},
      {batch, tokens, channels, size}};
  auto& in = made.in;
  auto& v = made.values;
  if (segments) {
    for (int b = 0; b < batch; ++b)
      for (int t = 0; t < tokens; ++t) v.segments.push_back(static_cast<int>(std::sqrt(2.0 * t + b)) % 3);
    in.segments = mx::array(v.segments.data(), {batch, tokens}, mx::int32);
  }
  if (first) {
    in.state = normal({batch, channels, size}, mx::float32, 6);
    v.first = doubles(*in.state);
  }
  v.x = doubles(in.x), v.dt = doubles(in.dt), v.a = doubles(in.a), v.b = doubles(in.b), v.c = doubles(in.c);
  return made;
}

/// Both forms that there are.
void with_each_form(const std::function<void()>& work) {
  work();
  const MlxOpsOnly ops;
  work();
}

// 130 channels: a slice and vectors in part.
TEST(SelectiveScan, IsTheRecurrence) {
  with_each_form([] {
    for (const auto& [batch, tokens, channels, size] : {std::array{1, 1, 3, 2}, {2, 9, 17, 4}, {1, 40, 130, 5}})
      for (const bool segments : {false, true})
        for (const bool first : {false, true}) {
          if (segments && first) continue;
          const auto made = make_scan(batch, tokens, channels, size, segments, first);
          const auto want = oracle::selective_scan(made.values);
          auto absolute = made.values;
          for (auto* all : {&absolute.x, &absolute.b, &absolute.c, &absolute.first})
            for (auto& v : *all) v = std::abs(v);
          auto sizes = oracle::selective_scan(absolute);
          // A token is a product and a sum, and a decay that errs by two units and by its exponent's rounding, whose size is that of Δ a; then N
          // terms.
          double steepest = 0, largest = 0;
          for (const double a : made.values.a) steepest = std::max(steepest, std::abs(a));
          for (const double dt : made.values.dt) largest = std::max(largest, dt);
          for (auto* all : {&sizes.y, &sizes.state})
            for (auto& v : *all) v *= kF32 * (tokens * (5 + 2 * steepest * largest) + size + 4);
          const auto [y, state] = selective_scan(made.in);
          expect_close(y, want.y, sizes.y, "y");
          expect_close(state, want.state, sizes.state, "state");
        }
  });
}

TEST(SelectiveScan, GradientsAreDifferences) {
  with_each_form([] {
    for (const bool segments : {false, true}) {
      const auto made = make_scan(2, 9, 11, 3, segments, !segments);
      const auto to_y = normal({2, 9, 11}, mx::float32, 8), to_state = normal({2, 11, 3}, mx::float32, 9);
      auto cotangent = doubles(to_y);
      for (const double v : doubles(to_state)) cotangent.push_back(v);
      std::vector<mx::array> inputs = {made.in.x, made.in.dt, made.in.a, made.in.b, made.in.c};
      if (made.in.state) inputs.push_back(*made.in.state);
      const auto got = mx::vjp(
          [&](const std::vector<mx::array>& in) {
            SelectiveScan one{in[0], in[1], in[2], in[3], in[4], made.in.segments};
            if (in.size() > 5) one.state = in[5];
            const auto [y, state] = selective_scan(one);
            return std::vector<mx::array>{y, state};
          },
          inputs, {to_y, to_state});
      using In = oracle::SelectiveScanInput;
      const std::vector<Values In::*> fields = {&In::x, &In::dt, &In::a, &In::b, &In::c, &In::first};
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        const auto want = numeric_gradient(
            [&](const Values& one) {
              auto in = made.values;
              in.*fields[i] = one;
              auto out = oracle::selective_scan(in);
              out.y.insert(out.y.end(), out.state.begin(), out.state.end());
              return out.y;
            },
            made.values.*fields[i], cotangent);
        double largest = 1;
        for (const double v : want) largest = std::max(largest, std::abs(v));
        expect_close(got.second[i], want, Values(want.size(), largest * (kDifference * 10 + 300 * kF32)), "gradient");
      }
    }
  });
}

TEST(SelectiveScan, DoesNotDependOnThreads) {
  const auto made = make_scan(1, 30, 700, 4, true, false);
  const auto cotangent = normal({1, 30, 700}, mx::float32, 8);
  expect_thread_independent([&] {
    auto all = mx::vjp(
        [&](const std::vector<mx::array>& in) {
          return std::vector<mx::array>{selective_scan({in[0], in[1], in[2], in[3], in[4], made.in.segments}).first};
        },
        {made.in.x, made.in.dt, made.in.a, made.in.b, made.in.c}, {cotangent});
    all.second.push_back(all.first[0]);
    return all.second;
  });
}

TEST(SelectiveScan, RefusesWhatDoesNotFit) {
  const auto made = make_scan(1, 4, 5, 3, false, false);
  auto in = made.in;
  in.a = mx::zeros({3, 5});
  EXPECT_THROW(selective_scan(in), std::invalid_argument);
  in = made.in;
  in.b = mx::astype(in.b, mx::bfloat16);
  EXPECT_THROW(selective_scan(in), std::invalid_argument);
  in = made.in;
  in.state = mx::zeros({1, 3, 5});
  EXPECT_THROW(selective_scan(in), std::invalid_argument);
}

TEST(LinearScan, IsTheRecurrence) {
  for (const int tokens : {1, 2, 9, 10, 50})
    for (const bool given : {false, true}) {
      const mx::Shape shape = {2, tokens, 3, 2};
      // A third of the factors is 0: borders of texts.
      const auto drawn = normal(shape, mx::float32, 1);
      const auto a = mx::where(mx::less(drawn, mx::array(-0.4f)), mx::array(0.0f), mx::sigmoid(mx::multiply(drawn, mx::array(4.0f))));
      const auto u = normal(shape, mx::float32, 2), cotangent = normal(shape, mx::float32, 4);
      std::vector<mx::array> inputs = {a, u};
      if (given) inputs.push_back(normal({2, 3, 2}, mx::float32, 3));
      const auto got = mx::vjp(
          [&](const std::vector<mx::array>& in) {
            return std::vector<mx::array>{linear_scan(in[0], in[1], given ? std::optional(in[2]) : std::nullopt)};
          },
          inputs, {cotangent});
      std::vector<Values> values;
      for (const auto& x : inputs) values.push_back(doubles(x));
      const auto h = [&](const std::vector<Values>& v) { return oracle::linear_scan(2, tokens, v[0], v[1], given ? v[2] : Values()); };
      auto absolute = values;
      for (auto& all : absolute)
        for (auto& v : all) v = std::abs(v);
      auto bound = h(absolute);
      for (auto& b : bound) b *= 2 * tokens * kF32;  // a product and a sum a token, in another order
      expect_close(got.first[0], h(values), bound, "h");
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        const auto want = numeric_gradient(
            [&](const Values& one) {
              auto all = values;
              all[i] = one;
              return h(all);
            },
            values[i], doubles(cotangent));
        double largest = 1;
        for (const double v : want) largest = std::max(largest, std::abs(v));
        expect_close(got.second[i], want, Values(want.size(), largest * (kDifference * 10 + 2 * tokens * kF32)), "gradient");
      }
    }
  EXPECT_THROW(linear_scan(mx::zeros({1, 2, 3}), mx::zeros({1, 2, 4})), std::invalid_argument);
  EXPECT_THROW(linear_scan(mx::zeros({1, 2, 3}), mx::zeros({1, 2, 3}), mx::zeros({1, 2})), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
