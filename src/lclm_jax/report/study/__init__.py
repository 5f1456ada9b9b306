"""Reports of ablation studies."""
