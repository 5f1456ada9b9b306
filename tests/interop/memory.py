"""Peak memory of ``lclm import``, of starting a run from imported weights, and of an export; random weights.

Run as a program, so that the peak is that of nothing else: ``python memory.py ACTION FOLDER SIZE``. ``make-source`` and
``make-checkpoint`` write the input, in pieces, in a process of their own; ``import`` and ``start`` read the former,
``export`` the latter, and print JSON.
"""

import json
import resource
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts
from orbax.checkpoint._src.arrays.subchunking import choose_chunk_shape
from tests.exporting import export_model

from lclm_jax.config import MeshConfig, ModelConfig, parse_config
from lclm_jax.interop.hf_weight_map import tensor_table
from lclm_jax.interop.import_hf import ImportOptions, import_model
from lclm_jax.interop.init_from_hf import imported_params
from lclm_jax.interop.param_source import shapes_of
from lclm_jax.parallel import make_mesh
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer
from lclm_jax.train.checkpoints.checkpoint import CHUNK_BYTES, TABLE_CHUNK_BYTES
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint

SMALL = dict(num_layers=12, num_heads=8, num_kv_heads=4, head_dim=64, vocab_size=20_000)
SIZES = {
    "small": {
        "encoder": SMALL | dict(hidden_size=512, mlp_size=1536),
        "decoder": SMALL | dict(hidden_size=768, mlp_size=2304),
    },
    "quarter": {
        "encoder": {"preset": "qwen3_embedding_0p6b", "num_layers": 7},
        "decoder": {"preset": "qwen3_4b", "num_layers": 9},
    },
    "full": {"encoder": {"preset": "qwen3_embedding_0p6b"}, "decoder": {"preset": "qwen3_4b"}},
}


def model_of(folder: Path, size: str) -> ModelConfig:
    """The model of ``size`` for the tokenizer in ``folder``."""
    if not (folder / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(["some words to train on"], 290, folder / "tokenizer")
    ids = tuple(Tokenizer(folder / "tokenizer").memory_ids)
    return ModelConfig(**SIZES[size], memory_token_ids=ids)


class RandomLeaves:
    """Random leaves, one piece at a time: the same numbers in every layer."""

    def __init__(self, model: ModelConfig):
        self.shapes = shapes_of(tensor_table(model))
        self._block = np.random.default_rng(0).standard_normal(2**27, np.float32)

    def read(self, path: str, index=()):
        """``leaf[index]``."""
        shape = np.empty(self.shapes[path], np.bool_)[index].shape if len(self.shapes[path]) < 3 else None
        shape = self.shapes[path][1:] if shape is None else shape
        return self._block[: int(np.prod(shape))].reshape(shape)


def make_checkpoint(folder: Path, model: ModelConfig) -> None:
    """Write ``folder/params`` as ``train.checkpoint`` lays it out, chunk by chunk."""
    leaves, tree = RandomLeaves(model), {}
    params = folder.absolute() / "params"
    for path, shape in leaves.shapes.items():
        layered = "layers" in path.split("/")
        target = int(np.prod(shape[1:])) * 4 if layered else TABLE_CHUNK_BYTES
        axes = (0,) if layered and target >= CHUNK_BYTES else ()
        whole = layered and not axes
        chunks = shape if whole else choose_chunk_shape(shape, shape, np.dtype(np.float32), target, shard_axes=axes)
        store = {"driver": "ocdbt", "base": f"file://{params}", "path": path.replace("/", ".") + "/"}
        metadata = dict(shape=shape, chunks=chunks, dtype="<f4", compressor={"id": "zstd", "level": 1})
        array = ts.open({"driver": "zarr", "kvstore": store, "metadata": metadata}, create=True).result()
        if layered:
            layer = leaves.read(path, (0,))
            for number in [...] if whole else range(shape[0]):
                array[number].write(np.broadcast_to(layer, shape) if whole else layer).result()
        else:
            for start in range(0, shape[0], chunks[0]):
                rows = slice(start, min(start + chunks[0], shape[0]))
                array[rows].write(leaves.read(path, (rows,))).result()
        keys = [{"key": key, "key_type": 2} for key in path.split("/")]
        tree[path] = {"key_metadata": keys, "value_metadata": {"write_shape": shape}}
    (params / "_METADATA").write_text(json.dumps({"tree_metadata": tree, "use_ocdbt": True, "use_zarr3": False}))


def start(folder: Path, model: ModelConfig) -> int:
    """Read the import onto the mesh; returns the bytes of the parameters."""
    values = {
        "name": "memory",
        "tokenizer": {"decoder": str(folder / "tokenizer")},
        "model": model.model_dump(mode="json"),
        "init": {"lclm": str(folder / "source")},
        "data": {"sources": {"all": {"collection": "documents", "objective": "cpt"}}},
        "stages": {"only": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"all": 1}}},
    }
    params = imported_params(parse_config(values), make_mesh(MeshConfig(), jax.devices()[:1]))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(params)))


def main(action: str, folder: Path, size: str) -> None:
    """Run one action."""
    model = model_of(folder, size)
    tokenizers = dict(decoder_tokenizer=folder / "tokenizer", encoder_tokenizer=folder / "tokenizer")
    layer = 4 * sum(int(np.prod(t.our_shape)) for t in tensor_table(model) if t.folder == "decoder" and t.layer == 0)
    if action == "make-source":
        export_model(RandomLeaves(model), model, folder / "source", dtype="bfloat16", **tokenizers)
        return
    if action == "make-checkpoint":
        shutil.rmtree(folder / "1", ignore_errors=True)
        make_checkpoint(folder / "1", model)
        return
    jax.block_until_ready(jax.jit(lambda: jax.random.normal(jax.random.key(0), (8, 8)))())  # loads the compiler
    before = peak()
    nbytes = 4 * sum(int(np.prod(shape)) for shape in shapes_of(tensor_table(model)).values())
    if action == "start":
        nbytes = start(folder, model)
    elif action == "import":  # the tables grow, so that their mean is taken too
        import_model(folder / "source", folder / "import", options=ImportOptions(pad_to=128))
    else:
        export_model(LazyCheckpoint(folder / "1"), model, folder / "export", dtype="bfloat16", **tokenizers)
    values = {"parameters": nbytes, "layer": layer, "before": before, "peak": peak()}
    sys.stdout.write(json.dumps(values) + "\n")


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
