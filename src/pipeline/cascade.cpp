#include "pipeline/cascade.h"

#include <mlx/mlx.h>

#include "base/error.h"
#include "pipeline/dwq.h"
#include "pipeline/gptq.h"
#include "pipeline/output.h"
#include "run/run_folder.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
namespace mx = mlx::core;
using json = nlohmann::json;

namespace {

/// All that the first step depends on.
json identity_of(const Cascade& c, const checkpoint::Checkpoint& checkpoint, const RowSource& source) {
  json identity{{"command", "awq"},
                {"options", awq_options(c.awq)},
                {"model", checkpoint.fingerprint()},
                {"device", mx::default_device() == mx::Device::gpu ? "gpu" : "cpu"}};
  source.identify(identity);
  return identity;
}

/// `rows`: the first step's.
json then_gptq(const Cascade& c, const RowOptions& rows, const fs::path& scaled, const run::Context& context) {
  GptqRun o;
  o.model = c.awq.model;
  o.output = c.awq.output;
  o.format = c.awq.format;
  o.fallback = c.awq.embedding;
  o.plan = c.awq.plan;
  o.rows = rows;
  if (c.then_samples && *c.then_samples != rows.num_samples) {
    o.rows.num_samples = *c.then_samples;
    o.rows.chosen.reset();
  }
  o.scaled = scaled;
  o.fresh = c.awq.fresh;
  return gptq(o, context).to_json();
}

json then_dwq(const Cascade& c, const fs::path& scaled, const run::Context& context) {
  DwqRun o;
  o.model = c.awq.model;
  o.output = c.awq.output;
  o.quantized_model = scaled;
  o.format = c.awq.format;
  o.data = c.awq.rows.data.front();
  o.max_seq_length = c.awq.rows.sequence_length;
  o.seed = c.awq.rows.seed;
  if (c.then_samples) o.num_samples = *c.then_samples;
  o.fresh = c.awq.fresh;
  return dwq(o, context).to_json();
}

}  // namespace

json cascade(const Cascade& c, const run::Context& context) {
  if (c.then == "dwq" && c.awq.rows.data.size() != 1) throw UsageError("--then dwq takes one file or folder of --data-path; put the rows together");
  check_output(c.awq.output);
  // Beside the run folder of the method that follows, which has the output's own name.
  auto place = c.awq.output.lexically_normal();
  if (!place.has_filename()) place = place.parent_path();
  const auto checkpoint = model::open_checkpoint(c.awq.model);
  const auto model = model::Model::open(checkpoint);
  const auto tokenizer = text::Tokenizer::open(checkpoint.files());
  RowSource source(c.awq.rows, tokenizer, model.spec());
  run::RunFolder run(place.string() + ".awq", identity_of(c, checkpoint, source), c.awq.fresh, context);
  const run::Stop::Heeding heeding(context.stop());
  // AWQ's scales change no router's choices: both steps have the same rows, of which experts' tokens are counted once.
  auto rows = c.awq.rows;
  rows.chosen = source.choose(model, run, context);
  if (!run.has_step("awq")) {
    auto first = c.awq;
    first.rows = rows;
    first.output = run.begin_step("awq");
    awq(first, context);
    run.finish_step("awq");
  }
  const auto scaled = run.step("awq");
  const auto figures = c.then == "gptq" ? then_gptq(c, rows, scaled, context) : then_dwq(c, scaled, context);
  run.remove();
  return figures;
}

}  // namespace lquant::pipeline
