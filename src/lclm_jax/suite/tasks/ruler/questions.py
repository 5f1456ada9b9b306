"""Questions about one of many documents: SQuAD and HotpotQA with distractors."""

from lclm_jax.errors import LclmError
from lclm_jax.suite.tasks.ruler.design import PUBLISHED_LENGTH, QUESTION_PROMPT, Questions
from lclm_jax.suite.tasks.ruler.fit import CountTokens, Drawn, Draws, Fit, draw_fitting, largest_size, too_short
from lclm_jax.suite.tasks.ruler.sources import Question, Sources

_STEP = 10


class QuestionTask:
    """Draws documents around one question after another."""

    def __init__(self, design: Questions, draws: Draws, sources: Sources):
        self._design, self._draws = design, draws
        self._questions, documents = sources.squad if design.data == "squad" else sources.hotpotqa
        self._documents = list(documents)

    def draw(self, index: int, size: int) -> Drawn:
        """Question ``index`` among ``size`` documents."""
        asked, documents = self._questions[index], self._documents
        if size < len(documents):
            documents = [documents[i] for i in self._chosen(asked, size)]
        # Where all documents are asked for, the published scripts shuffle the shared list in place.
        self._draws.fresh().shuffle(documents)
        return self._written(asked, documents)

    def _chosen(self, asked: Question, size: int) -> list[int]:
        stream, more = self._draws.stream, size - len(asked.documents)
        if more <= len(asked.related):
            return asked.documents + stream.sample(asked.related, more)
        known = {*asked.documents, *asked.related}
        others = [i for i in range(len(self._documents)) if i not in known]
        return asked.documents + asked.related + stream.sample(others, max(0, more - len(asked.related)))

    def draw_short(self, index: int, size: int) -> Drawn:
        """Question ``index`` with the documents that answer it, and distractors of its own up to ``size``."""
        asked = self._questions[index]
        rest = [i for i in asked.documents + asked.related if i not in asked.needed]
        if size < len(asked.needed):
            raise ValueError("fewer documents than the answer needs")
        chosen = asked.needed + self._draws.stream.sample(rest, min(size - len(asked.needed), len(rest)))
        documents = [self._documents[i] for i in chosen]
        self._draws.stream.shuffle(documents)
        return self._written(asked, documents)

    def _written(self, asked: Question, documents: list[str]) -> Drawn:
        before, after, prefix, _ = QUESTION_PROMPT
        context = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(documents, 1))
        depth = None
        if len(asked.needed) == 1:
            depth = context.index(self._documents[asked.needed[0]]) / len(context)
        return Drawn(before, context, after.format(query=asked.query), prefix, asked.answers, depth)

    def samples(self, count_tokens: CountTokens, limit: int, count: int) -> list[Drawn]:
        """``count`` questions of at most ``limit`` tokens, reply included, in the order of the file."""
        if count > len(self._questions):
            raise LclmError(f"{self._design.data} has {len(self._questions)} questions, not {count}; ask for fewer")
        short = limit < PUBLISHED_LENGTH
        fit = Fit(count_tokens, limit, QUESTION_PROMPT.new_tokens, 1 if short else _STEP)
        if short:
            return self._short_samples(fit, count)
        size = largest_size(
            fit, lambda size: self.draw(0, size), lambda one: f"{one.text} {one.answers}", len(self._documents)
        )
        found = []
        for index in range(count):
            drawn = draw_fitting(fit, lambda size, index=index: self.draw(index, size), size)
            if drawn is None:
                raise too_short(f"question {index} of {self._design.data}", limit)
            found.append(drawn)
        return found

    def _short_samples(self, fit: Fit, count: int) -> list[Drawn]:
        """One question of a document after another; those whose documents do not fit are passed over."""
        found: list[Drawn] = []
        seen: set[int] = set()
        for index, asked in enumerate(self._questions):
            if len(found) == count:
                return found
            if asked.documents[0] in seen:
                continue
            drawn = draw_fitting(fit, lambda size, index=index: self.draw_short(index, size), 10)
            if drawn is not None:
                seen.add(asked.documents[0])
                found.append(drawn)
        if len(found) < count:
            raise too_short(f"{count} questions of {self._design.data}", fit.limit)
        return found
