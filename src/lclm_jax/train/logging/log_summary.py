"""The log line of training: means over the steps since the last one."""

from collections import defaultdict

from lclm_jax.train.logging.records import Record, losses_by_objective, working_seconds

_KINDS = ("raw", "decoder", "encoder")
_LAST = ("learning_rate", "grad_norm", "update_norm")


class LogSummary:
    """Gathers the records of steps and the last probe, and tells them in three lines."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._objectives: dict[str, tuple[float, float]] = {}
        self._memory = 0.0
        self._gain = ""

    def add(self, record: Record) -> None:
        """Take the record of a step."""
        sums = self._sums
        sums["steps"] += 1
        sums["wall"] += record["wall_seconds"]
        sums["seconds"] += record["wall_seconds"] - record.get("compile_seconds", 0.0)
        sums["working"] += working_seconds(record)
        sums["data_wait"] += record.get("data_wait_seconds", 0.0)
        sums["skipped"] += bool(record["skipped"] or record["nonfinite"])
        for kind in _KINDS:
            sums[f"{kind}_tokens"] += record[f"{kind}_tokens_per_s"] * working_seconds(record)
        for name in ("decoder_fill", "encoder_fill", *(name for name in record if name.endswith("mfu"))):
            sums[name] += record[name]
        if record["loss_nats"] is not None:
            sums["loss"] += record["loss_nats"]
            sums["losses"] += 1
        for name, loss, tokens in losses_by_objective(record):
            nats, count = self._objectives.get(name, (0.0, 0.0))
            self._objectives[name] = (nats + loss * tokens, count + tokens)
        self._memory = record.get("memory_bytes", self._memory)

    def probed(self, values: dict[str, float]) -> None:
        """Take what a probe measured (``eval.probe``): the gain of a context is told until the next probe."""
        if {"context_nats/none", "context_nats/latents", "context_nats/raw"} <= values.keys():
            none, latents, raw = (values[f"context_nats/{name}"] for name in ("none", "latents", "raw"))
            self._gain = f"context gain {none - latents:.3f} of {none - raw:.3f}"

    def lines(self, record: Record, steps: int) -> list[str]:
        """What was added, in three lines, and forgotten: the loss; the speed; the parts of the model.

        Args:
            record: of the last step; the parts are its own.
            steps: of the stage, for the time left.
        """
        found = [self._loss(record, steps), self._speed(), _parts(record)]
        self._sums.clear()
        self._objectives.clear()
        return found

    def _loss(self, record: Record, steps: int) -> str:
        sums = self._sums
        loss = f"loss {sums['loss'] / sums['losses']:.4f} nats" if sums["losses"] else "loss not finite"
        if len(self._objectives) > 1:
            parts = (f"{name} {nats / count:.4f}" for name, (nats, count) in self._objectives.items())
            loss += f" ({', '.join(parts)})"
        skipped = f"{sums['skipped']:.0f} skipped" if sums["skipped"] else ""
        left = (steps - record["step"] - 1) * sums["seconds"] / sums["steps"]
        return _joined(loss, self._gain, skipped, f"ETA {format_seconds(left)}")

    def _speed(self) -> str:
        sums, steps = self._sums, self._sums["steps"]
        rates = (f"{sums[f'{kind}_tokens'] / sums['working']:,.0f} {kind}" for kind in _KINDS)
        mfu = ""
        if sums["mfu"]:
            parts = (f"{kind} {100 * sums[f'{kind}_mfu'] / steps:.1f}" for kind in ("encoder", "adapter", "decoder"))
            mfu = f"MFU {100 * sums['mfu'] / steps:.1f} % ({', '.join(parts)})"
        fill = f"fill decoder {sums['decoder_fill'] / steps:.2f}, encoder {sums['encoder_fill'] / steps:.2f}"
        wait = f"data wait {100 * sums['data_wait'] / sums['wall']:.1f} %"
        memory = f"{self._memory / 1e9:.2f} GB" if self._memory else ""
        return _joined(f"{', '.join(rates)} tok/s", mfu, fill, wait, memory)


def _parts(record: Record) -> str:
    """Learning rate, gradient norm and norm of the update of every part that trains."""
    names = [name.partition("/")[2] for name in record if name.startswith("learning_rate/")]
    return _joined(*(f"{name} {_part(record, name)}" for name in names))


def _part(record: Record, name: str) -> str:
    rate, gradient, update = (record.get(f"{kind}/{name}") for kind in _LAST)
    return f"lr {_short(rate)} grad {_short(gradient)} update {_short(update)}"


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _joined(*texts: str) -> str:
    return " | ".join(text for text in texts if text)


def format_seconds(seconds: float) -> str:
    """``3723.4`` -> ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
