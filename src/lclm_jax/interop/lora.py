"""LoRA on the way out: merged into its kernels while they are read, or as adapter folders of ``peft``; and back in.

An adapter folder is ``adapter_config.json`` and ``adapter_model.safetensors``. Names are those that peft gives the
updates of ``Qwen3ForCausalLM`` or ``LlamaForCausalLM`` (decoder) and ``Qwen3Model`` or ``LlamaModel`` (encoder).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from lclm_jax.config import LoraConfig, ModelConfig
from lclm_jax.config.model import LoraTarget
from lclm_jax.interop.hf_config import write_json
from lclm_jax.interop.leaves import Leaves, LeavesInMemory
from lclm_jax.interop.names import Tensor, backbone_tensors, flatten, nest
from lclm_jax.interop.tensors import CheckpointError, Declared, TensorFolder, write_folder
from lclm_jax.model.lora import is_lora, merge_lora, update_of

FOLDER = "lora"
"""Folder of an export that holds ``decoder/`` and ``encoder/`` adapter folders."""

_USUAL: dict[str, Any] = {
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

__all__ = ["FOLDER", "ExportedLeaves", "merge_lora", "read_peft", "write_peft"]


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
            raise ValueError(f"{path} was asked for at {index}; a merged kernel is read by the layer or whole")
        lora = getattr(self._model.lora, path.split("/")[0])
        lora_a, lora_b = (self._leaves.read(f"{parent}/{leaf}", index) for leaf in ("lora_a", "lora_b"))
        if index:
            return array + update_of(lora, lora_a, lora_b)
        return array + np.stack([update_of(lora, a, b) for a, b in zip(lora_a, lora_b, strict=True)])


def write_peft(leaves: Leaves | Mapping[str, Any], model: ModelConfig, out_dir: Path, dtype: str = "float32") -> None:
    """Write ``out_dir/lora/decoder`` and ``out_dir/lora/encoder``, as far as ``model`` has LoRA there.

    Args:
        leaves: parameters of ``model``, LoRA leaves included.
        model: the model, with LoRA.
        out_dir: folder of an export made of ``ExportedLeaves(..., merge=False)``; an earlier ``lora/`` is replaced.
        dtype: float32, bfloat16 or float16.

    Raises:
        ValueError: the model has no LoRA, or the parameters lack its leaves.
    """
    if model.plain == model:
        raise ValueError("the model has no LoRA to write; leave out --lora peft, or train with model.lora")
    leaves = LeavesInMemory(leaves) if isinstance(leaves, Mapping) else leaves
    if not any(is_lora(path) for path in leaves.shapes):
        raise ValueError("the checkpoint has no LoRA leaves, it is older than model.lora; export a later stage or step")
    part = Path(out_dir) / f"{FOLDER}.part"
    shutil.rmtree(part, ignore_errors=True)
    for tower in ("decoder", "encoder"):
        lora = getattr(model.lora, tower)
        if lora is not None:
            (part / tower).mkdir(parents=True)
            _write_tower(leaves, model, tower, part / tower, dtype)
    shutil.rmtree(Path(out_dir) / FOLDER, ignore_errors=True)
    part.replace(Path(out_dir) / FOLDER)


def read_peft(folder: Path, model: ModelConfig, params: Mapping[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
    """``model`` and ``params`` (without LoRA) with the updates below ``folder/lora``; as they are if there is none.

    Raises:
        CheckpointError: a folder is damaged, is no LoRA that we compute, or does not fit the model.
    """
    loras: dict[str, LoraConfig] = {}
    leaves = dict(flatten(params))
    for tower in ("decoder", "encoder"):
        source = Path(folder) / FOLDER / tower
        if not source.is_dir():
            continue
        lora = loras[tower] = _read_config(source)
        tensors = TensorFolder(source)
        factors = dict(_factors(model, tower, lora))
        expected = {name: shape for name, (_, _, shape, _) in factors.items()}
        if tensors.shapes != expected:
            names = sorted(
                name
                for name in expected.keys() | tensors.shapes.keys()
                if expected.get(name) != tensors.shapes.get(name)
            )
            raise CheckpointError(
                f"{source} is no LoRA of this {tower}: {names[0]} has shape {tensors.shapes.get(names[0])}, not"
                f" {expected.get(names[0])} ({len(names)} such tensors); use the adapter of this very model"
            )
        stacks: dict[str, list[np.ndarray]] = {}
        for name, (path, _, _, _) in factors.items():
            stacks.setdefault(path, []).append(tensors.read(name).astype(np.float32).T)
        for path, stack in stacks.items():
            kernel = leaves[f"{path.rpartition('/')[0]}/kernel"].shape
            leaves[path] = np.stack(stack).reshape(_factor_shape(kernel, lora.rank, path))
    towers = model.lora.model_copy(update=loras)
    return model.model_copy(update={"lora": towers}), nest(leaves)


def _factor_shape(kernel: tuple[int, ...], rank: int, path: str) -> tuple[int, ...]:
    """Shape of a stacked factor; the output projection contracts two axes, every other one."""
    cut = 3 if path.split("/")[-2] == "o" else 2
    return (*kernel[:cut], rank) if path.endswith("lora_a") else (kernel[0], rank, *kernel[cut:])


def _read_config(source: Path) -> LoraConfig:
    path = source / "adapter_config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        odd = {name: values[name] for name, usual in _USUAL.items() if values.get(name, usual) != usual}
        if odd:
            raise CheckpointError(f"{path} says {odd}, which is not computed here; merge that adapter with peft first")
        targets = tuple(name for name in get_args(LoraTarget) if f"{name}_proj" in values["target_modules"])
        shape = {"rank": values["r"], "alpha": values["lora_alpha"], "dropout": values["lora_dropout"]}
        return LoraConfig.model_validate({**shape, "targets": targets})
    except (OSError, KeyError, TypeError, json.JSONDecodeError, ValidationError) as error:
        line = str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read ({line}); write the adapter again") from None


def _write_tower(leaves: Leaves, model: ModelConfig, tower: str, folder: Path, dtype: str) -> None:
    lora: LoraConfig = getattr(model.lora, tower)
    factors = dict(_factors(model, tower, lora))
    declared = [Declared(name, shape, dtype) for name, (_, _, shape, _) in factors.items()]

    def blocks(name: str) -> Iterator[np.ndarray]:
        path, layer, shape, before = factors[name]
        # torch stores linear layers as [out, in], each of the two as one axis.
        array = leaves.read(path, (layer,))
        yield array.reshape(-1, shape[0]).T if before else array.reshape(shape[1], -1).T

    write_folder(folder, declared, blocks, 2**62, "adapter_model")  # peft reads one file
    targets = sorted({name.rsplit(".", 3)[1] for name in factors})
    write_json(folder / "adapter_config.json", _peft_json(lora, targets, causal=tower == "decoder"))


def _factors(model: ModelConfig, tower: str, lora: LoraConfig) -> Iterator[tuple[str, tuple[str, int, Any, bool]]]:
    """(peft's name, (path, layer, shape in the file, whether it is A)) of every factor."""
    prefix = "model." if tower == "decoder" else ""
    for tensor in backbone_tensors(getattr(model, tower), tower, prefix):
        if not _is_target(tensor, lora):
            continue
        assert tensor.layer is not None
        outputs, inputs = tensor.shape
        module, parent = tensor.name.removesuffix(".weight"), tensor.path.removesuffix("/kernel")
        name = f"base_model.model.{module}"
        yield f"{name}.lora_A.weight", (f"{parent}/lora_a", tensor.layer, (lora.rank, inputs), True)
        yield f"{name}.lora_B.weight", (f"{parent}/lora_b", tensor.layer, (outputs, lora.rank), False)


def _is_target(tensor: Tensor, lora: LoraConfig) -> bool:
    *_, parent, name = tensor.path.split("/")
    return tensor.layer is not None and name == "kernel" and parent in lora.targets


def _peft_json(lora: LoraConfig, targets: list[str], causal: bool) -> dict[str, Any]:
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
