#include "calibration/targets.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "base/files.h"
#include "base/temp.h"
#include "calibration/self.h"
#include "model/forward.h"

namespace lquant::calibration {
namespace {

namespace fs = std::filesystem;

const fs::path kTiny = fs::path(LQUANT_SOURCE_DIR) / "models/tiny";

mx::array f32(const mx::array& a) { return mx::astype(a, mx::float32); }
bool same_bits(const mx::array& a, const mx::array& b) { return mx::array_equal(a, b).item<bool>(); }

template <class Work>
std::string message_of(Work work) {
  try {
    work();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

class TargetsTest : public ::testing::Test {
 protected:
  TargetsTest() {
    std::vector<Example> examples;
    for (int i = 0; i < 6; ++i) {
      auto ids = mx::random::randint(1, 8000, {5 + 4 * i}, mx::int32, mx::random::key(i));
      ids.eval();
      examples.push_back({{ids.data<std::int32_t>(), ids.data<std::int32_t>() + ids.size()}, 0});
    }
    train = make_batches(examples, 3, 32, false);
    valid = make_batches({examples[1]}, 3, 32, false);
    cache.folder = temp / "targets";
    cache.key = {{"model", "tiny"}, {"rate", 0.1f}};
  }
  int compute() {
    int calls = 0;
    compute_targets(cache, teacher, train, valid, [&](std::int64_t done, std::int64_t total) {
      ++calls;
      EXPECT_LE(done, total);
    });
    return calls;
  }

  lquant::testing::TempFolder temp;
  model::Model teacher = model::Model::open(checkpoint::Checkpoint::open(kTiny));
  std::vector<Batch> train, valid;
  TargetCache cache;
  std::string told;
  const std::function<void(const std::string&)> tell = [this](const std::string& text) { told += text; };
};

/// Rounding to bf16 at every step makes results differ where the shape of a product (and so the order of its sums) does. Each of the
/// tiny model's blocks rounds about ten tensors to 8 bits: errors of 2^-9 of a value, independent, add up to √(6·10)·2^-9 ≈ 1.5 % of the
/// states' norm.
double bf16_bound(const model::ModelSpec& spec) { return std::sqrt(10.0 * static_cast<double>(spec.blocks.size())) * 0x1p-9; }

double relative_distance(const mx::array& a, const mx::array& b) {
  const auto norm = [](const mx::array& x) { return std::sqrt(mx::sum(mx::square(f32(x))).item<float>()); };
  return norm(mx::subtract(f32(a), f32(b))) / norm(b);
}

TEST_F(TargetsTest, PackedRowsHaveTheStatesOfSeparateOnes) {
  const auto live = live_targets(teacher);
  const auto tensors = teacher.load_all();
  for (const auto& batch : train) {
    const auto packed = live->rows("train", 0, batch, 0, batch.rows());
    ASSERT_TRUE(packed.hidden.has_value());
    const auto states = mx::reshape(*packed.hidden, {batch.rows(), batch.length(), -1});
    auto segments = mx::contiguous(batch.segments);
    segments.eval();
    const auto* s = segments.data<std::int32_t>();
    for (int r = 0; r < batch.rows(); ++r)
      for (int begin = 0; begin < batch.length() && s[r * batch.length() + begin] >= 0;) {
        int end = begin;
        while (end < batch.length() && s[r * batch.length() + end] == s[r * batch.length() + begin]) ++end;
        const auto alone =
            model::hidden_states(teacher.spec(), tensors, teacher.formats(), mx::slice(batch.ids, {r, begin}, {r + 1, end}), teacher.compute_dtype());
        const auto there = mx::slice(states, {r, begin, 0}, {r + 1, end, states.shape(2)});
        EXPECT_LE(relative_distance(there, alone), bf16_bound(teacher.spec())) << "row " << r << " from " << begin;
        begin = end;
      }
  }
}

TEST_F(TargetsTest, CachedStatesAreTheLiveOnes) {
  EXPECT_FALSE(has_targets(cache));
  compute();
  EXPECT_TRUE(has_targets(cache));
  const auto cached = cached_targets(cache, &teacher, tell), live = live_targets(teacher);
  EXPECT_TRUE(same_bits(cached->head().weight, live->head().weight));
  for (const auto& [split, batches] : {std::pair{"train", &train}, std::pair{"valid", &valid}})
    for (std::size_t i = 0; i < batches->size(); ++i) {
      const auto& batch = batches->at(i);
      const auto a = cached->rows(split, i, batch, 0, batch.rows()), b = live->rows(split, i, batch, 0, batch.rows());
      // Of padding a device may make something else: it needs no mask where a row holds one text.
      const auto of_texts = [&](const mx::array& x) {
        return mx::where(mx::greater_equal(mx::reshape(batch.segments, {-1, 1}), mx::array(0)), mx::astype(x, mx::float32), mx::array(0.0f));
      };
      EXPECT_LE(relative_distance(of_texts(*a.hidden), of_texts(*b.hidden)), bf16_bound(teacher.spec()));
      const auto last = cached->rows(split, i, batch, batch.rows() - 1, batch.rows());
      EXPECT_TRUE(same_bits(*last.hidden,
                            mx::slice(*a.hidden, {(batch.rows() - 1) * batch.length(), 0}, {batch.rows() * batch.length(), a.hidden->shape(1)})));
    }
  EXPECT_NE(message_of([&] { cached_targets(cache, nullptr, tell); }).find("need the teacher's head"), std::string::npos);
}

TEST_F(TargetsTest, TopLogitsAreTheLargest) {
  cache.kind = TargetKind::topk;
  cache.top_k = 16;
  compute();
  const auto cached = cached_targets(cache, nullptr, tell);
  const auto& batch = train[0];
  const auto told = cached->rows("train", 0, batch, 0, batch.rows());
  EXPECT_FALSE(told.hidden.has_value());
  EXPECT_EQ(told.logits->shape(), (mx::Shape{batch.rows() * batch.length(), 16}));
  cache.kind = TargetKind::hidden;
  cache.folder = temp / "states";
  compute();
  const auto states = *cached_targets(cache, &teacher, tell)->rows("train", 0, batch, 0, batch.rows()).hidden;
  const auto head = model::head(teacher.spec(), teacher.load_final(), teacher.formats(), teacher.compute_dtype());
  const auto logits = f32(model::logits(head, states));
  // The same states and head: logits of another grouping of rows differ by their rounding to bf16, at most 2^-8 of the largest.
  const float slack = 0x1p-7f * mx::max(mx::abs(logits)).item<float>();
  EXPECT_LE(mx::max(mx::abs(mx::subtract(mx::take_along_axis(logits, *told.ids, -1), *told.logits))).item<float>(), slack);
  const auto sorted = mx::sort(logits, -1);
  const auto sixteenth = mx::slice(sorted, {0, logits.shape(1) - 16}, {logits.shape(0), logits.shape(1) - 15});
  EXPECT_GE(mx::min(mx::subtract(*told.logits, sixteenth)).item<float>(), -slack);
}

TEST_F(TargetsTest, AnotherKeyIsRefused) {
  compute();
  EXPECT_TRUE(has_targets(cache));
  auto other = cache;
  other.key["model"] = "other";
  EXPECT_NE(message_of([&] { has_targets(other); }).find("holds targets of another model, other data or other options"), std::string::npos);
  other = cache;
  other.kind = TargetKind::topk;
  EXPECT_THROW(has_targets(other), Error);
  other.folder = temp / "foreign";
  fs::create_directories(other.folder);
  EXPECT_FALSE(has_targets(other));
  std::ofstream(other.folder / "thesis.tex") << "x";
  EXPECT_NE(message_of([&] { has_targets(other); }).find("not a folder of targets"), std::string::npos);
}

TEST_F(TargetsTest, AHalfFinishedCacheIsContinued) {
  struct Stop {};
  EXPECT_THROW(compute_targets(cache, teacher, train, valid, [](std::int64_t, std::int64_t) { throw Stop(); }), Stop);  // after validation
  EXPECT_FALSE(has_targets(cache));
  const auto file = cache.folder / "valid" / "0000000000.safetensors";
  ASSERT_TRUE(fs::exists(file));
  const auto time = fs::last_write_time(file);
  EXPECT_FALSE(fs::exists(cache.folder / "train" / "0000000000.safetensors"));
  EXPECT_GT(compute(), 0);
  EXPECT_TRUE(has_targets(cache));
  EXPECT_EQ(fs::last_write_time(file), time);
}

TEST_F(TargetsTest, TargetsOfAnotherShapeAreNamed) {
  compute();
  const auto cached = cached_targets(cache, &teacher, tell);
  EXPECT_NE(message_of([&] { cached->rows("train", 0, valid[0], 0, 1); }).find("targets of another shape"), std::string::npos);
}

void spoil(const fs::path& file) {
  std::fstream io(file, std::ios::in | std::ios::out | std::ios::binary);
  io.seekp(static_cast<std::streamoff>(fs::file_size(file) / 2));
  io.put('x').put('y');
}

TEST_F(TargetsTest, ADamagedFileIsComputedAgain) {
  for (const auto kind : {TargetKind::hidden, TargetKind::topk}) {
    cache.kind = kind;
    cache.folder = temp / (kind == TargetKind::hidden ? "hidden" : "topk");
    compute();
    const auto file = cache.folder / "train" / "0000000000.safetensors";
    const auto whole = read_file("test", file);
    spoil(file);
    told.clear();
    const auto rows = cached_targets(cache, &teacher, tell)->rows("train", 0, train[0], 0, 1);
    EXPECT_TRUE(rows.hidden || rows.logits);
    EXPECT_NE(told.find("0000000000.safetensors: is not as it was written"), std::string::npos) << told;
    EXPECT_EQ(read_file("test", file), whole);  // and is there again
  }
  spoil(cache.folder / "train" / "0000000000.safetensors");
  const auto message = message_of([&] { cached_targets(cache, nullptr, tell)->rows("train", 0, train[0], 0, 1); });
  EXPECT_NE(message.find("0000000000.safetensors: is not as it was written"), std::string::npos) << message;
}

TEST_F(TargetsTest, AnUnfinishedCacheTrustsNoDamagedFile) {
  struct Stop {};
  EXPECT_THROW(compute_targets(cache, teacher, train, valid, [](std::int64_t, std::int64_t) { throw Stop(); }), Stop);
  const auto file = cache.folder / "valid" / "0000000000.safetensors";
  const auto whole = read_file("test", file);
  spoil(file);
  compute();
  EXPECT_EQ(read_file("test", file), whole);
}

TEST(SampleSelf, IsTheSameForTheSameSeed) {
  const auto teacher = model::Model::open(checkpoint::Checkpoint::open(kTiny));
  const auto tokenizer = text::Tokenizer::open(kTiny);
  std::int64_t told = 0;
  const auto sample = [&](std::uint64_t seed) {
    return sample_self(teacher, tokenizer, 5, 12, seed, [&](std::int64_t done, std::int64_t) { told = done; });
  };
  const auto a = sample(1), b = sample(1), c = sample(2);
  ASSERT_EQ(a.size(), 5u);
  EXPECT_EQ(told, 5);
  bool differs = false;
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(a[i].tokens, b[i].tokens);
    EXPECT_LE(a[i].tokens.size(), 12u);
    EXPECT_EQ(a[i].tokens.front(), tokenizer.bos_id());
    differs = differs || a[i].tokens != c[i].tokens;
  }
  EXPECT_TRUE(differs);
}

}  // namespace
}  // namespace lquant::calibration
