#include "pipeline/start.h"

#include <gtest/gtest.h>
#include <mlx/memory.h>
#include <mlx/mlx.h>

#include <algorithm>

#include "base/files.h"
#include "base/temp.h"
#include "oracle/model_random.h"
#include "pipeline/output.h"

namespace lquant::pipeline {
namespace {

nlohmann::json deep_config() {
  auto config = oracle::tiny_config("mistral");  // whose head is its own
  config["num_hidden_layers"] = 12;
  return config;
}

class StartTest : public ::testing::Test {
 protected:
  nlohmann::json config = deep_config();
  oracle::Folder folder{config, oracle::random_tensors(model::spec_from_config(config), 3)};
  model::Model model = model::Model::open(checkpoint::Checkpoint::open(folder.path()));
  plan::QuantPlan plan = plan::uniform_plan(model.spec(), {codec::Mode::affine, 8, 32});
  std::vector<calibration::Batch> batches{batch()};
  lquant::testing::TempFolder temp;
  run::NoEvents told;
  run::Stop stop;
  run::Context context{told, stop};

  static calibration::Batch batch() {
    const auto ids = mx::random::randint(0, 48, {2, 16}, mx::int32, mx::random::key(1));
    const auto ones = mx::ones({2, 16});
    return {ids, mx::zeros({2, 16}, mx::int32), ones, ids, ones};
  }
  run::RunFolder run_folder(const std::string& name) { return run::RunFolder(temp / name, {{"test", name}}, false, context); }
  std::string written(const std::string& name, const std::function<void(ModelWriter&)>& add) {
    ModelWriter writer(temp / name, model);
    add(writer);
    writer.finish(&plan, mx::float32, {"test", nullptr, nullptr, nullptr});
    return read_file("test", temp / name / "model.safetensors");
  }
};

TEST_F(StartTest, UnitsGiveTheBytesOfTheWholeModel) {
  auto held = run_folder("held"), kept = run_folder("kept");
  const auto whole = written("a", [&](ModelWriter& writer) { writer.add(search_start(model, plan, batches, held, context)); });
  const auto units = search_units(model, plan, batches, kept, context, "start");
  EXPECT_EQ(whole, written("b", [&](ModelWriter& writer) { write_tensors(writer, kept, units); }));
  // A run that goes on finds the same names in the units that are there.
  EXPECT_EQ(units, search_units(model, plan, batches, kept, context, "start"));
}

TEST_F(StartTest, UnitsAreNotAllInMemory) {
  auto run = run_folder("kept");
  mx::synchronize();
  const auto before = mx::get_active_memory();
  const auto units = search_units(model, plan, batches, run, context, "start");
  std::map<std::string, std::size_t> bytes;
  std::size_t all = 0, largest = 0;
  for (const auto& [name, unit] : units) bytes[unit];
  for (auto& [unit, size] : bytes) {
    for (const auto& [name, tensor] : run.need(unit).tensors) size += tensor.nbytes();
    all += size;
    largest = std::max(largest, size);
  }
  ASSERT_GT(all, 8 * largest);
  EXPECT_LT(mx::get_active_memory(), before + largest);
  mx::reset_peak_memory();
  written("result", [&](ModelWriter& writer) { write_tensors(writer, run, units); });
  // One unit, with what the allocator rounds its many small tensors up to, and one tensor on its way.
  EXPECT_LT(mx::get_peak_memory(), before + 4 * largest);
}

}  // namespace
}  // namespace lquant::pipeline
