"""Names to files, what is kept and for how long, sub-loops, the catalogue."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ll_loop.errors import DefinitionError, NotFoundError
from ll_loop.files.config.places import find_project
from ll_loop.files.library import Library, bundled_loops

LOOP = (
    "name: {name}\ndescription: About {name}.\nscope: [x/]\ninitial: a\nstates:\n"
    "  a: {body}\n  done: {{terminal: true}}\n"
)


def put(path: Path, name: str = "demo", body: str = "{next: done}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LOOP.format(name=name, body=body), encoding="utf-8")
    return path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / ".loops").mkdir()
    return Library(tmp_path, bundled=tmp_path / "bundled")


def test_a_project_loop_hides_a_built_in_one(library: Library) -> None:
    put(library.bundled / "demo.yaml")
    assert library.resolve("demo") == library.bundled / "demo.yaml"
    own = put(library.loops / "demo.yaml")
    assert library.resolve("demo") == own
    assert library.resolve("demo", built_in=True) == library.bundled / "demo.yaml"
    fsm = put(library.loops / "demo.fsm.yaml")
    assert library.resolve("demo") == fsm


def test_a_folder_or_bare_file_of_the_same_name_hides_nothing(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(library.loops / "demo.yaml")
    monkeypatch.chdir(library.project)
    (library.project / "demo").mkdir()
    assert library.resolve("demo") == path
    (library.project / "other").write_text("name: x\n")
    with pytest.raises(NotFoundError):
        library.resolve("other")


def test_a_path_is_taken_where_it_exists(library: Library) -> None:
    path = put(library.project / "elsewhere" / "x.yml")
    assert library.resolve(str(path)) == path
    assert library.resolve("elsewhere/x.yml") == path
    deep = put(library.loops / "oracles" / "deep.yaml")
    assert library.resolve("oracles/deep") == deep


def test_drafts_are_found_by_folder_and_by_inner_name(library: Library) -> None:
    draft = put(library.loops / "runs" / "d1" / "workflow.yaml", name="idea")
    newer = put(library.loops / "runs" / "d2" / "workflow.yaml", name="idea")
    os.utime(draft, ns=(1, 1))
    assert library.resolve("d1") == draft
    assert library.resolve("idea") == newer


def test_a_missing_loop_comes_with_a_suggestion_and_the_places(library: Library) -> None:
    put(library.loops / "deploy.yaml")
    with pytest.raises(NotFoundError, match="no loop `depoly`") as caught:
        library.resolve("depoly")
    assert caught.value.hint.startswith("did you mean `deploy`? looked in .loops and ")
    assert caught.value.exit_code == 66


@pytest.mark.parametrize("name", ["", " ", "\0", "a" * 5000, "/dev/zero", "../../etc"])
def test_odd_names_are_not_found_without_a_traceback(library: Library, name: str) -> None:
    with pytest.raises(NotFoundError):
        library.resolve(name)


def test_the_same_file_gives_the_same_loop_until_it_changes(library: Library) -> None:
    path = put(library.loops / "demo.yaml")
    first = library.load("demo").loop
    assert library.load("demo").loop is first
    put(path, body="{action: ls, next: done}")
    second = library.load("demo").loop
    assert second is not first
    assert second.fingerprint != first.fingerprint


def test_a_changed_parent_changes_the_child(library: Library) -> None:
    put(library.loops / "base.yaml")
    (library.loops / "kid.yaml").write_text("name: kid\nfrom: base\n")
    assert library.load("kid").loop.states["a"].template == ""
    put(library.loops / "base.yaml", body="{action: ls -l, next: done}")
    assert library.load("kid").loop.states["a"].template == "ls -l"


def test_a_file_that_appears_later_is_noticed(library: Library) -> None:
    put(library.loops / "parent.yaml", body="{loop: kid, on_yes: done, on_no: done}")
    assert [p.rule for p in library.check("parent")[1]] == ["subloop.unresolved"]
    put(library.loops / "kid.yaml", name="kid")
    assert library.check("parent")[0] is not None


def test_loading_a_wrong_loop_raises_with_every_complaint(library: Library) -> None:
    put(library.loops / "demo.yaml", body="{next: nowhere, timeout: -1}")
    with pytest.raises(DefinitionError) as caught:
        library.load("demo")
    assert [p.rule for p in caught.value.problems if p.severity == "error"] == [
        "graph.unknown-target",
        "state.timeout",
    ]
    assert caught.value.exit_code == 65


def test_a_wrong_sub_loop_refuses_its_parent_at_any_depth(library: Library) -> None:
    put(library.loops / "top.yaml", body="{loop: mid, on_yes: done, on_no: done}")
    put(library.loops / "mid.yaml", body="{loop: low, on_yes: done, on_no: done}")
    put(library.loops / "low.yaml", body="{next: nowhere}")
    loop, problems = library.check("top")
    assert loop is None
    assert [(p.file, p.rule) for p in problems] == [(".loops/low.yaml", "graph.unknown-target")]
    assert [(p.file, p.rule) for p in library.check("mid")[1]] == [
        (".loops/mid.yaml", "subloop.invalid"),
        (".loops/low.yaml", "graph.unknown-target"),
    ]


def test_sub_loops_are_looked_up_beside_the_caller_first(library: Library) -> None:
    put(library.loops / "group" / "top.yaml", body="{loop: kid, on_yes: done, on_no: done}")
    beside = put(library.loops / "group" / "kid.yaml")
    put(library.loops / "kid.yaml", body="{next: nowhere}")
    assert library.check("group/top")[0] is not None
    assert library.resolve("kid", beside=library.loops / "group") == beside


def test_a_loop_of_the_project_stands_in_for_the_sub_loop_of_a_built_in_one(library: Library) -> None:
    put(library.bundled / "top.yaml", body="{loop: kid, on_yes: done, on_no: done}")
    built_in = put(library.bundled / "kid.yaml")
    (library.bundled / "child.yaml").write_text("name: child\nfrom: kid\n")
    assert library.resolve("kid", beside=library.bundled) == built_in
    own = put(library.loops / "kid.yaml", body="{next: nowhere}")
    assert library.resolve("kid", beside=library.bundled) == own
    assert library.check("top")[0] is None
    assert library.check("child")[0] is not None  # what it inherits from is its own


def test_sub_loops_in_a_circle_are_a_warning(library: Library) -> None:
    put(library.loops / "ping.yaml", body="{loop: pong, on_yes: done, on_no: done}")
    put(library.loops / "pong.yaml", body="{loop: ping, on_yes: done, on_no: done}")
    loop, problems = library.check("ping")
    assert loop is not None
    assert [(p.rule, p.severity) for p in problems] == [("subloop.cycle", "warning")]


def test_dynamic_sub_loops_wait_for_the_run(library: Library) -> None:
    put(library.loops / "top.yaml", body="{loop: '${context.which}', on_yes: done, on_no: done}")
    assert library.check("top")[0] is not None


def test_the_catalogue_lists_what_can_run(library: Library) -> None:
    put(library.loops / "b.yaml")
    put(library.loops / "sub" / "a.fsm.yaml", name="inner")
    put(library.loops / "runs" / "r1" / "workflow.yaml")
    put(library.loops / "runs" / "r1" / "other.yaml")
    put(library.loops / ".running" / "x.yaml")
    put(library.loops / "archive" / "r0" / "artifacts" / "made.yaml")
    (library.loops / "archive" / "r0" / "events.jsonl").touch()
    put(library.bundled / "b.yaml")
    put(library.bundled / "kept.yaml")
    (library.loops / "half.yaml").write_text("fragments: {}\n")
    (library.loops / "broken.yaml").write_text("name: [\n")
    (library.loops / "kid.yaml").write_text("name: kid\nfrom: b\nlabels: [x, y]\nvisibility: internal\n")
    found = library.list()
    assert [(e.name, e.built_in) for e in found] == [
        ("b", False),
        ("kid", False),
        ("r1", False),
        ("sub/a", False),
        ("kept", True),
    ]
    assert (found[1].labels, found[1].visibility, found[1].description) == (("x", "y"), "internal", "About demo.")


def test_a_catalogue_entry_survives_any_layout(library: Library) -> None:
    (library.loops / "flow.yaml").write_text("{name: x, initial: a, states: {a: {terminal: true}}, category: c}\n")
    (library.loops / "utf16.yaml").write_bytes(LOOP.format(name="u", body="{next: done}").encode("utf-16"))
    (library.loops / "multi.yaml").write_text(
        "description: |\n  Two\n  lines.\n'name': m\ninitial: a\nstates:\n  a: {terminal: true}\n"
    )
    assert [(e.name, e.category, e.description) for e in library.list()] == [
        ("flow", "c", ""),
        ("multi", "", "Two\nlines."),
        ("utf16", "", "About u."),
    ]


def test_the_project_is_the_nearest_folder_with_loops_inside_the_repository(tmp_path: Path) -> None:
    deep = tmp_path / "repo" / "src" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / ".loops").mkdir()
    (tmp_path / "repo" / ".git").mkdir()
    assert find_project(deep) == deep
    (tmp_path / "repo" / ".ll").mkdir()
    assert find_project(deep) == tmp_path / "repo"
    (tmp_path / "repo" / "src" / ".loops").mkdir()
    assert find_project(deep) == tmp_path / "repo" / "src"


def test_the_built_in_loops_have_a_folder() -> None:
    assert bundled_loops().name == "loops"


def test_checking_and_listing_write_nothing(library: Library) -> None:
    put(library.loops / "demo.yaml", body="{next: nowhere}")
    before = sorted(library.project.rglob("*"))
    library.check("demo")
    library.list()
    assert sorted(library.project.rglob("*")) == before
