"""A run of two stages in which many keys differ from their defaults."""

BACKBONE = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "mlp_size": 16,
    "max_positions": 64,
}
VALUES = {
    "name": "first",
    "run_dir": "runs/first",
    "corpus": {"collections": {"web": {"format": "jsonl", "paths": ["web/*.jsonl"]}}},
    "tokenizer": {"decoder": "tokenizer"},
    "model": {
        "encoder": BACKBONE, "decoder": BACKBONE, "ratio": 4, "window": 16, "loss_chunk": 8, "scan_layers": False,
        "pooling_backend": "reference", "remat": "dots", "memory_token_ids": [29, 30, 31],
        "lora": {"decoder": {"rank": 2}},
    },
    "data": {
        "sources": {"web": {"collection": "web", "objective": "cpt"}},
        "pack": {"row_length": 32, "encoder_rows": 2, "encoder_row_length": 16},
    },
    "stages": {
        "base": {"lr": {"adapter": 1e-3, "decoder": 1e-4}, "steps": 4, "tokens": 4096, "mixture": {"web": 1},
                 "batch_rows": 4, "microbatches": 2},
        "more": {"lr": {"decoder_lora": 1e-3}, "steps": 2, "mixture": {"web": 1}, "batch_rows": 4},
    },
    "mesh": {"fsdp": 1},
}  # fmt: skip
