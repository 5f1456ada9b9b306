"""Scorers of LongBench (arXiv 2308.14508) that measure overlap: F1 of words, ROUGE-L, similarity of code, classes."""

import difflib
import importlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

from lclm_jax.errors import LclmError

_CHINESE_MARKS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_MARKS = str.maketrans("", "", string.punctuation)
_ALL_MARKS = str.maketrans("", "", string.punctuation + _CHINESE_MARKS)


def optional(name: str, what: str) -> ModuleType:
    """Import an optional package; raises ``LclmError`` that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.split(".")[0].replace("_", "-")
        raise LclmError(f"{what} needs the package {package}, which is missing: pip install {package}") from None


def f1_of(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two bags of words."""
    same = sum((Counter(found) & Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles (SQuAD's normalisation)."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_MARKS)).split()


def f1(answer: str, wanted: str) -> float:
    """F1 of words."""
    return f1_of(words_of(answer), words_of(wanted))


def f1_chinese(answer: str, wanted: str) -> float:
    """F1 of Chinese words, cut by ``jieba``."""
    return f1_of(_chinese_words(answer), _chinese_words(wanted))


def f1_characters(answer: str, wanted: str) -> float:
    """F1 of Chinese characters (SCBench)."""
    found, right = ("".join(text.lower().translate(_ALL_MARKS).split()) for text in (answer, wanted))
    return f1_of(found, right)


def _chinese_words(text: str) -> list[str]:
    words = optional("jieba", "the F1 of Chinese answers").cut(text, cut_all=False)
    plain = ["".join(word.lower().translate(_ALL_MARKS).split()) for word in words]
    return [word for word in plain if word]


def rouge(answer: str, wanted: str) -> float:
    """ROUGE-L (F), as the package ``rouge`` computes it; 0 for an answer that it refuses, such as an empty one."""
    try:
        scores = _rouge().get_scores([answer], [wanted], avg=True)
    except (ValueError, RecursionError):
        return 0.0
    return float(scores["rouge-l"]["f"])


@lru_cache(maxsize=1)
def _rouge():
    return optional("rouge", "ROUGE").Rouge()


def rouge_lsum(answer: str, wanted: str) -> float:
    """ROUGE-Lsum (F) of lines, as the package ``rouge-score`` computes it without a stemmer (SCBench)."""
    return float(_rouge_lines().score(wanted, answer)["rougeLsum"].fmeasure)


@lru_cache(maxsize=1)
def _rouge_lines():
    return optional("rouge_score.rouge_scorer", "ROUGE of summaries").RougeScorer(["rougeLsum"])


def rouge_chinese(answer: str, wanted: str) -> float:
    """``rouge`` of Chinese words."""
    jieba = optional("jieba", "ROUGE of Chinese answers")
    return rouge(*(" ".join(jieba.cut(text, cut_all=False)) for text in (answer, wanted)))


def code_similarity(answer: str, wanted: str) -> float:
    """Similarity of the first line of code to the line wanted: that of ``difflib`` in whole percent."""
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * difflib.SequenceMatcher(None, line, wanted).ratio()) / 100


def count(answer: str, wanted: str) -> float:
    """Share of the numbers in the answer that are the one wanted."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def retrieval(answer: str, wanted: str) -> float:
    """``count`` of the number in ``Paragraph 7`` or its Chinese form."""
    found = re.search(r"(?:Paragraph |段落)(\d+)", wanted)
    return count(answer, found.group(1)) if found else 0.0


def classification(answer: str, wanted: str, classes: Sequence[str]) -> float:
    """One over the number of classes named, if the right one is among them; parts of its name do not count."""
    named = [name for name in classes if name in answer]
    # The published loop removes while it iterates, so of two neighbours that are parts of the name one stays.
    for name in named:
        if name in wanted and name != wanted:
            named.remove(name)
    return 1 / len(named) if wanted in named else 0.0
