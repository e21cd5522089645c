#include "pipeline/demo.h"

#include <chrono>

#include "base/error.h"
#include "calibration/self.h"
#include "pipeline/convert.h"
#include "pipeline/dwq.h"
#include "plan/plan.h"

namespace lquant::pipeline {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Sized so that the whole takes about a minute on two cores: 256 rows in 32 steps show most of what training brings.
constexpr int kTrainRows = 192, kValidRows = 16, kTestRows = 48, kTokens = 256;
// Training draws with seed 123 (the default) and its successors; the judge's texts come from far away.
constexpr std::uint64_t kTestSeed = 1'000'003;

/// An earlier demo's folder is replaced; anything else of that name is not ours to touch.
void clear_earlier(const fs::path& output) {
  if (!fs::exists(output)) return;
  for (const auto& entry : fs::directory_iterator(output))
    if (const auto name = entry.path().filename().string(); name != "plain" && name != "dwq" && !name.ends_with(".lquant-run"))
      fail("pipeline", "{}: exists and is not an earlier demo's folder; give another --output", output.string());
  for (const char* name : {"plain", "dwq"})
    if (fs::exists(output / name) && !fs::exists(output / name / "lquant.json"))
      fail("pipeline", "{}: was not made by lquant; give another --output", (output / name).string());
  fs::remove_all(output);
}

DemoRow measured(const std::string& name, const fs::path& folder, const evaluate::LoadedModel& teacher,
                 const std::vector<calibration::Batch>& batches) {
  const auto checkpoint = model::open_checkpoint(folder);
  const auto model = model::Model::open(checkpoint);
  const auto size = plan::size_of(model.spec(), plan::plan_of(model.spec(), model.formats(), checkpoint.config()));
  return {name, size.bits_per_weight(), size.bytes, evaluate::measure(evaluate::LoadedModel::load(model), &teacher, batches), 0};
}

}  // namespace

std::vector<DemoRow> demo(const DemoOptions& options, const run::Context& context) {
  const auto checkpoint = model::open_checkpoint(options.model);
  const auto model = model::Model::open(checkpoint);
  const auto tokenizer = text::Tokenizer::open(checkpoint.files());
  clear_earlier(options.output);
  fs::create_directories(options.output);
  const auto teacher = evaluate::LoadedModel::load(model);
  context.line("sampling texts to judge by");
  const auto batches =
      calibration::make_batches(calibration::sample_self(model, tokenizer, kTestRows, kTokens, kTestSeed, [](auto, auto) {}), 8, kTokens, false);

  std::vector<DemoRow> rows{measured("original", options.model, teacher, batches)};
  const auto timed = [&](const std::string& name, const fs::path& folder, const auto& work) {
    const auto start = Clock::now();
    work();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    rows.push_back(measured(name, folder, teacher, batches));
    rows.back().seconds = seconds;
  };
  timed(fmt::format("plain, {} bits", options.bits), options.output / "plain", [&] {
    ConvertOptions convert;
    convert.model = options.model;
    convert.output = options.output / "plain";
    convert.quantize = true;
    convert.format.bits = options.bits;
    pipeline::convert(convert, context);
  });
  timed(fmt::format("DWQ, {} bits", options.bits), options.output / "dwq", [&] {
    DwqRun dwq;
    dwq.model = options.model;
    dwq.output = options.output / "dwq";
    dwq.format.bits = options.bits;
    dwq.num_samples = kTrainRows;
    dwq.num_valid = kValidRows;
    dwq.max_seq_length = kTokens;
    pipeline::dwq(dwq, context);
  });
  return rows;
}

}  // namespace lquant::pipeline
