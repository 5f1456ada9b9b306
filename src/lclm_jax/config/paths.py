"""Where a run keeps what it writes; the one place that knows the names of its files."""

from dataclasses import dataclass
from pathlib import Path

from lclm_jax.config.tree import Config
from lclm_jax.paths import is_remote, local_side, to_path


@dataclass(frozen=True)
class RunPaths:
    """Folders and files of the run of ``config``."""

    config: Config

    @property
    def root(self) -> Path:
        """Everything below belongs to the run."""
        return to_path(self.config.run_dir)

    @property
    def local_root(self) -> Path:
        """On this machine: ``root``, or for a run in a bucket a folder for what can be made again."""
        return local_side(self.config.run_dir)

    @property
    def resolved_config(self) -> Path:
        """The resolved configuration tree."""
        return self.root / "config.yaml"

    @property
    def decoder_tokenizer(self) -> Path:
        """Folder of the decoder's tokenizer, given or trained."""
        return to_path(self.config.tokenizer.decoder or self.root / "tokenizer")

    @property
    def encoder_tokenizer(self) -> Path:
        """Folder of the encoder's tokenizer; the decoder's unless one is named."""
        return to_path(self.config.tokenizer.encoder or self.decoder_tokenizer)

    @property
    def prepared(self) -> str | Path:
        """Folder of the prepared shards, or its URL."""
        named = self.config.data.prepared or str(self.root / "data")
        return named if is_remote(named) else Path(named)

    def stage(self, name: str) -> Path:
        """Folder of one stage: checkpoints/, metrics.jsonl."""
        return self.root / "stages" / name

    def local_stage(self, name: str) -> Path:
        """Folder of one stage on this machine: index/, traces, stacks."""
        return self.local_root / "stages" / name

    @property
    def evaluation(self) -> Path:
        """Held-out measurements."""
        return self.root / "eval.json"

    @property
    def export(self) -> Path:
        """The exported model."""
        return self.root / "export"

    @property
    def generations(self) -> Path:
        """Greedy generations of the reloaded export."""
        return self.root / "generations.json"

    @property
    def progress(self) -> Path:
        """What the pipeline has done, with time and memory by step."""
        return self.root / "pipeline.json"

    @property
    def report(self) -> Path:
        """The report as Markdown; report.json and plots/ stand beside it."""
        return self.root / "report.md"
