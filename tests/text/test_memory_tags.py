import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclm_jax.text.memory_tags import MEMORY, MEMORY_END, MEMORY_START, MemoryTagError, Piece, split_memory

TEXT = st.text(st.sampled_from("ab <|>_memory\n"), min_size=1, max_size=12).filter(
    lambda text: not any(tag in text for tag in (MEMORY, MEMORY_START, MEMORY_END))
)


@given(st.lists(st.tuples(st.sampled_from(["raw", "span"]), TEXT), max_size=6))
def test_pieces_come_back(parts):
    merged = []
    for kind, text in parts:  # neighbouring raw pieces are one piece
        if kind == "raw" and merged and merged[-1].kind == "raw":
            merged[-1] = Piece("raw", merged[-1].text + text)
        else:
            merged.append(Piece(kind, text))
    written = "".join(f"{MEMORY_START}{p.text}{MEMORY_END}" if p.kind == "span" else p.text for p in merged)
    if written.count(MEMORY_START) == sum(p.kind == "span" for p in merged) and MEMORY not in written:
        assert split_memory(written) == merged


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"a{MEMORY_START}b", "never closed; put"),
        (f"a{MEMORY_END}b", "character 1 closes no span"),
        (f"{MEMORY_START}a{MEMORY_START}b{MEMORY_END}{MEMORY_END}", "do not nest"),
        (f"x{MEMORY_START}{MEMORY_END}", "span at character 1 is empty"),
        (f"{MEMORY_START}a{MEMORY}{MEMORY_END}", "never written"),
        (MEMORY, "never written"),
    ],
)
def test_bad_tags_say_where_and_how_to_mend(text, words):
    with pytest.raises(MemoryTagError, match=words):
        split_memory(text)


def test_no_text_has_no_pieces():
    assert split_memory("") == []
