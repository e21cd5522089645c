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
json identity_of(const Cascade& c) {
  const auto checkpoint = model::open_checkpoint(c.awq.model);
  json identity{{"command", "awq"},
                {"options", awq_options(c.awq)},
                {"model", checkpoint.fingerprint()},
                {"device", mx::default_device() == mx::Device::gpu ? "gpu" : "cpu"}};
  RowSource(c.awq.rows, text::Tokenizer::open(checkpoint.files()), model::Model::open(checkpoint).spec()).identify(identity);
  return identity;
}

json then_gptq(const Cascade& c, const fs::path& scaled, const run::Context& context) {
  GptqRun o;
  o.model = c.awq.model;
  o.output = c.awq.output;
  o.format = c.awq.format;
  o.fallback = c.awq.embedding;
  o.plan = c.awq.plan;
  o.rows = c.awq.rows;
  if (c.then_samples) o.rows.num_samples = *c.then_samples;
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
  run::RunFolder run(place.string() + ".awq", identity_of(c), c.awq.fresh, context);
  const run::Stop::Heeding heeding(context.stop());
  if (!run.has_step("awq")) {
    auto first = c.awq;
    first.output = run.begin_step("awq");
    awq(first, context);
    run.finish_step("awq");
  }
  const auto scaled = run.step("awq");
  const auto figures = c.then == "gptq" ? then_gptq(c, scaled, context) : then_dwq(c, scaled, context);
  run.remove();
  return figures;
}

}  // namespace lquant::pipeline
