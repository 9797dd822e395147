"""Secret values: what a run writes down and shows has marks in their place, and it goes on from that all the same."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from ll_loop import Session
from ll_loop.core.secrets import Secrets, is_secret_name
from ll_loop.run.journals.journal import NAME, Journal, read
from projects import Project, appears

TOKEN, KEY, NAMED = 'ghp_Zx81-fake"quoted\\value', "k3y/of+the=context", "plainword"
VALUES = (TOKEN, KEY, NAMED)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def _run(project: Project, *words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    own = {key: value for key, value in os.environ.items() if not is_secret_name(key)}
    argv = [sys.executable, "-m", "ll_loop", *words]
    return subprocess.run(
        argv, cwd=project.folder, env=own | env, capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )


def _forms(value: str) -> Iterator[bytes]:
    yield value.encode()
    yield json.dumps(value)[1:-1].encode()
    yield json.dumps(json.dumps(value))[1:-1].encode()


def _leaks(project: Project, *outputs: bytes, but: tuple[str, ...] = ()) -> list[str]:
    """Where any of the values stands: files below .loops that a run made, and outputs."""
    texts = {str(path): path.read_bytes() for path in project.loops.rglob("*") if path.is_file()}
    texts = {name: data for name, data in texts.items() if not name.endswith(".yaml")}
    texts |= {f"output {number}": data for number, data in enumerate(outputs)}
    return [
        f"{value} in {name}"
        for name, data in texts.items()
        for value in VALUES
        if value not in but and any(form in data for form in _forms(value))
    ]


LOUD = """\
name: loud
initial: say
scope: [src]
context: {api_key: none, codeword: none}
states:
  say:
    action: |
      printf '%s\\n' "$API_TOKEN" "${context.api_key}" "${context.codeword}"
      printf '%s\\n' "$API_TOKEN" >&2
      printf '%s' "$${LL_CTX_api_key:0:5}"; sleep 0.3; printf '%s\\n' "$${LL_CTX_api_key:5}"
    capture: said
    next: check
  check:
    action: printf '%s' "$LL_CAP_said" > seen.txt; exit 3
    evaluate: {type: output_json, path: .x, operator: eq, target: 1, source: "${captured.said.output}"}
    on_yes: done
    on_no: done
    on_error: broken
  broken:
    action: |
      echo "FATAL_ERROR: no luck with ${context.api_key}"
    next: done
  done: {terminal: true}
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_secret_values_are_written_and_shown_nowhere(project: Project, backend: str) -> None:
    (project.loops / "loud.yaml").write_text(LOUD)
    given = ("--context", f"api_key={KEY}", "--context", f"codeword={NAMED}", "--secret", "codeword")
    env = {"API_TOKEN": TOKEN}
    ran = _run(project, "run", "loud", *given, "--events", "--json", "--backend", backend, **env)
    assert ran.returncode == 1, ran.stderr
    shown = [ran.stdout, ran.stderr]
    if backend == "asyncio":
        told = (["history", "-j"], ["why", "latest"], ["logs", "latest"], ["replay", "latest", "-j"])
        shown += [_run(project, *words).stdout for words in told]
    assert _leaks(project, *shown) == []
    run_id = project.run_folders()[0].name
    log = (project.runs / run_id / "output.log").read_text()
    assert log.count("***API_TOKEN***") == 2
    assert log.count("***LL_CTX_api_key***") == 3
    assert "***LL_CTX_codeword***" in log
    assert "no luck with ***LL_CTX_api_key***" in json.loads(ran.stdout.splitlines()[-1])["runs"][0]["error"]
    assert TOKEN in (project.folder / "seen.txt").read_text()  # the machine itself knew them


def test_a_run_goes_on_with_secrets_from_the_environment(project: Project) -> None:
    state = 'test -e go || { touch go; kill -9 $PPID; sleep 30; }; printf %s "${context.api_key} $API_TOKEN" > got.txt'
    project.loop(
        "one", f"test '${{context.api_key}}' = {KEY} && echo $API_TOKEN", state, head="context: {api_key: x}\n"
    )
    env = {"API_TOKEN": TOKEN}
    assert _run(project, "run", "one", "--context", f"api_key={KEY}", **env).returncode == -9
    refused = _run(project, "resume", **env)
    assert (refused.returncode, b"LL_CTX_api_key" in refused.stderr) == (75, True), refused.stderr
    resumed = _run(project, "resume", **env, LL_CTX_api_key=KEY)
    assert resumed.returncode == 0, resumed.stderr
    assert (project.folder / "got.txt").read_text() == f"{KEY} {TOKEN}"
    assert _leaks(project, refused.stderr, resumed.stderr) == []


def test_a_secret_of_the_loop_file_itself_needs_no_help_to_go_on(project: Project) -> None:
    state = "test -e go || { touch go; kill -9 $PPID; sleep 30; }; printf %s '${context.api_key}' > got.txt"
    project.loop("one", state, head=f"context: {{api_key: '{KEY}'}}\n")
    assert _run(project, "run", "one").returncode == -9
    assert _run(project, "resume").returncode == 0
    assert (project.folder / "got.txt").read_text() == KEY
    assert _leaks(project) == []


def test_secrets_of_sub_loops_are_kept_too(project: Project) -> None:
    state = "test -e go || { touch go; kill -9 $PPID; sleep 30; }; echo ${context.api_key} | tee got.txt"
    project.loop("child", "echo ${context.api_key}", state, head=f"context: {{api_key: '{KEY}'}}\n")
    head = "context: {api_key: another-key-for-the-parent}\n"
    project.loop("parent", "echo ${context.api_key}", head=head)
    loop = project.loops / "parent.yaml"
    loop.write_text(
        loop.read_text().replace("next: done", "next: sub\n  sub: {loop: child, on_yes: done, on_no: done}")
    )
    assert _run(project, "run", "parent").returncode == -9
    resumed = _run(project, "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (project.folder / "got.txt").read_text() == f"{KEY}\n"
    assert _leaks(project, resumed.stderr) == []
    log = (project.run_folders()[0] / "output.log").read_text()
    assert (log.count("***LL_CTX_api_key@child***"), log.count("***LL_CTX_api_key***")) == (2, 1)


FRESH = "fresh-7f3a9c51d2"
CAPTURING = """\
name: one
initial: get
scope: [src]
states:
  get: {action: "printf '%s-%s\\n' fresh 7f3a9c51d2 | tee -a got.txt", capture: NAME, next: use}
  use:
    action: |
      test -e go || { touch go; kill -9 $PPID; sleep 30; }
      echo "with ${captured.NAME.output}" | tee -a got.txt
    next: done
  done: {terminal: true}
"""


def test_what_is_captured_under_a_secret_name_is_secret_from_then_on(project: Project) -> None:
    (project.loops / "one.yaml").write_text(CAPTURING.replace("NAME", "api_token"))
    assert _run(project, "run", "one").returncode == -9
    said = [_run(project, *words) for words in (["resume"], ["why", "latest"], ["logs", "latest"], ["history", "-j"])]
    assert said[0].returncode == 75
    assert b"--from get" in said[0].stderr
    said.append(_run(project, "resume", "latest", "--from", "get"))
    assert said[-1].returncode == 0, said[-1].stderr
    assert project.lines("got.txt") == [FRESH, FRESH, f"with {FRESH}"]
    files = [path for path in project.loops.rglob("*") if path.is_file() and path.suffix != ".yaml"]
    texts = [path.read_bytes() for path in files] + [one.stdout + one.stderr for one in said]
    assert not any(FRESH.encode() in text for text in texts)
    assert any(b"with ***LL_CAP_api_token***" in text for text in texts)


@pytest.mark.parametrize(("name", "output"), [("secret_scan", "no thing"), ("api_token", "no 'login here'")])
def test_a_capture_that_holds_no_secret_keeps_nobody_from_going_on(project: Project, name: str, output: str) -> None:
    (project.loops / "one.yaml").write_text(CAPTURING.replace("NAME", name).replace("fresh 7f3a9c51d2", output))
    assert _run(project, "run", "one").returncode == -9
    assert _run(project, "resume").returncode == 0


async def test_a_live_run_tells_no_secret_to_anybody(project: Project) -> None:
    project.loop("one", "touch here; sleep 30", head=f"context: {{db: {{password: '{KEY}'}}}}\n")
    (project.loops / "one.yaml").write_text(
        (project.loops / "one.yaml").read_text().replace("touch", "echo ${context.db.password}; touch")
    )
    env = {**os.environ, "API_TOKEN": TOKEN}
    async with Session(project.folder, env=env) as session:
        run = session.start("one")
        await appears(project.file("here"))
        shown = [
            await to_thread.run_sync(partial(_run, project, *words))
            for words in (["why", "latest"], ["status", "-j"], ["why", "latest", "-j"])
        ]
        assert KEY not in json.dumps(run.snapshot())
        run.cancel()
        assert KEY not in str(await run.wait())
    assert b"***LL_CTX_db__password***" in shown[0].stdout
    assert _leaks(project, *(one.stdout for one in shown)) == []


def test_the_plan_and_a_trial_show_no_secret(project: Project) -> None:
    project.loop("one", "echo ${context.api_key}", head="context: {api_key: x}\n")
    given = ("--context", f"api_key={KEY}")
    shown = [_run(project, "run", "one", "--dry-run", *more, *given).stdout for more in ((), ("--json",))]
    shown.append(_run(project, "test", "one", "s1", *given).stdout)
    assert all(b"***LL_CTX_api_key***" in text for text in shown), shown
    assert _leaks(project, *shown) == []


def test_what_is_to_be_secret_must_be_there(project: Project) -> None:
    project.loop("one", "true")
    ran = _run(project, "run", "one", "--secret", "NOWHERE")
    assert (ran.returncode, b"--secret NOWHERE" in ran.stderr) == (64, True)


def test_files_of_runs_are_private(project: Project) -> None:
    project.loop("one", "echo hi", head="context: {large: x}\n")
    assert _run(project, "run", "one").returncode == 0
    for path in (project.runs, *project.runs.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


# --- names, texts, streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GH_TOKEN", "OPENAI_API_KEY", "MY_SECRET", "DB_PASSWORD", "apiKey", "api_key", "KEY"])
def test_names_that_speak_of_secrets_do(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["MAX_TOKENS", "KEYBOARD", "MONKEY", "SSH_KEY_FILE", "PUBLIC_KEY", "PWD", "HOME"])
def test_names_that_do_not_speak_of_secrets_do_not(name: str) -> None:
    assert not is_secret_name(name)


def test_short_and_common_values_are_no_secrets(project: Project) -> None:
    project.loop("one", "echo $API_TOKEN $MY_PASSWORD $A_SECRET")
    assert _run(project, "run", "one", API_TOKEN="abc", MY_PASSWORD="changeme", A_SECRET="/usr").returncode == 0
    assert "abc changeme /usr" in (project.run_folders()[0] / "output.log").read_text()


ODD = 'a/b c="d"&é+'


@pytest.mark.parametrize(
    "form",
    [
        quote(ODD, safe=""), quote(ODD), quote_plus(ODD), quote(ODD, safe="!'()*").lower(), json.dumps(ODD)[1:-1],
        json.dumps(json.dumps({"x": ODD})), b64encode(ODD.encode()).decode(), urlsafe_b64encode(ODD.encode()).decode(),
    ],
)  # fmt: skip
def test_a_value_is_found_as_urls_json_and_base64_write_it(form: str) -> None:
    secrets = Secrets({"A": ODD})
    masked = secrets.text(f"?x={form}&y")
    assert "***A:" in masked
    assert not {"a/b", "a%2fb", ODD[-4:], b64encode(ODD.encode()).decode()[:6]} & {masked, masked.lower()}
    assert secrets.restored(masked) == f"?x={form}&y"


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_a_value_within_base64_is_found_wherever_it_stands(before: bytes, after: bytes) -> None:
    value = "ghp_Zx81yW3v5T7r9Q"
    text = b64encode(before + value.encode() + after).decode()
    masked = Secrets({"A": value}).text(text)
    assert "***A:base64" in masked
    around = [b64decode(f"{part}==="[: (len(part) + 3) // 4 * 4]) for part in re.split(r"\*\*\*.*?\*\*\*", masked)[:1]]
    assert all(value.encode()[:3] not in part for part in around)


def test_every_line_of_a_key_of_several_lines_is_found() -> None:
    secrets = Secrets({"PEM": "first-line-of-it\nsecond-line-of-it"})
    assert secrets.text("<first-line-of-it\nsecond-line-of-it>") == "<***PEM***>"
    assert secrets.text("a second-line-of-it") == "a ***PEM:2***"
    assert secrets.restored("***PEM:2*** ***PEM*** ***Other***") == (
        "second-line-of-it first-line-of-it\nsecond-line-of-it ***Other***"
    )


@given(st.lists(st.sampled_from([b"abcdefgh", b"abcdefghijkl", b"abc", b"xyz", b"\xff", b"hijkl", b"efgh"])), st.data())
def test_a_stream_hides_secrets_however_it_is_cut(pieces: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    masking = Secrets({"A": "abcdefgh", "B": "abcdefghijkl"}).masking()
    edges = [0, *cuts, len(whole)]
    written = b"".join(masking.feed(whole[one:other]) for one, other in pairwise(edges))
    written += masking.rest()
    assert b"abcdefgh" not in written
    assert written.replace(b"***B***", b"abcdefghijkl").replace(b"***A***", b"abcdefgh") == whole


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text('ab*"\\12345678é\n', max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )
)
def test_a_document_comes_back_as_it_was(document: Any) -> None:
    secrets = Secrets({"Q": 'a"b\\a"b\\', "N": "12345678", "U": "éééaaabb"})
    masked = secrets.document(document)
    text = json.dumps(masked, ensure_ascii=False)
    assert not any(json.dumps(value, ensure_ascii=False)[1:-1] in text for value in secrets.values.values())
    assert _texts(secrets.restored(masked)) == _texts(document)


def _texts(value: Any) -> Any:
    """The value with texts for its numbers, which is what a hidden number comes back as."""
    if isinstance(value, Mapping):
        return {key: _texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_texts(item) for item in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_half_a_secret_at_the_end_of_an_excerpt_is_hidden(tmp_path: Path) -> None:
    token = "ghp_Zx81yW3v5T7r9Q"
    journal = Journal(tmp_path, "r", "loop", lambda record: None)
    journal.secrets = Secrets({"API_TOKEN": token})
    words = "so it goes " * 60
    journal.append("action_complete", {"output_preview": token[6:] + words, "stderr_preview": words + token[:10]})
    journal.close()
    [record] = read(tmp_path / NAME).records
    assert record["output_preview"] == f"***API_TOKEN***{words}"
    assert record["stderr_preview"] == f"{words}***API_TOKEN***"


def test_words_of_the_journal_itself_are_no_secrets(tmp_path: Path) -> None:
    heard: list[Mapping[str, Any]] = []
    journal = Journal(tmp_path, "r", "terminal", heard.append)
    journal.secrets = Secrets({"PASSWORD": "terminal"})
    journal.append("loop_complete", {"terminated_by": "terminal", "error": "at terminal"})
    journal.close()
    [record] = read(tmp_path / NAME).records
    assert (record["loop"], record["terminated_by"], record["error"]) == ("terminal", "terminal", "at ***PASSWORD***")
    assert heard[0]["error"] == record["error"]
