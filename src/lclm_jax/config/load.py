"""YAML plus ``--set a.b=c`` to one validated tree, and back to text and a hash."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from lclm_jax.config.base import Tree, branch_of, suggestion
from lclm_jax.config.renames import renamed, renamed_key
from lclm_jax.config.study import StudyConfig
from lclm_jax.config.tree import Config
from lclm_jax.errors import LclmError
from lclm_jax.paths import StoreError, is_remote, store_errors, to_path
from lclm_jax.types import JsonObject, ReadOnlyJson


class ConfigError(LclmError):
    """A configuration that cannot be used; the message names the key, the value and the fix."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (``1e-3`` is a number) and no duplicate keys."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.inf|\.nan)$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen: set[object] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # "<<": keys that stand here too win over those merged in
        name = loader.construct_object(key_node)
        if name in seen:
            raise ConfigError(f"key {name!r} occurs twice (line {key_node.start_mark.line + 1}); delete one")
        seen.add(name)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(path: str | Path, overrides: Iterable[str] = (), cluster: str | Path | None = None) -> Config:
    """Read ``path``, merge the YAML ``cluster`` over it, apply ``overrides`` (``"a.b=c"``, values in YAML), validate.

    A ``base: other.yaml`` key at the top merges this file over the other one; ``null`` in the place of a mapping (a
    stage, a source) removes it. Raises ``ConfigError``.
    """
    path = to_path(path)
    values = read_yaml(path)
    values.setdefault("name", path.stem)
    if cluster is not None:
        values = _merge(values, read_yaml(to_path(cluster)))
    for text in overrides:
        values = _override(values, text)
    return parse_config(values, str(path))


def parse_config(values: ReadOnlyJson, origin: str = "configuration") -> Config:
    """Validate plain ``values``; raises ``ConfigError`` with one line per defect."""
    values = renamed(values, origin)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {line}" for line in _explain(error, values))) from None
    if "{name}" in config.run_dir:
        config = config.model_copy(update={"run_dir": config.run_dir.replace("{name}", config.name)})
    return config


def dump_config(config: Tree) -> str:
    """The resolved tree as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def config_hash(config: Tree) -> str:
    """Twelve hexadecimal digits that change with any value of the tree."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:12]


def read_yaml(path: Path) -> JsonObject:
    """The mapping in the YAML ``path``, merged over the file that its key ``base`` names; raises ``ConfigError``."""
    try:
        with store_errors(path):
            text = path.read_text(encoding="utf-8")
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or "No such file or directory"  # drivers of object stores leave it out
        raise ConfigError(f"cannot read the configuration {path}: {reason}; name an existing YAML") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} does not hold a mapping of keys; see configs/demo.yaml for an example")
    values = renamed(values, str(path))
    if base := values.pop("base", None):
        values = _merge(read_yaml(path.parent / base), values)
    return values


def _merge(under: JsonObject, over: JsonObject) -> JsonObject:
    merged = dict(under)
    for name, value in over.items():
        old = merged.get(name)
        if isinstance(old, dict) and value is None:
            del merged[name]
        else:
            merged[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def override(values: ReadOnlyJson, dotted: str, value: object) -> JsonObject:
    """``values`` with the key ``a.b.c`` set; mappings are merged, null takes a mapping out."""
    current = renamed_key(dotted)
    if current is None:
        return dict(values)
    *branches, leaf = current.split(".")
    change: JsonObject = {leaf: value}
    for part in reversed(branches):
        change = {part: change}
    return _merge(dict(values), change)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The ablation study in the YAML ``path``; its files are resolved against the folder of ``path``.

    Raises:
        ConfigError: the YAML cannot be read, or holds an unknown or wrong key.
    """
    path = Path(path)
    values = read_yaml(path)
    values.setdefault("name", path.stem)
    for text in overrides:
        values = _override(values, text)
    try:
        study = StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _explain(error, values, StudyConfig))) from None
    if is_remote(study.run_dir):
        raise ConfigError(f"{path}: run_dir={study.run_dir}: a study lies on a disk; name a local folder")
    files = {name: str(path.parent / name_of) for name in ("config", "cluster") if (name_of := getattr(study, name))}
    return study.model_copy(update={**files, "run_dir": study.run_dir.replace("{name}", study.name)})


def _override(values: JsonObject, text: str) -> JsonObject:
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {text!r} has no value; write --set a.b=value")
    try:
        change: object = yaml.load(raw, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError:
        raise ConfigError(f"override {text!r}: {raw!r} is not valid YAML; quote it or balance its brackets") from None
    return override(values, dotted, change)


def _explain(error: ValidationError, values: ReadOnlyJson, tree: type[Tree] = Config) -> Iterable[str]:
    for defect in error.errors():
        location = [str(part) for part in defect["loc"]]
        dotted = ".".join(location) or "the tree"
        if defect["type"] == "extra_forbidden":
            siblings = _fields_at(location[:-1], tree)
            yield f"unknown key {dotted}; {suggestion(location[-1], siblings)}"
        elif defect["type"] == "missing":
            yield f"{dotted} is missing; it has no default: set it"
        elif defect["type"] == "value_error":
            yield f"{dotted}: {defect['ctx']['error']}"
        else:
            yield f"{dotted}={defect['input']!r}: {defect['msg']}"


def _fields_at(location: list[str], model: type[Tree]) -> list[str]:
    parts = iter(location)
    for part in parts:
        field = model.model_fields.get(part)
        branch, keyed = branch_of(field.annotation) if field else (None, False)
        if branch is None:
            return []
        if keyed:
            next(parts, None)
        model = branch
    return list(model.model_fields)
