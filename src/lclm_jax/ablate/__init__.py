"""Ablation studies: variants of one configuration, trained on the same batches, compared with intervals."""
