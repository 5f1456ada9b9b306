"""The JAX generator behind the agent's interface: chats with tools in, turns with calls out."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lclm_jax.agent.traces import lclm_agent
from lclm_jax.errors import LclmError
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.prompts import check_ids
from lclm_jax.inference.sampling import Sampling
from lclm_jax.text.example import expand, outline_pieces
from lclm_jax.text.memory_tags import split_memory
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import JsonObject

if TYPE_CHECKING:
    from lclm_agent import Reply
    from lclm_agent.measure import Figures


class GeneratorModel:
    """``lclm_agent.Model`` on a generator: what a served model does by its chat template and its parser of calls.

    Args:
        generator: an exported model; its chat template prints tools and calls.
    """

    def __init__(self, generator: Generator):
        self._generator, self._calls = generator, 0
        lclm_agent()

    def complete(self, messages: Sequence[JsonObject], tools: Sequence[JsonObject] | None, max_tokens: int) -> "Reply":
        """The next turn, greedily; raises ``LclmError`` as ``Generator.generate`` does."""
        from lclm_agent import Reply, Usage
        from lclm_agent.chat import parse_calls

        tokenizer = self._generator.decoder_tokenizer
        text = tokenizer.render_chat(messages, add_generation_prompt=True, tools=tools)
        pair = Tokenizers(tokenizer, self._generator.encoder_tokenizer)
        outline = outline_pieces(split_memory(text), *pair)
        example = expand(outline, self._generator.model.ratio, tokenizer.memory_ids.placeholder)
        check_ids(example, pair, self._generator.model)
        (answer,) = self._generator.generate_examples([example], Sampling(max_new_tokens=max_tokens))
        content, calls = parse_calls(answer.text, self._calls + 1) if tools else (answer.text, ())
        self._calls += len(calls)
        usage = Usage(len(example.tokens), 0, len(answer.ids))
        finish = "tool_calls" if calls else "stop" if answer.stopped else "length"
        return Reply(content, calls, usage, finish)


def measure_tasks(
    folder: Path,
    tasks: Path,
    how: tuple[str, int, int],
    limit: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> "Figures":
    """Ask an exported model the questions of a file of tasks; returns ``lclm_agent.measure.Figures``.

    Args:
        folder: the export.
        tasks: see ``lclm_agent.tasks``.
        how: protocol, rounds, and tokens of a reply.
        limit: only the first tasks; None: all.
        progress: told of questions.

    Raises:
        LclmError: lclm-serving is not installed, or the file or the folder cannot be used.
    """
    lclm_agent()
    from lclm_agent import AgentError
    from lclm_agent.loop import Budget
    from lclm_agent.measure import measure
    from lclm_agent.tasks import read_tasks

    protocol, rounds, tokens = how
    try:
        chosen = list(islice(read_tasks(tasks), limit))
        total = sum(len(task.questions) for task in chosen)
        if not total:
            raise LclmError(f"{tasks} has no question; make it with `lclm data expand-traces --tasks`")
        model = GeneratorModel(Generator.from_folder(folder))

        def done(questions: int) -> None:
            if progress is not None:
                progress("questions asked", questions, total)

        return measure(chosen, lambda _: model, protocol, Budget(rounds, None, tokens), done)
    except AgentError as error:
        raise LclmError(str(error)) from None
