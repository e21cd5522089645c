"""Tiny random checkpoints as Hugging Face's transformers saves them: the folders of tests/model/fixtures.

mlx_lm builds and saves models of its own names, so a folder that it made says nothing about what lquant is given: Hugging
Face's tensor names, and config.json in the words of transformers 5. These folders are made by transformers' own classes.
The tests read them as they lie there; this script is run again only to add a family or to follow a newer transformers:

    python -m venv /tmp/tf && /tmp/tf/bin/pip install torch transformers
    /tmp/tf/bin/python tests/model/make_fixtures.py [NAME ...]        # without a name: all of them

The committed ones were made with transformers 5.24.0, torch 2.15.0 and Python 3.11, on a CPU. A family gives the same bytes
whichever others are made with it. Weights are bf16, which makes the folders small and loses nothing: both programs are
compared in f32, from the same bf16 numbers.
"""

import argparse
import shutil
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent / "fixtures"

# Groups of 32 fit into every linear. The heads are grouped, and the tests' rows are longer than the windows.
SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
TWO_KINDS = ["sliding_attention", "full_attention"]
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)


def rope(theta, **more):
    return dict(dict(rope_type="default", rope_theta=theta), **more)


def rope_by_kind(sliding, full, **more):
    return dict(sliding_attention=rope(sliding), full_attention=rope(full, **more))


def sized(**fields):
    return dict(SIZES, **fields)


# Heads that are wider than hidden_size / num_attention_heads, which many families allow; narrower elsewhere, to stay small.
WIDE = dict(head_dim=16, num_key_value_heads=1, intermediate_size=32)


EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)

GPT = dict(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)

NEOX = {k: v for k, v in sized(intermediate_size=128).items() if k != "num_key_value_heads"}

# A vision tower of one layer, in the fields of CLIP, SigLIP and Pixtral.
VISION = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)

# name: (class, config)
FAMILIES = {
    "llama": ("LlamaForCausalLM", sized(rope_parameters=dict(LLAMA3, rope_theta=500000.0), attention_bias=True, mlp_bias=True)),
    "mistral": ("MistralForCausalLM", sized(**WIDE, sliding_window=8, rope_parameters=rope(1000000.0))),
    "ministral3": (
        "Ministral3ForCausalLM",
        sized(
            **WIDE,
            tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=1000000.0,
                factor=4.0,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                original_max_position_embeddings=16,
                llama_4_scaling_beta=0.1,
            ),
        ),
    ),
    "qwen2": ("Qwen2ForCausalLM", sized(rope_parameters=rope(1000000.0), tie_word_embeddings=True)),
    "qwen3": ("Qwen3ForCausalLM", sized(**WIDE, rope_parameters=rope(5000000.0), tie_word_embeddings=True)),
    "gemma": ("GemmaForCausalLM", sized(**WIDE, rope_parameters=rope(10000.0))),
    "gemma2": ("Gemma2ForCausalLM", sized(**WIDE, query_pre_attn_scalar=24, sliding_window=64, rope_parameters=rope(10000.0))),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        sized(
            **WIDE,
            num_hidden_layers=3,
            query_pre_attn_scalar=24,
            sliding_window=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=rope_by_kind(10000.0, 1000000.0, rope_type="linear", factor=8.0),
        ),
    ),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        sized(
            intermediate_size=32,
            head_dim=8,
            global_head_dim=16,
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=96,
            use_double_wide_mlp=True,
            sliding_window=8,
            final_logit_softcapping=30.0,
            layer_types=TWO_KINDS * 2,
            rope_parameters=dict(
                sliding_attention=rope(10000.0),
                full_attention=rope(1000000.0, rope_type="proportional", partial_rotary_factor=0.25),
            ),
        ),
    ),
    "phi": ("PhiForCausalLM", sized(num_attention_heads=2, num_key_value_heads=2, rope_parameters=rope(10000.0, partial_rotary_factor=0.4))),
    "phi3": (
        "Phi3ForCausalLM",
        sized(
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                partial_rotary_factor=0.5,
                short_factor=[1.0, 1.1],
                long_factor=[1.0, 1.5],
            ),
            original_max_position_embeddings=16,
        ),
    ),
    "cohere": ("CohereForCausalLM", sized(use_qk_norm=True, logit_scale=0.25, rope_parameters=rope(10000.0))),
    "cohere2": (
        "Cohere2ForCausalLM",
        sized(logit_scale=0.25, sliding_window=8, layer_types=TWO_KINDS, rope_parameters=rope(50000.0)),
    ),
    "olmo2": ("Olmo2ForCausalLM", sized(rope_parameters=rope(500000.0))),
    "olmo3": ("Olmo3ForCausalLM", sized(sliding_window=8, layer_types=TWO_KINDS, rope_parameters=rope(500000.0))),
    "starcoder2": ("Starcoder2ForCausalLM", sized(sliding_window=None, rope_parameters=rope(100000.0))),
    "stablelm": (
        "StableLmForCausalLM",
        sized(use_qkv_bias=True, qk_layernorm=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.25)),
    ),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        dict(NEOX, use_parallel_residual=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.25)),
    ),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", dict(GPT, multi_query=True)),
    "granite": (
        "GraniteForCausalLM",
        sized(embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.2, logits_scaling=8.0, tie_word_embeddings=True),
    ),
    "glm": ("GlmForCausalLM", sized(head_dim=8, attention_bias=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.5))),
    "glm4": ("Glm4ForCausalLM", sized(head_dim=8, attention_bias=True, rope_parameters=rope(10000.0, partial_rotary_factor=0.5))),
    "exaone4": (
        "Exaone4ForCausalLM",
        sized(head_dim=8, sliding_window=8, sliding_window_pattern="LG", layer_types=TWO_KINDS, rope_parameters=rope(1000000.0)),
    ),
    "ernie4_5": ("Ernie4_5ForCausalLM", sized(head_dim=8, use_bias=True, tie_word_embeddings=True, rope_parameters=rope(500000.0))),
    "seed_oss": (
        "SeedOssForCausalLM",
        sized(**WIDE, attention_bias=True, attention_out_bias=False, tie_word_embeddings=False, rope_parameters=rope(10000000.0)),
    ),
    "apertus": ("ApertusForCausalLM", sized(rope_parameters=dict(LLAMA3, rope_theta=12000000.0))),
    "helium": ("HeliumForCausalLM", sized(head_dim=8, rope_parameters=rope(100000.0))),
    "nemotron": ("NemotronForCausalLM", sized(rope_parameters=rope(10000.0, partial_rotary_factor=0.5))),
    "smollm3": (
        "SmolLM3ForCausalLM",
        sized(intermediate_size=32, num_hidden_layers=3, no_rope_layers=[1, 0, 1], tie_word_embeddings=True, rope_parameters=rope(2000000.0)),
    ),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", sized(head_dim=8, rope_parameters=rope(10000.0, rope_type="dynamic", alpha=50.0, factor=1.0))),
    "internlm3": ("AutoModelForCausalLM:InternLM3Config", sized(head_dim=8, rope_parameters=rope(50000.0))),
    "iquestcoder": ("AutoModelForCausalLM:IQuestCoderConfig", sized(head_dim=8, rope_parameters=rope(500000.0))),
    "nanochat": ("NanoChatForCausalLM", sized(rope_parameters=rope(10000.0))),
    "lfm2": (
        "Lfm2ForCausalLM",
        sized(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False, conv_L_cache=3, rope_parameters=rope(1000000.0)),
    ),
    "gptj": ("GPTJForCausalLM", dict(GPT, rotary_dim=4, tie_word_embeddings=False)),
    # Mixtures of experts.
    "afmoe": (
        "AfmoeForCausalLM",
        sized(
            **EXPERTS,
            head_dim=8,
            num_hidden_layers=3,
            num_dense_layers=1,
            num_shared_experts=1,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            mup_enabled=True,
            route_scale=1.5,
            rope_parameters=rope(10000.0),
        ),
    ),
    "exaone_moe": (
        "ExaoneMoeForCausalLM",
        sized(**EXPERTS, head_dim=8, sliding_window=8, layer_types=TWO_KINDS, mlp_layer_types=["dense", "sparse"], rope_parameters=rope(500.0)),
    ),
    "laguna": (
        "LagunaForCausalLM",
        sized(
            **EXPERTS,
            head_dim=8,
            shared_expert_intermediate_size=32,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention"],
            num_attention_heads_per_layer=[4, 2],
            moe_routed_scaling_factor=1.5,
            rope_parameters=dict(
                sliding_attention=rope(500.0, partial_rotary_factor=1.0),
                full_attention=rope(
                    10000.0,
                    rope_type="yarn",
                    partial_rotary_factor=0.5,
                    factor=4.0,
                    original_max_position_embeddings=512,
                    beta_fast=32.0,
                    beta_slow=1.0,
                    attention_factor=1.0,
                ),
            ),
        ),
    ),
    # Wrappers: a tower for images beside a text model.
    "llama4": (
        "Llama4ForConditionalGeneration",
        dict(
            text_config=sized(
                intermediate_size=32,
                intermediate_size_mlp=32,
                head_dim=8,
                num_hidden_layers=4,
                num_local_experts=4,
                interleave_moe_layer_step=2,
                attention_chunk_size=16,
                floor_scale=8,
                rope_parameters=rope(10000.0),
            ),
            vision_config=dict(
                hidden_size=16,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
                vision_output_dim=16,
                projector_input_dim=16,
                projector_output_dim=16,
            ),
            boi_token_index=91,
            eoi_token_index=92,
            image_token_index=90,
        ),
    ),
    "muse_glimmer": (
        "MuseGlimmerForConditionalGeneration",
        dict(
            text_config=sized(
                head_dim=8,
                sliding_window=8,
                layer_types=TWO_KINDS,
                layer_rope_theta=[10000.0, 0],
                rope_parameters=rope(10000.0),
            ),
            vision_config=dict(
                hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=4, pos_emb_height=4, pos_emb_width=4
            ),
            image_token_id=90,
            video_token_id=91,
            out_hidden_size=64,
            projector_hidden_size=32,
        ),
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        dict(
            text_config=sized(model_type="mistral", **WIDE, rope_parameters=rope(1000000000.0)),
            vision_config=dict(VISION, model_type="pixtral", head_dim=8),
            image_token_index=10,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        ),
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        dict(
            text_config=sized(intermediate_size=32, model_type="llama", rope_parameters=rope(10000.0)),
            vision_config=dict(VISION, model_type="clip_vision_model", projection_dim=16),
            image_token_index=90,
            image_seq_length=4,
        ),
    ),
    "pixtral": (
        "LlavaForConditionalGeneration",
        dict(
            text_config=sized(model_type="mistral", **WIDE, rope_parameters=rope(1000000000.0)),
            vision_config=dict(VISION, model_type="pixtral", head_dim=8),
            image_token_index=10,
            image_seq_length=1,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        dict(
            text_config=sized(
                **WIDE,
                query_pre_attn_scalar=24,
                sliding_window=8,
                layer_types=TWO_KINDS,
                rope_parameters=rope_by_kind(10000.0, 1000000.0, rope_type="linear", factor=8.0),
            ),
            vision_config=dict(VISION, model_type="siglip_vision_model", vision_use_head=False),
            mm_tokens_per_image=4,
            image_token_index=90,
            boi_token_index=91,
            eoi_token_index=92,
        ),
    ),
    "gemma3n": (
        "Gemma3nForCausalLM",
        sized(
            intermediate_size=[32] * 4,
            head_dim=8,
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=80,
            laurel_rank=32,
            activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
            sliding_window=8,
            layer_types=TWO_KINDS * 2,
            rope_parameters=rope_by_kind(10000.0, 1000000.0),
        ),
    ),
    "gemma4": (
        "Gemma4ForConditionalGeneration",
        dict(
            text_config=sized(
                intermediate_size=32,
                head_dim=8,
                global_head_dim=16,
                num_global_key_value_heads=1,
                attention_k_eq_v=True,
                hidden_size_per_layer_input=0,
                sliding_window=8,
                final_logit_softcapping=30.0,
                layer_types=TWO_KINDS,
                rope_parameters=dict(
                    sliding_attention=rope(10000.0),
                    full_attention=rope(1000000.0, rope_type="proportional", partial_rotary_factor=0.25),
                ),
            ),
            vision_config=dict(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                patch_size=4,
                position_embedding_size=16,
                use_clipped_linears=True,
            ),
            audio_config=None,
            image_token_id=90,
            video_token_id=91,
            boi_token_id=92,
            eoi_token_id=93,
            boa_token_id=94,
            eoa_token_index=94,
            audio_token_id=95,
        ),
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        dict(
            text_config=sized(intermediate_size=32, rope_parameters=rope(1000000.0, mrope_section=[1, 1, 2]), tie_word_embeddings=True),
            vision_config=dict(depth=1, embed_dim=8, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=4),
            tie_word_embeddings=True,
            image_token_id=90,
            video_token_id=91,
            vision_start_token_id=92,
            vision_end_token_id=93,
        ),
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        dict(
            text_config=sized(intermediate_size=32, rope_parameters=rope(1000000.0, mrope_section=[1, 1, 2])),
            vision_config=dict(
                depth=1, hidden_size=8, out_hidden_size=32, num_heads=2, intermediate_size=16, patch_size=4, window_size=16, fullatt_block_indexes=[0]
            ),
            tie_word_embeddings=False,
            image_token_id=90,
            video_token_id=91,
            vision_start_token_id=92,
            vision_end_token_id=93,
        ),
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        dict(
            text_config=sized(intermediate_size=32, head_dim=8, rope_parameters=rope(5000000.0, mrope_section=[2, 1, 1], mrope_interleaved=True), tie_word_embeddings=True),
            vision_config=dict(
                depth=1,
                hidden_size=8,
                out_hidden_size=32,
                num_heads=2,
                intermediate_size=16,
                patch_size=4,
                num_position_embeddings=16,
                deepstack_visual_indexes=[0],
            ),
            tie_word_embeddings=True,
            image_token_id=90,
            video_token_id=91,
            vision_start_token_id=92,
            vision_end_token_id=93,
        ),
    ),
    "lfm2_vl": (
        "Lfm2VlForConditionalGeneration",
        dict(
            text_config=sized(
                intermediate_size=32,
                model_type="lfm2",
                layer_types=["conv", "full_attention"],
                block_auto_adjust_ff_dim=False,
                conv_L_cache=3,
                rope_parameters=rope(1000000.0),
            ),
            vision_config=dict(
                model_type="siglip2_vision_model",
                vision_use_head=False,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                patch_size=4,
                num_patches=16,
            ),
            projector_hidden_size=32,
            image_token_id=90,
        ),
    ),
}


def build(name):
    """A model whose every number is random: norms and scales around what they begin at, products about as large as their input."""
    kind, fields = FAMILIES[name]
    if ":" in kind:
        auto, config = kind.split(":")
        model = getattr(transformers, auto).from_config(getattr(transformers, config)(**fields))
    else:
        model_class = getattr(transformers, kind)
        model = model_class(model_class.config_class(**fields))
    random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for path, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=random)
            if p.dim() < 2 or "norm" in path:
                p.copy_((p if torch.all(p == p.flatten()[0]) else torch.zeros_like(p)) + 0.3 * noise)
            elif "embed_tokens" in path or "wte" in path or "embed_in" in path:
                p.copy_(noise)
            else:
                p.copy_(noise * 1.2 / p[0].numel() ** 0.5)
        for path, b in model.named_buffers():
            if path.endswith("layer_scalar"):
                b.copy_(1 + 0.3 * torch.randn(b.shape, generator=random))
    return model.to(torch.bfloat16)


# Where transformers 5 saves other names than the files on the hub have: those of the towers have `vision_model.`, GPT-2's have no
# prefix. Gemma 3n is built without its towers, which are made of timm's classes, and put under the wrapper's names here.
RENAMED = {
    "gemma3": ("vision_tower.", "vision_tower.vision_model."),
    "llava": ("vision_tower.", "vision_tower.vision_model."),
    "lfm2_vl": ("model.vision_tower.", "model.vision_tower.vision_model."),
    "gpt2": ("transformer.", ""),
    "gemma3n": ("model.", "model.language_model."),
}


def rename(file, old, new):
    weights = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def make(name):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    build(name).save_pretrained(folder)
    if name in RENAMED:
        rename(folder / "model.safetensors", *RENAMED[name])
    if name == "gemma3n":
        text = transformers.AutoConfig.from_pretrained(folder).to_dict()
        del text["_name_or_path"], text["architectures"]
        config = transformers.Gemma3nConfig(text_config=text, architectures=["Gemma3nForConditionalGeneration"], dtype="bfloat16")
        config.save_pretrained(folder)
    for file in folder.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            file.unlink()
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    for name in parser.parse_args().names or FAMILIES:
        make(name)


if __name__ == "__main__":
    main()

# What mlx_lm 0.32.2 makes of the folders, seen with these files. test_fixtures.py has the fields, and for each form a test that it runs.
#
# as saved, loads and loses nothing   afmoe, gemma, gemma2, glm, gptj, laguna, llava, ministral3, nemotron, phi, qwen2, qwen2_vl, qwen3, qwen3_vl, starcoder2
#   (gemma2, gptj, llava, nemotron, phi, starcoder2, gemma, glm, qwen2 and qwen2_vl pass over rope_parameters: mlx_lm's default is what it says here)
# as saved, loads and passes over     cohere, hunyuan_v1_dense, internlm3, iquestcoder, llama, mistral, mistral3, olmo2, phi3, pixtral,
#   rope_parameters without a word    seed_oss, smollm3: other logits, by 0.1 to 0.7 of their range
# as saved, does not load             apertus, cohere2, ernie4_5, exaone4, exaone_moe, gemma3, gemma3_text, gemma3n, gemma4, gemma4_text, glm4, gpt2,
#                                     gpt_bigcode, gpt_neox, granite, helium, lfm2, lfm2_vl, llama4, muse_glimmer, nanochat, olmo3, qwen2_5_vl, stablelm
# config of transformers 4, loads     all but gemma3 and gemma4 (sizes of the vocabulary), gpt_bigcode (n_inner), and those of the next row
# other tensors needed                gemma3n (k and v of sharing layers), lfm2_vl (names, axes of the taps), nanochat (names)
#
# In the spelling of transformers 4, mlx_lm and transformers agree on these weights to 1e-3 of the logits' range (transformers 5.24 rounds the
# frequencies of rotary positions with the weights; nearer where it does not). Two differ by what mlx_lm leaves out: glm (it turns the whole head),
# mistral (it knows no window). Ids from 90 on stand for images in some wrappers: transformers' gemma4 alone embeds those as padding.
#
# No class in transformers 5.24, so no folder here; their files come with code of their own:
#   exaone, internlm2, minicpm, plamo, plamo2, plamo3, baichuan_m1, telechat3, mimo, nemotron-nas, lille-130m, iquestloopcoder, qwen, phi3small,
#   phixtral, openelm, afm7, xverse
# A class in transformers and none in mlx_lm: arcee.
