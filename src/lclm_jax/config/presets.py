"""Shapes of the released backbones (from their published config.json files)."""

_QWEN3: dict[str, bool | int | float] = {
    "head_dim": 128,
    "num_kv_heads": 8,
    "rope_theta": 1e6,
    "norm_eps": 1e-6,
    "qk_norm": True,
}

BACKBONES: dict[str, dict[str, bool | int | float]] = {
    "qwen3_embedding_0p6b": _QWEN3
    | dict(num_layers=28, hidden_size=1024, num_heads=16, mlp_size=3072, vocab_size=151669)
    | dict(max_positions=32768, tie_embeddings=True),
    "qwen3_embedding_4b": _QWEN3
    | dict(num_layers=36, hidden_size=2560, num_heads=32, mlp_size=9728, vocab_size=151665)
    | dict(max_positions=40960, tie_embeddings=True),
    "qwen3_0p6b": _QWEN3
    | dict(num_layers=28, hidden_size=1024, num_heads=16, mlp_size=3072, vocab_size=151936)
    | dict(max_positions=40960, tie_embeddings=True),
    "qwen3_1p7b": _QWEN3
    | dict(num_layers=28, hidden_size=2048, num_heads=16, mlp_size=6144, vocab_size=151936)
    | dict(max_positions=40960, tie_embeddings=True),
    "qwen3_4b": _QWEN3
    | dict(num_layers=36, hidden_size=2560, num_heads=32, mlp_size=9728, vocab_size=151936)
    | dict(max_positions=262144, tie_embeddings=True, rope_theta=5e6),
    "qwen3_8b": _QWEN3
    | dict(num_layers=36, hidden_size=4096, num_heads=32, mlp_size=12288, vocab_size=151936)
    | dict(max_positions=40960, tie_embeddings=False),
    "qwen3_32b": _QWEN3
    | dict(num_layers=64, hidden_size=5120, num_heads=64, mlp_size=25600, vocab_size=151936)
    | dict(max_positions=40960, tie_embeddings=False),
    "smollm2_135m": dict(num_layers=30, hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_size=1536)
    | dict(vocab_size=49152, rope_theta=1e5, norm_eps=1e-5, qk_norm=False, max_positions=8192, tie_embeddings=True),
}

HUB = {
    "Qwen/Qwen3-Embedding-0.6B": "qwen3_embedding_0p6b",
    "Qwen/Qwen3-Embedding-4B": "qwen3_embedding_4b",
    "Qwen/Qwen3-0.6B": "qwen3_0p6b",
    "Qwen/Qwen3-1.7B": "qwen3_1p7b",
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3_4b",
    "Qwen/Qwen3-8B": "qwen3_8b",
    "Qwen/Qwen3-32B": "qwen3_32b",
}
"""Ids of the released Qwen3 models on the Hugging Face hub -> their presets."""
