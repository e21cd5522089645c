"""A result means in mlx_lm what its source meant here: odd fields of config.json, where a template lies, files that are copied.

Each source is converted; mlx_lm's own loader opens the result and must give the logits that lquant gives for the source.
"""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from support import CHATML, TINY, random_model, run
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).parents[1]))
from families import MOE, longrope  # noqa: E402
from tiny_models import assert_close, build, lquant_logits, mlx_lm_logits, save, token_ids  # noqa: E402

ABSENT = object()
LINEAR = dict(rope_type="linear", factor=2.0)
# family, keys that the source's config.json has otherwise than the model was made with
ODD = {
    "untied by null": ("llama-untied-biases", dict(tie_word_embeddings=None)),
    "tied by null": ("qwen2", dict(tie_word_embeddings=None)),
    "required and null": ("qwen3", dict(tie_word_embeddings=None)),
    "defaults spelled null": ("llama", dict(rope_theta=None, rope_traditional=None, mlp_bias=None, attention_bias=None, layer_types=None)),
    "sizes by default": ("llama-all-heads-default-dim", dict(num_key_value_heads=None, head_dim=None, max_position_embeddings=None)),
    "whole numbers as floats": ("llama", dict(hidden_size=128.0, num_hidden_layers=3.0, vocab_size=160.0, head_dim=32.0)),
    "a scaling with null keys": ("llama-yarn", dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=512, beta_fast=None))),
    "a null type": ("llama", dict(rope_scaling=dict(LINEAR, type=None))),
    "an empty scaling": ("qwen2", dict(rope_scaling={})),
    "interval by default": ("smollm3", dict(no_rope_layer_interval=None, no_rope_layers=None)),
    "frequencies by default": ("gemma3", dict(rope_local_base_freq=None, query_pre_attn_scalar=48)),
    "a scaling by its new name": ("phi3-partial-longrope", dict(rope_scaling=dict(longrope("longrope", 12), type=ABSENT, rope_type="longrope"))),
    "a whole factor": ("phi3-linear", dict(rope_scaling=dict(type="linear", factor=2, long_factor=1.0))),
    "a scaling that is ignored": ("phi3", dict(rope_scaling=dict(type="yarn", factor=2.0))),
    "dtype by its new name": ("llama", dict(dtype="float32")),
}


def without_absent(value):
    return {k: without_absent(v) if isinstance(v, dict) else v for k, v in value.items() if v is not ABSENT}


@pytest.mark.parametrize("name", ODD)
def test_odd_fields(name, tmp_path):
    family, changes = ODD[name]
    model, config, unstacked, untied = build(family, seed=3)
    source = tmp_path / "source"
    save(source, model, without_absent(dict(config, **changes)), unstacked, untied)
    ids = token_ids(config["vocab_size"])
    run("convert", "--model", source, "--mlx-path", tmp_path / "out", "--dtype", "float32")
    assert_close(lquant_logits(source, ids, "float32"), mlx_lm_logits(tmp_path / "out", ids))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "phi3"])
def test_key_value_heads_by_default(family, tmp_path):
    model, config, unstacked, untied = build(family, seed=3, num_key_value_heads=4)
    del config["num_key_value_heads"]
    save(tmp_path / "source", model, config, unstacked, untied)
    ids = token_ids(config["vocab_size"])
    run("convert", "--model", tmp_path / "source", "--mlx-path", tmp_path / "out", "--dtype", "float32")
    assert_close(lquant_logits(tmp_path / "source", ids, "float32"), mlx_lm_logits(tmp_path / "out", ids))


@pytest.mark.parametrize("key", [k for k in MOE if k != "model_type"] + ["max_position_embeddings"])
def test_what_mlx_lm_requires_is_required(key, tmp_path):
    model, config, unstacked, untied = build("qwen3-moe", seed=3, num_experts=0, mlp_only_layers=[0, 1, 2])
    del config[key]
    save(tmp_path / "source", model, config, unstacked, untied)
    assert f'"{key}"' in run("convert", "--model", tmp_path / "source", "--mlx-path", tmp_path / "out", code=1).stderr


def test_tensors_left_out_are_said_and_recorded(tmp_path):
    source = random_model(tmp_path / "source")
    run("convert", "--model", source, "--mlx-path", tmp_path / "plain")
    mx.save_safetensors(str(source / "model-mtp.safetensors"), {"mtp.fc.weight": mx.zeros(2), "mtp.norm.weight": mx.zeros(2)})
    said = run("convert", "--model", source, "--mlx-path", tmp_path / "out").stderr
    assert "left out: mtp.fc.weight and 1 more: layers that predict several tokens at once" in said
    record = json.loads((tmp_path / "out" / "lquant.json").read_text())
    assert list(record["left_out"].values()) == [["mtp.fc.weight", "mtp.norm.weight"]]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()
    mx.save_safetensors(str(source / "model-odd.safetensors"), {"vision_tower.weight": mx.zeros(2)})
    refused = run("convert", "--model", source, "--mlx-path", tmp_path / "no", code=1).stderr
    assert 'model-odd.safetensors: tensor "vision_tower.weight" is not one that a model of type llama has' in refused


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"])
def test_the_template_is_the_one_that_transformers_reads(place, tmp_path):
    source = random_model(tmp_path / "source")
    (source / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if place == "tokenizer_config.json":
        config["chat_template"] = CHATML
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    if place.startswith("chat_template"):
        (source / place).write_text(CHATML if place.endswith("jinja") else json.dumps({"chat_template": CHATML}))
    run("convert", "--model", source, "--mlx-path", tmp_path / "out")
    template = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    prompt = ["generate", "--prompt", "the river", "--max-tokens", 8, "--verbose", "F"]
    with_template, without = (run(*prompt, "--model", tmp_path / "out", *more).stdout for more in ([], ["--ignore-chat-template"]))
    assert (template is None) == (place == "chat_template.json") == (with_template == without)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"])
def test_broken_json_is_not_copied(file, tmp_path):
    source = random_model(tmp_path / "source")
    (source / file).write_text('{"a": ')
    refused = run("convert", "--model", source, "--mlx-path", tmp_path / "out", code=1).stderr
    assert file in refused and "not valid JSON" in refused
    assert not (tmp_path / "out").exists()


def test_links_out_of_the_folder_are_not_published(tmp_path):
    source = random_model(tmp_path / "source")
    secret = tmp_path / "secret"
    secret.write_text("do not publish")
    for name in ("chat_template.jinja", "merges.txt", "README.md", "generation_config.json"):
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(secret)
        for command in (["convert", "--mlx-path", tmp_path / "out"], ["perplexity", "--data-path", TINY / "config.json"]):
            refused = run(*command, "--model", source, code=1).stderr
            assert f"{name}: is a link to {secret}, which is outside of the folder" in refused
        (source / name).unlink()
    assert not (tmp_path / "out").exists()
    run("convert", "--model", source, "--mlx-path", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").symlink_to(secret)
    refused = run("upload", "--path", tmp_path / "out", "--upload-repo", "a/b", "--dry-run", code=1).stderr
    assert "notes.txt: is a link to" in refused
    # A model whose folder is a link is like any other.
    (tmp_path / "alias").symlink_to(source, target_is_directory=True)
    run("convert", "--model", tmp_path / "alias", "--mlx-path", tmp_path / "again")
    shutil.rmtree(tmp_path / "again")
