// A report is three measurements of each folder (the whole, its tokens, its parts put into the teacher alone) and a page about them. The teacher
// answers once, and one walk through it serves the parts of all folders.
#include "pipeline/report.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/words.h"
#include "codec/quantize.h"
#include "evaluate/report_html.h"
#include "evaluate/streamed.h"
#include "lquant/version.h"
#include "pipeline/alone.h"
#include "pipeline/folds.h"
#include "pipeline/output.h"
#include "plan/plan.h"
#include "run/run_folder.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

namespace {

// A record is a few kilobytes; --plan and AWQ's choices make it some hundreds. Deeper nesting than this is nobody's record.
constexpr std::size_t kMostRecordBytes = std::size_t{16} << 20;
constexpr int kMostRecordDepth = 32;

struct Folder {
  checkpoint::Checkpoint files;
  model::Model model;
  model::Folds folds;
};

/// Of the tensors that are compared, without a tower that is kept as it is.
std::int64_t own_bytes(const model::Model& model) {
  auto bytes = static_cast<std::int64_t>(model.checkpoint().bytes());
  for (const auto& [what, kept] : model.kept_bytes()) bytes -= kept;
  return bytes;
}

/// The folders' own names or, where two are alike, the paths as they were given.
std::vector<std::string> names_of(const std::vector<Folder>& folders) {
  std::map<std::string, int> seen;
  for (const auto& folder : folders) ++seen[folder.files.name()];
  std::vector<std::string> names;
  for (const auto& folder : folders) names.push_back(seen[folder.files.name()] > 1 ? folder.files.folder().string() : folder.files.name());
  return names;
}

/// Both must be made for the same linears: a folder's weights are put into the teacher.
void check_alike(const fs::path& folder, const model::Model& model, const fs::path& teacher_folder, const model::Model& teacher) {
  const auto ours = model.spec().linears(), theirs = teacher.spec().linears();
  bool alike = ours.size() == theirs.size();
  for (std::size_t i = 0; alike && i < ours.size(); ++i)
    alike =
        ours[i]->path == theirs[i]->path && ours[i]->out == theirs[i]->out && ours[i]->in == theirs[i]->in && ours[i]->experts == theirs[i]->experts;
  if (!alike)
    fail("pipeline", "{}: its linears are not those of the teacher {}; give the model that it was made from as --teacher", folder.string(),
         teacher_folder.string());
  const auto tokenizer = [](const model::Model& of) { return of.checkpoint().files().read("pipeline", "tokenizer.json"); };
  if (tokenizer(model) != tokenizer(teacher))
    fail("pipeline",
         "{}: its tokenizer.json is not the teacher's, so that their tokens cannot be compared; give the model that it was made from as --teacher",
         folder.string());
}

std::vector<evaluate::StoredLinear> stored_linears(const model::Model& model) {
  std::vector<evaluate::StoredLinear> all;
  const auto dtype = model.stored_dtype();
  for (const auto* linear : model.spec().linears()) {
    evaluate::StoredLinear stored{linear->path,   std::string(model::to_string(linear->role)), linear->block, 0, 0, dtype_name(dtype), 0,
                                  linear->experts};
    if (const auto format = model.formats().find(linear->path); format != model.formats().end()) {
      stored.bits = format->second.bits, stored.group_size = format->second.group_size, stored.mode = codec::to_string(format->second.mode);
      stored.bytes = plan::linear_bytes(*linear, format->second, static_cast<int>(mx::size_of(dtype)));
    } else {
      stored.bytes = linear->parameters() * static_cast<std::int64_t>(mx::size_of(dtype));
    }
    all.push_back(std::move(stored));
  }
  return all;
}

/// lquant.json as it stands. It is shown and nothing else: whatever is wrong with it becomes a note.
void read_record(const fs::path& folder, evaluate::FolderReport& report) {
  const auto file = folder / "lquant.json";
  std::error_code ec;
  report.record = nullptr;
  if (!fs::is_regular_file(file, ec)) {
    report.record_note = "The folder has no lquant.json: it was not made by lquant.";
  } else if (fs::file_size(file, ec) > kMostRecordBytes) {
    report.record_note = "Its lquant.json is too large to be a record.";
  } else {
    bool deep = false;
    std::ifstream in(file);
    auto parsed = json::parse(
        in, [&](int depth, json::parse_event_t, json&) { return depth <= kMostRecordDepth || !(deep = true); }, /*allow_exceptions=*/false);
    if (parsed.is_object() && !deep)
      report.record = std::move(parsed);
    else
      report.record_note = "Its lquant.json is no JSON object that lquant has written.";
  }
}

/// The first `count` rows; −1: all.
std::vector<calibration::Batch> first_rows(const std::vector<calibration::Batch>& batches, std::int64_t count) {
  std::vector<calibration::Batch> first;
  for (const auto& batch : batches) {
    const auto take = count < 0 ? batch.rows() : static_cast<int>(std::min<std::int64_t>(count, batch.rows()));
    if (take > 0) first.push_back(calibration::slice_rows(batch, 0, take));
    if (count >= 0) count -= take;
  }
  return first;
}

/// What a folder stores for a linear, as the teacher would hold it: dense, and free of AWQ's scales.
mx::array unscaled(const Folder& folder, const model::LinearSpec& linear, const mx::array& like) {
  auto tensors = linear.block < 0 ? (linear.role == model::Role::embed ? folder.model.load_embedding() : folder.model.load_final())
                                  : folder.model.load_block(linear.block);
  model::Tensors one;
  for (const char* part : {".weight", ".scales", ".biases"})
    if (const auto it = tensors.find(linear.path + part); it != tensors.end()) one.insert(*it);
  auto weight = model::dense_weight(one, folder.model.formats(), linear.path, like.dtype());
  for (auto edge : folder.model.spec().edges()) {
    const auto scales = folder.folds.find(edge.producer);
    if (scales == folder.folds.end()) continue;
    const auto inverse = mx::divide(mx::array(1.0f), scales->second);
    model::Tensors alone{{linear.path + ".weight", weight}};
    if (edge.producer == linear.path) {
      model::fold_producer(edge, inverse, alone, like.dtype());
    } else if (std::find(edge.consumers.begin(), edge.consumers.end(), linear.path) != edge.consumers.end()) {
      edge.consumers = {linear.path};
      model::fold_consumers(edge, inverse, alone);
    }
    weight = alone.at(linear.path + ".weight");
  }
  weight = mx::astype(weight, like.dtype());
  weight.eval();
  return weight;
}

/// Fills `alone` of all folders. Parts are named "FOLDER:PATH".
void measure_parts(const ReportRun& o, const model::Model& teacher, const std::vector<Folder>& folders,
                   const std::vector<calibration::Batch>& batches, run::RunFolder& run, evaluate::Report& report, const run::Context& context) {
  struct Place {
    std::size_t folder;
    evaluate::AloneFigure figure;
  };
  std::map<std::string, Place> places;
  AloneRun alone;
  std::vector<std::string> order;
  const auto add = [&](std::size_t f, const std::string& name, const std::string& role, int block, std::vector<const model::LinearSpec*> linears) {
    if (linears.empty()) return;
    const auto key = fmt::format("{}:{}", f, name);
    places[key] = {f, {name, role, block, 0, 0}};
    alone.parts.push_back({key, block, std::move(linears)});
    order.push_back(key);
  };
  for (std::size_t f = 0; f < folders.size(); ++f) {
    const auto& formats = folders[f].model.formats();
    std::map<int, std::vector<const model::LinearSpec*>> blocks;
    for (const auto* linear : teacher.spec().linears()) {
      if (!formats.contains(linear->path)) continue;
      if (o.alone == AloneBy::linear || linear->block < 0)
        add(f, linear->path, std::string(model::to_string(linear->role)), linear->block, {linear});
      else
        blocks[linear->block].push_back(linear);
    }
    for (auto& [block, linears] : blocks) add(f, fmt::format("block {}", block), "block", block, std::move(linears));
  }
  run::Progress progress(context.events(), "replacing alone", static_cast<std::int64_t>(order.size()));
  const auto keep = [&](const std::string& key, double kl, double error) { places.at(key).figure.kl = kl, places.at(key).figure.kl_se = error; };
  alone.replaced = [&](const AlonePart& part, const model::LinearSpec& linear, const mx::array& weight) {
    return unscaled(folders[places.at(part.name).folder], linear, weight);
  };
  alone.skip = [&](const AlonePart& part) {
    const auto done = run.load("alone-" + part.name);
    if (!done) return false;
    const double error = or_nan(done->meta.at("kl_se"));
    if (error == 0) return false;  // an earlier version wrote 0 for what is not known; measuring it again is cheap
    keep(part.name, or_nan(done->meta.at("kl")), error);
    progress.skip(1);
    return true;
  };
  alone.done = [&](const AlonePart& part, const evaluate::Quality& quality) {
    keep(part.name, quality.kl, quality.kl_se);
    run.save("alone-" + part.name, {}, {{"kl", quality.kl}, {"kl_se", or_null(quality.kl_se)}});
    progress.advance(1, fmt::format("{} {:.5f}", places.at(part.name).figure.name, quality.kl));
    context.check();
  };
  measure_alone(teacher, batches, alone);
  progress.finish();
  for (const auto& key : order) report.folders[places.at(key).folder].alone.push_back(places.at(key).figure);
}

void check(const ReportRun& o) {
  if (o.alone != AloneBy::none && (o.alone_rows == 0 || o.alone_rows < -1))
    throw UsageError(fmt::format("--layer-samples {} is no number of rows; give one, -1 for all, or --layers none", o.alone_rows));
  if (fs::is_directory(o.output)) fail("pipeline", "{}: is a folder; name an .html file by --output", o.output.string());
  if (!o.overwrite && fs::exists(fs::symlink_status(o.output)))
    fail("pipeline", "{}: exists already; choose another --output, remove it or give --overwrite", o.output.string());
  if (const auto parent = fs::absolute(o.output).parent_path(); !fs::is_directory(parent))
    fail("pipeline", "{}: there is no such folder; make it or choose another --output", parent.string());
}

}  // namespace

evaluate::Report report(const ReportRun& o, const run::Context& context) {
  check(o);
  const auto teacher_files = model::open_checkpoint(o.teacher);
  const auto teacher = model::Model::open(teacher_files);
  std::vector<Folder> folders;
  for (const auto& path : o.folders) {
    const auto files = model::open_checkpoint(path);
    folders.push_back({files, model::Model::open(files), {}});
    check_alike(path, folders.back().model, o.teacher, teacher);
    if (fs::is_directory(path)) folders.back().folds = read_folds(path, teacher.spec());  // a GGUF file has no scales of AWQ
  }
  const auto tokenizer = text::Tokenizer::open(teacher_files.files());
  const auto batches = o.text.batches(tokenizer, teacher.spec());
  const auto part_rows = first_rows(batches, o.alone_rows);

  evaluate::Report report;
  report.lquant = LQUANT_VERSION;
  report.teacher = teacher_files.name(), report.teacher_sha256 = teacher_files.fingerprint();
  report.teacher_bytes = own_bytes(teacher);
  report.data = utf8(o.text.file().filename()), report.data_sha256 = sha256_file(o.text.file());
  report.sequence_length = o.text.sequence_length;
  report.blocks = static_cast<int>(teacher.spec().blocks.size());
  report.layers = o.alone == AloneBy::linear ? "linear" : o.alone == AloneBy::block ? "block" : "none";
  std::int64_t tokens = 0;
  for (const auto& batch : batches) report.rows += batch.rows(), tokens += static_cast<std::int64_t>(batch.tokens);
  if (o.alone != AloneBy::none)
    for (const auto& batch : part_rows) report.alone_rows += batch.rows();

  const auto names = names_of(folders);
  nlohmann::json identity{{"command", "report"},
                          {"teacher", report.teacher_sha256},
                          {"data", report.data_sha256},
                          {"layers", report.layers},
                          {"rows", report.rows},
                          {"alone_rows", report.alone_rows},
                          {"seed", o.text.seed},
                          {"sequence_length", report.sequence_length},
                          {"batch_size", o.text.batch_size}};
  for (std::size_t f = 0; f < folders.size(); ++f) {
    evaluate::FolderReport folder;
    folder.name = names[f], folder.sha256 = folders[f].files.fingerprint();
    folder.bytes = own_bytes(folders[f].model);
    folder.parameters = plan::size_of(teacher.spec(), {}).parameters;
    folder.linears = stored_linears(folders[f].model);
    read_record(o.folders[f], folder);
    identity["folders"].push_back(folder.sha256);
    report.folders.push_back(std::move(folder));
  }
  run::RunFolder run(o.output, identity, o.fresh, context);
  const run::Stop::Heeding heeding(context.stop());

  // All folders' distributions share one axis, so the values of all are kept until the last is measured.
  std::vector<std::vector<float>> values(folders.size());
  std::optional<evaluate::Decades> decades;
  {
    run::Progress progress(context.events(), "scoring tokens", tokens * static_cast<std::int64_t>(folders.size()));
    const auto truth = evaluate::stream_answers(teacher, batches);
    for (std::size_t f = 0; f < folders.size(); ++f) {
      const auto answers = evaluate::stream_answers(folders[f].model, batches);
      std::vector<evaluate::TokenFigure> figures;
      std::int64_t before = 0;
      const auto tell = [&](std::int64_t done) { progress.advance(done - before), before = done; };
      report.folders[f].quality = evaluate::measure(answers, &truth, batches, tell, &figures);
      if (!std::isfinite(report.folders[f].quality.teacher_nll))
        fail("pipeline", "{}: the teacher's log-probabilities are not numbers; its weights are damaged or too large for {}", o.teacher.string(),
             dtype_name(teacher.compute_dtype()));
      if (!std::isfinite(report.folders[f].quality.kl))
        fail("pipeline", "{}: its divergence from the teacher is not a number; its weights are damaged or too large for {}", o.folders[f].string(),
             dtype_name(folders[f].model.compute_dtype()));
      report.folders[f].worst = evaluate::worst_tokens(figures, answers, truth, batches, tokenizer, {.count = o.worst});
      for (const auto& figure : figures) values[f].push_back(figure.kl);
      const auto here = evaluate::decades_of(values[f]);
      decades = decades ? evaluate::joined(*decades, here) : here;
      context.check();
    }
    progress.finish();
  }
  for (std::size_t f = 0; f < folders.size(); ++f) report.folders[f].kl = evaluate::distribution_of(std::move(values[f]), *decades);
  if (o.alone != AloneBy::none) measure_parts(o, teacher, folders, part_rows, run, report, context);
  write_file_atomically("pipeline", o.output, evaluate::report_html(report));
  run.remove();
  return report;
}

}  // namespace lquant::pipeline
