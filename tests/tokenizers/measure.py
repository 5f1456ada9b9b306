"""Real tokenizers on text in many scripts: do cuts hold, do ids give the text again, are memory tokens their own?

``python -m tests.tokenizers.measure`` prints the table of ``docs/explanation/fidelity.md``.
"""

import shutil
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import NamedTuple

from lclm_jax.errors import LclmError
from lclm_jax.interop.foreign.files import check_files
from lclm_jax.interop.foreign.reread import check_tokenizer
from lclm_jax.interop.memory_tokens import add_memory_tokens
from lclm_jax.text.cuts import CutFinder
from lclm_jax.text.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[2] / ".cache" / "tokenizers"
"""Where ``make test-tokenizers`` puts them, a folder each."""

SAMPLES = {
    "latin": "Über den Fluss führt eine Brücke; l'été, ça va où? Año 2031: 1.234,5 km. It's Ines's boat, isn't it?",
    "greek": "Το πλοίο έφυγε στις οκτώ. Ποιος μέτρησε τα σχοινιά; Κανείς — ή ίσως η Ελένη!",
    "cyrillic": "Корабль ушёл в восемь. Кто считал канаты? Никто, или, может быть, Инна: 12 штук…",
    "arabic": "غادرت السفينة في الساعة الثامنة. من عدّ الحبال؟ لا أحد، أو ربما إيناس: ١٢ حبلاً.",
    "hebrew": "הספינה יצאה בשמונה. מי ספר את החבלים? אף אחד, או אולי עינת: שנים עשר.",
    "devanagari": "जहाज़ आठ बजे निकला। रस्सियाँ किसने गिनीं? किसी ने नहीं, या शायद इना ने: १२।",
    "thai": "เรือออกตอนแปดโมง ใครนับเชือก ไม่มีใคร หรืออาจเป็นอินา: ๑๒ เส้น",
    "chinese": "船在八点离开了。谁数了绳子？没有人，也许是伊娜：十二根。“好”，她说。",
    "japanese": "船は八時に出ました。ロープを数えたのは誰ですか？だれも、またはイネスかも：十二本。",
    "korean": "배는 여덟 시에 떠났다. 누가 밧줄을 세었는가? 아무도, 어쩌면 이나가: 열두 개.",
    "code": 'def f(x: int) -> str:\n    # tab\there\n    if x >= 0x1F:\n        return f"{x!r}\\n"\n'
    "\n\treturn ''\n\n\nclass A:\n  pass\n",
    "emoji": "Well 👩‍👩‍👧‍👦 done 🏳️‍🌈! 👍🏽👍🏿 ok 🇯🇵🇵🇹 #️⃣ ☃️ — naïve café 🫠\n",
    "control": "a\x00b\x07c\x1b[31md\u200be\u00a0f\u2028g\r\nh\r\n\r\n  i\t\t\nj \n  \n   k\x7f\u0085l\ufeffm",
    "marks": "<|im_start|>user\n</s> <s> <pad> [INST] <|eot_id|> <|memory_start|> x <|memory|><|memory_end|> <0x0A>",
}
"""Short texts of our own in ten scripts, code, emoji, control characters, and strings that some model has as tokens."""


class Row(NamedTuple):
    """What was measured of one tokenizer."""

    name: str
    ids: int
    bos: str
    cuts: float
    """Inner cuts for 100 tokens."""
    unstable: int
    """Pieces between cuts whose ids differ from those of tokenizing them alone."""
    pieces: int
    lost: tuple[str, ...]
    """Samples whose ids do not give the text again."""
    memory: tuple[int, ...]
    refused: str = ""


def measure(folder: Path) -> Row:
    """Measure the tokenizer in ``folder``, with memory tokens added as an import does."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / folder.name
        shutil.copytree(folder, copy)
        try:
            check_files(folder, 2**31)
            add_memory_tokens(copy)
            check_tokenizer(folder, copy)
            tokenizer = Tokenizer(copy)
            return _row(folder.name, tokenizer)
        except LclmError as error:
            return Row(folder.name, 0, "", 0.0, 0, 0, (), (), str(error).replace(str(copy), folder.name))


def _row(name: str, tokenizer: Tokenizer) -> Row:
    texts = {key: unicodedata.normalize("NFC", f"{text}\n" * 3 + text) for key, text in SAMPLES.items()}
    texts["all"] = "\n\n".join(texts.values())
    finder = CutFinder(tokenizer)
    found = dict(zip(texts, finder.tokenize(list(texts.values())), strict=True))
    unstable = pieces = inner = tokens = 0
    for key, one in found.items():
        count = len(one.cuts)
        tokens, inner = tokens + len(one.ids), inner + count - 2
        for size in (1, 2, 7, 40):
            for first in range(0, count - size, 1 if size == 1 else size):
                pieces += 1
                unstable += not finder.is_stable(texts[key], one, first, first + size)
    plain = {key: tokenizer.decode(tokenizer.encode(text, plain=True)) for key, text in texts.items()}
    lost = tuple(key for key, text in plain.items() if text != texts[key] and key != "all")
    bos = "" if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id])
    memory = tuple(tokenizer.memory_ids)
    return Row(name, tokenizer.vocab_size, bos, 100 * inner / tokens, unstable, pieces, lost, memory)


def table(rows: list[Row]) -> str:
    """``rows`` in Markdown."""
    lines = ["| tokenizer | ids | BOS | cuts per 100 tokens | pieces that differ | texts lost | memory tokens |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        if row.refused:
            lines.append(f"| {row.name} | refused: {row.refused} ||||||")
            continue
        cells = (
            row.name, f"{row.ids:,}", f"`{row.bos}`".replace("|", "\\|") if row.bos else "none", f"{row.cuts:.0f}",
            f"{row.unstable} of {row.pieces:,}", ", ".join(row.lost) or "none",
            f"{row.memory[0]:,} to {row.memory[-1]:,}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def folders() -> list[Path]:
    """Those that were fetched."""
    return sorted(path for path in FOLDER.glob("*") if (path / "tokenizer.json").is_file())


if __name__ == "__main__":
    sys.stdout.write(table([measure(folder) for folder in folders()]) + "\n")
