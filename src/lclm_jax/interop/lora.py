"""LoRA on the way out, merged into its kernels while they are read or as adapter folders of ``peft``; and back in.

An adapter folder is ``adapter_config.json`` and ``adapter_model.safetensors``. Names are those that peft gives the
updates of ``Qwen3ForCausalLM`` or ``LlamaForCausalLM`` (decoder) and ``Qwen3Model`` or ``LlamaModel`` (encoder).
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from lclm_jax.config import LoraConfig, LoraTowers, ModelConfig
from lclm_jax.config.model import LoraTarget
from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_config import parsed, read_json, write_json
from lclm_jax.interop.hf_weight_map import Tensor, backbone_tensors, tensor_table
from lclm_jax.interop.param_source import Leaves, shapes_of
from lclm_jax.interop.safetensors_io import CheckpointError, Declared, TensorFolder, write_folder
from lclm_jax.model.lora import is_lora, update_of
from lclm_jax.types import JsonObject

FOLDER = "lora"
"""Folder of an export that holds ``decoder/`` and ``encoder/`` adapter folders."""
TOWERS = ("decoder", "encoder")

_USUAL: JsonObject = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""What ``adapter_config.json`` says of every LoRA that we compute."""


class _Factor(NamedTuple):
    """One tensor of an adapter file: peft's name, our leaf, the layer in it, the shape in the file."""

    name: str
    path: str
    layer: int
    shape: tuple[int, int]


class ExportedLeaves:
    """The leaves of a model without LoRA, read from those of one with it.

    Args:
        leaves: parameters of ``model``. LoRA leaves may be absent (of a checkpoint older than they are).
        model: the model, with LoRA.
        merge: add every update to its kernel; else kernels are as they are.
    """

    def __init__(self, leaves: Leaves, model: ModelConfig, merge: bool):
        self._leaves, self._model, self._merge = leaves, model, merge

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every leaf and its shape."""
        return {path: shape for path, shape in self._leaves.shapes.items() if not is_lora(path)}

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """``leaf[index]``; of a kernel that has an update, a layer or all of them."""
        array = self._leaves.read(path, index)
        parent, _, name = path.rpartition("/")
        if not self._merge or name != "kernel" or f"{parent}/lora_a" not in self._leaves.shapes:
            return array
        if len(index) > 1 or not all(isinstance(cut, int) for cut in index):
            raise LclmError(f"{path} was asked for at {index}; a merged kernel is read by the layer or whole")
        lora = getattr(self._model.lora, path.split("/")[0])
        lora_a, lora_b = (self._leaves.read(f"{parent}/{leaf}", index) for leaf in ("lora_a", "lora_b"))
        if index:
            return array + update_of(lora, lora_a, lora_b)
        return array + np.stack([update_of(lora, a, b) for a, b in zip(lora_a, lora_b, strict=True)])


def with_lora_of(model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """``model`` with LoRA only where ``shapes`` have it: a checkpoint may be older than ``model.lora``."""
    present = {path.split("/")[0] for path in shapes if is_lora(path)}
    towers = {tower: getattr(model.lora, tower) if tower in present else None for tower in TOWERS}
    return model.model_copy(update={"lora": LoraTowers(**towers)})


def write_peft(leaves: Leaves, model: ModelConfig, out_dir: Path, dtype: str = "float32") -> None:
    """Write ``out_dir/lora/decoder`` and ``out_dir/lora/encoder``, as far as ``leaves`` have LoRA there.

    Args:
        leaves: parameters of ``model``, LoRA leaves included.
        model: the model, with LoRA.
        out_dir: folder of an export made of ``ExportedLeaves(..., merge=False)``, without ``lora/``.
        dtype: float32, bfloat16 or float16.

    Raises:
        LclmError: the model has no LoRA, or the parameters lack its leaves.
    """
    if model.plain == model:
        raise LclmError("the model has no LoRA to write; leave out --lora peft, or train with model.lora")
    model = with_lora_of(model, leaves.shapes)
    if model.plain == model:
        raise LclmError("the checkpoint has no LoRA leaves, it is older than model.lora; export a later stage or step")
    for tower in TOWERS:
        if getattr(model.lora, tower) is not None:
            (out_dir / FOLDER / tower).mkdir(parents=True)
            _write_tower(leaves, model, tower, out_dir / FOLDER / tower, dtype)


def read_lora_towers(folder: Path) -> LoraTowers:
    """What the adapter folders below ``folder/lora`` are; raises ``CheckpointError`` for what is not computed here."""
    sources = {tower: folder / FOLDER / tower for tower in TOWERS}
    return LoraTowers(**{tower: _read_config(source) for tower, source in sources.items() if source.is_dir()})


def read_peft(folder: Path, model: ModelConfig) -> dict[str, np.ndarray]:
    """The LoRA leaves below ``folder/lora``, float32, by path; none if there is no such folder.

    Args:
        folder: a complete LCLM.
        model: its configuration, ``lora`` as ``read_lora_towers`` gives it.

    Raises:
        CheckpointError: a folder is damaged, or does not fit the model.
    """
    kernels = shapes_of(tensor_table(model))
    leaves: dict[str, np.ndarray] = {}
    for tower in TOWERS:
        lora, source = getattr(model.lora, tower), folder / FOLDER / tower
        if lora is None or not source.is_dir():
            continue
        stacks: dict[str, list[np.ndarray]] = {}
        for path, tensor in _read_factors(source, model, tower, lora):
            stacks.setdefault(path, []).append(tensor.T)  # torch stores both factors as [out, in]
        for path, stack in stacks.items():
            kernel = kernels[f"{path.rpartition('/')[0]}/kernel"]
            leaves[path] = np.stack(stack).reshape(_factor_shape(kernel, lora.rank, path))
    return leaves


def copy_peft(source: Path, folder: Path) -> None:
    """Copy ``source/lora``, as far as it holds adapter folders, to ``folder/lora``."""
    for tower in TOWERS:
        if (source / FOLDER / tower).is_dir():
            (folder / FOLDER / tower).mkdir(parents=True)
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                if (source / FOLDER / tower / name).is_file():
                    shutil.copyfile(source / FOLDER / tower / name, folder / FOLDER / tower / name)


def _read_factors(source: Path, model: ModelConfig, tower: str, lora: LoraConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(path of the leaf, a layer of it in the file's layout) for every tensor that ``lora`` calls for."""
    tensors = TensorFolder(source)
    factors = list(_factors(model, tower, lora))
    expected = {factor.name: factor.shape for factor in factors}
    if tensors.shapes != expected:
        names = sorted(n for n in expected.keys() | tensors.shapes.keys() if expected.get(n) != tensors.shapes.get(n))
        raise CheckpointError(
            f"{source} is no LoRA of this {tower}: {names[0]} has shape {tensors.shapes.get(names[0])}, not"
            f" {expected.get(names[0])} ({len(names)} such tensors); use the adapter of this very model"
        )
    for factor in factors:
        array = tensors.read(factor.name).astype(np.float32)
        if not np.isfinite(array).all():
            raise CheckpointError(f"{source}: {factor.name} holds NaN or infinity; use an undamaged adapter")
        yield factor.path, array


def _factor_shape(kernel: tuple[int, ...], rank: int, path: str) -> tuple[int, ...]:
    """Shape of a stacked factor; the output projection contracts two axes, every other one."""
    cut = 3 if path.split("/")[-2] == "o" else 2
    return (*kernel[:cut], rank) if path.endswith("lora_a") else (kernel[0], rank, *kernel[cut:])


def _read_config(source: Path) -> LoraConfig:
    path = source / "adapter_config.json"
    values = read_json(path)
    try:
        odd = {name: values[name] for name, usual in _USUAL.items() if values.get(name, usual) != usual}
        if odd:
            raise CheckpointError(f"{path} says {odd}, which is not computed here; merge that adapter with peft first")
        targets = tuple(name for name in get_args(LoraTarget) if f"{name}_proj" in values["target_modules"])
        shape = {"rank": values["r"], "alpha": values["lora_alpha"], "dropout": values["lora_dropout"]}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} lacks {error}; write the adapter again") from None
    return parsed(LoraConfig, {**shape, "targets": targets}, path)


def _write_tower(leaves: Leaves, model: ModelConfig, tower: str, folder: Path, dtype: str) -> None:
    lora: LoraConfig = getattr(model.lora, tower)
    factors = {factor.name: factor for factor in _factors(model, tower, lora)}
    declared = [Declared(name, factor.shape, dtype) for name, factor in factors.items()]

    def blocks(name: str) -> Iterator[np.ndarray]:
        factor = factors[name]
        # The rank is the last axis of our A, the first of our B; torch stores both factors as [out, in].
        yield leaves.read(factor.path, (factor.layer,)).reshape(factor.shape[::-1]).T

    write_folder(folder, declared, blocks, 2**62, "adapter_model")  # peft reads one file
    targets = sorted({name.rsplit(".", 3)[1] for name in factors})
    write_json(folder / "adapter_config.json", _peft_json(lora, targets, causal=tower == "decoder"))


def _factors(model: ModelConfig, tower: str, lora: LoraConfig) -> Iterator[_Factor]:
    prefix = "model." if tower == "decoder" else ""
    for tensor in backbone_tensors(getattr(model, tower), tower, prefix):
        if not _is_target(tensor, lora):
            continue
        assert tensor.layer is not None
        outputs, inputs = tensor.shape
        module, parent = tensor.name.removesuffix(".weight"), tensor.path.removesuffix("/kernel")
        name = f"base_model.model.{module}"
        yield _Factor(f"{name}.lora_A.weight", f"{parent}/lora_a", tensor.layer, (lora.rank, inputs))
        yield _Factor(f"{name}.lora_B.weight", f"{parent}/lora_b", tensor.layer, (outputs, lora.rank))


def _is_target(tensor: Tensor, lora: LoraConfig) -> bool:
    *_, parent, name = tensor.path.split("/")
    return tensor.layer is not None and name == "kernel" and parent in lora.targets


def _peft_json(lora: LoraConfig, targets: list[str], causal: bool) -> JsonObject:
    return {
        **_USUAL,
        "task_type": "CAUSAL_LM" if causal else "FEATURE_EXTRACTION",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": targets,
        "inference_mode": True,
    }
