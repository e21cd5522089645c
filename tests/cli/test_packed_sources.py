"""Models that other tools have quantized, as --model: every linear is decoded to the numbers that its packing stands for."""

import json
import shutil
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import utils
from support import run
from tiny_models import assert_close, family_folder, lquant_logits, mlx_lm_logits, token_ids

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # output i of eight lies in this nibble


def words(codes, order=range(8)):
    """Eight 4-bit codes of the last axis in one 32-bit word."""
    parts = codes.reshape(*codes.shape[:-1], -1, 8).astype(np.uint32)
    return np.bitwise_or.reduce([parts[..., i] << np.uint32(4 * at) for i, at in enumerate(order)]).view(np.int32)


def groups_of(w, size):
    return w.reshape(w.shape[0], -1, size)


def integers(w, size, zero):
    """4-bit codes [out, in], scales [out, groups] and the numbers that they stand for; `zero` [out, groups]."""
    parts = groups_of(w, size)
    scales = np.abs(parts).max(-1) / 7
    codes = np.clip(np.round(parts / scales[..., None]) + zero[..., None], 0, 15)
    dense = (codes - zero[..., None]) * scales[..., None]
    return codes.reshape(w.shape).astype(np.uint8), scales.astype(np.float32), dense.reshape(w.shape).astype(np.float32)


def zeros_of(w, size):
    return np.random.default_rng(w.shape[0]).integers(6, 11, (w.shape[0], w.shape[1] // size))


def awq(w):
    zero = zeros_of(w, 32)
    codes, scales, dense = integers(w, 32, zero)
    return {"qweight": words(codes.T, AWQ_ORDER), "qzeros": words(zero.T, AWQ_ORDER), "scales": scales.T}, dense


def gptq(w):
    zero = zeros_of(w, 32)
    codes, scales, dense = integers(w, 32, zero)
    tensors = {"qweight": words(codes).T, "qzeros": words(zero.T - 1), "scales": scales.T, "g_idx": np.arange(w.shape[1], dtype=np.int32) // 32}
    return dict(tensors, bias=np.zeros(w.shape[0], np.float32)), dense


def gptq_act_order(w):
    """Groups are made of inputs that are not neighbours."""
    order = np.random.default_rng(5).permutation(w.shape[1])
    tensors, dense = gptq(w[:, order])
    codes = integers(w[:, order], 32, zeros_of(w, 32))[0]
    back = np.argsort(order)
    return dict(tensors, qweight=words(codes[:, back]).T, g_idx=tensors["g_idx"][back]), dense[:, back]


def fp8_of(x):
    codes = mx.to_fp8(mx.array(x))
    return np.array(codes), np.array(mx.from_fp8(codes, mx.float32))


def fp8_blocks(w):
    """Blocks of 128 × 128, the last ones ragged."""
    rows, columns = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
    scales = np.random.default_rng(2).uniform(0.01, 0.02, (rows, columns)).astype(np.float32)
    spread = np.repeat(np.repeat(scales, 128, 0), 128, 1)[: w.shape[0], : w.shape[1]]
    codes, numbers = fp8_of(w / spread)
    return {"weight": codes, "weight_scale_inv": scales, "activation_scale": np.ones(1, np.float32)}, numbers * spread


def fp8_rows(w):
    scales = np.abs(w).max(1, keepdims=True) / 400
    codes, numbers = fp8_of(w / scales)
    return {"weight": codes, "weight_scale": scales, "input_scale": np.ones(1, np.float32)}, numbers * scales


def pack_quantized(w):
    codes, scales, dense = integers(w, 32, np.full((w.shape[0], w.shape[1] // 32), 8))
    return {"weight_packed": words(codes), "weight_scale": scales, "weight_shape": np.array(w.shape, np.int64)}, dense


def e2m1(w, scales):
    """Bytes and the numbers that they stand for, by scales of groups."""
    size = w.shape[1] // scales.shape[1]
    codes = np.abs(groups_of(w, size)[..., None] / scales[..., None, None] - E2M1).argmin(-1).astype(np.uint8)
    dense = (E2M1[codes] * scales[..., None]).reshape(w.shape)
    codes = codes.reshape(w.shape)
    return codes[:, ::2] | codes[:, 1::2] << 4, dense


def nvfp4(w):
    whole = np.float32(16)
    scales, numbers = fp8_of(np.abs(groups_of(w, 16)).max(-1) / 6 * whole)
    codes, dense = e2m1(w, numbers / whole)
    return {"weight_packed": codes, "weight_scale": scales, "weight_global_scale": np.array([whole])}, dense


def mxfp4(w):
    exponents = np.ceil(np.log2(np.abs(groups_of(w, 32)).max(-1) / 6)).astype(np.int32)
    codes, dense = e2m1(w, np.exp2(exponents).astype(np.float32))
    return {"weight_packed": codes, "weight_scale": (exponents + 127).astype(np.uint8)}, dense


def compressed(form, **weights):
    group = {"targets": ["Linear"], "weights": weights, "format": form}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


FORMS = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}),
    "gptq act-order": (gptq_act_order, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True}),
    "fp8 blocks": (fp8_blocks, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}),
    "fp8 rows": (fp8_rows, compressed("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True)),
    "pack-quantized": (pack_quantized, compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True)),
    "nvfp4": (nvfp4, compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)),
    "mxfp4": (mxfp4, compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32)),
}


def save(folder, tensors, config):
    tensors = {name: mx.array(np.ascontiguousarray(t)) if isinstance(t, np.ndarray) else t for name, t in tensors.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def name_fp8(file, suffixes):
    """Bytes that are fp8 numbers get the name of their dtype, as other tools store them."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for name, info in header.items():
        if name.endswith(suffixes) and info["dtype"] == "U8":
            info["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def folders(tmp_path, family, form, **changes):
    """The family's random model as the tool stores it, and the dense model that this stands for."""
    pack, block = FORMS[form]
    dense = family_folder(tmp_path / "dense", family, **changes)
    packed = shutil.copytree(dense, tmp_path / "packed")
    config = json.loads((dense / "config.json").read_text())
    weights, stored = mx.load(str(dense / "model.safetensors")), {}
    for name, weight in list(weights.items()):
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        tensors, numbers = pack(np.array(weight.astype(mx.float32)))
        weights[name] = mx.array(numbers)
        stored.update({name.removesuffix("weight") + suffix: tensor for suffix, tensor in tensors.items()})
    save(dense, weights, config)
    save(packed, stored, dict(config, quantization_config=block))
    if form.startswith("fp8"):
        name_fp8(packed / "model.safetensors", ".weight")
    if form == "nvfp4":
        name_fp8(packed / "model.safetensors", ".weight_scale")
    return packed, dense


CASES = [(family, form) for form, family in zip(FORMS, ["llama", "qwen3", "mistral", "mistral", "llama", "qwen3", "llama", "mistral"])]


# Experts one by one; keys and values in one linear, which is cut into two stacks.
STACKS = [
    ("qwen3-moe-unstacked", "fp8 blocks"),
    ("qwen3-moe-unstacked", "awq"),
    ("deepseek-v3-groups-yarn-unstacked", "fp8 blocks"),
    ("kimi-k25", "pack-quantized"),
]


@pytest.mark.parametrize("family, form", CASES + STACKS)
def test_same_logits(family, form, tmp_path):
    packed, dense = folders(tmp_path, family, form)
    ids = token_ids(160)
    ours = lquant_logits(packed, ids, "float32")
    assert_close(ours, mlx_lm_logits(dense, ids))
    if form == "awq" and family == "llama":
        assert_close(ours, mlx_lm_logits(packed, ids))


def test_under_a_wrappers_prefix(tmp_path):
    packed, dense = folders(tmp_path, "mistral3", "fp8 blocks")
    ids = token_ids(160)
    assert_close(lquant_logits(packed, ids, "float32"), mlx_lm_logits(dense, ids))


@pytest.mark.parametrize("form", ["gptq", "fp8 blocks"])
def test_convert(form, tmp_path):
    """What is written of it is what is written of the dense model, and mlx_lm loads it."""
    packed, dense = folders(tmp_path, "llama", form)
    said = run("convert", "--model", packed, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "out").stderr
    run("convert", "--model", dense, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "same")
    ours, theirs = (mx.load(str(tmp_path / name / "model.safetensors")) for name in ("out", "same"))
    assert ours.keys() == theirs.keys() and all(mx.array_equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((tmp_path / "same" / "config.json").read_text()) and "quant_method" not in config["quantization_config"]
    assert "left out: " in said and ("biases of zeros" if form == "gptq" else "quantize activations") in said
    ids = token_ids(160)
    assert_close(lquant_logits(tmp_path / "out", ids, "float32"), mlx_lm_logits(tmp_path / "out", ids))

    run("convert", "--model", packed, "--dequantize", "--mlx-path", tmp_path / "written")
    assert "quantization_config" not in json.loads((tmp_path / "written" / "config.json").read_text())


def test_stored_dtype(tmp_path):
    """Decoded numbers are rounded to the dtype of the rest, here bf16."""
    packed, dense = folders(tmp_path, "llama", "fp8 blocks", stored=mx.bfloat16)
    weights = mx.load(str(dense / "model.safetensors"))
    run("convert", "--model", packed, "--mlx-path", tmp_path / "out")
    ours = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {t.dtype for t in ours.values()} == {mx.bfloat16}
    assert all(mx.array_equal(ours[name], weight.astype(mx.bfloat16)) for name, weight in weights.items())


def test_half_precision(tmp_path):
    """f16 AWQ: the weights that mlx_lm makes of it, bit for bit."""
    packed, _ = folders(tmp_path, "llama", "awq", stored=mx.float16)
    tensors, config = mx.load(str(packed / "model.safetensors")), json.loads((packed / "config.json").read_text())
    save(packed, {name: t.astype(mx.float16) if t.dtype == mx.float32 else t for name, t in tensors.items()}, config)
    run("convert", "--model", packed, "--mlx-path", tmp_path / "out")
    ours, (theirs, _) = mx.load(str(tmp_path / "out" / "model.safetensors")), utils.load_model(packed)
    for name, layer in theirs.named_modules():
        if name.endswith("_proj"):
            dense = mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)
            assert ours[name + ".weight"].dtype == mx.float16 and mx.array_equal(ours[name + ".weight"], dense), name


def test_scales_of_the_cache_are_left_out(tmp_path):
    packed, dense = folders(tmp_path, "llama", "fp8 rows", num_hidden_layers=1)
    tensors, config = mx.load(str(packed / "model.safetensors")), json.loads((packed / "config.json").read_text())
    tensors = {n: mx.to_fp8(t.astype(mx.float32)) if n.endswith("_proj.weight") else t for n, t in tensors.items()}
    attention = "model.layers.0.self_attn."
    scales = [attention + name for name in ("k_scale", "v_scale", "k_proj.k_scale", "v_proj.v_scale")]
    save(packed, dict(tensors, **{name: mx.ones(1) for name in scales}), config)
    run("convert", "--model", packed, "--mlx-path", tmp_path / "out")
    (reason,) = json.loads((tmp_path / "out" / "lquant.json").read_text())["left_out"].values()
    assert set(scales) < set(reason)


def test_mlx_comes_first(tmp_path):
    """A folder with MLX's own block and tensors is read as such, whatever else its config.json says."""
    _, dense = folders(tmp_path, "llama", "awq")
    run("convert", "--model", dense, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "mlx")
    ids = token_ids(160)
    before = lquant_logits(tmp_path / "mlx", ids, "float32")
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    (tmp_path / "mlx" / "config.json").write_text(json.dumps(dict(config, quantization_config=FORMS["awq"][1])))
    assert np.array_equal(lquant_logits(tmp_path / "mlx", ids, "float32"), before)


def test_packed_tower(tmp_path):
    """An output could not say how a tower is packed."""
    source = shutil.copytree(Path(__file__).parents[1] / "model" / "fixtures" / "llava", tmp_path / "source")
    tensors, config = mx.load(str(source / "model.safetensors")), json.loads((source / "config.json").read_text())
    tower = next(n for n in tensors if n.startswith("vision_tower.") and n.endswith("_proj.weight"))
    save(source, dict(tensors, **{tower + "_scale_inv": mx.ones((1, 1))}), dict(config, quantization_config=FORMS["fp8 blocks"][1]))
    error = run("convert", "--model", source, "-q", "--mlx-path", tmp_path / "out", code=1).stderr
    assert f'the vision tower is quantized itself ("{tower}_scale_inv")' in error


Q = "model.layers.0.self_attn.q_proj."
FAULTS = {
    "no scales": ("awq", lambda t, c: t.pop(Q + "scales"), f"{Q}scales is missing"),
    "no codes": ("gptq", lambda t, c: t.pop(Q + "qweight"), f"{Q}qweight is missing"),
    "fp8 without scales": ("fp8 blocks", lambda t, c: t.pop(Q + "weight_scale_inv"), f"{Q}weight holds fp8 numbers without scales"),
    "another shape": ("pack-quantized", lambda t, c: t.update({Q + "weight_packed": t[Q + "weight_packed"][:-1]}), f"{Q}weight_packed has the shape"),
    "another grid": ("fp8 blocks", lambda t, c: t.update({Q + "weight_scale_inv": mx.ones((3, 2))}), f"{Q}weight_scale_inv has the shape"),
    "a group too many": ("gptq", lambda t, c: t.update({Q + "g_idx": t[Q + "g_idx"] + 1}), f"{Q}g_idx names group"),
    "infinite": ("fp8 rows", lambda t, c: t.update({Q + "weight_scale": mx.full(t[Q + "weight_scale"].shape, 3e38)}), "holds a NaN, an infinity"),
    "biases of numbers": ("gptq", lambda t, c: t.update({Q + "bias": t[Q + "bias"] + 1}), f'"{Q}bias"'),
    "unknown tensor": ("awq", lambda t, c: t.update({Q + "other": t[Q + "scales"]}), f'"{Q}other"'),
    "unknown tool": ("awq", lambda t, c: c["quantization_config"].update(quant_method="bitsandbytes"), '"bitsandbytes"'),
    "unknown format": ("mxfp4", lambda t, c: c["quantization_config"]["config_groups"]["group_0"].update(format="marlin-24"), '"marlin-24"'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input(name, tmp_path):
    form, spoil, said = FAULTS[name]
    packed, _ = folders(tmp_path, "llama", form, num_hidden_layers=1)
    tensors, config = mx.load(str(packed / "model.safetensors")), json.loads((packed / "config.json").read_text())
    if form.startswith("fp8"):
        tensors = {n: mx.to_fp8(t.astype(mx.float32)) if n.endswith("_proj.weight") and t.dtype != mx.uint8 else t for n, t in tensors.items()}
    spoil(tensors, config)
    save(packed, tensors, config)
    if form.startswith("fp8"):
        name_fp8(packed / "model.safetensors", "_proj.weight")
    error = run("convert", "--model", packed, "-q", "--mlx-path", tmp_path / "out", code=1).stderr.strip()
    lines = error.splitlines()  # what only the values tell shows when the linear is loaded
    assert said in lines[-1] and (len(lines) == 1 or name in ("a group too many", "infinite")) and not (tmp_path / "out").exists(), error


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_a_description_of_dense_weights_is_refused(method, tmp_path):
    """Weights that are not packed at all beside a config.json that says they are: one of the two is another model's."""
    folder = family_folder(tmp_path / "model", "llama", vocab_size=8192)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(config, quantization_config={"quant_method": method, "bits": 4})))
    said = run("convert", "--hf-path", folder, "-q", "--mlx-path", tmp_path / "out", code=1).stderr
    assert said.count("\n") == 1 and method in said and "quantization_config" in said
    assert not (tmp_path / "out").exists()


def test_deepseek_v41_as_published(tmp_path):
    """Linears in fp8 with powers of two for 32 × 32, experts in e2m1 with one for 32 inputs, which mlx_lm runs packed."""
    source = family_folder(tmp_path / "model", "deepseek-v41-rounded", unstacked=True, hidden_size=160)
    config = json.loads((source / "config.json").read_text())
    stored = {}
    for name, weight in mx.load(str(source / "model.safetensors")).items():
        linear = ".experts." in name or any(f".{part}.weight" in name for part in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "wk", "w1", "w2", "w3"))
        if not linear or ".compressor." in name:
            stored[name] = weight
        elif ".experts." in name:
            tensors, _ = mxfp4(np.array(weight))
            stored[name], stored[name.replace("weight", "scale")] = tensors["weight_packed"].view(np.int8), tensors["weight_scale"]
        else:
            rows, columns = -(-weight.shape[0] // 32), -(-weight.shape[1] // 32)
            exponents = np.random.default_rng(3).integers(-9, -6, (rows, columns))
            spread = np.repeat(np.repeat(np.exp2(exponents), 32, 0), 32, 1)[: weight.shape[0], : weight.shape[1]]
            codes, _ = fp8_of((np.array(weight) / spread).astype(np.float32))
            stored[name], stored[name.replace("weight", "scale")] = codes, (exponents + 127).astype(np.uint8)
    block = dict(quant_method="fp8", fmt="e4m3", scale_fmt="ue8m0", weight_block_size=[32, 32])
    save(source, stored, dict(config, quantization_config=block))
    fp8 = tuple(name for name, t in stored.items() if isinstance(t, np.ndarray) and name.endswith("weight") and t.dtype == np.uint8)
    name_fp8(source / "model.safetensors", fp8)
    assert len(fp8) > 10
    ids = token_ids(config["vocab_size"])
    assert_close(lquant_logits(source, ids, "float32"), mlx_lm_logits(source, ids))


def test_muse_spark_as_published(tmp_path):
    """Experts in nvfp4 with a scale for each matrix, gate and up in one tensor, but for the first and the last layer's; names without ".weight"."""
    source = family_folder(tmp_path / "model", "muse_spark-all-positions-one-expert-published")
    config = json.loads((source / "config.json").read_text())
    stored, dense = {}, {}
    for name, weight in mx.load(str(source / "model.safetensors")).items():
        stored[name] = dense[name] = weight
        parts = 2 if name.endswith("experts.gate_up_proj") else 1 if name.endswith("experts.down_proj") else 0
        if parts == 0 or ".layers.0." in name or ".layers.3." in name:
            continue
        found = [[], [], [], []]
        for matrix in np.array(weight).reshape(-1, weight.shape[1] // parts, weight.shape[2]):
            whole = np.float32(np.abs(matrix).max() / (6 * 448))
            scales, numbers = fp8_of(np.abs(groups_of(matrix, 16)).max(-1) / 6 / whole)
            codes, values = e2m1(matrix, numbers * whole)
            for one, all_of_them in zip((codes, scales, whole, values), found):
                all_of_them.append(one)
        codes, scales, whole, values = (np.stack(one) for one in found)
        stored[name] = codes.reshape(*weight.shape[:2], -1)
        stored[name + "_weight_scale"] = scales.reshape(*weight.shape[:2], -1)
        stored[name + "_weight_scale_2"] = whole.reshape(-1, parts) if parts == 2 else whole
        stored[name + "_input_scale"] = np.ones(1, np.float32)
        dense[name] = mx.array(values.reshape(weight.shape))
    twin = shutil.copytree(source, tmp_path / "dense")
    save(twin, dense, config)
    save(source, stored, dict(config, quantization_config=dict(quant_method="modelopt", quant_algo="NVFP4", group_size=16)))
    name_fp8(source / "model.safetensors", "_weight_scale")
    ids = token_ids(config["vocab_size"])
    assert_close(lquant_logits(source, ids, "float32"), mlx_lm_logits(twin, ids))
    # MLX multiplies codes with a scale of a matrix on a GPU alone: what mlx_lm loads stands for the same numbers, up to the rounding of their products.
    model, _ = utils.load_model(source)
    packed, plain = (dict(tree_flatten(m.parameters())) for m in (model, utils.load_model(twin)[0]))
    paths = [name.removesuffix(".global_scale") for name in packed if name.endswith(".global_scale")]
    assert len(paths) == 6
    for path in paths:
        codes, scales, whole = (packed[f"{path}.{part}"] for part in ("weight", "scales", "global_scale"))
        numbers = mx.dequantize(codes, scales, group_size=16, bits=4, mode="nvfp4", dtype=mx.float32) * (whole / (6 * 448))[:, None, None]
        assert mx.allclose(numbers, plain[f"{path}.weight"], rtol=2**-21, atol=0)
    # It is a model like others to quantize: from the numbers that the codes stand for.
    for folder, name in ((source, "ours"), (twin, "same")):
        run("convert", "--hf-path", folder, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / name)
    ours, same = (mx.load(str(tmp_path / name / "model.safetensors")) for name in ("ours", "same"))
    assert ours.keys() == same.keys() and all(mx.array_equal(ours[name], same[name]) for name in ours)
    assert_close(lquant_logits(tmp_path / "ours", ids, "float32"), mlx_lm_logits(tmp_path / "ours", ids))
    # What mlx_lm itself makes of it has codes and a scale of each matrix in its own names, which are refused.
    mx.save_safetensors(str(source / "model.safetensors"), packed, metadata={"format": "mlx"})
    (source / "config.json").write_text(json.dumps(dict(config, quantization=dict(group_size=16, bits=4, mode="nvfp4"))))
    said = run("convert", "--hf-path", source, "-q", "--mlx-path", tmp_path / "out", code=1).stderr
    assert said.count("\n") == 1 and "experts.gate_proj.global_scale: NVFP4 with a scale of the whole tensor is not supported" in said
