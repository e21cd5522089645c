#pragma once

#include "base/figures.h"
#include "model/spec.h"
#include "plan/plan.h"
#include "run/context.h"

namespace lquant::pipeline {

struct MemoryUse {
  int batch_size, max_seq_length;
  bool grad_checkpoint, move_codes;
};

/// Bytes that a dwq run is expected to need at its peak, from shapes alone.
double expected_memory(const model::ModelSpec& spec, const plan::QuantPlan& plan, const MemoryUse& use);

/// Bytes that this device has (GPU: the device's; CPU: the machine's), 0 when unknown.
double available_memory();

/// Says what to do when the expected peak comes near what there is: distil from an 8-bit model, shorter sequences, a smaller batch,
/// --grad-checkpoint.
void advise_memory(const model::ModelSpec& spec, const plan::QuantPlan& plan, const MemoryUse& use, const run::Context& context);

/// Gives memory that is free back to the system, of models with routed experts. Between parts of a block's work, which have arrays of different
/// sizes: what one of them has freed in pieces would else stand beside what the next one takes. Other models take the same sizes again, and pages
/// anew cost them a tenth of the time.
void release_freed_memory(const model::ModelSpec& spec);

/// Tokens that are worked through at once: on a CPU, whose products are as fast with 1,024 rows as with more, 1,024; a GPU wants
/// more of them, as far as its memory goes.
int micro_tokens(const model::ModelSpec& spec);

}  // namespace lquant::pipeline
