// `lquant convert`: mlx_lm.convert's flags.
#include "pipeline/convert.h"

#include <memory>

#include "base/error.h"
#include "cli/command.h"
#include "cli/outcome.h"
#include "cli/paths.h"
#include "cli/terminal.h"
#include "hub/library.h"
#include "hub/sources.h"
#include "hub/upload.h"
#include "plan/recipe.h"

namespace lquant::cli {
namespace {

struct Options {
  pipeline::ConvertOptions convert;
  std::string mode = "affine";
  std::optional<int> bits, group_size;
  std::string upload_repo;
  bool trust_remote_code = false;
};

codec::Format format_of(const Options& o) {
  auto format = codec::default_format(codec::parse_mode(o.mode));
  if (o.bits) format.bits = *o.bits;
  if (o.group_size) format.group_size = *o.group_size;
  return format;
}

/// All that options alone can tell.
void check(const Options& o, const CLI::App& command) {
  const auto& c = o.convert;
  pipeline::check_options(c);
  if (!c.quantize)
    refuse_idle(command, {"--q-bits", "--q-group-size", "--q-mode"}, "without --quantize; add -q, or leave out what belongs to it");
  const auto format = format_of(o);
  if (format.mode == codec::Mode::affine)
    check_format("--q-bits", "--q-group-size", format);
  else
    codec::check(format);
  if (c.recipe) plan::check_recipe(*c.recipe, format);
  if (!o.upload_repo.empty()) hub::check_repository(o.upload_repo);
  check_new_folder("--mlx-path", c.output);
  if (c.plan) check_present("--plan", *c.plan);
  check_model("--model", c.model);
}

int run(Options& o, run::Stop& stop) {
  o.convert.format = format_of(o);
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  if (o.trust_remote_code) context.line("--trust-remote-code is not needed: lquant never runs code from a model folder");
  if (o.convert.recipe && o.bits)
    context.line(fmt::format("--q-bits {} is what config.json names for all; {} gives each linear its own", *o.bits, *o.convert.recipe));
  if (!o.upload_repo.empty()) hub::need_library();
  const auto given = o.convert.model.string();
  o.convert.model = hub::model(o.convert.model, context);
  pipeline::convert(o.convert, context);
  tell_outcome({.output = o.convert.output, .original = given, .is_published = !o.upload_repo.empty()}, context);
  if (!o.upload_repo.empty()) {
    hub::Upload upload;
    upload.folder = o.convert.output;
    upload.repo = o.upload_repo;
    context.line(fmt::format("the model is at {}", hub::send(upload, hub::plan_upload(upload), context)));
  }
  return 0;
}

}  // namespace

void add_convert(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("convert", "Quantize by plain rounding, change the dtype, or dequantize");
  auto o = std::make_shared<Options>();
  command->add_option("--hf-path,--model,-m", o->convert.model, "Model: a folder, a .gguf file, or org/name on the Hugging Face hub")->required();
  command->add_option("--mlx-path", o->convert.output, "Where to save the result")->capture_default_str();
  command->add_flag("-q,--quantize", o->convert.quantize, "Quantize");
  command->add_option("--q-bits", o->bits, "Bits per weight (default: the mode's, 4 for affine)");
  command->add_option("--q-group-size", o->group_size, "Weights that share a scale (default: the mode's, 64 for affine)");
  command->add_option("--q-mode", o->mode, "affine, mxfp4, mxfp8 or nvfp4")->capture_default_str();
  command->add_option(
      "--quant-predicate", o->convert.recipe,
      "Mixed bits: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6 (mixed_L_H: H bits for values and down projections of some blocks and "
      "for the head, L for the rest)");
  command->add_option("--plan", o->convert.plan, "JSON file of formats by path, as config.json's quantization block has them; they go before --q-bits");
  command->add_option(
      "--dtype", o->convert.dtype,
      "float16, bfloat16 or float32, of what stays dense and of scales and biases (default: config.json's torch_dtype, else the weights')");
  command->add_flag("-d,--dequantize", o->convert.dequantize, "Turn a quantized model back into a dense one");
  command->add_option("--upload-repo", o->upload_repo, "Publish the result as user/name on the Hugging Face hub (see lquant upload)");
  command->add_flag("--fresh", o->convert.fresh, "Start over instead of continuing an interrupted run");
  command->add_flag("--trust-remote-code", o->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o](run::Stop& stop) { return run(*o, stop); });
}

}  // namespace lquant::cli
