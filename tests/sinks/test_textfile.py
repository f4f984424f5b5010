import os
import signal
import subprocess
import sys
import threading
from io import FileIO

import pytest

from scope_cli.errors import ScopeError, UsageError
from scope_cli.sinks.textfile import TextFile

KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from scope_cli.events import Token
from scope_cli.sinks.textfile import TextFile

sink = TextFile(Path(sys.argv[1]))
for n, piece in enumerate(["Once ", "upon 漢", "字", ""], 1):
    sink.receive(Token(0, n, n, piece, 0.0, 0.0, None))
os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path, mode, events):
    sink = TextFile(path, mode)
    for event in events:
        sink.receive(event)
    sink.close()
    sink.close()
    return path.read_text(encoding="utf-8")


def test_a_killed_process_loses_nothing_it_received(tmp_path):
    path = tmp_path / "story.txt"
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_MIDDLE, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text(encoding="utf-8") == "Once upon 漢字"


def test_the_file_holds_the_text_and_what_was_held_back(tmp_path, events_of_a_run):
    assert write(tmp_path / "a.txt", "new", events_of_a_run(["a ", "b"], held_back=" ¶")) == "a b ¶"


def test_an_existing_text_is_refused_appended_to_or_replaced(tmp_path, events_of_a_run):
    path = tmp_path / "a.txt"
    path.write_text("old ")
    with pytest.raises(UsageError, match="it exists and holds 4 B") as refused:
        TextFile(path, "new")
    assert "--append" in refused.value.hint
    assert "--force" in refused.value.hint
    assert path.read_text() == "old "
    assert write(path, "append", events_of_a_run(["new"])) == "old new"
    assert write(path, "overwrite", events_of_a_run(["newest"])) == "newest"


def test_an_empty_file_is_as_good_as_none(tmp_path, events_of_a_run):
    (tmp_path / "a.txt").touch()
    assert write(tmp_path / "a.txt", "new", events_of_a_run(["text"])) == "text"


def test_overwriting_keeps_the_old_text_until_there_is_a_new_one(tmp_path, events_of_a_run):
    path = tmp_path / "a.txt"
    path.write_text("old")
    assert write(path, "overwrite", events_of_a_run([])[:3]) == "old"  # failed before the first token
    assert write(path, "overwrite", events_of_a_run([])) == ""


def test_what_cannot_be_written_is_said_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match="cannot write") as no_folder:
        TextFile(tmp_path / "no" / "folder" / "a.txt")
    assert f"mkdir -p {tmp_path / 'no' / 'folder'}" in no_folder.value.hint
    with pytest.raises(UsageError, match="Is a directory"):
        TextFile(tmp_path)


def test_a_fifo_and_a_device_are_written_like_files(tmp_path, events_of_a_run):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    sink = TextFile(fifo)
    for event in events_of_a_run(["a", "漢"]):
        sink.receive(event)
    sink.close()
    reader.join()
    assert got == ["a漢".encode()]
    command = KILLED_IN_THE_MIDDLE.replace("SIGKILL", "SIGTERM")
    piped = subprocess.run([sys.executable, "-c", command, "/dev/stdout"], check=False, capture_output=True)
    assert piped.stdout.decode() == "Once upon 漢字"


def test_a_full_disk_keeps_whole_characters_and_says_how_much(tmp_path, events_of_a_run, monkeypatch):
    path, room = tmp_path / "a.txt", [7]

    class FullDisk(FileIO):
        def write(self, data):
            if not room[0]:
                raise OSError(28, "No space left on device")
            taken = super().write(bytes(data)[: room[0]])
            room[0] -= taken
            return taken

    monkeypatch.setattr("scope_cli.sinks.textfile._open", lambda path: FullDisk(path, "a"))
    sink = TextFile(path)
    with pytest.raises(ScopeError, match="No space left on device") as full:
        for event in events_of_a_run(["Once ", "漢字"]):
            sink.receive(event)
    sink.close()
    assert full.value.exit_code == 1
    assert full.value.hint == "the 5 B written before are kept"
    assert path.read_text(encoding="utf-8") == "Once "
