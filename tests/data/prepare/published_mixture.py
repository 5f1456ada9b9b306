"""The published mixture of stage 3 in miniature: three folders of Parquet files with its columns and kinds of rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

START, END = "<|memory_start|>", "<|memory_end|>"
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
BASE = pa.schema(
    [("sub_dataset", pa.string()), ("prompt", MESSAGES), ("compression_prompt", MESSAGES), ("target", pa.string())]
)
AGENTS = pa.schema(
    [(name, pa.string()) for name in ("sub_dataset", "source_dataset", "compression_scope", "messages", "tools")]
)
EXPAND = {
    "type": "function",
    "function": {
        "name": "expand",
        "description": "Return the original text of one compressed segment.",
        "parameters": {"type": "object", "properties": {"segment_id": {"type": "string"}}, "required": ["segment_id"]},
    },
}


def user(content):
    return {"role": "user", "content": content}


def thoughts(i, count=24):
    """An analysis of some sentences."""
    return " ".join(f"Step {k} adds {k} to {i} and so the sum is {i + k}." for k in range(count))


def reasoning(i):
    """A row of reasoning, with its analysis in tags, before a separator or unmarked; every other one is tagged."""
    kind = ("tags", "separator", "none")[i % 3]
    before, after = {
        "tags": ("<think>\n", f"</think>\n\nThe sum is {i}."),
        "separator": ("", f"Final Answer: {i}"),
        "none": ("", " and so on."),
    }[kind]
    analysis = thoughts(i)
    analysis = f"{START}{analysis}{END}" if i % 2 else analysis
    prompt = [user(f"What is the sum of row {i}?")]
    return {
        "sub_dataset": ("reasoning_data", "dolci_think")[i % 2],
        "prompt": prompt,
        "compression_prompt": prompt,
        "target": before + analysis + after,
    }


def other(i):
    """A row of the other kinds: a marked passage and a question about it, or text that is itself trained on."""
    passage = f"Chapter {i}. " + thoughts(i, 12)
    if i % 4 == 3:
        text = f"{passage} Before. {START}{passage}{END} After it."
        return {
            "sub_dataset": "redpajama_arxiv",
            "prompt": [user(passage)],
            "compression_prompt": [user(text)],
            "target": "NA_string_only",
        }
    return {
        "sub_dataset": ("wildchat", "chatqa_v1", "triviaqa_rc")[i % 4],
        "prompt": [user(f"{passage}\nWhich chapter?")],
        "compression_prompt": [user(f"{START}{passage}{END}\nWhich chapter?")],
        "target": f"Chapter {i}.",
    }


def call(name, **arguments):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def native_agent(i):
    """A trajectory with a tool, nothing of it compressed."""
    messages = [
        {"role": "system", "content": "You have tools."},
        user(f"List folder {i}."),
        call("ls", path=f"/{i}"),
        {"role": "tool", "content": f"a{i}.txt b{i}.txt"},
        {"role": "assistant", "content": f"There are two files in {i}."},
    ]
    tool = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object", "properties": {}}}}
    return agent("Nemotron-Agentic-v1", "none", messages, [tool])


def expanded_agent(i, segments=8):
    """A question about segments of which one is expanded."""
    texts = [f"Record {k} of {i}: " + thoughts(k, 4) for k in range(1, segments + 1)]
    blocks = "\n\n".join(f"seg_{k}\n{START}{text}{END}" for k, text in enumerate(texts, 1))
    messages = [
        user(f"Context segments:\n\n{blocks}\n\nQuestion:\nWhat does record 3 say? Return exactly FINAL: and it."),
        call("expand", segment_id="seg_3"),
        {"role": "tool", "content": texts[2]},
        {"role": "assistant", "content": "FINAL: sums"},
    ]
    return agent("finqa", "input_segments", messages, [EXPAND])


def agent(sub_dataset, scope, messages, tools):
    return {
        "sub_dataset": sub_dataset,
        "source_dataset": "somebody/somewhere",
        "compression_scope": scope,
        "messages": json.dumps(messages),
        "tools": json.dumps(tools),
    }


def write_mixture(folder: Path, rows: int = 48) -> Path:
    """``raw/`` below ``folder``, with as many rows of reasoning and of other kinds, and half as many of each agents."""
    mixed = [make(i) for i in range(rows) for make in (reasoning, other)]  # sub-datasets take turns in a file
    for name, schema, made in (
        ("base", BASE, mixed),
        ("native_agents", AGENTS, [native_agent(i) for i in range(rows // 2)]),
        ("expanded_agents", AGENTS, [expanded_agent(i) for i in range(rows // 2)]),
    ):
        (folder / "raw" / name).mkdir(parents=True)
        half = len(made) // 2
        for number, part in enumerate((made[:half], made[half:])):
            path = folder / "raw" / name / f"part-{number:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(part, schema=schema), path)
    return folder
