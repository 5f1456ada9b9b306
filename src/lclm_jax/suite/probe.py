"""A benchmark that training measures of itself every so many steps: a hook for ``train_stages``."""

import logging
from collections.abc import Sequence

import jax

from lclm_jax.config import Config, RunPaths
from lclm_jax.inference.generate import Generator
from lclm_jax.parallel import make_mesh
from lclm_jax.suite.run import prepare_samples
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.scoring.scorers import LIKELIHOOD, check_scorers, score
from lclm_jax.suite.spec import SuiteConfig
from lclm_jax.suite.store import Journal
from lclm_jax.suite.systems.lclm_worker import LclmSystem
from lclm_jax.suite.systems.process import request_of
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
from lclm_jax.train.core.hooks import Hook, StepInfo
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)


def suite_hook(config: Config, suite: SuiteConfig, every: int) -> Hook:
    """A hook that answers the tasks of ``suite`` with the parameters of a run, from their latents.

    Training waits for it: take few samples and short answers. The systems of ``suite`` are not run. A line for every
    step is appended to ``benchmarks.jsonl`` in the run's folder: mean score and nats per token of the gold answer by
    task. A run of several processes is refused.

    Args:
        config: the run.
        suite: its tasks, ``likelihood`` and ``generate``; its ``tokenizer`` is the run's decoder's.
        every: steps between measurements; also after the last step of a stage.

    Raises:
        LclmError: the data of a task is missing or has another layout.
    """
    tokenizers = load_tokenizers(config)
    resolved = resolve(config, tokenizers)
    settings = suite.model_copy(update={"tokenizer": str(tokenizers.decoder.folder)})
    samples = prepare_samples(settings)
    check_scorers(samples, has_judge=False)
    mesh = make_mesh(config.mesh)
    path = RunPaths(config).local_root / "benchmarks.jsonl"

    def measure(step: StepInfo) -> None:
        generator = Generator(step.params, resolved.model, tokenizers.decoder, tokenizers.encoder, mesh)
        found = measure_samples(LclmSystem(generator, "memory"), suite, samples)
        if jax.process_index() == 0:
            with Journal(path) as journal:
                journal.append({"key": f"{step.stage}/{step.step}", "stage": step.stage, "step": step.step, **found})
        logger.info("benchmarks at step %d: %s", step.step, found)

    return Hook(every, measure, at_end=True)


def measure_samples(system: LclmSystem, suite: SuiteConfig, samples: Sequence[Sample]) -> JsonObject:
    """``score/TASK`` and ``nats_per_token/TASK`` of ``samples``."""
    scores: dict[str, list[float]] = {}
    nats: dict[str, tuple[float, int]] = {}
    for sample in samples:
        generate = suite.generate and sample.extra["scorer"] != LIKELIHOOD
        reply = system.answer(request_of(sample, generate, suite.likelihood))
        value = score(reply["answer"], sample) if "answer" in reply else None
        if value is not None:
            scores.setdefault(sample.task, []).append(value)
        if "nll" in reply:
            total, tokens = nats.get(sample.task, (0.0, 0))
            nats[sample.task] = (total + reply["nll"], tokens + reply["gold_tokens"])
    return {f"score/{task}": sum(values) / len(values) for task, values in scores.items()} | {
        f"nats_per_token/{task}": total / tokens for task, (total, tokens) in nats.items()
    }
