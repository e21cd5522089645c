#include "model/model.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/primitive.h"
#include "model/stream.h"
#include "oracle/model_random.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;
using nlohmann::json;

float largest_difference(const mx::array& a, const mx::array& b) { return mx::max(mx::abs(mx::subtract(a, b))).item<float>(); }

/// A folder to be and its parts, to be spoiled before it is written.
struct Parts {
  explicit Parts(const std::string& type) : config(oracle::tiny_config(type)), spec(spec_from_config(config)) {
    if (spec.head_if_present) spec.head.reset();
    tensors = oracle::random_tensors(spec, 21);
  }
  json config;
  ModelSpec spec;
  Tensors tensors;
  Formats formats;
};

std::string opening_fails(const Parts& parts) {
  const oracle::Folder folder(parts.config, parts.tensors);
  try {
    Model::open(checkpoint::Checkpoint::open(folder.path()));
  } catch (const Error& e) {
    return e.what();
  }
  return "opened";
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(ModelOpen, LoadsWhatWasSaved) {
  for (const auto& type : known_model_types()) {
    const Parts parts(type);
    const oracle::Folder folder(parts.config, parts.tensors);
    const auto model = Model::open(checkpoint::Checkpoint::open(folder.path()));
    const auto loaded = model.load_all();
    EXPECT_TRUE(model.formats().empty());
    EXPECT_TRUE(model.unused_names().empty());
    EXPECT_EQ(loaded.size(), parts.tensors.size()) << type;
    for (const auto& [name, value] : parts.tensors) {
      const auto source = find_source(model.spec().imports, name, [&](const std::string& other) { return parts.tensors.contains(other); });
      EXPECT_TRUE(mx::array_equal(loaded.at(name), changed(source->changes, {value})).item<bool>()) << name;
    }
    EXPECT_EQ(model.spec().tied(), parts.spec.tied()) << type;
  }
}

TEST(ModelOpen, PartsAddUpToTheWhole) {
  const Parts parts("qwen3_moe");
  const oracle::Folder folder(parts.config, parts.tensors);
  const auto model = Model::open(checkpoint::Checkpoint::open(folder.path()));
  auto together = model.load_embedding();
  for (int i = 0; i < 2; ++i) together.merge(model.load_block(i));
  together.merge(model.load_final());
  EXPECT_EQ(together.size(), model.load_all().size());
}

TEST(ModelOpen, ExpertsKeptOneByOneAreStacked) {
  Parts parts("qwen3_moe");
  const auto stacked = parts.tensors;
  for (const auto& [name, value] : stacked) {
    const auto at = name.find("switch_mlp");
    if (at == std::string::npos) continue;
    parts.tensors.erase(name);
    for (int e = 0; e < value.shape(0); ++e) {
      auto own = name;
      own.replace(at, std::string("switch_mlp").size(), "experts." + std::to_string(e));
      parts.tensors.emplace(own, mx::contiguous(mx::take(value, e, 0)));
    }
  }
  {
    const oracle::Folder folder(parts.config, parts.tensors);
    const auto model = Model::open(checkpoint::Checkpoint::open(folder.path()));
    EXPECT_TRUE(model.unused_names().empty());
    const auto loaded = model.load_all();
    for (const auto& [name, value] : stacked) EXPECT_TRUE(mx::array_equal(loaded.at(name), value).item<bool>()) << name;
  }
  parts.tensors.erase("model.layers.1.mlp.experts.3.up_proj.weight");
  EXPECT_HAS(opening_fails(parts), "missing tensor model.layers.1.mlp.experts.3.up_proj.weight of shape [32, 64]");
}

TEST(ModelOpen, FaultsNameTheTensor) {
  Parts missing("llama");
  missing.tensors.erase("model.layers.1.self_attn.v_proj.weight");
  EXPECT_HAS(opening_fails(missing), "missing tensor model.layers.1.self_attn.v_proj.weight of shape [32, 64]");

  Parts misshapen("llama");
  misshapen.tensors.at("model.norm.weight") = mx::ones({63});
  EXPECT_HAS(opening_fails(misshapen), "model.safetensors: tensor model.norm.weight has shape [63] where config.json asks for [64]");

  Parts whole_numbers("llama");
  whole_numbers.tensors.at("model.norm.weight") = mx::ones({64}, mx::int32);
  EXPECT_HAS(opening_fails(whole_numbers), "model.norm.weight is stored as I32");

  Parts no_biases("llama");
  oracle::pack(no_biases.tensors, no_biases.formats, "model.layers.0.mlp.up_proj", {codec::Mode::affine, 4, 32});
  no_biases.tensors.erase("model.layers.0.mlp.up_proj.biases");
  EXPECT_HAS(opening_fails(no_biases), "missing tensor model.layers.0.mlp.up_proj.biases");

  Parts foreign("llama");
  foreign.config["quantization_config"] = {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}};
  EXPECT_HAS(opening_fails(foreign), "bitsandbytes");
  foreign.config["quantization_config"] = {{"quant_method", "gptq"}, {"bits", 4}};
  foreign.tensors.erase("model.layers.0.mlp.up_proj.weight");
  foreign.tensors.emplace("model.layers.0.mlp.up_proj.qzeros", mx::zeros({1, 1}, mx::int32));
  EXPECT_HAS(opening_fails(foreign), "model.layers.0.mlp.up_proj.qweight is missing");
}

TEST(ModelOpen, FormatsFollowTheConfigThenTheShapes) {
  Parts parts("llama");
  const std::string prefix = "model.layers.0.";
  oracle::pack(parts.tensors, parts.formats, prefix + "self_attn.q_proj", {codec::Mode::affine, 4, 64});
  oracle::pack(parts.tensors, parts.formats, prefix + "self_attn.o_proj", {codec::Mode::affine, 6, 32});
  oracle::pack(parts.tensors, parts.formats, prefix + "mlp.up_proj", {codec::Mode::mxfp4, 4, 32});
  oracle::pack(parts.tensors, parts.formats, prefix + "mlp.gate_proj", {codec::Mode::mxfp8, 8, 32});
  oracle::pack(parts.tensors, parts.formats, prefix + "mlp.down_proj", {codec::Mode::nvfp4, 4, 16});
  parts.config["quantization"] = {
      {"group_size", 64}, {"bits", 4}, {prefix + "self_attn.o_proj", {{"group_size", 32}, {"bits", 6}}}, {prefix + "self_attn.k_proj", false}};
  const oracle::Folder folder(parts.config, parts.tensors);
  EXPECT_EQ(Model::open(checkpoint::Checkpoint::open(folder.path())).formats(), parts.formats);

  parts.config["quantization"][prefix + "self_attn.o_proj"]["bits"] = 8;
  EXPECT_HAS(opening_fails(parts), "self_attn.o_proj.weight has shape");
  parts.config["quantization"][prefix + "self_attn.o_proj"] = false;
  EXPECT_HAS(opening_fails(parts), "self_attn.o_proj.weight has shape");
}

TEST(ModelOpen, FaultsOfTheQuantizationBlockNameConfigAndPath) {
  Parts sound("llama");
  const std::string path = "model.layers.0.self_attn.q_proj";
  oracle::pack(sound.tensors, sound.formats, path, {codec::Mode::affine, 4, 64});
  const std::string long_text(100'000, 'x');
  const std::vector<std::pair<json, const char*>> faults = {
      {{{"bits", long_text}}, "\"bits\" is \"xxx"},
      {{{"bits", true}}, "\"bits\" is true"},
      {{{"bits", 4.5}}, "\"bits\" is 4.5"},
      {{{"bits", (1LL << 32) + 4}}, "\"bits\" is 4294967300"},
      {{{"bits", 9}}, "affine weights of 9 bits"},
      {{{"group_size", 0}}, "\"group_size\" is 0"},
      {{{"group_size", 48}}, "affine groups of 48"},
      {{{"mode", json::array()}}, "\"mode\" is []"},
      {{{"mode", long_text}}, "no quantization mode"},
      {{{"mode", "mxfp4"}, {"bits", 6}}, "mode mxfp4 exists with"},
  };
  for (const bool named : {true, false}) {
    for (const auto& [entry, part] : faults) {
      auto parts = sound;
      parts.config["quantization"] = {{"bits", 4}, {"group_size", 64}, {path, named ? entry : json(true)}};
      if (!named) parts.config["quantization"].update(entry);
      const auto text = opening_fails(parts);
      EXPECT_HAS(text, "] config.json: the quantization of " + path + ": ");
      EXPECT_HAS(text, part);
      EXPECT_LT(text.size(), 400u);
    }
  }
  auto method = sound;
  method.config["quantization_config"] = {{"quant_method", 7}};
  EXPECT_HAS(opening_fails(method), "config.json: quantization_config: \"quant_method\" is 7, not a text");
}

TEST(ModelOpen, HeadOfItsOwnIsFoundWhereTheConfigDoesNotTell) {
  Parts parts("gemma3_text");
  EXPECT_TRUE(parts.spec.tied());
  parts.tensors.emplace("lm_head.weight", mx::ones({48, 64}));
  const oracle::Folder folder(parts.config, parts.tensors);
  EXPECT_FALSE(Model::open(checkpoint::Checkpoint::open(folder.path())).spec().tied());
}

TEST(ModelOpen, TiedCopyOfTheHeadIsNotUsed) {
  Parts parts("llama");
  parts.tensors.emplace("lm_head.weight", mx::ones({48, 64}));
  const oracle::Folder folder(parts.config, parts.tensors);
  EXPECT_EQ(Model::open(checkpoint::Checkpoint::open(folder.path())).unused_names(), std::vector<std::string>{"lm_head.weight"});
}

TEST(ModelOpen, AHeadThatIsNotThereIsACopyOfTheEmbedding) {
  Parts parts("minicpm");
  parts.tensors.erase("lm_head.weight");
  const oracle::Folder folder(parts.config, parts.tensors);
  const auto model = Model::open(checkpoint::Checkpoint::open(folder.path()));
  EXPECT_FALSE(model.spec().tied());
  EXPECT_TRUE(mx::array_equal(model.load_final().at("lm_head.weight"), parts.tensors.at("model.embed_tokens.weight")).item<bool>());
}

TEST(ModelOpen, EveryTensorIsTakenOrLeftOutForAReason) {
  Parts parts("llama");
  const auto buffer = mx::ones({8});
  for (const char* name : {"model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
                           "model.layers.0.self_attn.rotary_emb.cos_cached", "position_ids", "mtp.layers.0.input_layernorm.weight", "lm_head.weight"})
    parts.tensors.emplace(name, buffer);
  const oracle::Folder folder(parts.config, parts.tensors);
  const auto left_out = Model::open(checkpoint::Checkpoint::open(folder.path())).left_out();
  std::size_t count = 0;
  for (const auto& [why, names] : left_out) count += names.size();
  EXPECT_EQ(left_out.size(), 4u);
  EXPECT_EQ(count, 6u);
}

TEST(ModelOpen, TowersAreKeptUnderTheNamesThatAnOutputHas) {
  Parts parts("gemma3");
  for (const char* name : {"model.vision_tower.vision_model.a", "vision_tower.b", "vision_tower.vision_model.c", "model.multi_modal_projector.d"})
    parts.tensors.emplace(name, mx::ones({8}));
  parts.tensors.emplace("model.layers.0.self_attn.rotary_emb.inv_freq", mx::ones({8}));
  const oracle::Folder folder(parts.config, parts.tensors);
  const auto model = Model::open(checkpoint::Checkpoint::open(folder.path()));
  std::map<std::string, std::string> kept;
  for (const auto& tensor : model.kept()) kept[tensor.name] = tensor.as;
  EXPECT_EQ(kept, (std::map<std::string, std::string>{{"model.multi_modal_projector.d", "multi_modal_projector.d"},
                                                      {"model.vision_tower.vision_model.a", "vision_tower.vision_model.a"},
                                                      {"vision_tower.b", "vision_tower.vision_model.b"},
                                                      {"vision_tower.vision_model.c", "vision_tower.vision_model.c"}}));
  EXPECT_EQ(model.kept_bytes(), (std::map<std::string, std::int64_t>{{"the projector", 32}, {"the vision tower", 96}}));
  EXPECT_EQ(model.unused_names(), std::vector<std::string>{"model.layers.0.self_attn.rotary_emb.inv_freq"});
}

TEST(ModelOpen, TensorsThatNobodyKnowsAreRefusedByName) {
  for (const char* name : {"model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight",
                           "model.layers.0.self_attn.rotary_emb.inv_freq.x", "vision_tower.patch.weight", "lm_head.bias", "model.norm.bias"}) {
    Parts parts("llama");
    parts.tensors.emplace(name, mx::ones({64}));
    const auto said = opening_fails(parts);
    EXPECT_HAS(said, "model.safetensors: tensor \"" + std::string(name) + "\" is not one that a model of type llama has");
  }
  Parts parts("gemma2");  // which mlx_lm ties whatever its config says
  parts.config["tie_word_embeddings"] = false;
  parts.tensors.emplace("lm_head.weight", mx::ones({48, 64}));
  parts.tensors.emplace("x", mx::ones({1}));
  EXPECT_HAS(opening_fails(parts), "tensor \"lm_head.weight\" (with 1 others) is not one");
}

// To Python null is false: a head of the checkpoint's own is used, as mlx_lm uses it; without one mlx_lm would not open the file.
TEST(ModelOpen, TheCheckpointSaysWhetherAHeadIsTiedWhereTheConfigIsNull) {
  for (const char* type : {"llama", "qwen2", "qwen3", "phi3", "qwen3_moe", "smollm3"})
    for (const bool own : {false, true}) {
      Parts parts(type);
      parts.config["tie_word_embeddings"] = nullptr;
      parts.tensors.erase("lm_head.weight");
      if (own) parts.tensors.emplace("lm_head.weight", mx::ones({48, 64}));
      const oracle::Folder folder(parts.config, parts.tensors);
      const auto spec = Model::open(checkpoint::Checkpoint::open(folder.path())).spec();
      EXPECT_EQ(spec.tied(), !own) << type;
      EXPECT_EQ(spec.settled.at("tie_word_embeddings"), !own) << type;
    }
}

// Everywhere in the dtype that is stored, but for f16 on the CPU's kernels, whose products know bf16 and f32.
TEST(ModelOpen, HalfPrecisionIsComputedInADtypeThatTheDeviceKnows) {
  for (const auto& stored : {mx::float16, mx::bfloat16, mx::float32}) {
    Parts parts("llama");
    for (auto& [name, value] : parts.tensors) value = mx::astype(value, stored);
    const oracle::Folder folder(parts.config, parts.tensors);
    const auto model = Model::open(checkpoint::Checkpoint::open(folder.path()));
    EXPECT_EQ(model.stored_dtype(), stored);
    EXPECT_EQ(model.compute_dtype(), kernels::cpu_kernels() && stored == mx::float16 ? mx::float32 : stored);
    {
      const kernels::MlxOpsOnly as_on_a_gpu;
      EXPECT_EQ(model.compute_dtype(), stored);
    }
    for (const auto& [name, value] : model.load_block(0)) EXPECT_EQ(value.dtype(), model.compute_dtype());
  }
}

class StreamTest : public testing::Test {
 protected:
  Parts parts{"gemma3_text"};
  std::vector<mx::array> ids = {mx::random::randint(0, 48, {2, 10}, mx::int32, mx::random::key(1)),
                                mx::random::randint(0, 48, {1, 7}, mx::int32, mx::random::key(2))};
};

TEST_F(StreamTest, EqualsTheForwardPass) {
  for (const auto* linear : parts.spec.linears()) oracle::pack(parts.tensors, parts.formats, linear->path, {codec::Mode::affine, 4, 32});
  const oracle::Folder folder(parts.config, parts.tensors);
  const auto model = Model::open(checkpoint::Checkpoint::open(folder.path()));
  std::vector<int> blocks;
  int observed = 0;
  const BatchObserver observer = [&](std::size_t batch, const std::string&, const mx::array& input, const ExpertRows*) {
    EXPECT_EQ(input.shape(0), ids.at(batch).shape(0));
    ++observed;
  };
  StreamOptions options;
  options.observer = &observer;
  options.after_block = [&](const Visit& visit, std::vector<mx::array>& activations) {
    blocks.push_back(visit.block);
    EXPECT_EQ(activations.size(), 2u);
  };
  const auto hidden = stream_blocks(model, ids, options);
  EXPECT_EQ(blocks, (std::vector<int>{-1, 0, 1}));
  EXPECT_EQ(observed, 2 * 2 * 7);  // batches · blocks · linears of a block
  for (std::size_t b = 0; b < ids.size(); ++b) {
    const auto whole = hidden_states(model.spec(), model.load_all(), model.formats(), ids[b], mx::float32);
    EXPECT_LE(largest_difference(final_norm(model.spec(), model.load_final(), hidden[b]), whole), 1e-5f * mx::max(mx::abs(whole)).item<float>());
  }
}

TEST_F(StreamTest, BlocksMayBeReplacedAndBoundariesRounded) {
  const oracle::Folder folder(parts.config, parts.tensors);
  const auto model = Model::open(checkpoint::Checkpoint::open(folder.path()));
  StreamOptions options;
  options.boundary_dtype = mx::bfloat16;
  options.before_block = [](int, Tensors& tensors, Formats& formats) {
    // Without what the sub-layers add (their closing norms' 1 + weight is 0), a block hands its input on.
    for (auto& [name, value] : tensors)
      if (name.find("post_attention_layernorm") != std::string::npos || name.find("post_feedforward_layernorm") != std::string::npos)
        value = mx::negative(mx::ones_like(value));
  };
  const auto hidden = stream_blocks(model, ids, options);
  EXPECT_EQ(hidden[0].dtype(), mx::bfloat16);
  const auto embedded = mx::astype(embed(model.spec(), model.load_embedding(), {}, ids[0], mx::float32), mx::bfloat16);
  EXPECT_TRUE(mx::array_equal(hidden[0], embedded).item<bool>());
}

}  // namespace
}  // namespace lquant::model
