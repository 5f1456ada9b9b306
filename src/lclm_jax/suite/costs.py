"""Time to the first token, tokens a second and peak memory of a request, by length, each in a fresh process."""

import statistics
from collections.abc import Callable
from pathlib import Path

from lclm_jax.suite.spec import SuiteConfig, SystemConfig
from lclm_jax.suite.store import Journal, key_of
from lclm_jax.suite.systems.process import Worker
from lclm_jax.suite.tasks.ruler.design import NOISE
from lclm_jax.types import JsonObject

_QUESTION = "\nWhat is the text above about?"


def costs_path(out: str) -> Path:
    """The records of all costs."""
    return Path(out) / "costs.jsonl"


def cost_key(suite: SuiteConfig, system: SystemConfig, length: int) -> str:
    """What identifies a measurement."""
    costs = suite.costs.model_dump(mode="json", exclude={"lengths"})
    return key_of(system.settings(), costs, {"length": length})


def measure_costs(suite: SuiteConfig, progress: Callable[[str, int, int], None]) -> None:
    """Measure every system at every length of ``suite.costs`` that has no record yet."""
    wanted = [(name, one, length) for name, one in suite.systems.items() for length in suite.costs.lengths]
    with Journal(costs_path(suite.out)) as journal:
        for done, (name, system, length) in enumerate(wanted, 1):
            key = cost_key(suite, system, length)
            if "error" in journal.records.get(key, {"error": "none yet"}):
                journal.append({"key": key, "system": name, "length": length, **_cost(suite, name, system, length)})
            progress("times and memory", done, len(wanted))


def _cost(suite: SuiteConfig, name: str, system: SystemConfig, length: int) -> JsonObject:
    """One fresh process: a first request that compiles, then timed ones."""
    log = Path(suite.out) / "logs" / f"{name}-costs.log"
    with Worker(name, system, log) as worker:
        request = _request(worker, length, suite.costs.new_tokens)
        limit = worker.facts.get("max_positions")
        counted = worker.ask({**request, "count": True})
        if limit and counted.get("positions", 0) + suite.costs.new_tokens > limit:
            return {"note": f"{counted['positions']:,} positions are more than the model holds ({limit:,})"}
        found = _timed(worker, request, suite.costs.repeats)
        if "error" in found or system.kind != "lclm" or system.context != "memory":
            return found
        stored = _timed(worker, {**request, "stored": True}, suite.costs.repeats)
        return found | {"stored_ttft_seconds": stored.get("ttft_seconds")}


def _timed(worker: Worker, request: JsonObject, repeats: int) -> JsonObject:
    replies = [worker.ask({**request, "id": f"{request['id']}/{number}"}) for number in range(1 + repeats)]
    failed = next((one for one in replies if "error" in one), None)
    if failed is not None:
        return {"error": failed["error"]}
    timed = replies[1:]
    # The first token comes with the prefill; the others make the rate.
    rates = [
        (one["new_tokens"] - 1) / max(one["seconds"] - one["ttft_seconds"], 1e-9)
        for one in timed
        if one["new_tokens"] > 1
    ]
    sizes = {name: timed[-1].get(name) for name in ("positions", "raw_tokens", "cache_bytes", "peak_bytes")}
    return sizes | {
        "ttft_seconds": statistics.median(one["ttft_seconds"] for one in timed),
        "tokens_per_s": statistics.median(rates) if rates else None,
        "first_seconds": replies[0]["seconds"],
    }


def _request(worker: Worker, length: int, new_tokens: int) -> JsonObject:
    """A request of about ``length`` raw tokens; what it says does not matter for its cost."""
    request: JsonObject = {"id": f"cost/{length}", "instruction": "", "question": _QUESTION, "prefix": ""}
    request |= {"max_new_tokens": new_tokens, "chat": True, "generate": True, "gold": ""}
    repeats = 32
    counted = worker.ask({**request, "context": _noise(repeats), "count": True}).get("raw_tokens")
    per_line = (counted or 22 * repeats) / repeats
    return request | {"context": _noise(max(1, round(length / per_line)))}


def _noise(lines: int) -> str:
    return "\n".join([NOISE] * lines)
