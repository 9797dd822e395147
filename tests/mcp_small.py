"""A small MCP server without any package, quick to start, for tests of servers that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def text(words: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}], "isError": False}


def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    match tool:
        case "where":
            return text(f"{os.environ.get('FLAVOUR')} {os.getcwd()}")
        case "long":
            return text("x" * arguments["size"])
        case "sleep":
            child = subprocess.Popen(["sleep", "60"], start_new_session=True)
            Path("pids.new").write_text(f"{os.getpid()} {child.pid}")
            os.rename("pids.new", "pids")
            child.wait()
        case "die":
            sys.stderr.write("I am dying\n")
            sys.stderr.flush()
            os._exit(3)
        case "nonsense":
            return {"isError": "perhaps", "content": 7}
        case "slow-to-read":
            return text(str(len(arguments["text"])))
    raise LookupError(tool)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["method"] == "initialize":
        info = {"name": "small", "version": "1"}
        version = request["params"]["protocolVersion"]
        return {"result": {"protocolVersion": version, "capabilities": {}, "serverInfo": info}}
    try:
        return {"result": call(request["params"]["name"], request["params"].get("arguments", {}))}
    except LookupError as error:
        return {"error": {"code": -32602, "message": f"no tool {error}"}}


def main() -> None:
    sys.stdout.write("Welcome to the small server\n")  # no message: it is passed over
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer(request)}) + "\n")
            sys.stdout.flush()


main()
