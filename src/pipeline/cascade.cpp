#include "pipeline/cascade.h"

#include <fstream>

#include "base/error.h"
#include "pipeline/dwq.h"
#include "pipeline/gptq.h"
#include "pipeline/output.h"
#include "pipeline/run_folder.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

/// Whether `folder` is what awq would make with these options.
bool made_by(const fs::path& folder, const AwqRun& o) {
  std::ifstream in(folder / "lquant.json");
  const auto record = json::parse(in, nullptr, false);
  if (!record.is_object() || record.value("command", "") != "awq" || record.value("options", json()) != awq_options(o)) return false;
  const auto checkpoint = checkpoint::Checkpoint::open(o.model);
  if (record.value("/source/sha256"_json_pointer, "") != checkpoint.fingerprint()) return false;
  json identity = json::object();
  RowSource(o.rows, text::Tokenizer::open(checkpoint.files())).identify(identity);
  return !identity.contains("data") || record.value("data", json()) == identity.at("data");
}

json then_gptq(const Cascade& c, const fs::path& scaled, Log& log) {
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
  return gptq(o, log).to_json();
}

json then_dwq(const Cascade& c, const fs::path& scaled, const mx::distributed::Group& group, Log& log) {
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
  return dwq(o, group, log).to_json();
}

}  // namespace

json cascade(const Cascade& c, const mx::distributed::Group& group, Log& log) {
  if (c.then == "dwq" && c.awq.rows.data.size() != 1) throw UsageError("--then dwq takes one file or folder of --data-path; put the rows together");
  check_output(c.awq.output);
  auto first = c.awq;
  first.output = RunFolder::folder_of(c.awq.output).replace_extension(".awq");
  if (c.awq.fresh) fs::remove_all(first.output);
  if (fs::exists(first.output)) {
    if (!made_by(first.output, c.awq))
      fail("pipeline", "{}: left by another run; repeat that command to continue it, add --fresh to start over, or remove the folder",
           first.output.string());
    log.line(fmt::format("continuing with the scales in {}", first.output.string()));
  } else {
    awq(first, log);
  }
  const auto figures = c.then == "gptq" ? then_gptq(c, first.output, log) : then_dwq(c, first.output, group, log);
  std::error_code ignored;
  fs::remove_all(first.output, ignored);
  fs::remove_all(RunFolder::folder_of(first.output), ignored);  // left by a kill when its result was whole already
  return figures;
}

}  // namespace lquant::pipeline
