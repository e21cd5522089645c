// Two walks go through the model side by side, the student's and, if the method wants it, the full-precision model's. A finished block is a unit of
// the run folder; a run that goes on takes the walks through the finished ones again, which costs a forward pass and no state.
#include "pipeline/block_run.h"

#include <mlx/mlx.h>

#include "base/error.h"
#include "model/pack.h"
#include "pipeline/folds.h"
#include "pipeline/memory.h"
#include "pipeline/output.h"

namespace lquant::pipeline {
using json = nlohmann::json;

namespace {

std::string unit_of(int block) { return fmt::format("block-{:05d}", block); }

checkpoint::Checkpoint open_for(const std::filesystem::path& model, const std::filesystem::path& output) {
  check_output(output);
  return model::open_checkpoint(model);
}

}  // namespace

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

BlockRun::BlockRun(Inputs inputs, const run::Context& context)
    : in_(std::move(inputs)),
      context_(context),
      checkpoint_(open_for(in_.model, in_.output)),
      model_(model::Model::open(checkpoint_)),
      tokenizer_(text::Tokenizer::open(checkpoint_.files())) {
  check_source(model_, context_);
}

void BlockRun::follow(plan::QuantPlan plan) {
  plan_ = std::move(plan);
  for (const auto& [path, why] : plan_.dense) context_.line(fmt::format("{} stays dense: {}", path, why));
}

void BlockRun::begin(json options, const json& more) {
  json identity{{"command", in_.command},
                {"options", std::move(options)},
                {"model", checkpoint_.fingerprint()},
                {"device", mx::default_device() == mx::Device::gpu ? "gpu" : "cpu"}};
  identity.update(more);
  RowSource source(in_.rows, tokenizer_, model_.spec());
  source.identify(identity);
  folder_.emplace(in_.output, identity, in_.fresh, context_);
  heeding_.emplace(context_.stop());
  rows_ = source.read(model_, *folder_, context_).in_passes(model_.spec().passes);
}

bool BlockRun::has_front() const {
  const auto& spec = model_.spec();
  return !spec.tied() || spec.position_embedding || spec.embedding_norm || spec.front;
}

std::vector<std::string> BlockRun::units() const {
  std::vector<std::string> names;
  if (has_front()) names.push_back("embedding");
  for (int i = 0; i < static_cast<int>(model_.spec().blocks.size()); ++i) names.push_back(unit_of(i));
  names.push_back("final");
  return names;
}

void BlockRun::pack(BlockMethod& method, const model::LinearSpec& linear, model::Tensors& tensors, model::Formats& formats) const {
  const auto planned = plan_.formats.find(linear.path);
  if (planned == plan_.formats.end()) return;
  model::put_packed(tensors, linear.path, method.pack_outer(tensors.at(linear.path + ".weight"), planned->second));
  formats.insert(*planned);
}

model::Tensors BlockRun::full_block(int i) const {
  return model_.cast(model::dense_tensors(model_, model_.load_block(i, model_.stored_dtype())), model_.compute_dtype());
}

void BlockRun::embed(BlockMethod& method) {
  const auto& spec = model_.spec();
  const auto original = model::dense_tensors(model_, model_.load_embedding(model_.stored_dtype()));
  auto embedding = original;
  model::Formats formats;
  if (!spec.tied()) pack(method, spec.embedding, embedding, formats);
  for (const auto* linear : spec.front_linears()) pack(method, *linear, embedding, formats);
  if (has_front()) {
    auto written = embedding;
    // An embedding that serves as the head is quantized and written with the final unit.
    if (spec.tied()) std::erase_if(written, [&](const auto& entry) { return entry.first.starts_with(spec.embedding.path + "."); });
    folder_->save("embedding", written);
  }
  student_.emplace(spec, rows_.ids, rows_.segments, embedding, formats, model_.compute_dtype());
  if (method.needs_teacher()) teacher_.emplace(spec, rows_.ids, rows_.segments, original, model::Formats{}, model_.compute_dtype());
  if (spec.passes == 1) return;
  Walk full(spec, rows_.ids, rows_.segments, original, {}, model_.compute_dtype());
  full.reach_passes([&](int i) {
    context_.check();
    return full_block(i);
  });
  student_->take_passes(full);
  if (teacher_) teacher_->take_passes(full);
}

void BlockRun::quantize(BlockMethod& method) {
  embed(method);
  const int blocks = static_cast<int>(model_.spec().blocks.size());
  run::Progress progress(context_.events(), in_.doing, blocks + 1);
  for (int i = 0; i < blocks; ++i) {
    if (auto done = folder_->load(unit_of(i))) {
      student_->pass(i, walked(model_, plan_, std::move(done->tensors)), {});
      if (teacher_) teacher_->pass(i, full_block(i), {});
      method.skipped(done->meta);
      progress.skip(1);
      context_.check();
      continue;
    }
    const auto turn = method.turn(BlockTensors(model_, i));
    folder_->save(unit_of(i), turn.unit.tensors, turn.unit.meta);
    progress.advance(1, turn.figure);
    release_freed_memory(model_.spec());
  }
  if (!folder_->has("final")) {
    auto tensors = method.finish();
    model::Formats formats;
    for (const auto* linear : model_.spec().tail_linears()) pack(method, *linear, tensors, formats);
    folder_->save("final", tensors);
  }
  progress.finish();
}

BlockRun::Written BlockRun::write(const json& recorded) {
  ModelWriter writer(in_.output, model_);
  Written written{write_units(writer, *folder_, units()), {}, 0};
  writer.finish(&plan_, model_.stored_dtype(), {in_.command, recorded, rows_.manifest, nullptr});
  folder_->remove();
  written.size = plan::size_of(model_.spec(), plan_, static_cast<int>(mx::size_of(model_.stored_dtype())));
  written.seconds = seconds_since(began_);
  return written;
}

}  // namespace lquant::pipeline
