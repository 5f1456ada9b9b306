"""``python -m tests.golden.trim REFERENCE``: the reference outputs in ``tests/golden/all``, as small as tests can use.

Kept are every case with its latents, projected latents and the logits of each sample's last positions (the losses
cover the others), and every checkpoint that ``tests/golden/reference`` lacks: weights, configurations, tokenizers.
"""

import shutil
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

POSITIONS = 4
KEPT = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "model_config.json", "processor_config.json")  # fmt: skip
HERE = Path(__file__).parent


def trim(reference: Path, out: Path) -> None:
    for case in sorted((reference / "cases").iterdir()):
        folder = out / "cases" / case.name
        folder.mkdir(parents=True)
        shutil.copyfile(case / "case.json", folder / "case.json")
        arrays = load_file(case / "arrays.safetensors")
        kept = {name: array for name, array in arrays.items() if name.split("/")[1] in ("latents", "projected")}
        logits = {name: array[-POSITIONS:].copy() for name, array in arrays.items() if name.endswith("/logits")}
        save_file(kept | logits, folder / "arrays.safetensors")
    for checkpoint in sorted((reference / "checkpoints").iterdir()):
        if (HERE / "reference" / "checkpoints" / checkpoint.name).is_dir():
            continue
        for path in sorted(checkpoint.rglob("*")):
            if path.name in KEPT or path.name.endswith((".safetensors", ".safetensors.index.json")):
                copy = out / "checkpoints" / path.relative_to(reference / "checkpoints")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


if __name__ == "__main__":
    trim(Path(sys.argv[1]), HERE / "all")
