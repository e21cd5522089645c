"""`lquant convert` beside mlx_lm.convert on every family: the same tensors, bit for bit, and the same quantization block."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from families import DENSE_EMBEDDING, FAMILIES, LEFT_DENSE, STAY_DENSE, model_type
from mlx_lm import utils
from support import quantization, run, same_bytes, same_model, tensors
from tiny_models import TINY, assert_close, family_folder, lquant_logits, mlx_lm_logits, token_ids

RECIPES = ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]
GROUPS = [None, 32, 64, 128]


def mlx_lm_convert(source, target, **options):
    """mlx_lm's, with the tokenizer from the embedded model's folder: loading one, transformers checks config.json too, for more than mlx_lm asks of it."""
    original = utils.load_tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "load_tokenizer", lambda path, *args, **kwargs: original(TINY, *args, **kwargs))
        mlx_lm.convert(str(source), str(target), **options)


def block(folder):
    """config.json's quantization. What --q-group-size would say and does not is null by path in mlx_lm's, and read as 64 by it."""
    named = lambda v: dict(v, group_size=v.get("group_size") or 64, mode=v.get("mode", "affine"))
    return {k: named(v) if isinstance(v, dict) else v for k, v in quantization(folder).items()}


def convert_both(source, tmp_path, recipe, group_size=None, bits=None, dense=None, unlisted=()):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    flags = [] if group_size is None else ["--q-group-size", group_size]
    flags += [] if bits is None else ["--q-bits", bits]
    flags += [] if recipe is None else ["--quant-predicate", recipe]
    run("convert", "--hf-path", source, "-q", "--mlx-path", ours, *flags)
    predicate = recipe if dense is None else lambda path, _: not path.endswith(dense)
    mlx_lm_convert(source, theirs, quantize=True, q_group_size=group_size, q_bits=bits, quant_predicate=predicate)
    same_model(ours, theirs)
    # mlx_lm says nothing of what a predicate leaves dense.
    found = {path: entry for path, entry in block(ours).items() if not (path.endswith(dense or unlisted) and entry is False)}
    assert found == block(theirs)
    assert group_size is None or recipe is None or quantization(ours) == quantization(theirs)
    assert json.loads((ours / "config.json").read_text())["quantization_config"] == quantization(ours)
    return ours, theirs


# All families, each with one of the recipes and group sizes. mlx_lm has recipes for models with a "down_proj" alone; the others get one format.
@pytest.mark.parametrize("number,name", [(n, name) for n, name in enumerate(FAMILIES) if name not in DENSE_EMBEDDING])
def test_recipes_are_mlx_lms(tmp_path, number, name, ran):
    # Norms that Muse Spark's published files have less 1 are bf16 in mlx_lm, whatever the model is.
    stored = mx.bfloat16 if model_type(name) == "muse_spark" and "unstacked" in FAMILIES[name] else mx.float32
    source = family_folder(tmp_path / "source", name, stored=stored)
    # mlx_lm's recipes go by these names: without the first they refuse a model, without the second they favour no values. Ours go by roles.
    named = list(tensors(source))
    mixed = all(any(part in path for path in named) for part in ("down_proj", "v_proj"))
    # Results under other names are favoured by role and not by name.
    mixed = mixed and not any(part in path for path in named for part in ("switch_mlp.fc2", "mixer.experts.0.", "output_linear"))
    mixed = mixed and "output.weight" not in named  # a head
    mixed = mixed and model_type(name) not in ("kimi_k3", "muse_spark")  # recipes pack what these classes leave dense, and multiply as it is stored
    dense = STAY_DENSE.get(model_type(name))  # what says so takes the place of a recipe
    recipe = RECIPES[number % 4] if mixed and not dense else None
    unlisted = () if recipe else LEFT_DENSE.get(model_type(name), ())
    convert_both(source, tmp_path, recipe, GROUPS[(number // 4 + number) % 4], bits=5 if number % 3 == 0 else None, dense=dense, unlisted=unlisted)
    ran("convert", name)


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_what_mlx_lm_keeps_at_8_bits(tmp_path, mode):
    """Granite's output projections and head, in another mode than the rest of the model too."""
    source = family_folder(tmp_path / "source", "granite-untied-biases-yarn")
    run("convert", "--hf-path", source, "-q", "--q-mode", mode, "--mlx-path", tmp_path / "ours")
    mlx_lm_convert(source, tmp_path / "theirs", quantize=True, q_mode=mode)
    same_model(tmp_path / "ours", tmp_path / "theirs")
    kept = {path: entry for path, entry in quantization(tmp_path / "ours").items() if isinstance(entry, dict)}
    assert set(kept) == {path for path, entry in quantization(tmp_path / "theirs").items() if isinstance(entry, dict)}
    assert all(entry == {"bits": 8, "group_size": 64, "mode": "affine"} for entry in kept.values()) and "lm_head" in kept


@pytest.mark.parametrize("name", sorted(LEFT_DENSE))
def test_what_mlx_lm_leaves_dense(tmp_path, name):
    """Without a recipe; a plan of the user's may pack it."""
    source = family_folder(tmp_path / "source", name)
    ours, _ = convert_both(source, tmp_path, None, 32, unlisted=LEFT_DENSE[name])
    dense = [path for path, entry in quantization(ours).items() if entry is False and (name, path) != ("muse_spark", "lm_head")]  # which must stay so
    assert dense
    (tmp_path / "plan.json").write_text(json.dumps({dense[0]: {"bits": 8}}))
    run("convert", "--hf-path", source, "-q", "--q-group-size", 32, "--plan", tmp_path / "plan.json", "--mlx-path", tmp_path / "packed")
    assert f"{dense[0]}.scales" in tensors(tmp_path / "packed")
    assert_close(lquant_logits(tmp_path / "packed", token_ids(160), "float32"), mlx_lm_logits(tmp_path / "packed", token_ids(160)))


# Models deep enough to have a first eighth, and of sizes that eighths divide and do not.
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name,blocks", [("llama-untied-biases", 16), ("phi3", 9), ("qwen3-moe", 11), ("gemma3", 26)])
def test_recipes_of_deep_models(tmp_path, recipe, name, blocks):
    narrow = dict(num_hidden_layers=blocks, hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
    if name == "qwen3-moe":
        narrow["moe_intermediate_size"] = 64
    convert_both(family_folder(tmp_path / "source", name, **narrow), tmp_path, recipe)


def test_a_recipe_leaves_dense_what_the_group_does_not_divide(tmp_path):
    source = family_folder(tmp_path / "source", "llama", intermediate_size=160)
    ours, _ = convert_both(source, tmp_path, "mixed_3_6", 64)
    assert "model.layers.2.mlp.down_proj" not in quantization(ours) and "model.layers.2.mlp.down_proj.scales" not in tensors(ours)


def test_a_recipe_says_what_it_is_and_loads(tmp_path):
    source = family_folder(tmp_path / "source", "qwen3-moe")
    ours, theirs = convert_both(source, tmp_path, "mixed_2_6")
    utils.load_model(ours)
    assert json.loads((ours / "lquant.json").read_text())["options"]["quant_predicate"] == "mixed_2_6"
    card = (ours / "README.md").read_text()
    assert f"# {ours.name}\n" in card and "-bit\"" not in card and "affine 2 bits, groups of 64; affine 6 bits, groups of 64" in card
    # mlx_lm's folder has null for the group sizes: it is read all the same.
    for name, folder in (("a", ours), ("b", theirs)):
        run("convert", "--hf-path", folder, "-d", "--mlx-path", tmp_path / name)
    same_model(tmp_path / "a", tmp_path / "b")


def test_a_plan_goes_over_a_recipe(tmp_path):
    source = family_folder(tmp_path / "source", "llama")
    (tmp_path / "plan.json").write_text(json.dumps({"model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 32}, "model.embed_tokens": False}))
    run("convert", "--hf-path", source, "-q", "--quant-predicate", "mixed_4_6", "--plan", tmp_path / "plan.json", "--mlx-path", tmp_path / "ours")
    found = quantization(tmp_path / "ours")
    assert found["model.layers.0.mlp.up_proj"] == {"bits": 8, "group_size": 32, "mode": "affine"} and found["model.embed_tokens"] is False
    assert found["model.layers.2.mlp.down_proj"]["bits"] == 6 and found["model.layers.0.mlp.down_proj"]["bits"] == 4
    utils.load_model(tmp_path / "ours")


def test_a_plan_for_experts_that_are_linears_of_their_own(tmp_path):
    """They are one stack in the program: a plan may name any of them, or all alike."""
    source = family_folder(tmp_path / "source", "dbrx")
    stack = "transformer.blocks.0.ffn.experts"
    (tmp_path / "plan.json").write_text(json.dumps({f"{stack}.{e}.w1": {"bits": 8, "group_size": 32} for e in (0, 3)}))
    run("convert", "--hf-path", source, "-q", "--plan", tmp_path / "plan.json", "--mlx-path", tmp_path / "ours")
    found = quantization(tmp_path / "ours")
    assert {path for path, entry in found.items() if isinstance(entry, dict)} == {f"{stack}.{e}.w1" for e in range(6)}
    ids = token_ids(160)
    assert_close(lquant_logits(tmp_path / "ours", ids, "float32"), mlx_lm_logits(tmp_path / "ours", ids))
    (tmp_path / "plan.json").write_text(json.dumps({f"{stack}.0.w1": {"bits": 8}, f"{stack}.3.w1": {"bits": 6}}))
    sentence = f"[plan] {tmp_path / 'plan.json'}: {stack}.3.w1: matrices of one stack have one format; give all of {stack}.w1 the same"
    refused(source, tmp_path, ["-q", "--plan", tmp_path / "plan.json"], sentence, code=1)


def refused(source, tmp_path, arguments, sentence, code=2):
    done = run("convert", "--hf-path", source, *arguments, "--mlx-path", tmp_path / "out", code=code)
    assert done.stderr == f"lquant: {sentence}\n" and done.stdout == ""
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.lquant-run").exists()


def test_recipes_that_cannot_be(tmp_path):
    source = family_folder(tmp_path / "source", "llama")
    names = ", ".join(RECIPES)
    for wrong, nearest in (("mixed_26", "mixed_2_6"), ("mixed-4-6", "mixed_4_6"), ("mixed_3_5", "mixed_3_4")):
        sentence = f"--quant-predicate {wrong}: there is no such recipe; did you mean {nearest}? (recipes: {names})"
        refused(source, tmp_path, ["-q", "--quant-predicate", wrong], sentence)
    flags = ["--quant-predicate", "mixed_3_4"]
    refused(source, tmp_path, flags, "--quant-predicate says how to quantize; give --quantize with it")
    refused(source, tmp_path, [*flags, "-d"], "--quant-predicate says how to quantize; give --quantize with it")
    mixed = "--quant-predicate mixed_3_4 mixes affine formats; leave out --q-mode mxfp4 or the recipe"
    refused(source, tmp_path, [*flags, "-q", "--q-mode", "mxfp4"], mixed)


@pytest.mark.parametrize("name", sorted(DENSE_EMBEDDING))
def test_an_embedding_that_mlx_lm_cannot_run_packed_stays_dense(tmp_path, name, ran):
    source = family_folder(tmp_path / "source", name)
    run("convert", "--hf-path", source, "-q", "--mlx-path", tmp_path / "ours")
    mlx_lm_convert(source, tmp_path / "theirs", quantize=True, quant_predicate=lambda path, module: "embed_tokens" not in path)
    same_model(tmp_path / "ours", tmp_path / "theirs")
    assert quantization(tmp_path / "ours")["model.embed_tokens"] is False
    assert_close(lquant_logits(tmp_path / "ours", token_ids(160), "float32"), mlx_lm_logits(tmp_path / "ours", token_ids(160)))
    (tmp_path / "plan.json").write_text(json.dumps({"model.embed_tokens": {"bits": 8}}))
    sentence = "[plan] {}: model.embed_tokens must stay dense: mlx_lm multiplies by {}'s tied embedding as it is stored"
    refused(source, tmp_path, ["-q", "--plan", tmp_path / "plan.json"], sentence.format(tmp_path / "plan.json", DENSE_EMBEDDING[name]), code=1)
    ran("convert", name)


def test_a_scale_that_is_turned_off_is_written(tmp_path):
    """Gemma 3n's class in mlx_lm has this parameter whether or not it is used, and opens no folder without it."""
    shutil.copytree(Path(__file__).parents[1] / "model/fixtures/gemma3n", tmp_path / "source")
    config = json.loads((tmp_path / "source/config.json").read_text())
    config["text_config"].update(rope_local_base_freq=1e4, rope_theta=1e6)
    for on in (True, False):
        config["text_config"]["altup_correct_scale"] = on
        (tmp_path / "source/config.json").write_text(json.dumps(config))
        run("convert", "--hf-path", tmp_path / "source", "-q", "--q-group-size", 32, "--mlx-path", tmp_path / str(on))
        utils.load_model(tmp_path / str(on))
    on, off = (tensors(tmp_path / name) for name in ("True", "False"))
    assert on.keys() == off.keys() and all(same_bytes(on[name], off[name]) for name in on)
    assert not np.allclose(*(lquant_logits(tmp_path / str(on), token_ids(80), "float32") for on in (True, False)))


# --- dtypes, and back to dense weights ------------------------------------------------------------------------------------

VARIED = ["llama-untied-biases", "phi3", "gemma3", "gemma3-untied-scaled", "qwen3-moe-unstacked"]


def same_as_mlx_lm(source, tmp_path, flags, **options):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run("convert", "--hf-path", source, "--mlx-path", ours, *flags)
    mlx_lm_convert(source, theirs, **options)
    same_model(ours, theirs)
    assert ("quantization" in json.loads((ours / "config.json").read_text())) == any(".scales" in name for name in tensors(ours))
    return ours


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", VARIED)
def test_dequantizing_is_mlx_lms(tmp_path, name, dtype):
    """With a --dtype too: scales and biases are rounded to it before they are put to use."""
    source = family_folder(tmp_path / "source", name, stored=mx.bfloat16)
    mlx_lm_convert(source, tmp_path / "packed", quantize=True, q_bits=3, q_group_size=32)
    flags = ["-d"] if dtype is None else ["-d", "--dtype", dtype]
    ours = same_as_mlx_lm(tmp_path / "packed", tmp_path, flags, dequantize=True, dtype=dtype)
    assert {t.dtype for t in tensors(ours).values()} == {getattr(mx, dtype or "bfloat16")}


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_dequantizing_what_has_no_float_scales(tmp_path, mode):
    """mlx_lm makes bfloat16 of these whatever the rest of the model is. Every value of the three modes is a bf16 number: in other dtypes it is the same."""
    source = family_folder(tmp_path / "source", "llama-untied-biases")
    mlx_lm_convert(source, tmp_path / "packed", quantize=True, q_mode=mode)
    run("convert", "--hf-path", tmp_path / "packed", "-d", "--mlx-path", tmp_path / "ours")
    mlx_lm_convert(tmp_path / "packed", tmp_path / "theirs", dequantize=True)
    ours, theirs = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() and {t.dtype for t in ours.values()} == {mx.float32}
    for name, value in ours.items():
        assert same_bytes(value, theirs[name].astype(mx.float32)), name


@pytest.mark.parametrize("name", VARIED)
def test_a_packed_model_changes_its_dtype(tmp_path, name):
    source = family_folder(tmp_path / "source", name, stored=mx.bfloat16)
    mlx_lm_convert(source, tmp_path / "packed", quantize=True, q_bits=6, quant_predicate=None)
    ours = same_as_mlx_lm(tmp_path / "packed", tmp_path, ["--dtype", "float16"], dtype="float16")
    before, after = tensors(tmp_path / "packed"), tensors(ours)
    assert all(same_bytes(before[n], after[n]) for n in before if before[n].dtype == mx.uint32)
    filled = lambda folder: {k: dict(v, mode="affine") if isinstance(v, dict) else v for k, v in quantization(folder).items()}
    assert filled(ours) == filled(tmp_path / "packed")
    utils.load_model(ours)


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("key,kept", [("torch_dtype", False), ("dtype", True)])
def test_the_configs_dtype(tmp_path, key, kept, quantize):
    """Files of float32 whose config asks for bfloat16: mlx_lm converts when the key is torch_dtype, and does not know the newer name."""
    source = family_folder(tmp_path / "source", "qwen3", **{key: "bfloat16"})
    ours = same_as_mlx_lm(source, tmp_path, ["-q"] if quantize else [], quantize=quantize)
    wanted = mx.float32 if kept else mx.bfloat16
    assert {t.dtype for t in tensors(ours).values()} - {mx.uint32} == {wanted}
    assert json.loads((ours / "config.json").read_text())[key] == ("float32" if kept else "bfloat16")
