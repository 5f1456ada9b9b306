"""Runs one of NVIDIA's scripts with stand-ins for nltk and transformers: the same splitter and counter as ours."""

import importlib
import re
import runpy
import sys
import types
from pathlib import Path

import nupunkt


def _module(name, **values):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(values)


class _Counter:
    """Words and marks."""

    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()

    def tokenize(self, text):
        return re.findall(r"\w+|[^\w\s]", text)


def _plain(function):
    return lambda *args, **kwargs: lambda called: called


_module("nltk")
_module("nltk.tokenize", sent_tokenize=nupunkt.sent_tokenize)
_module("transformers", AutoTokenizer=_Counter)
_module("tenacity", **dict.fromkeys(("retry",), _plain(None)))
for name in ("stop_after_attempt", "wait_fixed", "wait_random"):
    setattr(sys.modules["tenacity"], name, lambda *args: 0)
if sys.argv.pop(1) == "few-words":  # millions of keys are sorted by each script: a tenth of both lists will do
    words = importlib.import_module("wonderwords.random_word")
    read = words._get_words_from_text_file
    words._get_words_from_text_file = lambda name: read(name)[::10]
script = Path(sys.argv[1])
sys.path[:0] = [str(script.parent), str(script.parents[1])]
sys.argv = sys.argv[1:]
runpy.run_path(str(script), run_name="__main__")
