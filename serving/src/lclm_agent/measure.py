"""How well a model expands: the right segments, right answers with expansion and without, and what they cost."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

from lclm_agent.chat import Model
from lclm_agent.loop import Budget, Conversation
from lclm_agent.segments import number_segments
from lclm_agent.tasks import Question, Task


@dataclass
class Figures:
    """Counts over questions; each question is asked in a chat of its own."""

    questions: int = 0
    first_right: int = 0
    """Questions whose first expanded segment is one that is needed."""
    all_right: int = 0
    """Questions for which all needed segments were expanded."""
    wrong_segments: int = 0
    """Segments expanded without need."""
    correct: int = 0
    correct_without: int = 0
    """Right answers of the same model to the same questions when it may not expand."""
    prompt_positions: int = 0
    """Positions prefilled: of the last request, which holds the others as its prefix."""
    prompt_positions_without: int = 0
    requests: int = 0
    by_kind: dict[str, "Figures"] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Counts, and shares of the questions."""
        values = {name: value for name, value in asdict(self).items() if name != "by_kind"}
        shares = ("first_right", "all_right", "correct", "correct_without")
        made: dict[str, object] = {**values}
        made |= {f"{name}_share": getattr(self, name) / (self.questions or 1) for name in shares}
        if self.by_kind:
            made["by_kind"] = {kind: one.as_json() for kind, one in self.by_kind.items()}
        return made

    def lines(self) -> list[str]:
        """The figures for people."""
        count = self.questions or 1

        def share(value: int) -> str:
            return f"{value:,} of {self.questions:,} ({value / count:.1%})"

        return [
            f"first expansion right: {share(self.first_right)}",
            f"all needed segments expanded: {share(self.all_right)}; {self.wrong_segments:,} without need",
            f"right answers: {share(self.correct)} with expansion, {share(self.correct_without)} without",
            f"positions of a prompt: {self.prompt_positions / count:.1f} with expansion,"
            f" {self.prompt_positions_without / count:.1f} without; {self.requests / count:.2f} requests a question",
        ]


def is_right(answer: str, question: Question) -> bool:
    """Whether all answers stand in it, capitals aside."""
    return all(one.lower() in answer.lower() for one in question.answers)


def measure(
    tasks: Iterable[Task],
    model_of: Callable[[Question], Model],
    protocol: str = "tools",
    budget: Budget | None = None,
    progress: Callable[[int], None] | None = None,
) -> Figures:
    """Ask every question twice: with expansion, and as a plain LCLM.

    Args:
        tasks: the questions.
        model_of: what answers a question; mostly the same model for all.
        protocol: ``tools`` or ``text``.
        budget: of a question.
        progress: told how many questions are done.
    """
    total, budget = Figures(), budget or Budget()
    plain = Budget(0, None, budget.reply_tokens)
    for task in tasks:
        segments = number_segments(task.segments)
        kind = total.by_kind.setdefault(task.kind, Figures())
        for question in task.questions:
            found = Conversation(model_of(question), segments, protocol, budget).ask(question.text)
            without = Conversation(model_of(question), segments, protocol, plain).ask(question.text)
            needed = {segments[place].id for place in question.needed}
            for figures in (total, kind):
                figures.questions += 1
                figures.first_right += bool(found.expanded) and found.expanded[0] in needed
                figures.all_right += needed <= set(found.expanded)
                figures.wrong_segments += len(set(found.expanded) - needed)
                figures.correct += is_right(found.answer, question)
                figures.correct_without += is_right(without.answer, question)
                figures.prompt_positions += found.rounds[-1].reply.usage.prompt
                figures.prompt_positions_without += without.rounds[-1].reply.usage.prompt
                figures.requests += len(found.rounds)
            if progress is not None:
                progress(total.questions)
    return total
