// GGUF files as checkpoints: names, values, config and what is refused, of architectures that no model has. The families' rows are held by
// tests/model/gguf_test.cpp, and by tests/cli/test_gguf.py, which compares whole models.
#include "checkpoint/gguf/source.h"

#include <mlx/ops.h>

#include "base/hash.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf/config.h"
#include "gguf_bytes.h"
#include "support.h"

namespace lquant::checkpoint {
namespace {

using lquant::testing::error_of;
using lquant::testing::expect_sentence;
using lquant::testing::Folder;
using lquant::testing::Gguf;
using lquant::testing::small_model;

std::vector<float> values_of(const mx::array& array) { return {array.data<float>(), array.data<float>() + array.size()}; }

/// What rows can say: two invented architectures, one of them in two rows.
const std::vector<gguf::Architecture>& architectures() {
  using gguf::Change;
  static const std::vector<gguf::Architecture> table = {
      {.name = "reed",
       .model_type = "reed",
       .class_name = "ReedForCausalLM",
       .block = {{"attn_q", "self_attn.q_proj", Change::heads},
                 {"attn_k", "self_attn.k_proj", Change::kv_heads},
                 {"attn_v", "self_attn.v_proj"},
                 {"attn_output", "self_attn.o_proj"},
                 {"attn_norm", "input_layernorm"},
                 {"ffn_norm", "post_attention_layernorm"},
                 {"ffn_gate", "mlp.gate_proj"},
                 {"ffn_up", "mlp.up_proj"},
                 {"ffn_down", "mlp.down_proj"}}},
      {.name = "fern",
       .model_type = "fern_text",
       .class_name = "FernForCausalLM",
       .block = {{"attn_q", "self_attn.q_proj"},
                 {"attn_k", "self_attn.k_proj"},
                 {"attn_v", "self_attn.v_proj"},
                 {"attn_output", "self_attn.o_proj"},
                 {"attn_norm", "input_layernorm", Change::plus_one},
                 {"ffn_norm", "post_attention_layernorm"},
                 {"ffn_gate", "mlp.gate_proj"},
                 {"ffn_up", "mlp.gate_proj", Change::first_half},
                 {"ffn_up", "mlp.up_proj", Change::second_half},
                 {"ffn_down", "mlp.down_proj"}},
       .final_norm = Change::plus_one,
       .partial_rope = true,
       .complete =
           [](const gguf::Metadata& metadata, const gguf::Tensors& tensors, nlohmann::json& config) {
             gguf::Fields fields(metadata, config);
             fields.number("leaf_scale", "leaf.scale");
             fields.count("leaves", "leaf.count", 3);
             config["hidden_act"] = "relu";
             config["last_norm"] = tensors.contains("model.norm.weight");
           },
       .takes_blanks = [](std::string_view token) { return token != "<keep>"; }},
      {.name = "reed",
       .model_type = "reed_mixture",
       .class_name = "ReedMixtureForCausalLM",
       .block = {{"attn_q", "self_attn.q_proj", Change::heads},
                 {"ffn_gate_inp", "mlp.router"},
                 {"ffn_up_exps", "mlp.switch_mlp.up_proj"},
                 {"ffn_down.*", "mlp.experts.*.w2"}}},
  };
  return table;
}

Gguf reed() { return small_model("reed"); }

Gguf fern() {
  auto file = small_model("fern").value("fern.leaf.scale", Gguf::f32(0.5f));
  std::erase_if(file.tensors,
                [](const std::string& entry) { return entry.find("blk.0.ffn_gate.") != entry.npos || entry.find("blk.0.ffn_up.") != entry.npos; });
  return file.counting("blk.0.ffn_up.weight", {8, 16});
}

Checkpoint open(const Folder& folder, const Gguf& file, const std::string& name = "model.gguf") {
  folder.put(name, file.bytes());
  return Checkpoint::open(folder / name, architectures());
}

void expect_refused(const Gguf& file, const std::vector<std::string>& parts) {
  const Folder folder;
  folder.put("model.gguf", file.bytes());
  auto all = parts;
  all.push_back("model.gguf: ");
  expect_sentence(error_of([&] { Checkpoint::open(folder / "model.gguf", architectures()); }), all);
}

Gguf with(Gguf file, const std::string& key, const std::string& typed = "") { return file.replace(key, typed); }

TEST(GgufSource, LooksLikeAFolder) {
  const Folder folder;
  const auto checkpoint = open(folder, reed(), "Small-Reed.Q4_0.gguf");
  EXPECT_EQ(checkpoint.name(), "Small-Reed.Q4_0");
  EXPECT_EQ(checkpoint.config()["model_type"], "reed");
  EXPECT_EQ(checkpoint.config()["architectures"], nlohmann::json({"ReedForCausalLM"}));
  EXPECT_EQ(checkpoint.config()["hidden_act"], "silu");
  EXPECT_FALSE(checkpoint.config().contains("partial_rotary_factor"));
  EXPECT_EQ(checkpoint.config()["head_dim"], 4);
  EXPECT_EQ(checkpoint.config()["vocab_size"], 3);
  EXPECT_EQ(checkpoint.config()["tie_word_embeddings"], true);
  EXPECT_EQ(checkpoint.config()["rms_norm_eps"].get<double>(), 1e-5);
  EXPECT_EQ(checkpoint.config()["torch_dtype"], "float32");
  EXPECT_TRUE(checkpoint.has("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_EQ(checkpoint.names().size(), 11u);
  EXPECT_EQ(checkpoint.info("model.embed_tokens.weight").shape, (mx::Shape{3, 8}));
  EXPECT_EQ(checkpoint.bytes(), 4u * (24 + 8 + 7 * 64 + 2 * 8));
  EXPECT_TRUE(checkpoint.files().has("tokenizer.json"));
  EXPECT_FALSE(checkpoint.files().has("vocab.json"));
  const auto tokenizer = nlohmann::json::parse(*checkpoint.files().read("test", "tokenizer.json"));
  EXPECT_EQ(tokenizer["model"]["vocab"], nlohmann::json({{"a", 0}, {"b", 1}, {"ab", 2}}));
  EXPECT_EQ(tokenizer["model"]["merges"], nlohmann::json::parse(R"([["a","b"]])"));
}

TEST(GgufSource, FingerprintIsOfItsBytes) {
  const Folder folder;
  const auto file = reed();
  EXPECT_EQ(open(folder, file).fingerprint(), sha256("model.gguf " + sha256(file.bytes()) + "\n"));
}

TEST(GgufSource, OneDtypeForMatrices) {
  const std::string f16(2 * 64, '\0'), bf16 = f16, q8(8 * 34, '\0');
  const auto dtype_with = [&](const std::vector<std::pair<std::uint32_t, std::string>>& more) {
    auto file = with(reed(), "x");
    int e = 0;
    for (const auto& [type, bytes] : more) {
      file.tensor_of(fmt::format("blk.{}.attn_v.weight", ++e), {type == 8 ? 32u : 8u, 8}, type, bytes);
    }
    const Folder folder;
    return open(folder, file).info("model.embed_tokens.weight").dtype;
  };
  EXPECT_EQ(dtype_with({}), mx::float32);
  EXPECT_EQ(dtype_with({{1, f16}}), mx::float16);
  EXPECT_EQ(dtype_with({{30, bf16}}), mx::bfloat16);
  EXPECT_EQ(dtype_with({{1, f16}, {8, q8}}), mx::bfloat16);
}

TEST(GgufSource, VectorsKeepTheirDtype) {
  auto file = reed();
  file.tensor_of("blk.1.attn_v.weight", {32, 8}, 8, std::string(8 * 34, '\0'));
  const Folder folder;
  const auto checkpoint = open(folder, file);
  EXPECT_EQ(checkpoint.info("model.norm.weight").dtype, mx::float32);
  EXPECT_EQ(checkpoint.load("model.norm.weight").dtype(), mx::float32);
  EXPECT_EQ(checkpoint.load("model.layers.0.self_attn.q_proj.weight").dtype(), mx::bfloat16);
}

// Two heads of four rows, of two columns: rows 0 2 1 3 of each head.
TEST(GgufSource, PutsHeadsInOrder) {
  Gguf file;
  file.counting("w", {2, 8}).counting("b", {8});
  const Folder folder;
  folder.put("x.gguf", file.bytes());
  const auto opened = File::open(folder / "x.gguf");
  const auto header = gguf::read_header(opened);
  EXPECT_EQ(values_of(gguf::read(opened, {&header.tensors[0], gguf::Change::heads, 2}, mx::float32)),
            (std::vector<float>{0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15}));
  EXPECT_EQ(values_of(gguf::read(opened, {&header.tensors[1], gguf::Change::kv_heads, 2}, mx::float32)),
            (std::vector<float>{0, 2, 1, 3, 4, 6, 5, 7}));
  EXPECT_EQ(values_of(gguf::read(opened, {&header.tensors[1], gguf::Change::plus_one}, mx::float32)), (std::vector<float>{-1, 0, 1, 2, 3, 4, 5, 6}));
  expect_sentence(error_of([&] { gguf::check({&header.tensors[1], gguf::Change::heads, 3}, "b", "x.gguf"); }),
                  {"x.gguf", "\"b\"", "divided into the heads"});
  expect_sentence(error_of([&] { gguf::check({&header.tensors[1], gguf::Change::heads, 8}, "b", "x.gguf"); }), {"divided into the heads"});
}

// Two experts of four fused rows.
TEST(GgufSource, TakesFusedExpertsApart) {
  Gguf file;
  file.counting("w", {2, 4, 2});
  const Folder folder;
  folder.put("x.gguf", file.bytes());
  const auto opened = File::open(folder / "x.gguf");
  const auto header = gguf::read_header(opened);
  const auto first = gguf::read(opened, {&header.tensors[0], gguf::Change::first_half}, mx::float32);
  EXPECT_EQ(first.shape(), (mx::Shape{2, 2, 2}));
  EXPECT_EQ(values_of(first), (std::vector<float>{0, 1, 2, 3, 8, 9, 10, 11}));
  EXPECT_EQ(values_of(gguf::read(opened, {&header.tensors[0], gguf::Change::second_half}, mx::float32)),
            (std::vector<float>{4, 5, 6, 7, 12, 13, 14, 15}));
}

// More values than one thread takes at a time.
TEST(GgufSource, ReadsLargeTensorsInPieces) {
  Gguf file;
  file.counting("w", {300, 1000});
  const Folder folder;
  folder.put("x.gguf", file.bytes());
  const auto opened = File::open(folder / "x.gguf");
  const auto header = gguf::read_header(opened);
  const auto plain = gguf::read(opened, {&header.tensors[0]}, mx::float32);
  EXPECT_TRUE(mx::array_equal(plain, mx::reshape(mx::arange(300000, mx::float32), {1000, 300})).item<bool>());
  const auto heads = gguf::read(opened, {&header.tensors[0], gguf::Change::heads, 10}, mx::float32);
  const auto back = mx::reshape(mx::swapaxes(mx::reshape(heads, {10, 2, 50, 300}), 1, 2), {1000, 300});
  EXPECT_TRUE(mx::array_equal(back, plain).item<bool>());
  const auto rounded = gguf::read(opened, {&header.tensors[0]}, mx::bfloat16);
  EXPECT_TRUE(mx::array_equal(rounded, mx::astype(plain, mx::bfloat16)).item<bool>());
}

TEST(GgufSource, FindsNames) {
  const auto name = [&](const gguf::Architecture* architecture, const char* gguf) {
    std::string all;
    for (const auto& mapped : gguf::map_name(*architecture, gguf)) all += mapped.name + " ";
    return all;
  };
  const auto* experts = gguf::find_architecture(architectures(), "reed", true);
  EXPECT_STREQ(experts->model_type, "reed_mixture");
  EXPECT_STREQ(gguf::find_architecture(architectures(), "reed", false)->model_type, "reed");
  EXPECT_EQ(gguf::find_architecture(architectures(), "moss", false), nullptr);
  EXPECT_EQ(name(experts, "blk.12.ffn_up_exps.weight"), "model.layers.12.mlp.switch_mlp.up_proj.weight ");
  EXPECT_EQ(name(experts, "blk.12.ffn_down.7.weight"), "model.layers.12.mlp.experts.7.w2.weight ");
  const auto* fern = gguf::find_architecture(architectures(), "fern", true);
  EXPECT_EQ(name(fern, "blk.0.ffn_up.weight"), "model.layers.0.mlp.gate_proj.weight model.layers.0.mlp.up_proj.weight ");
  for (const char* none : {"blk.x.attn_q.weight", "blk.0.attn_q", "blk.0..weight", "blk.0.weight", "blk..attn_q.weight", "", ".", "attn_q.weight",
                           "blk.", "blk.0.attn_q.scale", "blk.1.ffn_down.7x.weight"})
    EXPECT_EQ(name(experts, none), "") << none;
}

TEST(GgufSource, ExpertsPickTheSecondRowOfAName) {
  Gguf file = reed();
  std::erase_if(file.tensors, [](const std::string& entry) { return entry.find("blk.") != entry.npos; });
  file.value("reed.expert_count", Gguf::u32(2)).ones("blk.0.ffn_gate_inp.weight", {8, 2}).ones("blk.0.ffn_up_exps.weight", {8, 8, 2});
  file.ones("blk.0.ffn_down.0.weight", {8, 8}).ones("blk.0.ffn_down.1.weight", {8, 8});
  const Folder folder;
  const auto checkpoint = open(folder, file);
  EXPECT_EQ(checkpoint.config()["model_type"], "reed_mixture");
  EXPECT_EQ(checkpoint.info("model.layers.0.mlp.switch_mlp.up_proj.weight").shape, (mx::Shape{2, 8, 8}));
  EXPECT_TRUE(checkpoint.has("model.layers.0.mlp.experts.1.w2.weight"));
}

TEST(GgufSource, ChangesAreUndoneWhereTheRowSaysSo) {
  const Folder folder;
  const auto checkpoint = open(folder, fern());
  const auto values = [&](const std::string& name) { return values_of(checkpoint.load(name + ".weight")); };
  for (const char* name : {"model.norm", "model.layers.0.input_layernorm"}) EXPECT_EQ(values(name), std::vector<float>(8, 0.0f)) << name;
  EXPECT_EQ(values("model.layers.0.post_attention_layernorm"), std::vector<float>(8, 1.0f));
  EXPECT_EQ(values("model.layers.0.self_attn.q_proj"), std::vector<float>(64, 1.0f));
  EXPECT_EQ(values("model.layers.0.mlp.gate_proj").front(), 0.0f);
  EXPECT_EQ(values("model.layers.0.mlp.up_proj").front(), 64.0f);
}

TEST(GgufSource, AnArchitectureCompletesItsConfig) {
  const Folder folder;
  const auto config = open(folder, fern()).config();
  EXPECT_EQ(config["model_type"], "fern_text");
  EXPECT_EQ(config["leaf_scale"], 0.5);
  EXPECT_EQ(config["leaves"], 3);
  EXPECT_EQ(config["hidden_act"], "relu");
  EXPECT_EQ(config["last_norm"], true);
  EXPECT_EQ(open(folder, with(fern(), "fern.leaf.count", Gguf::u32(5))).config()["leaves"], 5);
  expect_refused(with(fern(), "fern.leaf.scale"), {"lacks the metadata fern.leaf.scale"});
  expect_refused(with(fern(), "fern.leaf.count", Gguf::string("5")), {"\"fern.leaf.count\" are of type text where a whole number is needed"});
}

TEST(GgufSource, PartOfAHeadTurnsWhereTheRowSaysSo) {
  const Folder folder;
  const auto part = [&](std::uint32_t turning, std::uint32_t of) {
    auto file = with(fern(), "fern.rope.dimension_count", Gguf::u32(turning)).value("fern.attention.key_length", Gguf::u32(of));
    return open(folder, file).config()["partial_rotary_factor"].get<double>();  // that no matrix has such heads is the model's room to notice
  };
  EXPECT_EQ(part(4, 4), 1.0);
  EXPECT_EQ(part(2, 4), 0.5);
  // For all small heads the whole part of the product is what turns, as readers have it.
  for (int of = 1; of <= 256; ++of) {
    const int turning = of * 7 / 10;
    if (turning > 0) EXPECT_EQ(static_cast<int>(of * part(static_cast<std::uint32_t>(turning), static_cast<std::uint32_t>(of))), turning);
  }
}

TEST(GgufSource, TokensTakeBlanksWhereTheRowSaysSo) {
  const auto takes = [](Gguf file) {
    file.replace("tokenizer.ggml.model", Gguf::string("llama"))
        .replace("tokenizer.ggml.tokens", Gguf::strings({"a", "<end>", "<keep>"}))
        .value("tokenizer.ggml.scores", Gguf::f32s({0, 0, 0}))
        .value("tokenizer.ggml.token_type", Gguf::i32s({1, 3, 3}));  // a normal token and two control tokens
    const Folder folder;
    const auto tokens = nlohmann::json::parse(*open(folder, file).files().read("test", "tokenizer.json"))["added_tokens"];
    return std::vector<bool>{tokens[0]["rstrip"], tokens[1]["rstrip"]};
  };
  EXPECT_EQ(takes(fern()), (std::vector<bool>{true, false}));
  EXPECT_EQ(takes(reed()), (std::vector<bool>{false, false}));
}

TEST(GgufSource, IsRefusedWhereAFolderIsNeeded) {
  const Folder folder;
  folder.put("model.gguf", reed().bytes());
  expect_sentence(error_of([&] { Checkpoint::open(folder / "model.gguf"); }),
                  {"model.gguf: is a GGUF file where only the folder of a model will do", "lquant convert --model "});
  expect_sentence(error_of([&] { Checkpoint::open(folder / "none.gguf"); }), {"none.gguf: there is no such folder"});
  expect_sentence(error_of([&] { Checkpoint::open(folder / "none", architectures()); }), {"none: there is no such folder"});
}

TEST(GgufSource, Llama3sFactorsBecomeItsNumbers) {
  // Heads of 128 features, base 500000, factor 8: what the converter writes.
  std::string factors;
  for (int f = 0; f < 64; ++f) {
    const double wave = 2 * 3.14159265358979323846 * std::pow(500000.0, 2.0 * f / 128);
    const double smooth = (8192 / wave - 1) / 3;
    factors += Gguf::number(static_cast<float>(wave < 2048 ? 1 : wave > 8192 ? 8 : 1 / ((1 - smooth) / 8 + smooth)));
  }
  auto file = with(reed(), "reed.attention.head_count", Gguf::u32(1));
  file.value("reed.attention.key_length", Gguf::u32(128))
      .value("reed.rope.freq_base", Gguf::f32(500000))
      .tensor_of("rope_freqs.weight", {64}, 0, factors);
  const Folder folder;
  // The matrices do not have 128 features, which is the model's room to notice.
  const auto scaling = open(folder, file).config()["rope_scaling"];
  EXPECT_EQ(scaling["rope_type"], "llama3");
  EXPECT_EQ(scaling["factor"], 8.0);
  EXPECT_EQ(scaling["original_max_position_embeddings"], 8192.0);
}

TEST(GgufSource, RefusesWhatItDoesNotKnow) {
  expect_refused(small_model("moss"), {"its architecture is \"moss\"", "which lquant does not read from GGUF files; supported: reed, fern"});
  expect_refused(with(reed(), "general.architecture"), {"has no general.architecture"});
  expect_refused(with(reed(), "reed.block_count"), {"lacks the metadata \"reed.block_count\""});
  expect_refused(with(reed(), "reed.block_count", Gguf::string("1")), {"\"reed.block_count\" are of type text where a whole number is needed"});
  expect_refused(with(reed(), "reed.block_count", Gguf::f32(0.5f)), {"where a whole number from 0"});
  expect_refused(with(reed(), "reed.attention.head_count", Gguf::u32(0)), {"cannot be divided into the heads"});
  expect_refused(with(reed(), "reed.attention.value_length", Gguf::u32(2)), {"its keys and values have different lengths"});
  expect_refused(with(reed(), "reed.rope.dimension_count", Gguf::u32(2)), {"2 of 4 features of a head turn"});
  expect_refused(with(reed(), "reed.logit_scale", Gguf::f32(2)), {"sets reed.logit_scale to 2"});
  expect_refused(reed().ones("blk.0.attn_sub_norm.weight", {8}), {"tensor \"blk.0.attn_sub_norm.weight\" is none that a model of architecture reed"});
  expect_refused(reed().ones("rope_freqs.weight", {3}), {"rope_freqs.weight has 3 factors for 4 turning features"});
  expect_refused(with(reed(), "tokenizer.ggml.model", Gguf::string("t5")), {"tokenizer.ggml.model is \"t5\""});
  expect_refused(with(reed(), "tokenizer.ggml.pre", Gguf::string("abacus")),
                 {"tokenizer.ggml.pre is \"abacus\"", "smollm", "llama-bpe", "use the original"});
  expect_refused(with(reed(), "tokenizer.ggml.tokens"), {"has no tokenizer.ggml.tokens"});
}

TEST(GgufSource, RefusesDamagedVocabularies) {
  const auto read = [](const Gguf& file) {
    const Folder folder;
    return error_of([&] { open(folder, file).files().read("test", "tokenizer.json"); });
  };
  expect_sentence(read(with(reed(), "tokenizer.ggml.tokens", Gguf::strings({"a", "b", "a"}))), {"tokens 0 and 2 are both \"a\""});
  expect_sentence(read(with(reed(), "tokenizer.ggml.tokens", Gguf::strings({"a", "b", "\xff"}))), {"token 2 is no valid UTF-8"});
  expect_sentence(read(with(reed(), "tokenizer.ggml.merges", Gguf::strings({"a c"}))), {"merge 0 (\"a c\") names what is no token"});
  expect_sentence(read(with(reed(), "tokenizer.ggml.merges", Gguf::strings({""}))), {"merge 0 (\"\") names what is no token"});
  expect_sentence(read(with(reed(), "tokenizer.ggml.merges")), {"has no tokenizer.ggml.merges"});
  expect_sentence(read(with(reed(), "tokenizer.ggml.scores",
                            Gguf::number(std::uint32_t{9}) + Gguf::number(std::uint32_t{6}) + Gguf::number(std::uint64_t{1}) + Gguf::number(0.5f))),
                  {"differ in number (3, 3, 1)"});
  expect_sentence(read(with(reed(), "tokenizer.ggml.model", Gguf::string("llama"))), {"SentencePiece vocabulary without scores"});
}

std::string u16(std::uint16_t value) { return Gguf::number(std::uint32_t{2}) + Gguf::number(value); }

Gguf piece(Gguf file, std::uint16_t number, std::uint16_t count) { return file.value("split.no", u16(number)).value("split.count", u16(count)); }

TEST(GgufSplit, AnyPieceNamesTheWhole) {
  const Folder folder;
  Gguf second;
  second.ones("blk.1.attn_norm.weight", {8});
  folder.put("m-00001-of-00002.gguf", piece(reed(), 0, 2).value("split.tensors.count", Gguf::u32(12)).bytes());
  folder.put("m-00002-of-00002.gguf", piece(second, 1, 2).bytes());
  for (const char* name : {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}) {
    const auto checkpoint = Checkpoint::open(folder / name, architectures());
    EXPECT_EQ(checkpoint.name(), "m");
    EXPECT_EQ(checkpoint.names().size(), 12u);
    EXPECT_EQ(values_of(checkpoint.load("model.layers.1.input_layernorm.weight"))[7], 1.0f);
    EXPECT_EQ(checkpoint.fingerprint(), Checkpoint::open(folder / "m-00001-of-00002.gguf", architectures()).fingerprint());
  }
}

TEST(GgufSplit, SaysWhatIsWrong) {
  const Folder folder;
  const auto message = [&](const char* name) { return error_of([&] { Checkpoint::open(folder / name, architectures()); }); };
  folder.put("m-00001-of-00002.gguf", piece(reed(), 0, 2).bytes());
  expect_sentence(message("m-00001-of-00002.gguf"), {"m-00002-of-00002.gguf: is not there", "download it too"});
  folder.put("m-00002-of-00002.gguf", piece(Gguf{}, 0, 2).bytes());
  expect_sentence(message("m-00001-of-00002.gguf"), {"says of itself that it is piece 1 of 2, and its name says 2 of 2"});
  folder.put("m-00002-of-00002.gguf", piece(Gguf{}, 1, 3).bytes());
  expect_sentence(message("m-00001-of-00002.gguf"), {"piece 2 of 3, and its name says 2 of 2"});
  folder.put("m-00002-of-00002.gguf", piece(Gguf{}.ones("output_norm.weight", {8}), 1, 2).bytes());
  expect_sentence(message("m-00001-of-00002.gguf"), {"tensor \"output_norm.weight\" is there twice"});
  folder.put("renamed.gguf", piece(reed(), 0, 2).bytes());
  expect_sentence(message("renamed.gguf"), {"is one of 2 pieces of a model, and its name does not say so"});
  folder.put("m-00002-of-00002.gguf", piece(Gguf{}, 1, 2).bytes());
  folder.put("m-00001-of-00002.gguf", piece(reed(), 0, 2).value("split.tensors.count", Gguf::u32(99)).bytes());
  expect_sentence(message("m-00001-of-00002.gguf"), {"its pieces hold 11 tensors, and 99 were split"});
  expect_sentence(message("none.gguf"), {"none.gguf: cannot be opened"});
}

}  // namespace
}  // namespace lquant::checkpoint
