"""An agent that speaks the Agent Client Protocol by a script: `acp_agent.py PLAY`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SESSION = "s1"


def say(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def hear() -> Any:
    line = sys.stdin.readline()
    if not line:
        Path("end").write_text("of input\n")
        sys.exit(0)
    return json.loads(line)


def update(kind: str, **fields: Any) -> None:
    say(method="session/update", params={"sessionId": SESSION, "update": {"sessionUpdate": kind, **fields}})


def take_turn(play: str, request: Any) -> None:
    if play == "hang":
        subprocess.run(["sleep", "300"], start_new_session=True)
    if play == "cooperative":
        with subprocess.Popen(["sleep", "300"], start_new_session=True) as tool:
            Path("cancelled").write_text(f"{hear()['params']['sessionId']}\n")
            tool.kill()
        say(id=request["id"], result={"stopReason": "cancelled"})
        return
    if play == "die":
        sys.exit(3)
    if play == "refuse":
        say(id=request["id"], error={"code": -32000, "message": "Authentication required"})
        return
    update("agent_message_chunk", content={"type": "text", "text": "You said: "})
    update("agent_message_chunk", content={"type": "text", "text": request["params"]["prompt"][0]["text"]})
    usage = {"inputTokens": 5, "outputTokens": 3, "cachedReadTokens": 0, "cachedWriteTokens": 0}
    say(id=request["id"], result={"stopReason": "end_turn" if play == "ok" else play, "usage": usage})


def ask_for_permission() -> None:
    options = [{"optionId": "no", "kind": "reject_once"}, {"optionId": "yes", "kind": "allow_once"}]
    say(id=0, method="session/request_permission", params={"sessionId": SESSION, "options": options})
    answer = hear()
    is_granted = answer["id"] == 0 and answer["result"]["outcome"] == {"outcome": "selected", "optionId": "yes"}
    Path("asked").write_text("granted\n" if is_granted else f"{answer}\n")


def main(play: str) -> None:
    if play == "banner":
        sys.stdout.write("welcome\n")
        return
    while True:
        request = hear()
        match request["method"]:
            case "initialize":
                say(id=request["id"], result={"protocolVersion": 1, "agentCapabilities": {"loadSession": True}})
            case "session/load":
                Path("loaded").write_text(f"{request['params']['sessionId']}\n")
                say(id=request["id"], result={})
                update("agent_message_chunk", content={"type": "text", "text": "LOOP_STOP: long ago"})
            case "session/new":
                assert request["params"]["cwd"] == str(Path.cwd())
                say(id=request["id"], result={"sessionId": SESSION})
            case "_ll-loop/settled":
                say(id=request["id"], error={"code": -32601, "message": "no such method"})
            case "session/prompt":
                ask_for_permission()
                take_turn(play, request)


if __name__ == "__main__":
    main(sys.argv[1])
