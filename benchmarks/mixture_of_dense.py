"""A mixture of experts made of a dense Llama, for figures of calibration where no trained mixture is at hand.

    benchmarks/mixture_of_dense.py --model models/tiny --text prose.jsonl --output mixture

Every expert is a copy of its layer's MLP with noise of its own, so that the mixture predicts about as well as the dense model; its inputs are those of
trained weights. Routers send a token where its MLP's input points: their rows are centres of clusters (spherical k-means) of what the MLPs read on
--text, without the inputs' mean direction, which all tokens share and which would make one expert the first choice of most. Topics thus have experts of
their own, and some experts see few tokens, as in trained mixtures.

The folder is a qwen3_moe where the dense model norms its queries and keys (qwen3), else a mixtral: qwen3_moe always norms them, and no weights of
such a norm leave the attention of a Llama as it is. Either family's mathematics but the mixture are the dense model's own.
"""

import argparse
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load

SPREAD = 4.0  # standard deviation of a token's router logits over the experts: its first choice has most of the weight, its second some
ROUNDS = 20  # of k-means; the clusters hardly move after ten


class Recorder:
    """Stands in an MLP's place and keeps what it reads."""

    def __init__(self, mlp):
        self.mlp, self.read = mlp, []

    def __call__(self, x):
        self.read.append(np.array(x.astype(mx.float32)).reshape(-1, x.shape[-1]))
        return self.mlp(x)


def inputs_of_mlps(model, tokenizer, text, rows, length):
    """What each layer's MLP reads on the first rows: [tokens, hidden] a layer."""
    model.set_dtype(mx.float32)  # MLX multiplies that faster on a CPU than bf16
    layers = model.model.layers
    recorders = [Recorder(layer.mlp) for layer in layers]
    for layer, recorder in zip(layers, recorders):
        layer.mlp = recorder
    with text.open(encoding="utf-8") as lines:
        for _, line in zip(range(rows), lines):
            ids = tokenizer.encode(json.loads(line)["text"])[:length]
            mx.eval(model(mx.array([ids])))
    return [np.concatenate(recorder.read) for recorder in recorders]


def router_of(inputs, experts, rng):
    """[experts, hidden]: what points from the mean direction to each cluster's centre."""
    mean = inputs.mean(0)
    mean /= np.linalg.norm(mean)
    apart = inputs - np.outer(inputs @ mean, mean)
    units = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    centres = units[rng.choice(len(units), experts, replace=False)]
    for _ in range(ROUNDS):
        nearest = (units @ centres.T).argmax(1)
        for e in range(experts):
            if (nearest == e).any():  # else it stays where it was
                centres[e] = units[nearest == e].mean(0)
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    logits = inputs @ centres.T
    return centres * (SPREAD / logits.std(1).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a dense Llama or Qwen3 with one file of weights")
    parser.add_argument("--text", type=Path, required=True, help=".jsonl of texts that the experts are to divide among themselves")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=2, help="experts of a token")
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation of an expert's own part of its weights, by that of the weights")
    parser.add_argument("--rows", type=int, default=64, help="of the text, for the routers")
    parser.add_argument("--length", type=int, default=256, help="most tokens of a row")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    config = json.loads((args.model / "config.json").read_text())
    if config["model_type"] not in ("llama", "qwen3"):
        raise SystemExit(f"{args.model}: is a {config['model_type']}; give a llama or a qwen3")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise SystemExit(f"{args.model}: has biases, for which neither mixtral nor qwen3_moe has a place")
    normed = config["model_type"] == "qwen3"
    rng = np.random.default_rng(args.seed)
    model, tokenizer = load(str(args.model))
    inputs = inputs_of_mlps(model, tokenizer, args.text, args.rows, args.length)

    source = mx.load(str(args.model / "model.safetensors"))
    weights = {name: weight for name, weight in source.items() if ".mlp." not in name}
    # Below a layer: the mixture's own names of its stacks and of its router.
    place = "mlp" if normed else "block_sparse_moe"
    for i, read in enumerate(inputs):
        layer = f"model.layers.{i}."
        router = router_of(read, args.experts, rng)
        chosen = np.argsort(-(read @ router.T), 1)[:, : args.top_k]
        share = np.bincount(chosen.ravel(), minlength=args.experts) / chosen.size * args.experts
        print(f"layer {i}: experts meet {share.min():.2f} to {share.max():.2f} times the mean's tokens, in the middle {np.median(share):.2f}")
        weights[f"{layer}{place}.gate.weight"] = mx.array(router).astype(source[f"{layer}mlp.up_proj.weight"].dtype)
        for name in ("gate_proj", "up_proj", "down_proj"):
            dense = source[f"{layer}mlp.{name}.weight"]
            wide = np.array(dense.astype(mx.float32))
            copies = wide + args.noise * wide.std() * rng.standard_normal((args.experts, *wide.shape), dtype=np.float32)
            weights[f"{layer}{place}.switch_mlp.{name}.weight"] = mx.array(copies).astype(dense.dtype)

    if normed:
        config |= {"num_experts": args.experts, "moe_intermediate_size": config["intermediate_size"], "norm_topk_prob": True}
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    else:
        config |= {"num_local_experts": args.experts}
    family = ("qwen3_moe", "Qwen3MoeForCausalLM") if normed else ("mixtral", "MixtralForCausalLM")
    config |= {"model_type": family[0], "architectures": [family[1]], "num_experts_per_tok": args.top_k}
    args.output.mkdir(parents=True)
    for file in args.model.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "chat_template")):
            shutil.copy(file, args.output)
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    mx.save_safetensors(str(args.output / "model.safetensors"), weights, metadata={"format": "mlx"})


if __name__ == "__main__":
    main()
