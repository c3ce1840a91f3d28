#!/usr/bin/env python3
"""What every reader makes of files and values that are broken: refused in words, or read.

`python benchmarks/fuzz.py` gives each reader in `fuzz_readers.READERS` 10,000 mutants of valid
files or values: some have other bytes, by a seeded generator, some another structure, as hypothesis
draws it. Each is to be refused by a ValueError or TypeError that names the file or value and the
remedy, or read, within a second of CPU time and 500 MB; nothing may be written, no code may run.
All else counts as lost, and its input is kept in `--keep`. Each reader runs in a process of its own
whose address space may grow by 500 MB. Results are kept in benchmarks/results/fuzz.json, batch by
batch, and what is there is not done again; `--minutes` ends the run after the batch in which they
pass. `python benchmarks/fuzz.py pairs "solver file" --inputs 500` takes two readers, 500 each."""

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
from hypothesis import strategies as st

from fuzz_mutants import CANARY, broken_bytes, broken_value
from fuzz_readers import READERS, Reader
from gas_nb.runtime.files import write_json_atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
BATCH, FRESH = 250, 8  # inputs of a batch, and batches of a process: memory comes apart in time
SECONDS = 1.0


# ---- one input -----------------------------------------------------------------------------------


@dataclass
class Tally:
    "What a batch of inputs came to."

    tried: int = 0
    refused: int = 0
    worked: int = 0
    lost: int = 0
    seconds_max: float = 0.0
    megabytes_max: float = 0.0
    reasons: Counter = field(default_factory=Counter)
    messages: Counter = field(default_factory=Counter)
    kept: dict[str, Any] = field(default_factory=dict)

    def add(self, found: "Verdict", given: Any) -> None:
        self.tried += 1
        self.refused += found.kind == "refused"
        self.worked += found.kind == "worked"
        self.lost += found.kind == "lost"
        self.seconds_max = max(self.seconds_max, found.seconds)
        if found.kind == "lost":
            words = found.words.replace(f"{os.getcwd()}/", "")
            self.reasons[words] += 1
            self.kept.setdefault(words, given)
        elif found.kind == "refused":
            self.messages[shape_of(found.words)] += 1


@dataclass(frozen=True)
class Verdict:
    kind: str  # refused, worked, lost
    words: str = ""
    seconds: float = 0.0


def shape_of(message: str) -> str:
    "A message without its numbers, paths and quotations, to count how many there are."
    text = re.sub(r"/\S+", "PATH", message)
    return re.sub(r"'[^']*'|\"[^\"]*\"|-?\d[\d.e+-]*", "_", text)[:160]


REMEDY = re.compile(
    r"\b(give|needs?|must|has to|have to|choose|use|take|leave|set|delete|save|make|call|lower|run|"
    r"download|again|start|begin|known|reads|knows|at most|at least|did you mean|restore|"
    r"is not supported|ask|name one|fetch|distil|empty it|drop|allowed|no tensor file needs|"
    r"there are|trust)"
    r"(\b|$)|usage:",
    re.IGNORECASE,
)


def judged(error: BaseException, reader: Reader, given: Any) -> str:
    "Why an error is no refusal in words; empty if it is one."
    kind = type(error)
    ours = kind in (ValueError, TypeError) or (
        isinstance(error, ValueError) and kind.__module__.startswith("gas_nb")
    )
    if isinstance(error, reader.errors):
        return ""
    message = str(error)
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = "" if where is None else Path(where.tb_frame.f_code.co_filename).name
    if not ours:
        return f"{kind.__name__} in {place}: {message[:120]}"
    if _out_of_memory(error):
        return f"memory: {message[:120]}"
    try:
        message.encode()
    except UnicodeEncodeError:
        return f"a message that cannot be printed: {message[:120]!r}"
    if not any(name and name in message for name in reader.named(given)):
        return f"names nothing ({kind.__name__} in {place}): {message[:160]}"
    if not REMEDY.search(message):
        return f"no remedy: {shape_of(message)}"
    return ""


def _out_of_memory(error: BaseException | None) -> bool:
    "Whether memory ran out on the way to an error, which may have been put into words."
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or "allocate memory" in text or "not enough mem" in text:
            return True
        error = error.__context__
    return False


def snapshot(folder: Path) -> dict[str, tuple]:
    "All files and folders below, with size and time."
    found = {}
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            about = os.lstat(os.path.join(at, name))
            size = about.st_size if name in files else 0
            found[os.path.join(at, name)] = (size, about.st_mtime_ns if name in files else 0)
    return found


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DEEDS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "socket.connect")
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "shutil.rmtree",
)


class Watch:
    "Hears of every file that is opened to write, every process and every connection, while `on`."

    def __init__(self) -> None:
        self.on, self.heard = False, []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            if str(arguments[0]) != os.devnull:
                self.heard.append(f"open to write {arguments[0]!r}")
        elif event in DEEDS or event in CHANGES:
            self.heard.append(f"{event} {str(arguments)[:80]}")


WATCH = Watch()


class Hangs(BaseException):
    "An input takes longer than a person waits."


def _hangs(*_: Any) -> None:
    raise Hangs("more than 20 s")


def tried(reader: Reader, folder: Path, given: Any) -> Verdict:
    "Let a reader read what is in `folder` (or the value `given`)."
    before = snapshot(folder)
    WATCH.heard = []
    begun, reason, kind = time.process_time(), "", "worked"
    try:
        WATCH.on = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder, given)
    except (Exception, Hangs, SystemExit) as error:
        WATCH.on = False
        kind, words = "refused", str(error)[:1000]
        reason = judged(error, reader, given)
    finally:
        WATCH.on = False
    seconds = time.process_time() - begun
    heard = [one for one in WATCH.heard if not any(word in one for word in reader.may)]
    if heard:
        reason = f"did {heard[0]}"
    if seconds > SECONDS:
        reason = f"took {seconds:.1f} s"
    left = snapshot(folder)
    if left != before:
        reason = f"wrote {sorted(left.keys() ^ before.keys())[:3] or 'into a file'}"
    if (folder / CANARY).exists() or Path(CANARY).exists():
        reason = "code of the input ran"
    if reason:
        return Verdict("lost", reason, seconds)
    return Verdict(kind, words if kind == "refused" else "", seconds)


# ---- many inputs ---------------------------------------------------------------------------------


@contextmanager
def valid_folder(reader: Reader) -> Iterator[Path]:
    "A folder with the reader's valid files; the working directory is inside it."
    here = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
        folder = Path(made).resolve() / "read-here"
        folder.mkdir()
        reader.prepare(folder)
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(here)


def batch_of(reader: Reader, folder: Path, number: int, size: int = BATCH) -> Tally:
    "The inputs of batch `number`: even ones have other bytes, odd ones another structure."
    tally, before = Tally(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    by_bytes = bool(reader.bytes) and (number % 2 == 0 or not reader.structures)
    inputs = _by_bytes if by_bytes else _by_structure
    inputs(reader, folder, number, size, tally)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tally.megabytes_max = grown / 1024
    return tally


def _one(reader: Reader, folder: Path, name: str, content: bytes, tally: Tally) -> None:
    path = folder / name
    valid = path.read_bytes()
    path.write_bytes(content)
    try:
        tally.add(tried(reader, folder, name), content)
    finally:
        path.write_bytes(valid)


def _by_bytes(reader: Reader, folder: Path, number: int, size: int, tally: Tally) -> None:
    random = Random(f"{reader.what} {number}")
    for _ in range(size):
        name = random.choice(list(reader.bytes))
        break_it = reader.bytes[name] or broken_bytes
        _one(reader, folder, name, break_it((folder / name).read_bytes(), random), tally)


def _by_structure(reader: Reader, folder: Path, number: int, size: int, tally: Tally) -> None:
    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=size,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def one(data: st.DataObject) -> None:
        if tally.tried >= size:
            return
        if reader.values:
            given = broken_value(data, data.draw(st.sampled_from(reader.values)))
            tally.add(tried(reader, folder, given), given)
            return
        name = data.draw(st.sampled_from(list(reader.structures)))
        content = reader.structures[name](data, (folder / name).read_bytes())
        _one(reader, folder, name, content, tally)

    one()


# ---- the long form -------------------------------------------------------------------------------


def _limit_memory(megabytes: int) -> None:
    "From here on the address space of this process may grow by so much and no more."
    grown = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    most = grown + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def work(what: str, first: int, last: int, keep: Path | None, tell: Any) -> None:
    "A process of one reader: tells what each batch came to."
    reader = READERS[what]
    signal.signal(signal.SIGALRM, _hangs)
    with valid_folder(reader) as folder:
        for given in reader.values[:1] or [next(iter(reader.bytes or reader.structures))]:
            reader.read(folder, given)  # imports what it needs, and shows that valid files are read
        _limit_memory(reader.megabytes)
        for number in range(first, last):
            signal.alarm(600)
            tally = batch_of(reader, folder, number)
            said = {name: vars(tally)[name] for name in NUMBERS}
            tell.send(said | dict(reasons=tally.reasons, messages=tally.messages))
            if keep is not None:
                _keep(keep / f"{what.replace(' ', '-')}-{number}", tally)
    tell.send(None)


def _keep(stem: Path, tally: Tally) -> None:
    "The inputs that were lost, one for each reason."
    stem.parent.mkdir(parents=True, exist_ok=True)
    for n, (words, given) in enumerate(tally.kept.items()):
        data = given if isinstance(given, bytes) else json.dumps(given).encode()
        Path(f"{stem}-{n}.input").write_bytes(data)
        Path(f"{stem}-{n}.txt").write_text(words, encoding="utf-8", errors="replace")


NUMBERS = ("tried", "refused", "worked", "lost", "seconds_max", "megabytes_max")


def _merged(row: dict, said: dict) -> dict:
    added = {name: row[name] + said[name] for name in ("tried", "refused", "worked", "lost")}
    most = {name: round(max(row[name], said[name]), 3) for name in ("seconds_max", "megabytes_max")}
    lost = Counter(row.get("reasons", {})) + Counter(said["reasons"])
    return row | added | most | (dict(reasons=dict(lost)) if lost else {})


def machine() -> str:
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} x {model[1] if model else platform.processor()}"


ROUNDS = (500, 1_000, 2_500, 5_000, 10_000)  # so that all readers get on, and none waits long


def run(options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)  # each reader runs in a fork of this process
    file, begun = options.output, time.monotonic()
    done = json.loads(file.read_text()) if file.exists() else dict(rows=[])
    rows = {row["what"]: row for row in done["rows"]}
    messages: Counter = Counter()

    def late() -> bool:
        return time.monotonic() - begun > 60 * options.minutes

    def take(what: str, said: dict) -> None:
        rows[what] = _merged(rows[what], said)
        messages.update(said["messages"])
        held = dict(machine=machine(), date=date.today().isoformat())
        write_json_atomic(file, dict(rows=[rows[name] for name in READERS if name in rows], **held))

    for inputs in [n for n in ROUNDS if n < options.inputs] + [options.inputs]:
        for what in options.readers or READERS:
            zero = dict(what=what, form=READERS[what].form) | {name: 0 for name in NUMBERS}
            row = rows.setdefault(what, zero)
            last = -(-inputs // BATCH)
            if row["tried"] // BATCH < last and not late():
                while (first := rows[what]["tried"] // BATCH) < last and not late():
                    part = min(first + FRESH, last)
                    _in_a_process(what, first, part, options.keep, take, late)
                    if rows[what]["tried"] // BATCH < part:
                        break
                print(" ".join(f"{name} {rows[what][name]}" for name in ("what", *NUMBERS)))
                for reason, n in Counter(rows[what].get("reasons", {})).most_common(options.show):
                    print(f"    {n} x {reason!r}", flush=True)
    if options.messages:
        for text, n in messages.most_common():
            print(f"{n:6} {text!r}")


def _in_a_process(
    what: str, first: int, last: int, keep: Path | None, take: Callable, late: Callable
) -> None:
    "The batches of one reader, to their end or until it is late."
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(what, first, last, keep, there))
    process.start()
    there.close()
    try:
        while (said := here.recv()) is not None and not late():
            take(what, said)
    except EOFError:
        process.join()
        print(f"{what}: its process ended with {process.exitcode}", file=sys.stderr)
    process.terminate()
    process.join()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)}; none: all")
    parser.add_argument("--inputs", type=int, default=10_000, help="for each reader")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="folder for inputs that were lost")
    parser.add_argument("--show", type=int, default=12, help="kinds of loss that are printed")
    parser.add_argument("--messages", action="store_true", help="print the kinds of refusals")
    options = parser.parse_args(argv)
    unknown = [name for name in options.readers if name not in READERS]
    if unknown:
        parser.error(f"no reader {unknown[0]!r}: there are {', '.join(READERS)}")
    run(options)


if __name__ == "__main__":
    main()
