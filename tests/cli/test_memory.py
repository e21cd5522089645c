"""Peak memory of the methods that go through a model block by block, on a mixture whose blocks are nearly all experts."""

import json
import shutil

import mlx.core as mx
import pytest
from families import BASE, MOE
from support import TINY, run, text_rows

HIDDEN, WIDTH, FEW, MANY = 512, 512, 4, 24
# What costs time and no memory is left out. The embedding stays dense: quantizing it would take more memory than a block of few experts.
DENSE = "plan.json"
QUICK = {
    "gptq": (2, ["--no-range-search", "--sweeps", 0, "--plan", DENSE]),
    "awq": (2, ["--no-clip", "--no-duo", "--n-grid", 2, "--plan", DENSE]),
    "dynamic_quant": (1, ["--sensitivity-tokens", 512]),
}


def mixture(folder, experts, layers):
    """A qwen3_moe of random weights, which activations pass in their size. Returns the bytes of a block's experts."""
    matrix = lambda *shape: (mx.random.normal(shape) * shape[-1] ** -0.5).astype(mx.bfloat16)
    ones = lambda size: mx.ones(size, mx.bfloat16)
    mx.random.seed(1)
    weights = {"model.embed_tokens.weight": matrix(8192, HIDDEN) * 20, "model.norm.weight": ones(HIDDEN)}
    for i in range(layers):
        block = {
            "input_layernorm": ones(HIDDEN),
            "post_attention_layernorm": ones(HIDDEN),
            "self_attn.q_proj": matrix(128, HIDDEN),
            "self_attn.k_proj": matrix(64, HIDDEN),
            "self_attn.v_proj": matrix(64, HIDDEN),
            "self_attn.o_proj": matrix(HIDDEN, 128),
            "self_attn.q_norm": ones(64),
            "self_attn.k_norm": ones(64),
            "mlp.gate": matrix(experts, HIDDEN),
            "mlp.switch_mlp.gate_proj": matrix(experts, WIDTH, HIDDEN),
            "mlp.switch_mlp.up_proj": matrix(experts, WIDTH, HIDDEN),
            "mlp.switch_mlp.down_proj": matrix(experts, HIDDEN, WIDTH),
        }
        weights.update({f"model.layers.{i}.{name}.weight": tensor for name, tensor in block.items()})
    sizes = dict(hidden_size=HIDDEN, moe_intermediate_size=WIDTH, num_attention_heads=2, num_key_value_heads=1, head_dim=64, vocab_size=8192)
    config = {**BASE, **MOE, **sizes, "num_experts": experts, "num_experts_per_tok": 4, "num_hidden_layers": layers}
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return experts * 3 * HIDDEN * WIDTH * 2


@pytest.mark.parametrize("command", QUICK)
def test_experts_are_never_all_there_twice(command, tmp_path):
    """What more experts, and more blocks, cost is below twice what a block's experts take more in bf16. The process itself, the embedding and the
    activations, of tokens that meet four experts in either model, are in both peaks. Where there is a block more, one that stayed would add as much."""
    rows = text_rows(tmp_path / "rows.jsonl", count=64, words=60)
    (tmp_path / DENSE).write_text('{"model.embed_tokens": false}')
    layers, options = QUICK[command]
    bytes_, peaks = [], []
    for experts, blocks in ((FEW, 1), (MANY, layers)):
        model = tmp_path / f"model-{experts}"
        bytes_.append(mixture(model, experts, blocks))
        done = run(command, "--model", model, "--data-path", rows, "--mlx-path", tmp_path / f"result-{experts}", "--sequence-length", 64,
                   "--num-samples", 16, *options, "--json", cwd=tmp_path)
        peaks.append(json.loads(done.stdout)["peak_memory"])
    assert peaks[1] - peaks[0] < 2 * (bytes_[1] - bytes_[0])
