"""What mlx_lm's Muse Spark computes in Metal kernels alone, in plain ops, so that its own model class runs on a CPU.

Each function has the name and the arguments of the kernel whose place it takes, and is written from what that one computes: sums and products are in
f32, and are rounded where it rounds.
"""

from types import FunctionType

import mlx.core as mx
from mlx_lm.models import muse_spark


def wide(x):
    return x.astype(mx.float32)


def normed(x, eps):
    """x / rms(x) in f32."""
    return wide(x) * mx.rsqrt(mx.mean(mx.square(wide(x)), axis=-1, keepdims=True) + eps)


def qk_norm(qkvg, *, n_heads, n_kv_heads, head_dim, eps, query_scale):
    heads = mx.unflatten(qkvg[..., : (n_heads + n_kv_heads) * head_dim], -1, (n_heads + n_kv_heads, head_dim))
    q, k = mx.split(normed(heads, eps).astype(qkvg.dtype), [n_heads], axis=-2)
    return [(wide(q) * query_scale).astype(q.dtype), k]


def qk_norm_rope(qkvg, *, rope_base, offset, **norm):
    half = norm["head_dim"] // 2
    places = wide(mx.array(offset).reshape(-1, 1) + mx.arange(qkvg.shape[1]))
    angles = places[..., None] * mx.power(float(rope_base), -mx.arange(half) / half)
    cos, sin = mx.cos(angles)[:, :, None], mx.sin(angles)[:, :, None]

    def turned(x):
        a, b = wide(x[..., 0::2]), wide(x[..., 1::2])
        return mx.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)

    return [turned(x) for x in qk_norm(qkvg, **norm)]


def rms_norm_sigmoid_gate(x, gate, *, eps):
    return (normed(x, eps).swapaxes(1, 2).flatten(-2) * mx.sigmoid(wide(gate))).astype(x.dtype)


def expert_routing(logits, expert_bias, *, top_k, multiplier, score_eps, route_scale):
    scores = mx.sigmoid(logits * multiplier)
    experts = mx.argsort(-(scores + expert_bias), axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, experts, axis=-1)
    return [experts, weights / (mx.sum(weights, axis=-1, keepdims=True) + score_eps) * route_scale]


def post_expert_norm_combine(experts, weights, *, norm_weight, eps):
    results = normed(wide(experts) * wide(norm_weight), eps) * wide(weights.astype(experts.dtype))[..., None]
    total = mx.zeros(results[..., 0, :].shape)
    for k in range(results.shape[-2]):
        total = wide((total + results[..., k, :]).astype(experts.dtype))
    return total.astype(experts.dtype)


def pre_norm(stream, norm, *, dtype):
    return (normed(stream, norm.eps) * wide(norm.weight)).astype(dtype)


def norm_add_norm(branch, stream, *, alpha, beta, post_weight, post_eps, next_norm):
    if post_weight is not None:
        branch = post_weight.astype(branch.dtype) * branch
    stream = alpha * stream + beta * wide(normed(branch, post_eps).astype(branch.dtype))
    return stream, None if next_norm is None else pre_norm(stream, next_norm, dtype=branch.dtype)


class InFloat32:
    """mlx.core for a model of f32. The class rounds the first layer's input and the last norm's result to bf16 by name, whatever the model's dtype is:
    in f32 they would be the only roundings, as large as a bf16 model's."""

    bfloat16 = mx.float32

    def __getattr__(self, name):
        return getattr(mx, name)


def replace():
    """In the place of the kernels in mlx_lm's module. What it makes of a checkpoint's norms stays in bf16."""
    if isinstance(muse_spark.mx, InFloat32):
        return
    names = ("expert_routing", "norm_add_norm", "post_expert_norm_combine", "pre_norm", "qk_norm", "qk_norm_rope", "rms_norm_sigmoid_gate")
    for name in names:
        assert hasattr(muse_spark, name)
        setattr(muse_spark, name, globals()[name])
    muse_spark.norm_gain = FunctionType(muse_spark.norm_gain.__code__, dict(vars(muse_spark)))
    muse_spark.mx = InFloat32()
