"""Trains a small mixture of experts, a hybrid of recurrent and attention layers, or a dense model, to measure quantizers on.

    benchmarks/train_small.py mixture --teacher mid --text texts.jsonl --output mixture --seconds 300

The model learns the distributions of a trained Llama over the next token (distillation: arXiv 1503.02531, temperature 1) on given texts and on texts that the
teacher itself makes up. Distributions say more than tokens and cannot be learnt by heart: a model of this size that learns tokens for minutes knows its few
texts better than others, and what a method then measures on rows of those texts does not hold elsewhere. Rows that methods will learn from should not be
among --text.

Needs PyTorch, transformers (5.17 was used) and a GPU, none of which lquant's own tests need. Texts are JSONL with "text", or plain files.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import transformers

LENGTH = 256  # tokens in a row
ROWS = 64  # in a step

COMMON = dict(vocab_size=8192, hidden_size=256, num_hidden_layers=4, rms_norm_eps=1e-6, tie_word_embeddings=True, max_position_embeddings=2048,
              bos_token_id=0, eos_token_id=0, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
KINDS = {
    "dense": ("Qwen3Config", "Qwen3ForCausalLM", dict(intermediate_size=1024)),
    "mixture": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM",
                dict(intermediate_size=1024, moe_intermediate_size=256, num_experts=16, num_experts_per_tok=4, norm_topk_prob=True, decoder_sparse_step=1,
                     router_aux_loss_coef=0.01)),
    # Three delta nets, then an attention.
    "hybrid": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM",
               dict(intermediate_size=768, linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=64, linear_value_head_dim=64,
                    linear_conv_kernel_dim=4, full_attention_interval=4,
                    rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.25, mrope_section=[3, 3, 2], mrope_interleaved=True))),
}


def chunked_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=False, **_):
    """What transformers' own function for machines without fla's kernels computes, in a tenth of its launches. [rows, tokens, heads, features]."""
    size, (rows, tokens, heads, width) = 64, v.shape
    with torch.autocast("cuda", enabled=False):
        q, k = ((torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-6) if use_qk_l2norm_in_kernel else x.float()) for x in (q, k))
        q = q * q.shape[-1] ** -0.5
        chunks = lambda x: x.float().transpose(1, 2).reshape(rows, heads, tokens // size, size, *x.shape[3:])
        q, k, v, g, beta = (chunks(x) for x in (q, k, v, g, beta))
        sums, beta = g.cumsum(-1), beta.unsqueeze(-1)
        decay = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).tril().exp().tril()
        unit = torch.eye(size, device=v.device)
        system = unit + ((k * beta) @ k.mT * decay).tril(-1)
        solved = torch.linalg.solve_triangular(system, unit.expand_as(system), upper=False, unitriangular=True)
        front = sums.exp().unsqueeze(-1)
        written, read, seen = solved @ (v * beta), solved @ (k * beta * front), (q @ k.mT * decay).tril()
        asked, told = q * front, (k * (sums[..., -1:] - sums).exp().unsqueeze(-1)).mT
        state, parts = torch.zeros(rows, heads, k.shape[-1], width, device=v.device), []
        for n in range(tokens // size):
            own = written[:, :, n] - read[:, :, n] @ state
            parts.append(asked[:, :, n] @ state + seen[:, :, n] @ own)
            state = state * front[:, :, n, -1:] + told[:, :, n] @ own
        out = torch.stack(parts, 2).reshape(rows, heads, tokens, width).transpose(1, 2)
    return out.to(torch.bfloat16), None


def make_model(kind):
    config_class, model_class, own = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**COMMON, **own)
    model = getattr(transformers, model_class)(config).to("cuda", torch.float32)
    for module in model.modules():
        if hasattr(module, "chunk_gated_delta_rule"):
            module.chunk_gated_delta_rule = chunked_delta_rule
    return model


def tokens_of(files, tokenizer):
    """All texts behind one another, each with an end."""
    ids = []
    for file in files:
        texts = [json.loads(line)["text"] for line in file.open()] if file.suffix == ".jsonl" else [file.read_text(errors="replace")]
        for text in texts:
            ids += tokenizer.encode(text) + [0]
    return torch.tensor(ids, dtype=torch.int32)


@torch.inference_mode()
def made_up(teacher, count, rows=4096):
    """Rows that the teacher samples: [rows, LENGTH] at a time until there are `count` tokens."""
    parts = []
    while sum(part.numel() for part in parts) < count:
        start = torch.zeros((rows, 1), dtype=torch.long, device="cuda")
        part = teacher.generate(start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=LENGTH - 1, pad_token_id=0)
        parts.append(part.to(torch.int32).cpu().flatten())
    return torch.cat(parts)


def divergence(student, teacher):
    """Mean over tokens, in nats: [rows, tokens, vocabulary] logits of both."""
    own, taught = (torch.log_softmax(z.float(), -1) for z in (student, teacher))
    return (taught.exp() * (taught - own)).sum(-1).mean()


def train(model, teacher, ids, seconds, rate):
    """As many steps as fit: the rate follows the clock (a rise in the first twentieth, then half a cosine)."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}], lr=rate, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(1)
    ids = ids.to("cuda")
    starts = torch.arange(0, len(ids) - LENGTH, LENGTH)
    begin, step, told = time.monotonic(), 0, 0
    while (passed := time.monotonic() - begin) < seconds:
        part = passed / seconds
        for group in optimizer.param_groups:
            group["lr"] = rate * (part / 0.05 if part < 0.05 else 0.5 * (1 + math.cos(math.pi * (part - 0.05) / 0.95)))
        at = starts[torch.randint(len(starts), (ROWS,), generator=generator)].to("cuda")
        at = at + torch.randint(-LENGTH // 2, LENGTH // 2, (ROWS,), generator=generator).to("cuda")
        rows = ids[at.clamp(0, len(ids) - LENGTH)[:, None] + torch.arange(LENGTH, device="cuda")].long()
        with torch.autocast("cuda", torch.bfloat16):
            with torch.inference_mode():
                taught = teacher(rows).logits
            extra = {"output_router_logits": True} if hasattr(model.config, "router_aux_loss_coef") else {}
            made = model(rows, **extra)
        loss = divergence(made.logits, taught.clone())
        # A mixture's routers are to use all experts.
        whole = loss + model.config.router_aux_loss_coef * made.aux_loss if extra else loss
        whole.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if passed - told > 20:
            told = passed
            print(f"{passed:.0f} s, step {step}, KL to the teacher {loss.item():.3f}", flush=True)
    print(f"{step} steps of {ROWS * LENGTH} tokens", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a trained model with the tokenizer that the new one gets")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="of training")
    parser.add_argument("--made-up", type=int, default=12_000_000, help="tokens that the teacher samples")
    parser.add_argument("--cache", type=Path, help="file of all tokens, written by the first run and read by others")
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")

    teacher = transformers.AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.bfloat16).to("cuda").eval()
    teacher.generation_config.eos_token_id = None  # all of a row is made up
    if args.cache and args.cache.exists():
        ids = torch.from_numpy(np.load(args.cache))
    else:
        torch.manual_seed(2)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(args.teacher / "tokenizer.json"))
        ids = torch.cat([tokens_of(args.text, tokenizer), made_up(teacher, args.made_up)])
        if args.cache:
            np.save(args.cache, ids.numpy())
    print(f"{len(ids) / 1e6:.1f} M tokens", flush=True)
    if args.seconds > 0:
        model = make_model(args.kind)
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
        train(model, teacher, ids, args.seconds, args.rate)
        model.to(torch.bfloat16).save_pretrained(args.output)
        if args.kind == "hybrid":  # mlx_lm knows the text model by the name of the whole alone
            config = json.loads((args.output / "config.json").read_text())
            whole = {"model_type": "qwen3_5", "tie_word_embeddings": True, "text_config": config}
            (args.output / "config.json").write_text(json.dumps(whole, indent=2))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(args.teacher / name, args.output)


if __name__ == "__main__":
    main()
