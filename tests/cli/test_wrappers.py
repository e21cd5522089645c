"""Models that see: the text model is quantized, towers and projectors travel byte for byte (fixtures made by transformers, tests/model/fixtures)."""

import json
import shutil
import struct
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support import quantization, run, write_rows
from tiny_models import TINY, assert_close, family_folder, lquant_logits, mlx_lm_logits, token_ids

FIXTURES = Path(__file__).parents[1] / "model" / "fixtures"
# Where an output has what begins with these names in the fixture; the text model comes under "language_model." everywhere.
PARTS = {
    "gemma3": {"vision_tower.": "vision_tower.", "multi_modal_projector.": "multi_modal_projector."},
    "gemma4": {"model.vision_tower.": "vision_tower.", "model.embed_vision.": "embed_vision."},
    "lfm2_vl": {"model.vision_tower.vision_model.": "vision_tower.", "model.multi_modal_projector.": "multi_modal_projector."},
    "llava": {"vision_tower.": "vision_tower.", "multi_modal_projector.": "multi_modal_projector."},
    "mistral3": {"vision_tower.": "vision_tower.", "multi_modal_projector.": "multi_modal_projector."},
    "pixtral": {"vision_tower.": "vision_tower.", "multi_modal_projector.": "multi_modal_projector."},
    "qwen2_vl": {"visual.": "vision_tower."},
    "qwen2_5_vl": {"visual.": "vision_tower."},
    "qwen3_5": {"model.visual.": "vision_tower."},
    "qwen3_5_moe": {"model.visual.": "vision_tower."},
    "qwen3_vl": {"model.visual.": "vision_tower."},
}
FILES = ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json"]


def stored(folder):
    """Of every tensor in the folder's files its dtype, shape and bytes, as they lie there."""
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        for name, info in json.loads(content[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in info["data_offsets"])
                found[name] = (info["dtype"], info["shape"], content[begin:end])
    return found


def source_of(name, folder):
    """The fixture with a tokenizer and files of processors, whose bytes nobody reads."""
    shutil.copytree(FIXTURES / name, folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, folder)
    for file in FILES:
        (folder / file).write_text(json.dumps({"made by": file}) + " \n")
    return folder


def kept_of(name, folder):
    kept = {}
    for tensor, content in stored(folder).items():
        for theirs, ours in PARTS[name].items():
            if tensor.startswith(theirs):
                kept[ours + tensor.removeprefix(theirs)] = content
    return kept


def check(name, source, output, said):
    kept, found = kept_of(name, source), stored(output)
    assert kept and {t: c for t, c in found.items() if not t.startswith("language_model.")} == kept
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(len(content) for _, _, content in found.values())

    record = json.loads((output / "lquant.json").read_text())
    assert sum(record["kept"].values()) == sum(len(content) for _, _, content in kept.values())
    assert record["bytes"] == sum(len(c[2]) for t, c in found.items() if t not in kept)
    assert "kept as they are: the vision tower, " in said and "beside it, as they are: " in said
    for file in FILES:
        assert (output / file).read_bytes() == (source / file).read_bytes()
    assert "vision_config" in json.loads((output / "config.json").read_text())

    # Sizes are those of the text model, which is all that mlx_lm loads. It does not count numbers that are no layer's of its own.
    model, _ = mlx_lm.utils.load_model(output)
    assert sum(p.nbytes for _, p in tree_flatten(model.parameters())) == record["bytes"]
    loose = sum(x.size for path, x in tree_flatten(model.parameters()) if path.endswith(("layer_scalar", "A_log", "dt_bias")))
    assert record["parameters"] - mlx_lm.utils.get_total_parameters(model) == loose
    assert record["bits_per_weight"] == 8 * record["bytes"] / record["parameters"]
    ids = token_ids(96)
    assert_close(lquant_logits(output, ids, "float32"), mlx_lm_logits(output, ids, mx.float32))


@pytest.mark.parametrize("name", PARTS)
def test_convert(name, tmp_path):
    source = source_of(name, tmp_path / "source")
    said = run("convert", "--model", source, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "out").stderr
    check(name, source, tmp_path / "out", said)

    # What was written is read again, and holds the same parts.
    run("convert", "--model", tmp_path / "out", "--dequantize", "--mlx-path", tmp_path / "dense")
    assert {t: c for t, c in stored(tmp_path / "dense").items() if not t.startswith("language_model.")} == kept_of(name, source)
    # In f32: MLX has no mixtures in 16 bits on a CPU.
    assert np.isfinite(mlx_lm_logits(tmp_path / "dense", token_ids(96), mx.float32)).all()


@pytest.mark.parametrize("name", PARTS)
def test_gptq(name, tmp_path):
    source = source_of(name, tmp_path / "source")
    rows = write_rows(tmp_path / "rows.jsonl", [{"tokens": row} for row in token_ids(96, rows=8)])
    flags = ["--bits", 3, "--group-size", 32, "--fallback-group-size", 32, "--sequence-length", 24]
    said = run("gptq", "--model", source, "--data-path", rows, *flags, "--mlx-path", tmp_path / "out").stderr
    check(name, source, tmp_path / "out", said)
    assert all(path.startswith("language_model.") for path, form in quantization(tmp_path / "out").items() if isinstance(form, dict))


def test_every_layout_is_read(tmp_path):
    """The same model as transformers 5 names it, with the head at the root: same output."""
    source = source_of("mistral3", tmp_path / "source")
    run("convert", "--model", source, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "out")
    other = source_of("mistral3", tmp_path / "other")
    renamed = {}
    for name, value in mx.load(str(source / "model.safetensors")).items():
        name = name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
        renamed["model." + name if name.startswith(("vision_tower", "multi_modal")) else name] = value
    mx.save_safetensors(str(other / "model.safetensors"), renamed, metadata={"format": "pt"})
    run("convert", "--model", other, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "same")
    assert stored(tmp_path / "same") == stored(tmp_path / "out")


def test_dtypes_that_mlx_lacks_are_kept(tmp_path):
    """Bytes are copied, not read: neither NaN nor an 8-bit float is touched by --dtype."""
    source = source_of("gemma3", tmp_path / "source")
    header = {"vision_tower.odd": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    header["vision_tower.double"] = {"dtype": "F64", "shape": [1], "data_offsets": [4, 12]}
    text = json.dumps(header).encode()
    (source / "model-more.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\x7f\x01\x02\x03" + struct.pack("<d", float("nan")))
    run("convert", "--model", source, "--dtype", "float16", "--mlx-path", tmp_path / "out")
    found = stored(tmp_path / "out")
    assert found["vision_tower.vision_model.odd"] == ("F8_E4M3", [4], b"\x7f\x01\x02\x03")
    assert found["vision_tower.vision_model.double"] == ("F64", [1], struct.pack("<d", float("nan")))
    assert found["language_model.model.norm.weight"][0] == "F16"


def test_the_same_part_twice_is_refused(tmp_path):
    source = source_of("qwen2_vl", tmp_path / "source")
    mx.save_safetensors(str(source / "model-more.safetensors"), {"vision_tower.merger.ln_q.bias": mx.zeros(8)})
    refused = run("convert", "--model", source, "--mlx-path", tmp_path / "out", code=1).stderr
    assert 'tensors "vision_tower.merger.ln_q.bias" and "visual.merger.ln_q.bias" are both called "vision_tower.merger.ln_q.bias"' in refused


def test_a_tower_that_is_quantized_itself_is_refused(tmp_path):
    source = source_of("gemma3", tmp_path / "source")
    mx.save_safetensors(str(source / "model-more.safetensors"), {"multi_modal_projector.odd.scales": mx.zeros(8)})
    refused = run("convert", "--model", source, "--mlx-path", tmp_path / "out", code=1).stderr
    assert 'the projector is quantized itself ("multi_modal_projector.odd.scales")' in refused


def test_without_its_tower_it_is_a_text_model(tmp_path):
    """As mlx_lm writes it."""
    source = source_of("gemma3", tmp_path / "source")
    text = {name: value for name, value in mx.load(str(source / "model.safetensors")).items() if name.startswith("language_model.")}
    mx.eval(text)
    mx.save_safetensors(str(source / "model.safetensors"), text)
    run("convert", "--model", source, "--mlx-path", tmp_path / "out")
    assert "vision_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert "kept" not in json.loads((tmp_path / "out" / "lquant.json").read_text())


def test_messages_name_the_field_inside(tmp_path):
    source = source_of("qwen3_vl", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    del config["text_config"]["hidden_size"]
    (source / "config.json").write_text(json.dumps(config))
    refused = run("convert", "--model", source, "--mlx-path", tmp_path / "out", code=1).stderr
    assert '"text_config.hidden_size" is missing' in refused


def test_a_tower_that_mlx_lm_runs(tmp_path):
    """Muse Spark's tower and projectors, under their published names, of which mlx_lm makes its own whenever it loads them."""
    source = family_folder(tmp_path / "source", "muse_spark-all-positions-one-expert-published")
    config = json.loads((source / "config.json").read_text())
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, patch_size=4, pos_emb_height=4, pos_emb_width=4)
    (source / "config.json").write_text(json.dumps(dict(config, vision_config=sizes)))
    model_class, args_class = mlx_lm.utils._get_classes(config)
    parts = tree_flatten(model_class(args_class.from_dict(dict(config, vision_config=sizes))).parameters())
    tower = {}
    for name, old in parts:
        if not name.startswith("model.vision_"):
            continue
        new = mx.random.normal(old.shape, key=mx.random.key(len(tower)))
        if "qkv_proj" in name:
            tower.update({name.replace("qkv_", f"{part}_"): mx.contiguous(w) for part, w in zip("qkv", mx.split(new, 3))})
        else:
            tower[name] = new
    assert {name.split(".")[1] for name in tower} == {"vision_tower", "vision_adapter", "vision_projection"}
    mx.save_safetensors(str(source / "model-tower.safetensors"), tower, metadata={"format": "pt"})
    mx.save_safetensors(str(source / "model-audio.safetensors"), {"model.audio_tower.weight": mx.ones(3)}, metadata={"format": "pt"})

    said = run("convert", "--model", source, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "out").stderr
    assert "kept as they are: the vision tower, " in said
    before, after = stored(source), stored(tmp_path / "out")
    assert {name for name in after if ".vision_" in name} == tower.keys() and all(after[name] == before[name] for name in tower)
    assert not any("audio_tower" in name for name in after)
    one, other = (dict(tree_flatten(mlx_lm.utils.load_model(folder)[0].parameters())) for folder in (source, tmp_path / "out"))
    seen = [name for name in one if ".vision_" in name]
    assert any("qkv_proj" in name for name in seen) and all(mx.array_equal(one[name], other[name]) for name in seen)
    ids = token_ids(config["vocab_size"])
    assert_close(lquant_logits(tmp_path / "out", ids, "float32"), mlx_lm_logits(tmp_path / "out", ids))

    # Without its description nobody knows what the tower is: mlx_lm drops it, and so does an output.
    (source / "config.json").write_text(json.dumps(config))
    run("convert", "--model", source, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "text")
    assert not any(".vision_" in name for name in stored(tmp_path / "text"))
    mlx_lm.utils.load_model(tmp_path / "text")
