"""What the tests of the command line share: running the program, a small random model, and readers of what it writes."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np

LQUANT = os.path.abspath(os.environ["LQUANT"]) if "LQUANT" in os.environ else "lquant"
# Threads that wait by spinning make tiny models crawl where the machine is shared, as test machines are.
# No test asks the real hub for anything: nothing listens at this address.
ENVIRONMENT = dict(os.environ, OMP_WAIT_POLICY="passive", HF_ENDPOINT="http://127.0.0.1:9")
TINY = Path(__file__).parents[2] / "models" / "tiny"

# The smallest llama that groups of 128 fit: it shares the vocabulary (and the tokenizer) of the embedded model.
CONFIG = dict(
    model_type="llama",
    hidden_size=128,
    num_hidden_layers=2,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    vocab_size=8192,
    max_position_embeddings=512,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    torch_dtype="bfloat16",
    eos_token_id=0,
    bos_token_id=0,
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "the of river stone winter and light walks over old under a house quietly where bread grows with every letter she read".split()


def run(*arguments, code=0, program=LQUANT, environment={}, **options):
    """Runs the program; `code` is the exit status that it must have."""
    command = [str(a) for a in (program, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(ENVIRONMENT, **environment), timeout=300, **options)
    assert done.returncode == code, f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}"
    return done


def limit_files(size):
    """In the child: a write past `size` fails as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def random_model(folder, seed=0, dtype=mx.bfloat16, chat=False, **changes):
    """A llama of random weights whose activations keep their size from layer to layer; logits have a spread of about 3."""
    config = dict(CONFIG, **changes)
    rng = np.random.default_rng(seed)
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head

    def matrix(rows, columns, scale=1.0):
        return mx.array(rng.standard_normal((rows, columns)).astype(np.float32) * scale / np.sqrt(columns))

    def norm():
        return mx.array(1 + 0.2 * rng.standard_normal(width).astype(np.float32))

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], width, 3.0), "model.norm.weight": norm()}
    for i in range(config["num_hidden_layers"]):
        layer = {
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        for name, shape in layer.items():
            weights[f"model.layers.{i}.{name}.weight"] = matrix(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{i}.{name}.weight"] = norm()
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), {k: v.astype(dtype) for k, v in weights.items()}, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TINY / "tokenizer.json", folder)
    tokenizer = json.loads((TINY / "tokenizer_config.json").read_text())
    if chat:
        tokenizer["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def sentences(count, seed=0, words=24):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)) + "." for _ in range(count)]


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def text_rows(file, count=40, seed=0, words=24):
    return write_rows(file, [{"text": text} for text in sentences(count, seed, words)])


def chat_rows(file, count=40, seed=0):
    texts = sentences(2 * count, seed, words=12)
    pairs = zip(texts[::2], texts[1::2])
    return write_rows(file, [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in pairs])


def reseal(unit, meta):
    """A unit without tensors that holds other JSON, sealed as lquant does it: the SHA-256 of all bytes before it ends the file."""
    header = {"__metadata__": {"format": "mlx", "lquant": json.dumps(meta)}, "lquant.sha256": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    unit.write_bytes(text + hashlib.sha256(text).digest())


def tensors(folder):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found.update(mx.load(str(file)))
    return found


def same_bytes(a, b):
    """Bit for bit: NaN payloads, signed zeros and all."""
    as_bytes = lambda x: mx.contiguous(x.reshape(-1)).view(mx.uint8)  # a number alone has no axis to view
    return a.dtype == b.dtype and a.shape == b.shape and bool(mx.array_equal(as_bytes(a), as_bytes(b)))


def same_model(ours, theirs):
    """The same tensors, bit for bit, and the same index of them."""
    a, b = tensors(ours), tensors(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert same_bytes(a[name], b[name]), name
    index = [json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (ours, theirs)]
    assert index[0]["weight_map"] == index[1]["weight_map"]
    # mlx_lm counts modules without children alone: an array that stands beside modules, as taps on keys do, escapes it.
    parents = {name.rpartition(".")[0] for name in a}
    beside = sum(a[n].size for n in a if any(p.startswith(n.rpartition(".")[0] + ".") for p in parents))
    assert index[0]["metadata"] == dict(index[1]["metadata"], total_parameters=index[1]["metadata"]["total_parameters"] + beside)


# Where a model card names the folder that it lies in (tests/artifact/card_test.cpp has its text to the byte).
OWN_NAME = re.compile(rb"(?m)(?<=^# ).+$|(?<=mlx_lm\.generate --model ).+(?= --prompt )|(?<= = load\().+(?=\)$)|(?<= --mlx-path ).+$")


def tree(folder):
    """Every file below, hidden ones too, with its bytes; model cards without the name of their folder, so that outputs can be compared."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
    return {name: OWN_NAME.sub(b"", content) if Path(name).name == "README.md" else content for name, content in files.items()}


def quantization(folder):
    return json.loads((Path(folder) / "config.json").read_text())["quantization"]


def dense_weights(folder):
    """All weights in float32, the packed ones unpacked by MLX."""
    stored, weights = tensors(folder), {}
    block = json.loads((Path(folder) / "config.json").read_text()).get("quantization", {})
    for name, value in stored.items():
        path = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if path + ".scales" in stored:
            form = block[path] if isinstance(block.get(path), dict) else block
            value = mx.dequantize(
                value, stored[path + ".scales"], stored.get(path + ".biases"), form["group_size"], form["bits"], form.get("mode", "affine")
            )
        weights[name] = np.array(value.astype(mx.float32))
    return weights


def numpy_logits(folder, ids):
    """A llama's logits in float32, written from its definition."""
    config, w = json.loads((Path(folder) / "config.json").read_text()), dense_weights(folder)
    head, eps = config["head_dim"], config["rms_norm_eps"]
    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    ids = np.asarray(ids)
    length = ids.shape[1]

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[name + ".weight"]

    angles = np.outer(np.arange(length), config["rope_theta"] ** (-np.arange(0, head, 2) / head))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def rotate(x):
        a, b = x[..., : head // 2], x[..., head // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        h = norm(x, layer + "input_layernorm")
        q, k, v = ((h @ w[f"{layer}self_attn.{n}_proj.weight"].T).reshape(*ids.shape, -1, head).swapaxes(1, 2) for n in "qkv")
        q, k, v = rotate(q), np.repeat(rotate(k), groups, 1), np.repeat(v, groups, 1)
        scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(head)) + np.triu(np.full((length, length), -np.inf, np.float32), 1)
        p = np.exp(log_softmax(scores))
        x = x + (p @ v).swapaxes(1, 2).reshape(*ids.shape, -1) @ w[layer + "self_attn.o_proj.weight"].T
        h = norm(x, layer + "post_attention_layernorm")
        gate = h @ w[layer + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[layer + "mlp.up_proj.weight"].T)) @ w[layer + "mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def tokenizer_with_more(folder, id, token):
    """Gives the tokenizer of a folder a token, as models are published whose tables have no row for it."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"].append({"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True})
    file.write_text(json.dumps(content), encoding="utf-8")


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(teacher, student, ids):
    """Mean KL divergence in nats a token, from weights to number without the program."""
    p, q = (log_softmax(numpy_logits(folder, ids).astype(np.float64)) for folder in (teacher, student))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def encode(texts):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in texts]
