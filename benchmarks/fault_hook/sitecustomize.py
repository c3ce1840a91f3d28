"""Python imports this at its start, where benchmarks/faults.py put it on the path of a program: it
counts what the program does to the files of one folder, and kills it at one of these moments.

FAULT_FOLDER: the folder; FAULT_LOG: a file outside it that grows by a byte an event, shared by all
processes; FAULT_AT: the event that kills (0: none); FAULT_WHOM: all (the group), or self.
"""

import os
import pathlib
import signal
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def watch(folder: str, at: int, whom: str, log: int) -> None:
    def inside(path) -> bool:
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        return text.startswith(folder)

    def due() -> bool:
        """Count an event; whether it is the one that kills."""
        os.write(log, b"x")
        return os.fstat(log).st_size == at

    def end() -> None:
        os.kill(0 if whom == "all" else os.getpid(), signal.SIGKILL)
        signal.pause()

    def audit(event: str, arguments: tuple) -> None:
        written = event == "open" and (arguments[2] or 0) & WRITES
        changed = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
        if (written or changed) and inside(arguments[0]) and due():
            end()

    whole, synced = pathlib.Path.write_bytes, os.fsync

    def write_bytes(self, data):
        """A file that was being written when the end came: half of it."""
        if inside(self) and due():
            whole(self, bytes(data)[: len(data) // 2])
            end()
        return whole(self, data)

    def fsync(file) -> None:
        """Written, and not renamed yet."""
        synced(file)
        if due():
            end()

    pathlib.Path.write_bytes, os.fsync = write_bytes, fsync
    sys.addaudithook(audit)


def begin() -> None:
    settings = os.environ
    if settings.get("FAULT_FOLDER"):
        log = os.open(settings["FAULT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        at, whom = int(settings.get("FAULT_AT", 0)), settings.get("FAULT_WHOM", "all")
        watch(settings["FAULT_FOLDER"], at, whom, log)


begin()
