"""Toy models of transformers: a few thousand parameters each, four layers, no dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 64
TEXT = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
BERT = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 32,
}
IMAGE = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 5,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class ToyModel:
    """How to build one, and what to give it.

    Attributes:
        model: name of the class in transformers.
        config: name of its config's class.
        options: of the config.
        batch: makes the arguments for a number of rows.
        cuts: for the traced way, what begins each stage, by number of stages.
        ties: whether weights are tied in it.
        fixes_batch: whether it makes a number of the rows, so that a trace holds for that alone.
    """

    model: str
    config: str
    options: dict[str, Any]
    batch: Callable[[int], dict[str, Tensor]]
    cuts: dict[int, list[str]] = field(default_factory=dict)
    ties: bool = False
    fixes_batch: bool = False

    def make(self, device: str = "cpu", **options: Any) -> nn.Module:
        """The model, with the same values each time."""
        import transformers

        config = getattr(transformers, self.config)(**{**self.options, **options})
        config.use_cache = False
        torch.manual_seed(0)
        with torch.device(device):
            model = getattr(transformers, self.model)(config)
        return model.train()


def token_ids(rows: int, length: int = 8) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length))


def text(rows: int) -> dict[str, Tensor]:
    """With padding at the end of every other row."""
    mask = torch.ones(rows, 8, dtype=torch.long)
    mask[::2, 6:] = 0
    ids = token_ids(rows)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


def unpadded_text(rows: int) -> dict[str, Tensor]:
    return {"input_ids": token_ids(rows), "labels": token_ids(rows)}


def masked_text(rows: int) -> dict[str, Tensor]:
    return {**text(rows), "labels": token_ids(rows)}


def translation(rows: int) -> dict[str, Tensor]:
    return {**text(rows), "labels": token_ids(rows, 6)}


def images(rows: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 16, 16), "labels": torch.arange(rows) % 5}


def images_with_text(rows: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 16, 16), **paired_text(rows)}


def paired_text(rows: int) -> dict[str, Tensor]:
    ids = token_ids(rows)
    ids[:, -1] = VOCABULARY - 1
    return {"input_ids": ids, "return_loss": True}  # type: ignore[dict-item]


def speech(rows: int) -> dict[str, Tensor]:
    return {"input_features": torch.randn(rows, 8, 32), "labels": token_ids(rows, 6)}


def causal(name: str, **options: Any) -> ToyModel:
    return ToyModel(
        f"{name}ForCausalLM",
        f"{name}Config",
        {**TEXT, **options},
        text,
        cuts=cuts_of("model.layers"),
        ties=bool(options.get("tie_word_embeddings")),
    )


def cuts_of(layers: str) -> dict[int, list[str]]:
    """Uneven: the first of two stages has one layer."""
    return {
        2: [f"{layers}.1"],
        3: [f"{layers}.1", f"{layers}.3"],
        4: [f"{layers}.1", f"{layers}.2", f"{layers}.3"],
    }


def two_towers(first: str, second: str) -> dict[int, list[str]]:
    """Each of two layers."""
    return {
        2: [f"{second}.0"],
        3: [f"{first}.1", f"{second}.1"],
        4: [f"{first}.1", f"{second}.0", f"{second}.1"],
    }


TOY_MODELS: dict[str, ToyModel] = {
    "bart": ToyModel(
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32,
            "dropout": 0.0,
            "forced_eos_token_id": None,
        },
        translation,
        cuts=two_towers("model.encoder.layers", "model.decoder.layers"),
        ties=True,
    ),
    "bert": ToyModel(
        "BertForMaskedLM",
        "BertConfig",
        BERT,
        masked_text,
        cuts=cuts_of("bert.encoder.layer"),
        ties=True,
    ),
    "bloom": ToyModel(
        "BloomForCausalLM",
        "BloomConfig",
        {"n_layer": 4, "hidden_size": 32, "n_head": 4, "vocab_size": VOCABULARY},
        text,
        cuts=cuts_of("transformer.h"),
        ties=True,
    ),
    "clip": ToyModel(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_attention_heads": 4,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 16,
                "eos_token_id": VOCABULARY - 1,
            },
            "vision_config": {
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_attention_heads": 4,
                "image_size": 16,
                "patch_size": 8,
            },
            "projection_dim": 16,
        },
        images_with_text,
        cuts=two_towers("vision_model.encoder.layers", "text_model.encoder.layers"),
        fixes_batch=True,
    ),
    "cohere": causal("Cohere", tie_word_embeddings=True),
    "deepseek_v3": causal(
        "DeepseekV3",
        **EXPERTS,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        qk_nope_head_dim=8,
        first_k_dense_replace=1,
        num_key_value_heads=4,
    ),
    "distilbert": ToyModel(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {
            "n_layers": 4,
            "dim": 32,
            "hidden_dim": 48,
            "n_heads": 4,
            "vocab_size": VOCABULARY,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
        masked_text,
        cuts=cuts_of("distilbert.transformer.layer"),
        ties=True,
    ),
    "electra": ToyModel(
        "ElectraForMaskedLM",
        "ElectraConfig",
        {**BERT, "embedding_size": 16},
        masked_text,
        cuts=cuts_of("electra.encoder.layer"),
        ties=True,
    ),
    "falcon": ToyModel(
        "FalconForCausalLM",
        "FalconConfig",
        {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64},
        text,
        cuts=cuts_of("transformer.h"),
        ties=True,
    ),
    "gemma": causal("Gemma", head_dim=8, tie_word_embeddings=True),
    "gemma2": causal("Gemma2", head_dim=8, tie_word_embeddings=True, sliding_window=4),
    "gpt2": ToyModel(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "n_layer": 4,
            "n_embd": 32,
            "n_head": 4,
            "vocab_size": VOCABULARY,
            "n_positions": 32,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        text,
        cuts=cuts_of("transformer.h"),
        ties=True,
    ),
    "gpt_neo": ToyModel(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "num_layers": 4,
            "hidden_size": 32,
            "num_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 4,
        },
        text,
        cuts=cuts_of("transformer.h"),
        ties=True,
    ),
    "gpt_neox": ToyModel(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**TEXT, "hidden_dropout": 0.0},
        text,
        cuts=cuts_of("gpt_neox.layers"),
    ),
    "gpt_oss": causal("GptOss", **EXPERTS, num_local_experts=4, head_dim=8),
    "granite": causal("Granite"),
    "llama": causal("Llama"),
    "mamba": ToyModel(
        "MambaForCausalLM",
        "MambaConfig",
        {
            "num_hidden_layers": 4,
            "hidden_size": 16,
            "state_size": 4,
            "expand": 2,
            "conv_kernel": 4,
            "time_step_rank": 4,
            "vocab_size": VOCABULARY,
        },
        unpadded_text,
        cuts=cuts_of("backbone.layers"),
        ties=True,
    ),
    "mistral": causal("Mistral", head_dim=8, sliding_window=4),
    "mixtral": causal("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "olmo2": causal("Olmo2"),
    "opt": ToyModel(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "num_hidden_layers": 4,
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 48,
            "num_attention_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32,
            "dropout": 0.0,
        },
        text,
        cuts=cuts_of("model.decoder.layers"),
        ties=True,
    ),
    "phi": causal("Phi", num_key_value_heads=4, resid_pdrop=0.0, embd_pdrop=0.0),
    "phi3": causal("Phi3", resid_pdrop=0.0, embd_pdrop=0.0),
    "qwen2_moe": causal("Qwen2Moe", **EXPERTS, num_experts=4, shared_expert_intermediate_size=16),
    "qwen3": causal("Qwen3", head_dim=8),
    "qwen3_moe": causal("Qwen3Moe", **EXPERTS, num_experts=4, head_dim=8),
    "resnet": ToyModel(
        "ResNetForImageClassification",
        "ResNetConfig",
        {
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 16, 32],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "num_labels": 5,
        },
        images,
        cuts=cuts_of("resnet.encoder.stages"),
    ),
    "roberta": ToyModel(
        "RobertaForMaskedLM",
        "RobertaConfig",
        BERT,
        masked_text,
        cuts=cuts_of("roberta.encoder.layer"),
        ties=True,
    ),
    "t5": ToyModel(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "num_layers": 2,
            "num_decoder_layers": 2,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_heads": 4,
            "vocab_size": VOCABULARY,
            "dropout_rate": 0.0,
            "decoder_start_token_id": 0,
        },
        translation,
        cuts=two_towers("encoder.block", "decoder.block"),
        ties=True,
    ),
    "vit": ToyModel(
        "ViTForImageClassification", "ViTConfig", IMAGE, images, cuts=cuts_of("vit.layers")
    ),
    "whisper": ToyModel(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": VOCABULARY,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "dropout": 0.0,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        speech,
        cuts=two_towers("model.encoder.layers", "model.decoder.layers"),
        ties=True,
    ),
}
