// What enters a block is the same for all parts of it: the model's own activations. From there on each replaced part has a way of its own
// through the blocks behind it, so that the whole costs half of (parts × blocks) passes of a block.
#include "pipeline/alone.h"

#include <mlx/mlx.h>

namespace lquant::pipeline {
namespace {

using States = std::vector<mx::array>;

/// Dense, in the compute dtype.
model::Tensors computed(const model::Model& model, model::Tensors tensors) {
  return model.cast(model::dense_tensors(model, std::move(tensors)), model.compute_dtype());
}

class Walker {
 public:
  Walker(const model::Model& model, const std::vector<calibration::Batch>& batches, const AloneRun& run)
      : model_(model), spec_(model.spec()), batches_(batches), run_(run), visits_(spec_.visits()) {}
  void all();

 private:
  model::Tensors load(int block) const { return computed(model_, model_.load_block(block, model_.stored_dtype())); }
  States embedded(const model::Tensors& tensors) const;
  States pass(const model::Visit& visit, const model::Tensors& tensors, States states, const model::BatchObserver* observer = nullptr) const;
  /// From a run of a block, counted over all passes, to the end; with a part replaced wherever its block runs again. The observer is told of later
  /// passes.
  States rest(std::size_t from, States states, const AlonePart* part = nullptr, const model::BatchObserver* observer = nullptr) const;
  evaluate::Answers answers(const States& states, const model::Tensors& final_tensors) const;
  model::Tensors changed(const AlonePart& part, model::Tensors tensors) const;
  /// Parts outside of the blocks: `of` is the embedding or the head.
  void outer(const model::LinearSpec& of, const std::function<evaluate::Answers(const AlonePart&)>& measured);
  void figure(const AlonePart& part, const evaluate::Answers& student) { run_.done(part, evaluate::measure(student, &*teacher_, batches_)); }
  bool wanted(const AlonePart& part) const { return !run_.skip || !run_.skip(part); }

  const model::Model& model_;
  const model::ModelSpec& spec_;
  const std::vector<calibration::Batch>& batches_;
  const AloneRun& run_;
  const std::vector<model::Visit> visits_;
  std::optional<evaluate::Answers> teacher_;
};

States Walker::embedded(const model::Tensors& tensors) const {
  States states;
  for (const auto& batch : batches_) {
    model::Context context;
    context.segments = batch.segments;
    states.push_back(model::embed(spec_, tensors, {}, batch.ids, model_.compute_dtype(), context));
    states.back().eval();
  }
  return states;
}

States Walker::pass(const model::Visit& visit, const model::Tensors& tensors, States states, const model::BatchObserver* observer) const {
  for (std::size_t b = 0; b < states.size(); ++b) {
    const auto told = model::of_batch(observer, b);
    model::Context context;
    context.segments = batches_[b].segments;
    context.observer = &told;
    states[b] = model::block(spec_, visit, tensors, {}, states[b], context);
    states[b].eval();
  }
  return states;
}

States Walker::rest(std::size_t from, States states, const AlonePart* part, const model::BatchObserver* observer) const {
  for (std::size_t run = from; run < visits_.size(); ++run) {
    const auto& visit = visits_[run];
    auto tensors = load(visit.block);
    if (part && part->block == visit.block) tensors = changed(*part, std::move(tensors));
    states = pass(visit, tensors, std::move(states), visit.pass > 0 ? observer : nullptr);
  }
  return states;
}

evaluate::Answers Walker::answers(const States& states, const model::Tensors& final_tensors) const {
  auto head = model::head(spec_, final_tensors, {}, model_.compute_dtype());
  return {std::move(head), [this, states, final_tensors](std::size_t b) {
            const auto h = model::final_norm(spec_, final_tensors, states[b]);
            return mx::reshape(h, {-1, h.shape(-1)});
          }};
}

model::Tensors Walker::changed(const AlonePart& part, model::Tensors tensors) const {
  for (const auto* linear : part.linears) {
    const auto name = linear->path + ".weight";
    tensors.insert_or_assign(name, run_.replaced(part, *linear, tensors.at(name)));
  }
  return tensors;
}

void Walker::outer(const model::LinearSpec& of, const std::function<evaluate::Answers(const AlonePart&)>& measured) {
  for (const auto& part : run_.parts)
    if (part.block < 0 && part.linears.front()->path == of.path && wanted(part)) figure(part, measured(part));
}

void Walker::all() {
  const auto embedding = computed(model_, model_.load_embedding(model_.stored_dtype()));
  const auto last = computed(model_, model_.load_final(model_.stored_dtype()));
  const auto before = embedded(embedding), behind = rest(0, before, nullptr, run_.observer);
  teacher_ = answers(behind, last);
  if (run_.observer)
    for (std::size_t b = 0; b < behind.size(); ++b)
      (*run_.observer)(b, spec_.head ? spec_.head->path : spec_.embedding.path, model::final_norm(spec_, last, behind[b]), nullptr);

  outer(spec_.embedding, [&](const AlonePart& part) {
    const auto name = spec_.embedding.path + ".weight";
    const auto first = changed(part, embedding);
    auto end = last;
    if (spec_.tied()) end.insert_or_assign(name, first.at(name));
    return answers(rest(0, embedded(first)), end);
  });
  if (spec_.position_embedding)
    outer(*spec_.position_embedding, [&](const AlonePart& part) { return answers(rest(0, embedded(changed(part, embedding))), last); });
  if (spec_.head) outer(*spec_.head, [&](const AlonePart& part) { return answers(behind, changed(part, last)); });

  auto states = before;
  for (int i = 0; i < static_cast<int>(spec_.blocks.size()); ++i) {
    const auto tensors = load(i);
    auto next = pass(i, tensors, states, run_.observer);
    for (const auto& part : run_.parts)
      if (part.block == i && wanted(part)) figure(part, answers(rest(i + 1, pass(i, changed(part, tensors), states), &part), last));
    states = std::move(next);
    if (run_.after_block) run_.after_block(i);
  }
}

}  // namespace

void measure_alone(const model::Model& model, const std::vector<calibration::Batch>& batches, const AloneRun& run) {
  Walker(model, batches, run).all();
}

}  // namespace lquant::pipeline
