"""The commands for those who write loops: new, test, install, rename, fragments, schema, and two forms of show."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from msgspec.structs import replace

from command_line import Ll
from ll_loop.api import Library
from ll_loop.api.authoring import install, resolved, templates
from ll_loop.cli import authoring
from ll_loop.files.authoring.create import SCHEMA_FILE
from ll_loop.files.keys import TOP_LEVEL
from ll_loop.files.library import bundled_loops
from test_cli import ll, project

__all__ = ["ll", "project"]

VALID = Path(__file__).parents[2] / "shared" / "spec" / "examples" / "valid"


def write(project: Path, name: str, text: str) -> Path:
    path = project / ".loops" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- new -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", templates())
def test_a_new_loop_is_clean_and_runs(ll: Ll, project: Path, template: str) -> None:
    made = ll("new", "fresh", "--from", template)
    assert (made.code, made.err) == (0, "")
    assert made.out.splitlines()[0] == "wrote .loops/fresh.yaml"
    assert ll("validate", "fresh").out.startswith("fresh is valid\n")
    assert ll("run", "fresh", "--quiet").code == 0


@pytest.mark.parametrize("template", templates())
def test_a_new_loop_says_how_values_reach_its_actions_where_the_loader_knows_that(ll: Ll, template: str) -> None:
    ll("new", "fresh", "--from", template)
    written = "safe_interpolation: true\n" in Path(".loops/fresh.yaml").read_text()
    assert written == ("safe_interpolation" in TOP_LEVEL)


def test_the_help_names_every_template() -> None:
    (start,) = [parameter for parameter in authoring.new.params if parameter.name == "start"]
    assert all(template in str(getattr(start, "help", "")) for template in templates())


@pytest.mark.parametrize("name", ["fresh", "team/fresh"])
def test_the_first_line_of_a_new_loop_names_a_schema_that_takes_the_loop(ll: Ll, project: Path, name: str) -> None:
    ll("new", name)
    path = project / ".loops" / f"{name}.yaml"
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", path.read_text().splitlines()[0])
    assert found is not None
    schema = json.loads((path.parent / found[1]).read_text())
    assert list(Draft202012Validator(schema).iter_errors(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize("start", ["retry-until", "counter"])
def test_a_new_loop_can_start_from_a_loop(ll: Ll, project: Path, start: str) -> None:
    assert ll("new", "mine", "--from", start).code == 0
    text = (project / ".loops" / "mine.yaml").read_text()
    assert f"from: {start}" in text
    library = Library(project)
    assert library.load("mine").loop.states == library.load(start).loop.states
    uncommented = "".join(
        line[2:] if line.startswith("# ") and "$schema" not in line else line for line in text.splitlines(keepends=True)
    )
    (project / ".loops" / "mine.yaml").write_text(uncommented)
    assert Library(project).load("mine").loop.context.keys() >= library.load(start).loop.parameters.keys()


def test_a_new_loop_that_starts_from_another_says_what_it_needs(ll: Ll) -> None:
    made = ll("new", "mine", "--from", "retry-until")
    assert "  ll-loop run mine --context command=...\n" in made.out


@pytest.mark.parametrize("file", ["fresh.yaml", "fresh.fsm.yaml"])
def test_new_writes_over_nothing(ll: Ll, project: Path, file: str) -> None:
    path = write(project, file, "mine")
    refused = ll("new", "fresh")
    assert (refused.code, refused.err) == (73, f"Error: there is a .loops/{file} already\n")
    assert path.read_text() == "mine"
    assert sorted(one.name for one in path.parent.glob("fresh*")) == [file]


@pytest.mark.parametrize("name", ["", "a b", "../a", "a.yaml", "/a", "a/", "runs/a", ".a", "a/../b", "ä", "a\n"])
def test_new_refuses_names_that_a_file_can_not_have(ll: Ll, project: Path, name: str) -> None:
    before = sorted(project.rglob("*"))
    refused = ll("new", name)
    assert refused.code == 64
    assert "can't be called" in refused.err
    assert sorted(project.rglob("*")) == before


def test_new_says_what_there_is_to_start_from(ll: Ll, project: Path) -> None:
    refused = ll("new", "fresh", "--from", "nothing")
    assert refused.code == 66
    assert "no template or loop `nothing`" in refused.err
    assert "check-fix" in refused.err
    assert not (project / ".loops" / "fresh.yaml").exists()
    assert ll("new", "bisect", "--from", "bisect").code == 64
    assert ll("new", "fresh", "--from", "wrong").code == 65


def test_new_can_begin_a_project_and_answers_in_json(ll: Ll, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    made = ll("new", "yes", "--json", "--project", str(folder))
    assert made.json == {"name": "yes", "file": ".loops/yes.yaml", "from": "check-fix"}
    assert Library(folder).load("yes").loop.name == "yes"
    told = ll("new", "no", "--project", str(folder)).out
    assert told.startswith("wrote empty/.loops/no.yaml\n"), "it can be opened from where the command was given"


# --- schema --------------------------------------------------------------------------------------------------


def test_schema_prints_a_schema_and_writes_the_same(ll: Ll, project: Path) -> None:
    printed = ll("schema")
    Draft202012Validator.check_schema(printed.json)
    assert not (project / ".loops" / SCHEMA_FILE).exists()
    (project / ".loops" / SCHEMA_FILE).write_text("old")
    assert ll("schema", "--write").out == f"wrote .loops/{SCHEMA_FILE}\n"
    assert json.loads((project / ".loops" / SCHEMA_FILE).read_text()) == printed.json
    assert ll("list", "--json").code == 0


# --- test ----------------------------------------------------------------------------------------------------

TRIED = """\
name: tried
scope: [tried/]
context: {limit: 2, word: hello}
initial: look
states:
  look:
    action: 'echo "${context.word} $1"; echo seen >> seen.txt; exit ${context.code:default=0}'
    on_yes: done
    on_no: $current
    on_error: oops
  use:
    action: 'test ${captured.number.output} -ge ${context.limit} && echo "${prev.output}"'
    on_yes: done
    on_no: look
  judge:
    action: echo score=7
    evaluate: {type: output_numeric, operator: ge, target: 5, key: score}
    on_yes: done
    on_no: look
  unsure: {action: "exit 3; echo x", evaluate: {type: exit_code, abstain_on_exit_3: true}, on_yes: done, on_no: look}
  onward: {action: "exit 4", next: done}
  nowhere: {action: "exit 1", on_yes: done}
  again: {action: "echo x >> again.txt; exit 1", on_yes: done, on_no: again, max_retries: 3, on_retry_exhausted: oops}
  child: {loop: counter, context_passthrough: true, capture: kid, on_yes: done, on_no: oops}
  lost: {loop: counter, on_yes: done, on_no: oops}
  decide: {on_yes: done}
  slow: {action: "sleep 60", timeout: 0.2, on_yes: done, on_error: oops}
  done: {terminal: true}
  oops: {terminal: true, failure: true}
"""


@pytest.fixture
def tried(project: Path) -> None:
    write(project, "tried.yaml", TRIED)


@pytest.mark.usefixtures("tried")
def test_a_state_is_run_once_with_its_references_filled_in(ll: Ll, project: Path) -> None:
    found = ll("test", "tried", "look", "--context", "word=hi")
    assert found.code == 0
    assert re.sub(r"after [\d.]+s", "after 0.0s", found.out).splitlines() == [
        "state: look",
        "action:",
        '  echo "hi $1"; echo seen >> seen.txt; exit 0',
        "ended: exit 0 after 0.0s",
        "output:",
        "  hi",
        "verdict: yes  (default: exit_code: 0)",
        "leads to: done",
    ]
    assert (project / "seen.txt").read_text() == "seen\n"


@pytest.mark.usefixtures("tried")
def test_the_state_to_try_can_be_an_option_and_is_the_first_one_by_default(ll: Ll) -> None:
    first = ll("test", "tried", "--json").json["state"]
    assert ll("test", "tried", first, "--json").json["state"] == first
    assert ll("test", "tried", "--state", "look", "--json").json["state"] == "look"
    assert ll("test", "tried", "--state", "look", "an input", "--json").json["state"] == "look"
    assert ll("test", "tried", "look", "an input", "--state", "look").code == 64


@pytest.mark.usefixtures("tried")
def test_a_tried_state_leaves_no_run_and_no_lock_behind(ll: Ll, project: Path) -> None:
    ll("test", "tried", "look")
    assert not list((project / ".loops").glob("runs/*"))
    assert not list((project / ".loops" / ".running").glob("*-*"))
    assert ll("history", "--json").json == []


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_test_answers_in_json(ll: Ll, backend: str) -> None:
    found = ll("test", "tried", "judge", "--json", "--backend", backend)
    document = found.json
    assert document.pop("duration_ms") >= 0
    assert document == {
        "loop": "tried", "state": "judge", "action": "echo score=7", "ended": 0, "output": "score=7", "stderr": "",
        "evaluator": "output_numeric", "verdict": "yes", "details": {"value": 7.0, "target": 5.0, "operator": "ge"},
        "sub_loop": None, "leads_to": "done", "error": None, "warnings": [], "exit_code": 0,
    }  # fmt: skip


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize(
    ("state", "options", "leads_to", "code"),
    [
        ("look", ["--context", "code=1"], "look", 0),
        ("look", ["--context", "code=2"], "oops", 1),
        ("use", ["--captured", "number=3", "--prev", "it's ${x} $(y)"], "done", 0),
        ("use", ["--captured", "number=1"], "look", 0),
        ("unsure", [], "unsure", 0),
        ("onward", [], "done", 1),
        ("nowhere", [], None, 1),
        ("again", [], "again", 0),
        ("child", [], "done", 0),
        ("lost", [], "oops", 1),
        ("decide", [], "done", 0),
        ("slow", [], "oops", 1),
    ],
)
def test_a_test_tells_where_the_state_would_lead(
    ll: Ll, state: str, options: list[str], leads_to: str | None, code: int
) -> None:
    found = ll("test", "tried", state, "--json", *options)
    assert (found.json["leads_to"], found.code, found.json["exit_code"]) == (leads_to, code, code)


@pytest.mark.usefixtures("tried")
def test_what_earlier_states_printed_reaches_the_state_as_it_was_given(ll: Ll) -> None:
    text = 'it\'s ${x} $(y) "z"\nand more'
    found = ll("test", "tried", "use", "--captured", "number=3", "--prev", text, "--json")
    assert found.json["action"] == f'test 3 -ge 2 && echo "{text}"'


@pytest.mark.usefixtures("tried")
def test_a_state_that_would_be_retried_is_run_once(ll: Ll, project: Path) -> None:
    assert ll("test", "tried", "again").code == 0
    assert (project / "again.txt").read_text() == "x\n"


@pytest.mark.usefixtures("tried")
def test_a_state_that_runs_a_loop_tells_how_that_ended(ll: Ll) -> None:
    assert "sub-loop counter: done\n" in ll("test", "tried", "child").out
    assert "sub-loop counter: failed: error, in bump\n" in ll("test", "tried", "lost").out


@pytest.mark.usefixtures("tried")
def test_a_reference_to_an_earlier_state_says_how_to_give_it(ll: Ll) -> None:
    found = ll("test", "tried", "use")
    assert found.code == 1
    assert "not found in captured" in found.err
    assert "--captured NAME=TEXT" in found.err


@pytest.mark.usefixtures("tried")
def test_only_the_inputs_that_the_state_needs_are_asked_for(ll: Ll) -> None:
    write(Path.cwd(), "asks.yaml", TRIED.replace("name: tried", "name: asks").replace("word: hello", 'x: ""')
          .replace("initial:", "required_inputs: [x]\ninitial:"))  # fmt: skip
    assert ll("test", "asks", "judge").code == 0
    missing = ll("test", "asks", "look")
    assert missing.code == 66
    assert "--context word=" in missing.err


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tried", "lok"], 66, "did you mean `look`?"),
        (["tried", "done"], 64, "is an end"),
        (["absent", "look"], 66, "no loop `absent`"),
        (["wrong", "a"], 65, "names no state"),
        (["tried", "--state", "lok"], 66, "did you mean `look`?"),
    ],
)
def test_a_test_of_what_is_not_there_says_so(ll: Ll, words: list[str], code: int, said: str) -> None:
    found = ll("test", *words)
    assert found.code == code
    assert said in found.err


@pytest.fixture
def running(project: Path) -> Iterator[None]:
    """A run of the loop `busy`, in another process."""
    write(project, "busy.yaml", "name: busy\nscope: [tried/]\ninitial: a\nstates:\n"
          "  a: {action: 'echo up > up; sleep 60', next: b}\n  b: {terminal: true}\n")  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "ll_loop", "run", "busy", "--quiet"], cwd=project, stderr=subprocess.DEVNULL
    )
    try:
        while not (project / "up").exists():
            assert child.poll() is None
            os.sched_yield()
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)


@pytest.mark.usefixtures("tried", "running")
def test_a_held_scope_and_a_running_loop_are_respected(ll: Ll, project: Path) -> None:
    refused = ll("test", "tried", "look")
    assert refused.code == 75
    assert "busy" in refused.err
    assert not (project / "seen.txt").exists()
    assert ll("test", "tried", "look", "--no-lock").code == 0
    write(
        project, "user.yaml", "name: user\ninitial: a\nstates:\n  a: {loop: busy, on_yes: b}\n  b: {terminal: true}\n"
    )
    refused = ll("rename", "busy", "idle")
    assert refused.code == 75
    assert "`busy` is in use by 2" in refused.err
    assert (project / ".loops" / "busy.yaml").exists()
    assert ll("rename", "user", "other").code == 0


# --- install -------------------------------------------------------------------------------------------------


def test_install_copies_a_built_in_loop_byte_for_byte(ll: Ll, project: Path) -> None:
    done = ll("install", "bisect")
    assert (done.code, done.out) == (0, "wrote .loops/bisect.yaml\n")
    library = Library(project)
    assert library.resolve("bisect").read_bytes() == library.resolve("bisect", built_in=True).read_bytes()
    assert library.resolve("bisect") == project / ".loops" / "bisect.yaml"
    again = ll("install", "bisect", "--json")
    assert again.code == 73
    assert "there is a .loops/bisect.yaml already" in again.json["error"]["message"]


def test_install_gives_the_copy_another_name(ll: Ll, project: Path) -> None:
    done = ll("install", "bisect", "--name", "team/mine")
    assert (done.code, done.out) == (0, "wrote .loops/team/mine.yaml\n")
    library = Library(project)
    own = library.resolve("bisect").read_text()
    assert (project / ".loops/team/mine.yaml").read_text() == own.replace("name: bisect", "name: mine", 1)
    assert library.load("team/mine").loop.name == "mine"
    assert ll("install", "bisect", "--name", "counter").code == 73
    assert ll("install", "bisect", "--name", "../x").code == 64


@pytest.mark.parametrize("name", ["absent", "counter"])
def test_install_copies_nothing_but_built_in_loops(ll: Ll, project: Path, name: str) -> None:
    before = sorted(project.rglob("*"))
    assert ll("install", name).code == 66
    assert sorted(project.rglob("*")) == before


def test_install_brings_the_built_in_files_that_the_loop_uses(tmp_path: Path) -> None:
    bundled = tmp_path / "bundled"
    (bundled / "lib").mkdir(parents=True)
    kid = "name: kid\ninitial: a\nstates: {a: {terminal: true}}\n"
    texts = {
        "top.yaml": "name: top\nfrom: lib/base\nimport: [lib/words.yaml]\nstates: {b: {loop: kid, on_yes: a}}\n",
        "lib/base.yaml": "initial: b\nstates: {c: {loop: lib/deep, on_yes: a}, a: {terminal: true}}\n",
        "lib/words.yaml": "fragments: {x: {loop: mine}}\n",
        "lib/deep.yaml": kid,
        "kid.yaml": kid,
        "mine.yaml": kid,
        "unused.yaml": kid,
    }
    for name, text in texts.items():
        (bundled / name).write_text(text)
    (tmp_path / ".loops").mkdir()
    (tmp_path / ".loops" / "kid.yaml").write_text("mine")
    library = Library(tmp_path, bundled=bundled)
    done = install(library, "top")
    assert {path.relative_to(library.loops).as_posix() for path in done.copied} == texts.keys() - {
        "kid.yaml",
        "unused.yaml",
    }
    assert done.kept == (library.loops / "kid.yaml",)
    assert (library.loops / "kid.yaml").read_text() == "mine"
    for path in done.copied:
        assert path.read_text() == texts[path.relative_to(library.loops).as_posix()]


# --- rename --------------------------------------------------------------------------------------------------

REFERRING = """\
# counter stays here, and in "counter" too\r
name: user   # uses counter\r
from: "counter"\r
states:\r
    a:   {loop: counter, on_yes: b}   # not this: counter\r
    b:\r
        loop:    'counter'\r
        with: {loop: counter}\r
        on_yes:  c\r
    c: {loop: counter2, on_yes: counter}\r
    d: {loop: &it .loops/counter.yaml, on_yes: c}\r
    e: {loop: *it, on_yes: c}\r
    f: {loop: "${context.counter}", on_yes: c}\r
    counter: {terminal: true, description: "ünïcode"}\r
fragments:\r
    kid: {loop: counter}"""


def test_rename_changes_the_names_and_not_a_byte_more(ll: Ll, project: Path) -> None:
    old = (project / ".loops" / "counter.yaml").read_bytes()
    write(project, "team/user.yaml", "")
    referring = project / ".loops" / "team" / "user.yaml"
    referring.write_bytes(b"\xef\xbb\xbf" + REFERRING.encode())
    referring.chmod(0o640)
    other = write(project, "other.yaml", "name: counter\ninitial: a\nstates:\n  a: {terminal: true}\n")
    done = ll("rename", "counter", "tally")
    assert (done.code, done.err) == (0, "")
    assert not (project / ".loops" / "counter.yaml").exists()
    assert (project / ".loops" / "tally.yaml").read_bytes() == old.replace(b"name: counter", b"name: tally")
    expected = REFERRING
    for before, after in (
        ('from: "counter"', 'from: "tally"'),
        ("{loop: counter, on_yes: b}", "{loop: tally, on_yes: b}"),
        ("loop:    'counter'", "loop:    'tally'"),
        ("&it .loops/counter.yaml", "&it .loops/tally.yaml"),
        ("kid: {loop: counter}", "kid: {loop: tally}"),
    ):
        assert before in expected
        expected = expected.replace(before, after)
    assert referring.read_bytes() == b"\xef\xbb\xbf" + expected.encode()
    assert referring.stat().st_mode & 0o777 == 0o640
    assert other.read_text().startswith("name: counter\n")
    assert done.out.splitlines()[0] == ".loops/counter.yaml renamed to .loops/tally.yaml"
    assert ".loops/tally.yaml:1:7: name: counter -> tally" in done.out
    assert ".loops/team/user.yaml:5:17: loop: counter -> tally" in done.out


def test_a_dry_run_of_rename_tells_the_same_and_changes_nothing(ll: Ll, project: Path) -> None:
    write(project, "user.yaml", "name: user\nfrom: counter\n")
    before = {path: path.read_bytes() for path in project.rglob("*.yaml")}
    planned = ll("rename", "counter", "tally", "--dry-run", "--json").json
    assert {path: path.read_bytes() for path in project.rglob("*.yaml")} == before
    assert planned["dry_run"] is True
    assert [(change["file"], change["key"], change["new"]) for change in planned["changes"]] == [
        (".loops/counter.yaml", "name", "tally"),
        (".loops/user.yaml", "from", "tally"),
    ]
    assert "would be renamed" in ll("rename", "counter", "tally", "--dry-run").out
    assert ll("rename", "counter", "tally", "--json").json == {**planned, "dry_run": False}


@pytest.mark.parametrize(
    ("old", "new", "reference", "renamed"),
    [
        ("team/kid", "team/child", "kid", "child"),
        ("team/kid", "team/child", "team/kid", "team/child"),
        ("team/kid", "team/child", "./kid.yaml", "./child.yaml"),
        ("team/kid", "team/child", "../team/kid.yaml", "../team/child.yaml"),
        ("team/kid", "child", "kid", "child"),
        ("team/kid", "other/child", "team/kid", "other/child"),
        ("team/kid", "team/123", "kid", '"123"'),
    ],
)
def test_a_reference_keeps_its_form_and_still_means_the_loop(
    ll: Ll, project: Path, old: str, new: str, reference: str, renamed: str
) -> None:
    kid = "name: kid\ninitial: a\nstates:\n  a: {terminal: true}\n"
    write(project, f"{old}.yaml", kid)
    user = (
        f"name: user\ninitial: a\nstates:\n  a: {{loop: {reference}, on_yes: b, on_no: b}}\n  b: {{terminal: true}}\n"
    )
    path = write(project, "team/user.yaml", user)
    assert Library(project).check("team/user")[0] is not None
    assert ll("rename", old, new).code == 0
    assert path.read_text() == user.replace(f"loop: {reference},", f"loop: {renamed},")
    library = Library(project)
    assert library.check("team/user")[0] is not None
    assert library.load(new).loop.name == new.rpartition("/")[2]


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("counter", "bad", 73, "there is a .loops/bad.yaml already"),
        ("counter", "bisect", 73, "built-in"),
        ("counter", "a b", 64, "can't be called"),
        ("counter", "counter", 64, "already"),
        ("bisect", "tally", 66, "ll-loop install bisect"),
        ("absent", "tally", 66, "no loop `absent`"),
    ],
)
def test_rename_refuses_what_would_hurt(ll: Ll, project: Path, old: str, new: str, code: int, said: str) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*.yaml")}
    refused = ll("rename", old, new)
    assert refused.code == code
    assert said in refused.err
    assert {path: path.read_bytes() for path in project.rglob("*.yaml")} == before


def test_rename_says_what_it_could_not_change_or_read(ll: Ll, project: Path) -> None:
    write(project, "odd.yaml", "name: odd\nfrom: >-\n  counter\n")
    write(project, "broken.yaml", "name: [counter\n")
    done = ll("rename", "counter", "tally")
    assert done.code == 0
    assert ".loops/odd.yaml:2:7: change `from` to tally by hand" in done.err
    assert ".loops/broken.yaml can't be read" in done.err


# --- fragments -----------------------------------------------------------------------------------------------

LIBRARY = """\
fragments:
  polite:
    description: Says something
      nicely.
    parameters:
      what: {type: string, required: true, description: What to say}
      times: {type: integer, default: 1}
    action: for i in $(seq ${param.times}); do echo ${param.what:shell}; done
  plain: {action: "true"}
"""


def test_fragments_are_listed_with_what_they_need(ll: Ll, project: Path) -> None:
    write(project, "lib/words.yaml", LIBRARY)
    listed = ll("fragments")
    assert (listed.code, listed.err) == (0, "")
    assert listed.out.splitlines()[:5] == [
        "import: [lib/words.yaml]",
        "  polite  Says something nicely.",
        "    what (string, required)  What to say",
        "    times = 1 (integer)",
        "  plain",
    ]
    found = ll("fragments", "lib/words", "--json").json
    assert found == [
        {
            "library": "lib/words.yaml", "file": ".loops/lib/words.yaml", "built_in": False,
            "fragments": [
                {"name": "polite", "description": "Says something nicely.", "line": 2, "parameters": [
                    {"name": "what", "type": "string", "required": True, "default": None, "description": "What to say"},
                    {"name": "times", "type": "integer", "required": False, "default": 1, "description": ""},
                ]},
                {"name": "plain", "description": "", "line": 9, "parameters": []},
            ],
        }
    ]  # fmt: skip


def test_fragments_of_nothing_are_told_apart_from_none(ll: Ll, project: Path) -> None:
    assert ll("fragments", "absent").code == 66
    none = ll("fragments", "counter")
    assert (none.code, none.out, none.err) == (0, "", "no fragments in .loops/counter.yaml\n")
    write(project, "broken.yaml", "fragments: [\n")
    assert ll("fragments", "broken").code == 65


# --- show ----------------------------------------------------------------------------------------------------

COMPOSED = """\
name: composed
description: Made of parts.
from: base
import: [lib/words.yaml]
context: {limit: 3}
states:
  greet: {fragment: polite, with: {what: "${context.word}"}, next: 1}
  ask: {fragment: plain, on_yes: 1, on_no: yes, route: {"yes": 1, _: yes}}
  1: {terminal: true}
  yes: {terminal: true, failure: yes}
"""
BASE = """\
context: {word: hello, limit: 1}
initial: greet
scope: [composed/]
states:
  greet:
    on_error: yes
    timeout: 5
    action: |
      echo "two
      lines"
"""


@pytest.fixture
def composed(project: Path) -> None:
    write(project, "composed.yaml", COMPOSED)
    write(project, "base.yaml", BASE)
    write(project, "lib/words.yaml", LIBRARY)


@pytest.mark.usefixtures("composed")
def test_a_resolved_loop_is_the_same_loop_in_one_file(ll: Ll, project: Path) -> None:
    shown = ll("show", "composed", "--resolved")
    assert (shown.code, shown.err) == (0, "")
    library = Library(project)
    before = library.load("composed").loop
    for other in ("composed.yaml", "base.yaml", "lib/words.yaml"):
        (project / ".loops" / other).unlink()
    write(project, "alone.yaml", shown.out)
    alone = library.load("alone").loop
    assert alone.states == before.states
    assert (alone.context, alone.scope, alone.initial) == (before.context, before.scope, before.initial)


@pytest.mark.usefixtures("composed")
def test_a_resolved_loop_tells_where_its_parts_are_from(ll: Ll) -> None:
    lines = ll("show", "composed", "--resolved").out.splitlines()
    assert "initial: greet  # .loops/base.yaml:2" in lines
    assert "    timeout: 5  # .loops/base.yaml:7" in lines
    assert "    next: 1" in lines
    assert "    action: 'true'  # .loops/lib/words.yaml:9" in lines


@pytest.mark.usefixtures("composed")
def test_a_resolved_loop_is_a_document_too(ll: Ll) -> None:
    document = ll("show", "composed", "--resolved", "--json").json
    assert "from" not in document
    assert "import" not in document
    assert document["context"] == {"word": "hello", "limit": 3}
    assert document["states"]["greet"]["with"] == {"what": "${context.word}"}


@pytest.mark.parametrize("path", [*sorted(bundled_loops().glob("*.yaml")), *sorted(VALID.glob("*.yaml"))],
                         ids=lambda path: path.stem)  # fmt: skip
def test_resolving_a_loop_changes_nothing_that_a_run_could_see(path: Path, tmp_path: Path) -> None:
    library = Library(path.parent, loops_dir=".")
    before = library.check(str(path))[0]
    if before is None:
        pytest.skip("needs files that are not beside it")
    other = Library(tmp_path, bundled=path.parent)
    (tmp_path / ".loops").mkdir()
    (tmp_path / ".loops" / "alone.yaml").write_text(resolved(library, str(path))[1])
    after = other.load("alone").loop
    known = {"path": before.path, "file_sha256": before.file_sha256, "fingerprint": before.fingerprint}
    assert replace(after, **known) == before


def test_a_wrong_loop_is_not_resolved(ll: Ll) -> None:
    assert ll("show", "wrong", "--resolved").code == 65
    assert ll("show", "absent", "--resolved").code == 66


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_a_diagram_fits_the_terminal(ll: Ll, columns: int) -> None:
    shown = ll("show", "counter", "--diagram", columns=columns)
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) < columns
    assert "→ bump" in shown.out
    assert "done ◉" in shown.out


def test_a_diagram_is_ascii_where_the_terminal_is(ll: Ll, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    shown = ll("show", "counter", "--diagram").out
    assert shown.isascii()
    assert "> bump" in shown


@pytest.mark.parametrize(
    ("facet", "there", "gone"),
    [
        (["--diagram-edge-labels", "off"], ["→ bump", "─┬──"], ["yes", "no"]),
        (["--diagram-state-detail", "title"], ["→ bump", "yes"], ["$ "]),
        (["--diagram-state-detail", "full"], ["→ bump", "$ echo", "exit 3"], []),
        (["--diagram-scope", "main"], ["→ bump", "done ◉", "│ mend"], ["broken"]),
        (["--diagram"], ["broken", "error"], ["exit 3"]),
    ],
)
def test_a_diagram_shows_as_much_as_is_asked_for(
    ll: Ll, project: Path, facet: list[str], there: list[str], gone: list[str]
) -> None:
    states = """
      bump: {action: "echo one\\nexit 3", on_yes: done, on_no: mend, on_error: broken}
      mend: {action: "true", next: bump}
      broken: {terminal: true, failure: true}
      done: {terminal: true}
    """
    write(project, "ways.yaml", f"name: ways\ninitial: bump\nstates:{states}")
    shown = ll("show", "ways", *facet)
    assert shown.code == 0
    for part in there:
        assert part in shown.out
    for part in gone:
        assert part not in shown.out


def test_facets_are_of_the_diagram_only(ll: Ll) -> None:
    assert ll("show", "counter", "--mermaid", "--diagram-scope", "main").code == 64
    assert ll("show", "counter", "--json", "--diagram-scope", "main").code == 64


@pytest.mark.parametrize("form", ["--diagram", "--mermaid"])
def test_a_picture_has_no_json_form(ll: Ll, form: str) -> None:
    refused = ll("show", "counter", form, "--json")
    assert refused.code == 64
    assert refused.json["error"]["code"] == 64
