"""Keys of the JSON files beside foreign weights: which mean nothing here, and which do only with certain values."""

from collections.abc import Collection, Mapping
from pathlib import Path

from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.types import ReadOnlyJson


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_OFF: tuple[object, ...] = (None, False)
_EMPTY: tuple[object, ...] = (None, [], {}, "")
_ZERO: tuple[object, ...] = (None, 0)

_SAMPLING = _names(
    """
    do_sample temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff num_beams num_beam_groups
    early_stopping diversity_penalty repetition_penalty length_penalty max_length max_new_tokens max_time
    num_return_sequences output_scores output_logits output_attentions output_hidden_states
    return_dict_in_generate remove_invalid_values use_cache cache_implementation cache_config penalty_alpha
    low_memory renormalize_logits return_legacy_cache top_h transformers_version disable_compile compile_config
    is_assistant num_assistant_tokens prefill_chunk_size num_assistant_tokens_schedule
    assistant_confidence_threshold assistant_lookbehind target_lookbehind assistant_early_exit
    prompt_lookup_num_tokens max_matching_ngram_size chat_format
    """
)
"""How other programs pick tokens by default: ``lclm generate`` is told by its own options."""

PICKS_TOKENS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids"), _EMPTY),
    **dict.fromkeys(
        ("stop_strings", "sequence_bias", "exponential_decay_length_penalty", "watermarking_config"), _EMPTY
    ),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"), (None,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), _ZERO),
    "token_healing": _OFF,
    "guidance_scale": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "constraints": _EMPTY,
    "dola_layers": _EMPTY,
}
"""What changes which tokens come, which generation here does not do, and the values with which it is off."""

_IDS = _names("bos_token_id eos_token_id pad_token_id unk_token_id decoder_start_token_id sep_token_id")

MODEL_HARMLESS = (
    *_SAMPLING,
    *_IDS,
    *_names(
        """
        _name_or_path name_or_path _model_name_or_path architectures torch_dtype dtype initializer_range pretraining_tp
        max_window_layers return_dict id2label label2id num_labels problem_type task_specific_params finetuning_task
        chunk_size_feed_forward tokenizer_class prefix torchscript use_bfloat16 tf_legacy_loss _attn_implementation
        attn_implementation _attn_implementation_autoset _attn_implementation_internal unsloth_version unsloth_fixed
        gradient_checkpointing keys_to_ignore_at_inference transformers_weights is_llama_config transformers.js_config
        """
    ),
)
"""Keys of ``config.json`` that change nothing here, whatever their value."""

MODEL_FIXED: dict[str, tuple[object, ...]] = {
    **PICKS_TOKENS,
    "hidden_act": (None, "silu"),
    "mlp_bias": _OFF,
    "attention_dropout": (None, 0, 0.0),
    "hidden_dropout": (None, 0, 0.0),
    "resid_pdrop": (None, 0, 0.0),
    "quantization_config": (None,),
    "compression_config": (None,),
    "auto_map": _EMPTY,
    "rope_interleaved": _OFF,
    "use_mrope": _OFF,
    "is_encoder_decoder": _OFF,
    "is_decoder": (None, False, True),
    "add_cross_attention": _OFF,
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": _OFF,
    "pruned_heads": _EMPTY,
}
"""Keys of ``config.json`` for what the forward pass does not have, and the values with which it is off."""

GENERATION_HARMLESS = (*_SAMPLING, *_IDS, "_from_model_config")

TOKENIZER_HARMLESS = _names(
    """
    add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens bos_token
    chat_template clean_up_tokenization_spaces cls_token eos_token errors extra_special_tokens from_slow
    is_local legacy local_files_only mask_token max_length model_input_names model_max_length
    model_specific_special_tokens name_or_path pad_to_multiple_of pad_token pad_token_type_id padding_side
    processor_class return_token_type_ids sep_token sp_model_kwargs spaces_between_special_tokens special_tokens
    special_tokens_map_file stride tokenizer_class tokenizer_file truncation truncation_side truncation_strategy
    unk_token use_default_system_prompt use_fast vocab_file merges_file tokenizer_object image_token audio_token
    video_token response_schema backend fix_mistral_regex padding device max_seq_length vocab_size _commit_hash
    """
)
"""Keys of ``tokenizer_config.json`` that are read, or that say nothing about ids that ``tokenizer.json`` does not."""

TOKENIZER_FIXED: dict[str, tuple[object, ...]] = {
    "auto_map": _EMPTY,
    "split_special_tokens": _OFF,
    "do_lower_case": _OFF,
    "remove_space": (None, True, False),
    "keep_accents": (None, True, False),
}

LCLM_HARMLESS = _names(
    """
    model_type schema_version architectures transformers_version torch_dtype dtype encoder_name decoder_name
    embed_model_name llm_model_name
    """
)
"""Keys of an LCLM's ``model_config.json`` that say where it came from."""

SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
MAP_HARMLESS = (*SPECIAL_NAMES, "additional_special_tokens", "image_token", "audio_token", "video_token")


def check_keys(
    path: Path, values: ReadOnlyJson, known: Collection[str], fixed: Mapping[str, tuple[object, ...]], what: str
) -> None:
    """Raise ``CheckpointError`` for a key of ``values`` that is neither ``known`` nor has one of its ``fixed`` values.

    A key that is null is off, whatever it is. ``what``: of what the keys are settings, for the message.
    """
    for name, value in values.items():
        if value is None or name in known:
            continue
        if name not in fixed:
            raise CheckpointError(
                f"{path}: {name}={shown(value)} is not a setting of {what} that is known; take it out if it changes"
                " nothing, or use another model"
            )
        if not any(value == allowed and type(value) is type(allowed) for allowed in fixed[name] if allowed is not None):
            usual = " or ".join(shown(allowed) for allowed in fixed[name])
            raise CheckpointError(f"{path}: {name}={shown(value)} is not supported; it must be {usual}")


def shown(value: object) -> str:
    """``value`` as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
