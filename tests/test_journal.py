"""The journal: what was written is read back, what was torn is cut off, and a full disk is an ending, not a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from ll_loop.errors import CannotCreateError, NotFoundError, RefusedError, StorageError
from ll_loop.run.journals import journal, recovery
from ll_loop.run.journals.journal import Committer, Journal, Record
from ll_loop.run.session import Session
from projects import LIMIT, Project, eventually, names, only

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def _journal(folder: Path, heard: list[Record] | None = None) -> Journal:
    folder.mkdir(parents=True, exist_ok=True)
    return Journal(folder, "run-1", "a", (heard if heard is not None else []).append)


@pytest.fixture
def three(tmp_path: Path) -> bytes:
    """A journal with three records."""
    one = _journal(tmp_path / "three")
    for number in range(3):
        one.append("action_output", {"line": f"line {number} with ünïcödé"})
    one.close()
    return one.path.read_bytes()


# --- records -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.dictionaries(texts.filter(lambda key: key != "crc"), values, min_size=1, max_size=5))
def test_a_record_is_read_as_it_was_written(record: dict[str, Any]) -> None:
    line = journal.encode(record)
    assert line.count(b"\n") == 1
    assert journal.decode(line) == record


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_wrong_byte_anywhere_is_found(position: int, change: int) -> None:
    line = bytearray(journal.encode({"event": "route", "from": "a", "to": "b", "seq": 7}))
    line[position % len(line)] ^= change
    assert journal.decode(bytes(line)) is None


def test_numbers_and_texts_that_json_does_not_know_are_kept_as_texts() -> None:
    record = {"nan": float("nan"), "deep": [{"inf": float("-inf")}, (1.5,)], "text": "a\udc80b", "path": Path("/x")}
    found = journal.decode(journal.encode(record))
    assert found == {"nan": "nan", "deep": [{"inf": "-inf"}, [1.5]], "text": "a\udc80b", "path": "/x"}


def test_records_carry_who_when_and_which_in_this_order(tmp_path: Path) -> None:
    heard: list[Record] = []
    one = _journal(tmp_path, heard)
    one.append("route", {"from": "a", "to": "b"}, ts="now")
    one.append("route", {"from": "x", "to": "y"}, ts="now", loop="child", depth=1)
    assert heard == []  # nobody hears of what is not written yet
    one.flush()
    one.close()
    first, second = (json.loads(line) for line in one.path.read_text().splitlines())
    assert list(first) == ["event", "ts", "run_id", "loop", "from", "to", "seq", "crc"]
    assert (second["loop"], second["depth"], second["seq"]) == ("child", 1, 2)
    assert heard == list(journal.read(one.path).records)


# --- torn and damaged --------------------------------------------------------------------------------------


def test_a_last_line_torn_at_any_byte_is_cut_off(three: bytes, tmp_path: Path) -> None:
    path = tmp_path / journal.NAME
    start = three.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(three)):
        path.write_bytes(three[:end])
        text = journal.read(path)
        assert (len(text.records), text.good, text.torn) == (2, start, end - start)
    path.write_bytes(three)
    assert len(journal.read(path).records) == 3


def test_what_a_power_cut_left_of_the_last_line_is_cut_off(three: bytes, tmp_path: Path) -> None:
    path = tmp_path / journal.NAME
    for tail in (b"\0" * 100, b"half a line", b'{"event":"x","crc":"00000000"}\n'):
        path.write_bytes(three + tail)
        text = journal.read(path)
        assert (len(text.records), text.torn) == (3, len(tail))


def test_damage_in_the_middle_is_refused_and_located(three: bytes, tmp_path: Path) -> None:
    path = tmp_path / journal.NAME
    path.write_bytes(three.replace(b"line 1", b"line X"))
    with pytest.raises(StorageError, match="record 2 is damaged") as raised:
        journal.read(path)
    assert str(path) in str(raised.value)


def test_a_missing_journal_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        journal.read(tmp_path / journal.NAME)


def test_a_journal_without_its_first_record_tells_nothing_of_its_run(three: bytes, tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"{", three)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / journal.NAME).write_bytes(data)
        with pytest.raises(StorageError, match="the first record is missing"):
            recovery.open_run(tmp_path, folder.name)
    with pytest.raises(NotFoundError, match="no such run"):
        recovery.open_run(tmp_path, "nobody")


def test_a_torn_end_is_cut_and_told_of(three: bytes, tmp_path: Path) -> None:
    one = _journal(tmp_path)
    one.path.write_bytes(three[:-5])
    text = journal.read(one.path)
    one.continue_at(text.good + text.torn, text.records[-1]["seq"])
    one.open()
    one.cut(text.torn)
    one.append("route", {"from": "a", "to": "b"})
    one.close()
    found = journal.read(one.path)
    assert found.torn == 0
    assert names(list(found.records)) == ["action_output", "action_output", "journal_repaired", "route"]
    assert [record["seq"] for record in found.records] == [1, 2, 3, 4]
    assert found.records[2]["bytes"] == text.torn


# --- one owner ---------------------------------------------------------------------------------------------


def test_a_journal_is_open_once(tmp_path: Path) -> None:
    one, two = _journal(tmp_path), _journal(tmp_path)
    one.open()
    with pytest.raises(RefusedError, match="in use") as refused:
        two.open()
    assert refused.value.exit_code == 75
    one.close()
    two.open()
    two.close()


def test_who_comes_back_to_a_journal_that_went_on_without_him_is_refused(tmp_path: Path) -> None:
    one = _journal(tmp_path)
    one.append("run_created", {})
    one.close()
    two = _journal(tmp_path)
    two.continue_at(one.path.stat().st_size, 1)
    two.append("run_claimed", {})
    two.close()
    one.append("scope_waiting", {})
    with pytest.raises(RefusedError, match="taken over"):
        one.flush()
    assert names(list(journal.read(one.path).records)) == ["run_created", "run_claimed"]


def test_a_folder_that_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    with pytest.raises(CannotCreateError, match="No such file") as raised:
        Journal(tmp_path / "gone", "run-1", "a", lambda _: None).open()
    assert raised.value.exit_code == 73


# --- a disk that refuses -----------------------------------------------------------------------------------


def test_a_full_disk_is_a_storage_error_and_nothing_more_is_taken(tmp_path: Path) -> None:
    heard: list[Record] = []
    one = _journal(tmp_path, heard)
    one.path.symlink_to("/dev/full")
    one.append("route", {})
    with pytest.raises(StorageError, match="No space left") as raised:
        one.flush()
    assert raised.value.exit_code == 74
    assert "resume" in raised.value.hint
    with pytest.raises(StorageError, match="No space left"):
        one.flush()
    one.close()
    assert heard == []


def test_a_journal_that_could_not_be_made_is_not_begun_with_a_later_record(tmp_path: Path) -> None:
    one = _journal(tmp_path, [])
    one.path.mkdir()
    one.append("run_created", {})
    with pytest.raises(CannotCreateError):
        one.flush()
    one.path.rmdir()
    one.append("run_withdrawn", {})
    with pytest.raises(StorageError):
        one.flush()
    one.close()
    assert not one.path.exists()


FULL = """
import resource, sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1]) as session:
        full, other = session.start("full"), session.start("other")
        await full.wait()
        other.cancel()
    print(full.result.exit_code, full.result.status, full.result.resumable, full.result.error, sep="|")
    print(other.result.exit_code)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_whose_journal_is_full_ends_so_and_can_go_on(tmp_path: Path, backend: str) -> None:
    """Files of that process can have no more than 20,000 bytes."""
    project = Project(tmp_path / "project")
    project.loop("full", "echo once >> tries; test -e roomy || seq 1000")
    project.loop("other", "sleep 30")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(project.folder), backend],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("74|interrupted|True|cannot write")
    assert second == "130"
    run = recovery.find_run(project.runs, "full")
    assert run.text.torn == 0
    assert run.end <= 20_000
    assert (run.status, run.is_resumable, project.lock_files()) == ("interrupted", True, [])
    project.file("roomy").touch()

    async def go_on() -> str:
        async with Session(project.folder) as session:
            return (await session.resume(run).wait()).status

    assert anyio.run(go_on, backend=backend) == "completed"
    assert project.lines("tries") == ["once", "once"]


# --- group commit ------------------------------------------------------------------------------------------


async def test_commits_of_many_journals_share_rounds(tmp_path: Path) -> None:
    """Whoever asks while a round is under way is in the next one: thirty journals need far fewer than thirty."""
    committer = Committer(fast=0)
    journals = [_journal(tmp_path / str(number)) for number in range(30)]
    async with anyio.create_task_group() as commits:
        for one in journals:
            one.append("route", {})
            commits.start_soon(committer.commit, one)
    assert all(not one.unsynced for one in journals)
    assert committer.rounds <= 3
    for one in journals:
        one.close()


@pytest.mark.parametrize("fast", [0, 60])
async def test_a_journal_that_cannot_be_synced_hurts_no_other(tmp_path: Path, fast: float) -> None:
    committer = Committer(fast)
    good, bad, third = (_journal(tmp_path / name) for name in ("good", "bad", "third"))
    bad.path.symlink_to("/dev/null")  # takes every byte and cannot be synced
    found: dict[Journal, str] = {}

    async def commit(one: Journal) -> None:
        one.append("route", {})
        try:
            await committer.commit(one)
            found[one] = "committed"
        except StorageError as error:
            found[one] = str(error)

    async with anyio.create_task_group() as commits:
        for one in (good, bad, third):
            commits.start_soon(commit, one)
    assert found == {good: "committed", third: "committed", bad: f"cannot sync {bad.path}: Invalid argument"}
    with pytest.raises(StorageError):
        await committer.commit(bad)
    for one in (good, bad, third):
        one.close()


async def test_a_commit_is_not_cut_off_by_cancellation(tmp_path: Path) -> None:
    committer = Committer(fast=0)
    one = _journal(tmp_path)
    with anyio.CancelScope() as scope:
        scope.cancel()
        one.append("route", {})
        await committer.commit(one)
        assert not one.unsynced
        await checkpoint()
    assert scope.cancelled_caught
    one.close()
    assert len(journal.read(one.path).records) == 1


async def test_a_record_that_precedes_an_action_is_there_before_the_action(tmp_path: Path) -> None:
    """The action itself looks: its own announcement must be in the file."""
    project = Project(tmp_path / "project")
    project.loop("a", 'grep -c "\\"event\\":\\"action_start" "${context.run_dir}../events.jsonl" > seen')
    async with Session(project.folder) as session:
        run = session.start("a")
    assert project.lines("seen") == ["1"]
    assert names(only(project.records(run.run_id), "action_start")) == ["action_start"]


def _open_files() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
async def test_runs_that_wait_hold_no_files_open(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.loop("first", "touch begun; until test -e go; do sleep 0.01; done", scope="src")
    project.loop("next", "true", scope="src")
    async with Session(project.folder) as session:
        handles = [session.start("first"), *(session.start("next") for _ in range(20))]
        await eventually(lambda: all(handle.waits_for for handle in handles[1:]))
        assert sum(name.startswith(str(project.runs)) for name in _open_files()) <= 2
        project.file("go").touch()
    assert {handle.status for handle in handles} == {"completed"}


# --- from both ends ----------------------------------------------------------------------------------------


def _long(folder: Path, lines: int) -> Path:
    one = _journal(folder)
    one.append("run_created", {"index": 7, "context": {"text": "x" * 40_000}})
    one.append("run_started", {"at": 0.0})
    one.append("loop_complete", {"status": "of a sub-loop"}, depth=1)
    for number in range(lines):
        one.append("action_output", {"line": f'{number} "event":"run_claimed" ' + "x" * 100})
    one.append("outcome", {"at": 2.5})
    one.close()
    return one.path


@pytest.mark.parametrize("lines", [0, 2000])
def test_a_journal_tells_its_first_and_last_records_without_being_read_whole(tmp_path: Path, lines: int) -> None:
    ends = journal.Ends(_long(tmp_path / "one", lines))
    assert ends.first["index"] == 7
    found = ends.last("outcome", "run_started")
    assert found is not None
    assert (found["event"], found["at"]) == ("outcome", 2.5)
    assert ends.last("loop_complete", "run_claimed") is None
    assert ends.last("run_claimed", "run_created") == ends.first
    started = ends.last("run_started")
    assert started is not None
    assert started["at"] == 0.0


def test_what_is_appended_later_does_not_change_what_was_opened(tmp_path: Path) -> None:
    path = _long(tmp_path / "one", 10)
    ends, size = journal.Ends(path), path.stat().st_size
    with path.open("ab") as file:
        file.write(journal.encode({"event": "outcome", "at": 9.0, "seq": 99}))
    found = ends.last("outcome")
    assert found is not None
    assert found["at"] == 2.5
    assert ends.text().good == ends.size == size


def test_a_torn_last_record_is_passed_over_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = _long(tmp_path / "one", 10)
    with path.open("ab") as file:
        file.write(journal.encode({"event": "outcome", "at": 9.0, "seq": 99})[:-4])
    found = journal.Ends(path).last("outcome")
    assert found is not None
    assert found["at"] == 2.5
    with path.open("ab") as file:
        file.write(b"\n" + journal.encode({"event": "action_output", "seq": 100}))
    with pytest.raises(StorageError, match="damaged"):
        journal.Ends(path).last("outcome")


@pytest.mark.parametrize("version", [2, 1000])
def test_the_journal_of_a_later_version_is_refused_and_left_as_it_is(tmp_path: Path, version: int) -> None:
    one = _journal(tmp_path / "one")
    one.append("run_created", {"version": version})
    one.close()
    before = one.path.read_bytes()
    with pytest.raises(StorageError, match="a later ll-loop") as raised:
        journal.Ends(one.path)
    assert "nothing was changed" in raised.value.hint
    assert one.path.read_bytes() == before


def test_a_journal_without_its_first_record_is_no_run(tmp_path: Path) -> None:
    one = _journal(tmp_path / "one")
    one.append("outcome", {"at": 1.0})
    one.close()
    with pytest.raises(StorageError, match="first record is missing"):
        journal.Ends(one.path)


def test_wherever_a_journal_ends_the_same_runs_are_not_over(tmp_path: Path) -> None:
    one = _journal(tmp_path / "runs" / "one")
    one.append("run_created", {"version": 1})
    owner = {"pid": 1, "start": 0.0, "boot": "another"}
    for event, fields in (
        ("run_started", {"at": 0.0}),
        ("loop_complete", {"status": "completed", "depth": 1}),
        ("loop_complete", {"status": "completed"}),
        ("run_claimed", {"owner": owner}),
        ("run_resumed", {"at": 1.0}),
        ("action_output", {"line": "x" * 3000}),
        ("loop_complete", {"status": "failed"}),
        ("run_claimed", {"owner": owner}),
        ("run_withdrawn", {"status": "interrupted"}),
    ):
        one.append(event, fields)
    one.close()
    whole = one.path.read_bytes()
    seen = set()
    for end in range(whole.index(b"\n") + 1, len(whole) + 1):
        one.path.write_bytes(whole[:end])
        run = recovery.open_run(tmp_path / "runs", "one")
        seen.add(run.is_over)
        assert [found.run_id for found in recovery.unfinished_runs(tmp_path / "runs")] == (
            [] if run.is_over else ["one"]
        )
    assert seen == {True, False}
