"""How well a store is searched by its vectors: ``python benchmarks/store_search.py RUN FOLDER``.

The held-out documents of a run are added to a store in FOLDER with the run's export. Excerpts of them, begun anywhere,
are then searched for: how often is a window of the right document among the
first 1, 5 and 20?
"""

import sys
from pathlib import Path

import numpy as np

from lclm_jax.config import RunPaths, load_config
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.shards import open_split
from lclm_jax.inference.documents import DocumentIndex, add_documents
from lclm_jax.inference.generate import Generator

QUERIES = 300
FIRST = (1, 5, 20)


def main(run: Path, folder: Path) -> None:
    """Print shares of queries that find their document."""
    config = load_config(run / "config.yaml")
    split = open_split(config, config.eval.collection, "held_out")
    texts = [column_text(columns["text"]) for columns in split.read_many(range(len(split)))]
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    generator = Generator.from_folder(RunPaths(config).export, store=folder / "latents.db")
    counts = add_documents(generator, [folder / "texts"])
    index = DocumentIndex(generator)
    sys.stdout.write(f"{counts['documents']} documents, {len(index)} windows of {generator.model.window} tokens\n")
    rng = np.random.default_rng(0)
    for tokens in (16, 64, 256):
        ranks = []
        for _ in range(QUERIES):
            number = int(rng.integers(len(texts)))
            _, starts, _ = generator.encoder_tokenizer.encode_with_offsets(texts[number])
            if len(starts) <= tokens:
                continue
            first = int(rng.integers(len(starts) - tokens))
            query = texts[number][starts[first] : starts[first + tokens]]
            titles = [Path(hit.title).stem for hit in index.search(query, max(FIRST))]
            ranks.append(titles.index(str(number)) if str(number) in titles else max(FIRST))
        found = ", ".join(f"{np.mean(np.array(ranks) < k):.2f} among {k}" for k in FIRST)
        sys.stdout.write(f"excerpts of {tokens} tokens ({len(ranks)}): {found}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
