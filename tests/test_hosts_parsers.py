"""What the recorded streams of the real agent command lines mean. A name is HOST.CASE: what the model's API did."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ll_loop.core.hosts.base import FILES, Call
from ll_loop.core.hosts.command import AnyCommand
from ll_loop.core.hosts.table import BY_NAME, NATIVE, by_name
from ll_loop.core.hosts.told import Usage
from ll_loop.core.hosts.turn import Reply, Turn

SAMPLES = Path(__file__).parent / "hosts" / "samples"
KEYS = {"claude": "claude-code"}
STREAMS = sorted(path.name.removesuffix(".out.jsonl") for path in SAMPLES.glob("*.out.jsonl"))


def turn_of(sample: str) -> Turn:
    host = sample.partition(".")[0]
    turn = Turn(BY_NAME[KEYS.get(host, host)])
    for line in (SAMPLES / f"{sample}.out.jsonl").read_text().splitlines():
        turn.feed(line)
    return turn


def reply_of(sample: str, exit_code: int = 0) -> Reply:
    return turn_of(sample).reply(exit_code)


def case_of(sample: str) -> str:
    return sample.partition(".")[2]


# --- what the cases mean, whatever the host --------------------------------------------------------------------

TEXTS = {"ok": "FAKE-OK", "tool": "DONE-TOOL", "bgtool": "DONE-TOOL", "bgfd": "DONE-TOOL", "e500x1": "AFTER-500",
         "r429ra2x2": "AFTER-429", "r429ra9x1": "AFTER-429"}  # fmt: skip
SAT_ON_A_CHILD = {"gemini.bgfd", "opencode.bgfd"}
"""These were waiting for a background process when they were ended."""
STATUSES = {"e400": 400, "e401": 401, "e500": 500, "e529": 529, "r429": 429, "r429ra2": 429, "r429ra3600": 429}
FAILURES = {400: "real", 401: "auth", 429: "quota", 500: "server", 529: "server"}
SILENT = {"opencode.r429ra3600", "pi.r429ra3600"}
"""These wait without a word."""


@pytest.mark.parametrize("sample", [s for s in STREAMS if case_of(s) in TEXTS and s not in SAT_ON_A_CHILD])
def test_a_turn_that_went_well_gives_its_text_and_its_tokens(sample: str) -> None:
    turn = turn_of(sample)
    reply = turn.reply(0)
    assert (reply.failure, reply.output, reply.error) == (None, TEXTS[case_of(sample)], "")
    requests = 2 if "DONE" in reply.output else 1
    assert reply.usage is not None
    assert (reply.usage.input, reply.usage.cache_read) == (101 * requests, 40 * requests)
    assert reply.usage.output == 7 * requests
    assert reply.session
    assert reply.unknown == ()
    assert turn.is_over or sample.startswith("pi.")


@pytest.mark.parametrize("sample", [s for s in STREAMS if case_of(s) in STATUSES and s not in SILENT])
def test_a_refusal_of_the_api_is_classed_by_its_status(sample: str) -> None:
    reply = reply_of(sample)
    status = STATUSES[case_of(sample)]
    assert reply.failure == FAILURES[status]
    assert reply.status in (status, 500 if status >= 500 else None)
    assert reply.output == ""
    assert reply.error


CUT = [s for s in STREAMS if case_of(s).startswith(("hang-", "tool-")) or s in SILENT | SAT_ON_A_CHILD]


@pytest.mark.parametrize("exit_code", [0, 143])
@pytest.mark.parametrize("sample", CUT)
def test_a_turn_that_was_cut_off_is_never_a_success(sample: str, exit_code: int) -> None:
    reply = reply_of(sample, exit_code)
    assert reply.failure == "real"
    assert reply.error


@pytest.mark.parametrize("sample", STREAMS)
def test_every_line_of_the_recorded_streams_is_known(sample: str) -> None:
    assert reply_of(sample).unknown == ()


@pytest.mark.parametrize("sample", STREAMS)
def test_the_lines_given_while_reading_are_those_of_the_reply(sample: str) -> None:
    host = sample.partition(".")[0]
    turn = Turn(BY_NAME[KEYS.get(host, host)])
    lines = [line for raw in (SAMPLES / f"{sample}.out.jsonl").read_text().splitlines() for line in turn.feed(raw)]
    lines += turn.finish()
    assert "\n".join(lines) == turn.reply(0).output


# --- what is particular to one host ------------------------------------------------------------------------------


def test_the_stream_cut_off_by_the_server_is_judged_as_each_host_tells_it() -> None:
    assert reply_of("claude.cut").ok  # it asked again
    assert reply_of("codex.cut").failure == "real"
    assert reply_of("gemini.cut").error == "Model stream ended without a finish reason."
    assert not reply_of("opencode.cut").ok  # an endless loop of empty steps
    assert reply_of("pi.cut").suspect == "no token was counted"  # nothing else tells it from a success


def test_hosts_that_name_a_time_to_wait_are_heard() -> None:
    assert reply_of("gemini.r429ra3600").retry_after == 3600
    assert reply_of("gemini.r429ra2").retry_after == 2
    assert reply_of("opencode.r429ra2").retry_after == 2


def test_the_price_that_a_host_names_is_kept() -> None:
    assert reply_of("claude.ok").usd == pytest.approx(0.000577)
    assert reply_of("codex.ok").usd is None


def test_a_turn_that_the_user_aborted_is_no_success_though_it_exits_with_zero() -> None:
    assert reply_of("claude.hang-INT").error == "aborted_streaming"


def test_no_progress_is_made_by_a_stream_of_empty_steps() -> None:
    turn = Turn(BY_NAME["opencode"])
    turn.feed('{"type":"step_finish","part":{"reason":"unknown","tokens":{"input":0,"output":0,"cache":{}}}}')
    before = turn.progress
    turn.feed('{"type":"step_start","part":{}}')
    assert turn.progress == before


def test_a_subscription_limit_tells_when_it_ends() -> None:
    turn = Turn(BY_NAME["claude-code"])
    info = '{"status":"rejected","resetsAt":1795500000,"rateLimitType":"five_hour"}'
    turn.feed(f'{{"type":"rate_limit_event","rate_limit_info":{info}}}')
    turn.feed('{"type":"result","is_error":true,"result":"You\'ve hit your limit","api_error_status":429}')
    reply = turn.reply(1)
    assert (reply.failure, reply.resets_at) == ("quota", 1795500000)


def test_a_limit_that_is_only_near_is_no_failure() -> None:
    turn = Turn(BY_NAME["claude-code"])
    turn.feed('{"type":"rate_limit_event","rate_limit_info":{"status":"allowed_warning","resetsAt":1795500000}}')
    turn.feed('{"type":"assistant","message":{"content":[{"type":"text","text":"mind the rate limit: 429"}]}}')
    turn.feed('{"type":"result","is_error":false,"result":"fine"}')
    assert turn.reply(0).ok


def test_an_end_that_a_retry_takes_back_does_not_count() -> None:
    turn = Turn(BY_NAME["pi"])
    turn.feed('{"type":"agent_end","messages":[{"role":"assistant","stopReason":"error","errorMessage":"500 x"}]}')
    turn.feed('{"type":"auto_retry_start","attempt":1,"delayMs":2000,"errorMessage":"500 x"}')
    assert turn.reply(0).failure == "server"  # it never ended again
    turn.feed('{"type":"message_end","message":{"role":"assistant","content":[{"type":"text","text":"yes"}]}}')
    turn.feed('{"type":"agent_end","messages":[{"role":"assistant","stopReason":"stop"}]}')
    assert turn.reply(0).ok


# --- text that is no stream --------------------------------------------------------------------------------------


def test_a_command_that_prints_plain_text_is_judged_by_its_exit_code() -> None:
    for code, ok in ((0, True), (3, False)):
        turn = Turn(AnyCommand(("my-agent",)))
        assert turn.feed("all done") == ["all done"]
        assert turn.reply(code).ok is ok


def test_plain_lines_and_odd_json_in_a_stream_are_text() -> None:
    turn = Turn(BY_NAME["claude-code"])
    assert [turn.feed(line) for line in ("a warning", "[1, 2]", "3", "{broken")] == [
        ["a warning"], ["[1, 2]"], ["3"], ["{broken"],
    ]  # fmt: skip


def test_lines_of_no_known_kind_are_named() -> None:
    turn = Turn(BY_NAME["codex"])
    turn.feed('{"type":"hologram"}')
    assert turn.reply(0).unknown == ("hologram",)
    assert not turn.reply(0).ok


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_no_parser_trips_over_a_shape(value: object) -> None:
    kinds = [
        "system",
        "assistant",
        "result",
        "rate_limit_event",
        "item.completed",
        "turn.completed",
        "turn.failed",
        "error",
        "message",
        "text",
        "step_finish",
        "message_end",
        "agent_end",
        "auto_retry_start",
        "init",
    ]
    keys = ["message", "usage", "rate_limit_info", "item", "error", "part", "messages", "stats", "content", "result"]
    for host in NATIVE:
        for kind in kinds:
            list(host.parse({"type": kind, **dict.fromkeys(keys, value)}) or ())


# --- building a call ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [*NATIVE, AnyCommand(("my-agent", "--model={model}"))], ids=lambda host: host.key)
def test_the_prompt_goes_to_stdin_and_nowhere_else(host: AnyCommand) -> None:
    launch = host.build(Call(prompt="- fix the bug ✓", cwd="/project", model="m1"))
    assert launch.stdin.decode() == "- fix the bug ✓"
    assert not any("fix the bug" in word for word in launch.argv)
    assert any("m1" in word for word in launch.argv)
    assert launch.argv[0] == host.binary


@pytest.mark.parametrize("host", NATIVE, ids=lambda host: host.key)
def test_what_a_host_cannot_do_is_named(host: AnyCommand) -> None:
    call = Call(
        prompt="p", cwd="/project", agent="reviewer", tools=("Read", "Edit"), schema={"type": "object"}, effort="max"
    )
    launch = host.build(call)
    words = " ".join((*launch.argv, *launch.files.values()))
    told = {"agent": "reviewer" in words, "tools": "Read,Edit" in words, "schema": '"object"' in words,
            "effort": any(word in words for word in ("effort max", 'effort="max"', "thinking xhigh"))}  # fmt: skip
    assert {name for name, done in told.items() if not done} == set(launch.left_out)


@pytest.mark.parametrize("host", NATIVE, ids=lambda host: host.key)
def test_a_session_is_gone_on_with_by_its_id(host: AnyCommand) -> None:
    assert "abc-123" in host.build(Call(prompt="p", cwd="/project", session="abc-123")).argv
    assert "abc-123" not in host.build(Call(prompt="p", cwd="/project")).argv


def test_files_of_a_call_are_named_by_the_folder_that_will_hold_them() -> None:
    launch = BY_NAME["codex"].build(Call(prompt="p", cwd="/project", schema={"type": "object"}))
    assert f"{FILES}/schema.json" in launch.argv
    assert set(launch.files) == {"schema.json"}


def test_hosts_are_found_by_name() -> None:
    assert by_name("claude") is by_name("claude-code")
    assert by_name("nobody") is None
    assert [host.key for host in NATIVE] == ["claude-code", "codex", "pi", "gemini", "opencode"]


def test_unknown_tokens_stay_unknown_in_a_sum() -> None:
    assert Usage(1, 2, None, 4) + Usage(1, 1, 1, 1) == Usage(2, 3, None, 5)
