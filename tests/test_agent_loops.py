"""The built-in agent loops on real files: a `claude` on PATH that plays scripts takes the turns, and judges."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop.api import RunResult, Session

CLAUDE = r"""#!{python} -IS
import json, pathlib, subprocess, sys
here = pathlib.Path(__file__).parent
kind = "opinion" if "--json-schema" in sys.argv else "turn"
prompt = sys.stdin.read()
number = len(list(here.glob(kind + "-*.prompt"))) + 1
(here / f"{{kind}}-{{number}}.prompt").write_text(prompt)
scripts = sorted(here.glob(kind + "-*.script"))
script = scripts[min(number, len(scripts)) - 1].read_text()
done = subprocess.run(["bash", "-c", script], text=True, stdout=subprocess.PIPE)
def say(**line):
    print(json.dumps(line), flush=True)
say(type="system", subtype="init", session_id="s", model="m")
say(type="assistant", message={{"model": "m", "content": [{{"type": "text", "text": done.stdout}}]}})
end = {{"structured_output": json.loads(done.stdout)}} if kind == "opinion" else {{}}
say(type="result", subtype="success", is_error=done.returncode != 0, result=done.stdout,
    usage={{"input_tokens": 5, "output_tokens": 3}}, **end)
"""


class Claude:
    """The agent: its turns are scripts of bash, run in the project, whose output it says. The last one is repeated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "claude").write_text(CLAUDE.format(python=sys.executable))
        (folder / "claude").chmod(0o755)
        self.env = {**os.environ, "LL_HOST_CLI": "claude-code", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    def turns(self, *scripts: str) -> None:
        self._write("turn", scripts)

    def opinions(self, *verdicts: str) -> None:
        answers = [{"verdict": one, "confidence": 0.9, "reason": "r", "evidence": "e"} for one in verdicts]
        self._write("opinion", tuple(f"echo {shlex.quote(json.dumps(answer))}" for answer in answers))

    def _write(self, kind: str, scripts: tuple[str, ...]) -> None:
        for number, script in enumerate(scripts, 1):
            (self.folder / f"{kind}-{number}.script").write_text(script)

    def prompts(self, kind: str = "turn") -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob(f"{kind}-*.prompt"))]


@pytest.fixture
def claude(tmp_path: Path) -> Claude:
    return Claude(tmp_path / "bin")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with an awkward name."""
    folder = tmp_path / "it's a project"
    folder.mkdir()
    git(folder, "init", "--quiet", "-b", "main")
    return folder


def git(where: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=where, text=True, capture_output=True, check=True).stdout.strip()


def run(project: Path, claude: Claude, loop: str, **context: Any) -> tuple[RunResult, Path]:
    """Run a loop; its result and the folder of the files that it made."""

    async def whole() -> RunResult:
        async with Session(project, grace=2, env=claude.env) as session:
            with anyio.fail_after(30):
                return await session.start(loop, context=context).wait()

    result = anyio.run(whole)
    return result, Path(result.run_dir)


def printed(result: RunResult) -> str:
    return (Path(result.run_dir).parent / "output.log").read_text()


# --- fix-until-clean -------------------------------------------------------------------------------------


def test_findings_are_fixed_until_the_check_passes(project: Path, claude: Claude) -> None:
    (project / "code").write_text("TODO one\nTODO two\nfine\n")
    claude.turns("sed -i '1s/TODO //' code", "sed -i 's/TODO //' code")
    result, _ = run(project, claude, "fix-until-clean", check="! grep -n 'TODO' code", guidance="Mind $(the) gap")
    assert (result.final_state, result.exit_code) == ("clean", 0), printed(result)
    assert (project / "code").read_text() == "one\ntwo\nfine\n"
    first, second = claude.prompts()
    assert "1:TODO one\n2:TODO two\n" in first
    assert "2:TODO two\n" in second
    assert "1:TODO" not in second
    assert "Mind $(the) gap" in first


def test_an_agent_that_changes_nothing_stalls_whatever_it_says(project: Path, claude: Claude) -> None:
    claude.turns("echo All fixed, the check passes.")
    result, _ = run(project, claude, "fix-until-clean", check="exit 3")
    assert (result.final_state, result.exit_code) == ("stalled", 2)
    assert len(claude.prompts()) == 2


def test_rounds_of_fixing_are_bounded(project: Path, claude: Claude) -> None:
    claude.turns("echo more >> code")
    result, _ = run(project, claude, "fix-until-clean", check="false", rounds=3)
    assert (result.final_state, result.exit_code) == ("out_of_rounds", 2)
    assert (project / "code").read_text() == "more\n" * 3


def test_a_check_that_is_not_there_is_no_work_for_an_agent(project: Path, claude: Claude) -> None:
    claude.turns("touch asked")
    result, _ = run(project, claude, "fix-until-clean", check="no-such-linter src")
    assert (result.final_state, result.exit_code) == ("no_check", 2)
    result, _ = run(project, claude, "fix-until-clean", check="false", rounds="many")
    assert (result.final_state, result.exit_code) == ("bad_input", 2)
    assert claude.prompts() == []


def test_a_host_that_fails_ends_the_loop(project: Path, claude: Claude) -> None:
    claude.turns("echo no; exit 1")
    result, _ = run(project, claude, "fix-until-clean", check="false")
    assert (result.final_state, result.exit_code) == ("failed", 2)


# --- do-task ---------------------------------------------------------------------------------------------

TASK = {"task": "Write a greeting", "done_when": "- greeting says hello"}


def test_a_task_is_worked_on_until_the_inspection_proves_it_done(project: Path, claude: Claude) -> None:
    claude.turns(
        "echo hell > greeting",
        "echo NOT MET: greeting says $(cat greeting)",
        "echo hello > greeting",
        "echo MET: greeting says $(cat greeting)",
    )
    claude.opinions("no", "yes")
    result, _ = run(project, claude, "do-task", **TASK, check="test -s greeting")
    assert (result.final_state, result.exit_code) == ("done", 0), printed(result)
    assert (project / "greeting").read_text() == "hello\n"
    first, _, second, _ = claude.prompts()
    assert TASK["task"] in first
    assert TASK["done_when"] in first
    assert "NOT MET: greeting says hell\n" in second
    assert "MET: greeting says hello" in claude.prompts("opinion")[1]


def test_a_task_whose_check_fails_is_not_even_inspected(project: Path, claude: Claude) -> None:
    claude.turns("date +%N >> notes; echo Done.")
    result, _ = run(project, claude, "do-task", **TASK, check="echo no greeting; test -e greeting", rounds=2)
    assert (result.final_state, result.exit_code) == ("out_of_rounds", 2)
    assert len(claude.prompts()) == 2
    assert "no greeting\nthe check exited with 1" in claude.prompts()[1]
    assert claude.prompts("opinion") == []


def test_work_that_leaves_no_trace_stalls(project: Path, claude: Claude) -> None:
    claude.turns("echo MET, surely")
    claude.opinions("no")
    result, _ = run(project, claude, "do-task", **TASK)
    assert (result.final_state, result.exit_code) == ("stalled", 2)
    assert len(claude.prompts("opinion")) == 2


def test_a_task_that_needs_a_person_says_so(project: Path, claude: Claude) -> None:
    claude.turns("echo NOT MET, nobody has the key")
    claude.opinions("blocked")
    result, _ = run(project, claude, "do-task", **TASK)
    assert (result.final_state, result.exit_code) == ("blocked", 2)


# --- review-repair ---------------------------------------------------------------------------------------

NOTES = "d=$(ls -d .loops/runs/*/artifacts | tail -n 1)\n"


def test_findings_are_repaired_until_a_review_has_none(project: Path, claude: Claude) -> None:
    (project / "code").write_text("a = 1 / 0\n")
    claude.turns(
        NOTES + 'printf "read: code\\n- [ ] code:1: divides by zero\\n" > "$d/findings.md"',
        NOTES + 'grep -q "code:1: divides" "$d/findings.md" && echo "a = 1" > code',
        NOTES + 'printf "read: code\\nno findings\\n" > "$d/findings.md"',
    )
    result, folder = run(project, claude, "review-repair", path="code", check="test -s code")
    assert (result.final_state, result.exit_code) == ("clean", 0), printed(result)
    assert (project / "code").read_text() == "a = 1\n"
    assert (folder / "findings-1.md").read_text() == "read: code\n- [ ] code:1: divides by zero\n"
    assert "no findings in 1 files" in printed(result)


def test_a_review_without_evidence_is_not_clean(project: Path, claude: Claude) -> None:
    (project / "code").write_text("a = 1\n")
    for script in ("echo no findings", NOTES + 'printf "read: imagined\\nno findings\\n" > "$d/findings.md"'):
        claude.turns(script)
        result, _ = run(project, claude, "review-repair", path="code")
        assert (result.final_state, result.exit_code) == ("unclear", 2)


def test_repairs_that_change_nothing_stall(project: Path, claude: Claude) -> None:
    (project / "code").write_text("a = 1\n")
    claude.turns("echo repaired")
    result, folder = run(project, claude, "review-repair", path="code", check="echo red; exit 4")
    assert (result.final_state, result.exit_code) == ("stalled", 2)
    assert "the check exits with 4: echo red; exit 4" in (folder / "findings-1.md").read_text()
    assert "findings.md" in claude.prompts()[0]


# --- refine-document -------------------------------------------------------------------------------------


def scored(score: int, quote: str = '"$(head -n 1 doc.md)"') -> str:
    return f"printf 'vague\\nQUOTE: %s\\nSCORE: {score}\\n' {quote}"


def test_a_document_is_improved_until_its_score_passes(project: Path, claude: Claude) -> None:
    (project / "doc.md").write_text("A first\tdraft.\n")
    claude.turns(scored(50), "echo Better. > doc.md", scored(40), "echo Good. > doc.md", scored(90))
    result, folder = run(project, claude, "refine-document", document="doc.md")
    assert (result.final_state, result.exit_code) == ("passed", 0), printed(result)
    assert (project / "doc.md").read_text() == "Good.\n"
    assert (folder / "original").read_text() == "A first\tdraft.\n"
    assert "scores: 50 -> 40 -> 90, the best is 90, 85 passes" in printed(result)
    assert "QUOTE: Better." in claude.prompts()[3]


def test_a_document_that_stalls_is_left_at_its_best(project: Path, claude: Claude) -> None:
    (project / "doc.md").write_text("Best.\n")
    claude.turns(scored(60), "echo Worse. > doc.md", scored(50), "echo Worst. > doc.md", scored(40))
    result, folder = run(project, claude, "refine-document", document="doc.md")
    assert (result.final_state, result.exit_code) == ("stalled", 2), printed(result)
    assert (project / "doc.md").read_text() == "Best.\n"
    assert (folder / "last").read_text() == "Worst.\n"


def test_a_score_whose_quote_is_not_in_the_document_does_not_count(project: Path, claude: Claude) -> None:
    (project / "doc.md").write_text("Text.\n")
    claude.turns(scored(99, "imagined"))
    result, _ = run(project, claude, "refine-document", document="doc.md")
    assert (result.final_state, result.exit_code) == ("failed", 2)
    assert len(claude.prompts()) == 2


def test_a_document_that_the_agent_deletes_comes_back(project: Path, claude: Claude) -> None:
    (project / "doc.md").write_text("Text.\n")
    claude.turns(scored(60), "rm doc.md", "echo gone")
    result, _ = run(project, claude, "refine-document", document="doc.md")
    assert (result.final_state, result.exit_code) == ("failed", 2)
    assert (project / "doc.md").read_text() == "Text.\n"


# --- optimise-metric -------------------------------------------------------------------------------------


@pytest.fixture
def measured(project: Path) -> Path:
    """A repository with a commit, a staged change, one that is not, a new file and an ignored one."""
    for name, text in {"size": "9\n", "keep": "k\n", "staged": "old\n", ".gitignore": "ignored\n.loops/\n"}.items():
        (project / name).write_text(text)
    git(project, "add", ".")
    git(project, "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "c")
    (project / "staged").write_text("mine\n")
    git(project, "add", "staged")
    for name in ("keep", "new file", "ignored"):
        (project / name).write_text(f"my {name}\n")
    return project


OPTIMISE = {"goal": "Make it small", "metric": "echo size; cat size"}


def state_of(project: Path) -> tuple[str, ...]:
    return (git(project, "status", "--porcelain"), git(project, "rev-parse", "HEAD"), git(project, "for-each-ref"))


def test_better_changes_are_kept_and_worse_ones_undone(measured: Path, claude: Claude) -> None:
    before = state_of(measured)
    worse = "echo 12 > size; rm keep 'new file'; echo x > added; mkdir sub; echo y > sub/z; echo .loops > .gitignore"
    claude.turns("echo 7 > size", worse, "echo 3 > size")
    result, folder = run(measured, claude, "optimise-metric", **OPTIMISE, target="3")
    assert (result.final_state, result.exit_code) == ("improved", 0), printed(result)
    assert (measured / "size").read_text() == "3\n"
    for name in ("keep", "new file", "ignored"):
        assert (measured / name).read_text() == f"my {name}\n"
    assert not (measured / "added").exists()
    assert not (measured / "sub").exists()
    status, *rest = state_of(measured)
    assert [line for line in status.splitlines() if "size" not in line] == before[0].splitlines()
    assert tuple(rest) == before[1:]
    assert "9 -> 7 -> 3; 2 of 3 changes kept; the target is 3" in printed(result)
    assert "+12" in (folder / "undone-2.patch").read_text()
    assert "7 undone: 12 is no better than 7" in claude.prompts()[2]


def test_without_any_gain_everything_is_as_before(measured: Path, claude: Claude) -> None:
    before = state_of(measured)
    claude.turns("echo 9 > size; rm keep", "echo 1 > size; rm staged", "exit 1")
    result, _ = run(measured, claude, "optimise-metric", **OPTIMISE, check="test -e staged")
    assert (result.final_state, result.exit_code) == ("stalled", 2), printed(result)
    assert state_of(measured) == before
    assert ((measured / "size").read_text(), (measured / "keep").read_text()) == ("9\n", "my keep\n")
    assert "the check fails" in claude.prompts()[2]


def test_without_a_target_a_gain_is_enough_and_higher_can_be_better(measured: Path, claude: Claude) -> None:
    (measured / ".gitignore").write_text("")  # not even the files of the run are ignored
    claude.turns("echo 11 > size", "echo 10 > size")
    result, folder = run(measured, claude, "optimise-metric", **OPTIMISE, direction="higher", patience=1)
    assert (result.final_state, (measured / "size").read_text()) == ("improved", "11\n"), printed(result)
    assert ".loops" not in (folder / "undone-2.patch").read_text()


def test_commits_of_the_agent_are_left_for_a_person(measured: Path, claude: Claude) -> None:
    claude.turns("echo 12 > size; git -c user.name=T -c user.email=t@example.org commit -qam mine")
    result, _ = run(measured, claude, "optimise-metric", **OPTIMISE)
    assert (result.final_state, result.exit_code) == ("failed", 2)
    assert (measured / "size").read_text() == "12\n"


def test_nothing_is_changed_without_a_number_to_begin_with(measured: Path, claude: Claude) -> None:
    claude.turns("echo 1 > size")
    for wrong, ending in (({"metric": "echo many"}, "no_metric"), ({"target": "low"}, "bad_input")):
        result, _ = run(measured, claude, "optimise-metric", **{**OPTIMISE, **wrong})
        assert (result.final_state, result.exit_code) == (ending, 2), printed(result)
    assert claude.prompts() == []
