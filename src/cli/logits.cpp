// `lquant logits`: token ids in, next-token logits out. For comparing lquant's forward pass, or a quantized model, with
// another program's, number by number.
#include <mlx/mlx.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/paths.h"
#include "cli/terminal.h"
#include "hub/sources.h"
#include "model/model.h"

namespace lquant::cli {
namespace {

namespace mx = mlx::core;

struct Options {
  std::string model, ids, output, dtype;
};

/// A JSON list of equally long lists of ids as int32 [B, T].
mx::array read_ids(const std::string& path, int vocab) {
  const auto json = read_json("logits", path);
  const bool rows = json.is_array() && !json.empty() && json[0].is_array() && !json[0].empty();
  if (!rows) fail("logits", "{}: a list of lists of token ids is needed, such as [[1, 2, 3]]", path);
  std::vector<std::int32_t> flat;
  for (const auto& row : json) {
    if (!row.is_array() || row.size() != json[0].size()) fail("logits", "{}: all lists must be equally long; make one call a length", path);
    for (const auto& id : row) {
      if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() >= vocab)
        fail("logits", "{}: {} is no token id of this model (0 to {})", path, shown_json(id), vocab - 1);
      flat.push_back(id.get<std::int32_t>());
    }
  }
  return mx::array(flat.data(), {static_cast<int>(json.size()), static_cast<int>(json[0].size())}, mx::int32);
}

/// All that options alone can tell.
void check(const Options& o) {
  check_model("--model", o.model);
  check_present("--ids", o.ids);
  check_new_file("--output", o.output);
}

int run(const Options& options, run::Stop& stop) {
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  const auto model = model::Model::open(model::open_checkpoint(hub::model(std::filesystem::path(options.model), context)));
  const auto& spec = model.spec();
  const auto ids = read_ids(options.ids, spec.vocab);
  if (const int most = spec.positions(); most > 0 && ids.shape(1) > most)
    fail("logits", "{}: lists of {} tokens are longer than the {} positions that the model knows; give shorter ones", options.ids, ids.shape(1),
         most);
  const auto dtype = options.dtype == "float32" ? mx::float32 : options.dtype == "bfloat16" ? mx::bfloat16 : model.compute_dtype();
  auto tensors = model.load_all(dtype);
  auto formats = model.formats();
  model::densify(tensors, formats, dtype);

  std::vector<mx::array> rows;  // one sequence at a time bounds the memory beside the result
  for (int b = 0; b < ids.shape(0); ++b) {
    const auto one = mx::slice(ids, {b, 0}, {b + 1, ids.shape(1)});
    rows.push_back(mx::astype(model::forward(spec, tensors, formats, one, dtype), mx::float32));
    rows.back().eval();
  }
  const std::filesystem::path output(options.output), part(options.output + ".part.safetensors");
  try {
    mx::save_safetensors(part.string(), {{"logits", mx::concatenate(rows, 0)}}, {{"format", "mlx"}});
    std::filesystem::rename(part, output);
  } catch (const std::exception& e) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    fail("logits", "{}: cannot be written ({}); give another --output", output.string(), e.what());
  }
  return 0;
}

}  // namespace

void add_logits(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("logits", "Write a model's next-token logits for given token ids");
  auto options = std::make_shared<Options>();
  command->add_option("--model,-m", options->model, "Model: a folder, a .gguf file, or org/name on the Hugging Face hub")->required();
  command->add_option("--ids", options->ids, "JSON file: a list of equally long lists of token ids")->required();
  command->add_option("--output", options->output, "Where to write `logits`, float32 [B, T, V] (.safetensors)")->required();
  command->add_option("--dtype", options->dtype, "Dtype to compute in (default: the model's; f16 models in float32 on CPU)")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  when_chosen(command, chosen, [options] { check(*options); }, [options](run::Stop& stop) { return run(*options, stop); });
}

}  // namespace lquant::cli
