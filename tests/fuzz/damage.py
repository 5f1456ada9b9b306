"""Damaged inputs: bytes with pieces changed, cut, doubled or put in, and JSON trees with parts changed."""

import copy
from collections.abc import Iterator

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

WORDS = st.sampled_from(
    [
        *(
            "",
            "word",
            "two words",
            "\n",
            "\r\n",
            "\u2028",
            "é",
            "e\u0301",
            "東京",
            "🙂",
            "\ud83d",
            "\0",
            "\ufeff",
            "  ",
        ),
        *("<|im_end|>", "<|im_start|>", "<|memory_start|>", "<|memory_end|>", "<|memory|>", "<|endoftext|>"),
        *("{{ x }}", "\\u003c|im_end|>", '"', "\\"),
    ]
)
TEXTS = st.one_of(
    st.lists(WORDS, max_size=12).map(" ".join), st.lists(WORDS, max_size=6).map("".join), st.text(max_size=40)
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), TEXTS, st.just([]), st.just({}),
    st.just([None]), st.just({"a": [1, {"b": None}]}), st.sampled_from([0, 1, -1, 10**9, "0", "null", "../x", "NaN"]),
)  # fmt: skip
BYTES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([b"\xff", b"\xfe\xff", b"\0", b"\n", b"\x1f\x8b", b"PAR1", b"{", b"[" * 4000, b"1" * 5000]),
)


def damaged_bytes(data: DataObject, content: bytes, times: int = 4) -> bytes:
    """``content`` after at most ``times`` changes, at least one."""
    for _ in range(data.draw(st.integers(1, times))):
        start = data.draw(st.integers(0, len(content)))
        stop = min(len(content), start + data.draw(st.integers(0, 64)))
        kind = data.draw(st.sampled_from(["put in", "replace", "cut off", "double", "swap"]))
        if kind == "put in":
            content = content[:start] + data.draw(BYTES) + content[start:]
        elif kind == "replace":
            content = content[:start] + data.draw(BYTES) + content[stop:]
        elif kind == "cut off":
            content = content[:start]
        elif kind == "double":
            content = content[:stop] + content[start:]
        else:
            content = content[stop:] + content[:stop]
    return content


def damaged_tree(data: DataObject, tree: object, times: int = 3) -> object:
    """A copy of a JSON ``tree`` after at most ``times`` changes, at least one."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, times))):
        places = list(_places(tree))
        if not places:
            return data.draw(VALUES)
        node, key = data.draw(st.sampled_from(places))
        kind = data.draw(st.sampled_from(["value", "delete", "add", "wrap", "move"]))
        if kind == "value":
            node[key] = copy.deepcopy(data.draw(VALUES))
        elif kind == "delete":
            del node[key]
        elif kind == "wrap":
            node[key] = [node[key]] if data.draw(st.booleans()) else {"value": node[key]}
        elif kind == "move":
            node[key] = copy.deepcopy(
                node[data.draw(st.sampled_from(sorted(node)))] if isinstance(node, dict) else node[0]
            )
        elif isinstance(node, dict):
            node[data.draw(TEXTS)] = copy.deepcopy(data.draw(VALUES))
        else:
            node.append(copy.deepcopy(data.draw(VALUES)))
    return tree


def _places(tree: object) -> Iterator[tuple[dict | list, object]]:
    """(mapping or list, key or index) of every value; only the first few of long ones."""
    if isinstance(tree, dict):
        items = list(tree.items())[:40]
    elif isinstance(tree, list):
        items = list(enumerate(tree[:10]))
    else:
        return
    for key, value in items:
        yield tree, key
        yield from _places(value)
