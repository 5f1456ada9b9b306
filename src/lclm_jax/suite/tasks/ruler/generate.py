"""RULER samples of one task, length and seed."""

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.tasks.ruler.design import (
    COMMON_PROMPT,
    FREQUENT_PROMPT,
    NEEDLE_PROMPT,
    PUBLISHED_LENGTH,
    QUESTION_PROMPT,
    TASKS,
    TRACKING_PROMPT,
    CommonWords,
    FrequentWords,
    Needles,
    Prompt,
    Questions,
    Tracking,
)
from lclm_jax.suite.tasks.ruler.fit import CountTokens, Drawn, Draws
from lclm_jax.suite.tasks.ruler.needles import NeedleTask
from lclm_jax.suite.tasks.ruler.questions import QuestionTask
from lclm_jax.suite.tasks.ruler.sources import Sources
from lclm_jax.suite.tasks.ruler.tracking import TrackingTask
from lclm_jax.suite.tasks.ruler.words import CommonWordsTask, FrequentWordsTask

SEED = 42
"""Of the published scripts."""


def generate(
    name: str, length: int, count: int, count_tokens: CountTokens, sources: Sources, seed: int = SEED
) -> list[Sample]:
    """``count`` samples of the RULER task ``name``.

    From 4,096 tokens on they equal those of NVIDIA's scripts (``nvidia-long-context-eval``, template ``base``) for the
    same seed, tokenizer and splitter of sentences. Shorter ones are a variant of ours, called ``ruler_short``: finer
    sizes, no worked examples, and questions whose own documents fit.

    Args:
        name: a key of ``TASKS``.
        length: tokens of prompt and reply.
        count: samples.
        count_tokens: tokens of a text, special tokens not added.
        sources: words, essays, documents.
        seed: of all draws.

    Raises:
        LclmError: the task is unknown, its data is missing, or it does not fit in ``length``.
    """
    if name not in TASKS:
        raise LclmError(f"RULER has no task {name!r}; its tasks are {', '.join(TASKS)}")
    task, prompt = _task(name, Draws(seed), sources)
    if length <= prompt.new_tokens:
        raise LclmError(f"{name} needs {prompt.new_tokens} tokens for its reply; a length of {length} leaves no prompt")
    try:
        drawn = task.samples(count_tokens, length, count)
    except LclmError as error:
        raise LclmError(f"RULER {name} at {length} tokens: {error}") from None
    family = "ruler" if length >= PUBLISHED_LENGTH else "ruler_short"
    full_name = f"{family}/{name}/{length}"
    return [_sample(f"{full_name}/{number}", full_name, one, prompt, length) for number, one in enumerate(drawn)]


def _task(
    name: str, draws: Draws, sources: Sources
) -> tuple[NeedleTask | TrackingTask | CommonWordsTask | FrequentWordsTask | QuestionTask, Prompt]:
    match TASKS[name]:
        case Needles() as design:
            return NeedleTask(design, draws, sources), NEEDLE_PROMPT
        case Tracking() as design:
            return TrackingTask(design, draws), TRACKING_PROMPT
        case CommonWords() as design:
            return CommonWordsTask(design, draws, sources), COMMON_PROMPT
        case FrequentWords() as design:
            return FrequentWordsTask(design, draws), FREQUENT_PROMPT
        case Questions() as design:
            return QuestionTask(design, draws, sources), QUESTION_PROMPT


def _sample(name: str, task: str, drawn: Drawn, prompt: Prompt, length: int) -> Sample:
    # Questions accept any of the answers; the other tasks ask for all of them.
    is_question = prompt is QUESTION_PROMPT
    gold = drawn.answers[0] if is_question else ", ".join(drawn.answers)
    return Sample(
        id=name,
        task=task,
        instruction=drawn.instruction,
        context=drawn.context,
        question=drawn.question,
        prefix=drawn.prefix,
        answers=tuple(drawn.answers),
        gold=gold if drawn.prefix.endswith(" ") else f" {gold}",
        max_new_tokens=prompt.new_tokens,
        length=length,
        depth=drawn.depth,
        extra={"scorer": "any_part" if is_question else "all_parts"},
    )
