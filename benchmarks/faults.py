"""Disturbs the real commands, and looks whether anything is lost.

    python benchmarks/faults.py [--commands pairs,distil ...] [--kinds kill,write ...] [--kills 20]

With --warm the commands are forks of one process that has imported everything, which takes most of
a short run's time; jobs of a sweep, the app, launched processes and what is read-only start anew.

Each command runs once undisturbed. Then, in folders of their own, from seeds that are written down:

kill        kill -9 of all its processes at a random moment, several times in a run
write       kill -9 at its n-th write: before a file is opened, half way through it, before it is
            renamed (benchmarks/fault_hook counts); of a sweep also of one process alone
term, int   SIGTERM to the command alone, as a supervisor sends it; Ctrl-C to all, as a terminal
full        no room: a tmpfs that is too small (as root), and a limit on the size of a file
denied      the folder is read-only, for a run that was killed half way
damaged     a file of a run that was killed half way is removed, cut in half or emptied
shared      two of the same command at once in one folder
worker      of two processes of `accelerate launch` one is killed; more or fewer go on

After each the command is started again. It has to go on and end in the same bits as the
undisturbed one (CPU, one thread), or to refuse in words that name the file, and go on once that is
deleted. After every single fault: each JSON and safetensors file can be read, what was finished
(shards that a manifest lists, cells of a sweep) is not made again, no process is left over, and a
folder beside the run's has not changed. What came of it goes to benchmarks/results/faults.json as
it comes; a second call does what is missing.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOOK = ROOT / "benchmarks" / "fault_hook"
OUT = ROOT / "benchmarks" / "results" / "faults.json"
PATIENCE = 240.0  # seconds that a command may take, times --slow
HEARS = 60.0  # seconds from a signal to the end, times --slow
CHAIN = 5  # at most so many faults in one run

# ---- the commands --------------------------------------------------------------------------------

PAIRS = """
import sys
from gas_nb.runtime.programs import errors_in_words
with errors_in_words("pairs"):
    from gas_nb.data import generate_pairs
    from gas_nb.teacher import load_teacher
    teacher = load_teacher("digits", "cpu")
    generate_pairs(teacher, range(900), sys.argv[1] + "/pairs", "random", 60, 20)
"""

TEACHER = """
import sys
sys.path.insert(0, sys.argv[2])
from gas_nb.runtime.programs import errors_in_words
with errors_in_words("teacher"):
    import torch
    from fmnist_teacher.config import TeacherConfig
    from fmnist_teacher.training import export_weights, run_training
    tiny = dict(widths=(8, 16), attention_size=16, head_dim=8, batch_size=4)
    config = TeacherConfig(**tiny, steps=12, decay_steps=4, warmup_steps=2)
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (24, 1, 32, 32), dtype=torch.uint8, generator=draw)
    labels = torch.arange(24) % 10
    options = dict(device="cpu", log_every=1, checkpoint_every=0)
    for _ in run_training(config, images, labels, sys.argv[1] + "/run", **options):
        pass
    export_weights(sys.argv[1] + "/run", sys.argv[1] + "/weights")
"""

# Starts the app, presses the button `Train` as the page does, and waits for the end of it.
APP = """
import json, os, signal, socket, subprocess, sys, time, urllib.request
runs = sys.argv[1]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
command = ["-m", "gas_nb", "app", "--device", "cpu", "--port", str(port), "--runs", runs]
server = subprocess.Popen([sys.executable, *command])
signal.signal(signal.SIGTERM, lambda *_: server.terminate())
signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the server, too
base = f"http://127.0.0.1:{port}"

def ask(path, data=None):
    body = None if data is None else json.dumps(data).encode()
    head = {"Content-Type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(base + path, body, head), timeout=3600)

def train():
    while server.poll() is None:
        try:
            page = json.load(ask("/config"))
            break
        except OSError:
            time.sleep(0.2)
    else:
        return "no server"
    buttons = {c["id"]: c["props"].get("elem_id") for c in page["components"]}
    named = {d["id"]: [buttons.get(t[0]) for t in d["targets"]] for d in page["dependencies"]}
    number = next(i for i, names in named.items() if "train" in names)
    data = ["digits", 3, "quick", True, 0, None]
    question = dict(data=data, fn_index=number, session_hash="faults")
    ask("/gradio_api/queue/join", question)
    last = ""
    for line in ask("/gradio_api/queue/data?session_hash=faults"):
        last = line.decode() if b"process_" in line else last
        if b"process_completed" in line:
            break
    return last

try:
    told = train()
except OSError as error:
    told = f"the server went away: {error}"
done = "kept in digits-nfe3-" in told
print("told:", told[-600:] if not done else "done", flush=True)
if done:
    server.terminate()
else:
    time.sleep(1)
    stopped = server.poll()
    server.terminate()
status = server.wait()
sys.exit(0 if done else stopped if stopped else 1)
"""


@dataclass(frozen=True)
class Program:
    "A command: its words for a folder of results, and which files there are its result."

    name: str
    words: Callable[[Path], list[str]]
    result: tuple[str, ...]  # globs below the folder
    kinds: tuple[str, ...] = ("kill", "write", "term", "int", "full", "denied", "damaged", "shared")
    settings: dict[str, str] = field(default_factory=dict)  # of the environment
    warm: bool = True  # whether a fork can run it


def _gas_nb(*words: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["-m", "gas_nb", *words, "--output-dir", str(folder)]


DIGITS = ("--teacher", "digits", "--preset", "quick", "--device", "cpu")
SWEEP = ("sweep", *DIGITS, "--nfes", "3 4", "--solvers", "ddim gs gas", "--metrics", "l1")
LAUNCHED = dict(launch=("--nfe", "3", "--adversarial", "0"))
LAUNCHED["launch with a game"] = ("--nfe", "2", "--iterations", "12")
SOLVERS = ("*/gs.json", "*/gas.json", "*/solver.json")
SHARDS = "pairs/**/pairs-*.safetensors"
PROGRAMS = {
    program.name: program
    for program in (
        Program("pairs", lambda folder: ["-c", PAIRS, str(folder)], (SHARDS,)),
        Program(
            "distil",
            _gas_nb("distil", *DIGITS, "--nfe", "3", "--iterations", "12"),
            (*SOLVERS, SHARDS),
        ),
        Program(
            "sweep",
            _gas_nb(
                *SWEEP,
                *("--n-samples", "50", "--repeats", "1", "--n-search", "16"),
                *("--train", "--processes", "2"),
            ),
            (*SOLVERS, SHARDS, "sweep-digits/cells/*.json"),
        ),
        Program(
            "teacher",
            lambda folder: ["-c", TEACHER, str(folder), str(ROOT / "examples")],
            ("run/checkpoint.safetensors", "weights/*.safetensors"),
        ),
        Program(
            "app",
            lambda folder: ["-S", "-c", APP, str(folder)],
            (*SOLVERS, SHARDS),
            warm=False,
        ),
        *(
            Program(
                name,
                _gas_nb("distil", *DIGITS, *settings),
                (*SOLVERS, SHARDS),
                ("worker",),
                dict(ACCELERATE_USE_CPU="1", CUDA_VISIBLE_DEVICES=""),
                warm=False,
            )
            for name, settings in LAUNCHED.items()
        ),
    )
}
MOMENTARY = ("seconds", "seconds_per_image", "provenance")  # they differ from run to run

# ---- one folder, and one start of a command in it ------------------------------------------------


@dataclass
class Case:
    "A program with a folder of its own: `runs` is what it writes to, all else must stay."

    program: Program
    place: Path
    log: str = ""

    def __post_init__(self) -> None:
        for name in ("runs", "home", "tmp", "beside"):
            (self.place / name).mkdir(parents=True, exist_ok=True)
        (self.place / "beside" / "neighbour.json").write_text('{"of": "another"}\n')
        (self.place / "events").write_bytes(b"")

    @property
    def runs(self) -> Path:
        return self.place / "runs"

    @property
    def events(self) -> int:
        return (self.place / "events").stat().st_size

    def environment(self, at: int, whom: str) -> dict[str, str]:
        paths = f"{HOOK}{os.pathsep}{ROOT}"
        fault = dict(FAULT_FOLDER=str(self.runs), FAULT_LOG=str(self.place / "events"))
        fault |= dict(FAULT_AT=str(at), FAULT_WHOM=whom)
        homes = dict(HOME=str(self.place / "home"), TMPDIR=str(self.place / "tmp"))
        quiet = dict(HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", OMP_NUM_THREADS="1")
        return os.environ | dict(PYTHONPATH=paths) | fault | homes | quiet | self.program.settings

    def start(
        self,
        at: int = 0,
        whom: str = "all",
        before: tuple[str, ...] = (),
        launcher: tuple[str, ...] = (),
        largest: int | None = None,
    ) -> "Started":
        "Start the command in a session of its own; `at`: the write that kills it."
        (self.place / "events").write_bytes(b"")
        said = tempfile.TemporaryFile("w+")
        environment = self.environment(at, whom)
        words = self.program.words(self.runs)
        if WARM and self.program.warm and not before and not launcher:
            return Started(Forked(words, environment, self.place / "beside", said, largest), said)

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

        process = subprocess.Popen(
            [*before, sys.executable, *launcher, *words],
            env=environment,
            cwd=self.place / "beside",
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limited if largest else None,
        )
        return Started(process, said)


WARM = False
SLOW = 1.0  # how many times longer than on an idle machine all may take


def warm_up() -> None:
    "Import what the commands import, once, for those that are forked from here."
    sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(HOOK)]
    os.environ |= dict(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    import fmnist_teacher.training  # noqa: F401
    import gas_nb.command  # noqa: F401
    import gas_nb.distil  # noqa: F401
    import gas_nb.sweeps.command  # noqa: F401
    import sitecustomize  # noqa: F401

    globals()["WARM"] = True


class Forked:
    "A command in a fork of this process, with the interface of a Popen that is used here."

    def __init__(self, words: list[str], environment: dict, place: Path, said, largest):
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._become(environment, place, said, largest)
                status = self._run(words)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except KeyboardInterrupt:
                traceback.print_exc()
                status = 130
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    @staticmethod
    def _become(environment: dict, place: Path, said, largest: int | None) -> None:
        os.setsid()
        os.chdir(place)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for number in (1, 2):
            os.dup2(said.fileno(), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        import sitecustomize

        sitecustomize.begin()

    @staticmethod
    def _run(words: list[str]) -> int:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<command>", "exec"), {"__name__": "__main__"})
            return 0
        from gas_nb.command import main

        sys.argv = sys.orig_argv = ["gas-nb", *words[2:]]
        return main(words[2:])

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def members(session: int) -> list[int]:
    "The living processes of a session."
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            facts = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(facts[3]) == session and facts[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


@dataclass
class Started:
    process: subprocess.Popen
    output: object

    def kill(self) -> None:
        for pid in members(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def end(self, patience: float = PATIENCE) -> "Ended":
        "Wait for the end; what is left of the session 10 seconds later is counted and killed."
        began = time.monotonic()
        try:
            self.process.wait(SLOW * patience)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
            return Ended(None, self._said(), 0, SLOW * patience)
        seconds = time.monotonic() - began
        until = time.monotonic() + 10 * SLOW
        while members(self.process.pid) and time.monotonic() < until:
            time.sleep(0.1)
        left = len(members(self.process.pid))
        self.kill()
        return Ended(self.process.returncode, self._said(), left, seconds)

    def _said(self) -> str:
        self.output.seek(0)
        text = self.output.read()
        self.output.close()
        return text


@dataclass
class Ended:
    status: int | None  # None: it did not end
    said: str
    orphans: int
    seconds: float

    @property
    def in_words(self) -> bool:
        "Whether it ended with a status of its own and a line, not with a traceback."
        told = "error: " in self.said or "stopped" in self.said or "failed: " in self.said
        return self.status in (1, 2, 130) and told and "Traceback (most" not in self.said


# ---- what is looked at after each fault ----------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def content(path: Path, folder: Path) -> str:
    "A digest of what a file of the result says, times and places of its making apart."
    if path.suffix == ".safetensors":
        return _tensors(path)
    found = json.loads(path.read_text())
    for owner in (found, found.get("row")):
        for name in MOMENTARY:
            if isinstance(owner, dict):
                owner.pop(name, None)
    text = json.dumps(found, sort_keys=True).replace(str(folder), "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tensors(path: Path) -> str:
    "The order of a header's strings is random, and is left out."
    from safetensors import safe_open

    found = hashlib.sha256()
    with safe_open(path, "pt") as file:
        found.update(json.dumps(file.metadata(), sort_keys=True).encode())
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def result(case: Case) -> dict[str, str]:
    "The files of the result by their names; the number of a run is no part of one."
    found: dict[str, str] = {}
    for pattern in case.program.result:
        for path in sorted(case.runs.glob(pattern)):
            name = re.sub(r"(-nfe\d+)-\d+/", r"\1/", path.relative_to(case.runs).as_posix())
            found[name] = content(path, case.runs)
    return found


def broken(folder: Path) -> list[str]:
    "JSON and safetensors files that cannot be read, and logs with a broken line but the last."
    from safetensors import safe_open

    bad = []
    for path in sorted(folder.rglob("*")):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text().splitlines()[:-1]]
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    [file.get_tensor(name) for name in file.keys()]
        except FileNotFoundError:
            continue
        except Exception as error:
            bad.append(f"{path.relative_to(folder)}: {error}")
    return bad


def finished_work(folder: Path) -> dict[str, int]:
    "What is done and must not be done again, with the number of the file on the disk."
    paths = [*folder.glob("sweep-*/cells/*.json"), *folder.glob("sweep-*/search/*.json")]
    for manifest in folder.rglob("manifest.json"):
        try:
            records = json.loads(manifest.read_text())["shards"]
        except (OSError, ValueError, LookupError):
            continue
        paths += [manifest.parent / record["file"] for record in records]
    return {str(p.relative_to(folder)): p.stat().st_ino for p in paths if p.exists()}


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def surroundings(case: Case) -> dict[str, str]:
    "All files beside the run's folder but those of home and tmp, which are the system's."
    kept = ("runs", "home", "tmp", "events")
    found = {}
    for top in case.place.iterdir():
        if top.name in kept:
            continue
        for path in [top, *top.rglob("*")]:
            found[str(path.relative_to(case.place))] = digest(path) if path.is_file() else ""
    return found


# ---- faults --------------------------------------------------------------------------------------


@dataclass
class Found:
    "What came of one case: `tried` faults, and what was wrong."

    key: str
    tried: int = 0
    refused: int = 0  # in words; the command went on once their cause was gone
    resumed: int = 0
    identical: int = 0
    remade: int = 0  # files of finished work made again
    half: int = 0
    leftover: int = 0  # temporary files at the end
    orphans: int = 0
    outside: int = 0
    tracebacks: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    phase: str = ""  # of a launched run, the one of the last line in its log when it was killed
    processes: int = 0  # that went on with it


class Trial:
    "A case, disturbed: `fault` after `fault`, then `finish`."

    def __init__(self, key: str, program: Program, place: Path, expected: dict[str, str]):
        self.case, self.found, self.expected = Case(program, place), Found(key), expected
        self.random = random.Random(key)
        self.around = surroundings(self.case)
        self.work: dict[str, int] = {}

    def look(self, ended: Ended | None) -> None:
        "After a fault, and at the end."
        found, case = self.found, self.case
        bad = broken(case.runs)
        found.half += len(bad)
        found.wrong += [f"half written: {name}" for name in bad]
        now = finished_work(case.runs)
        again = [n for n, number in self.work.items() if now.get(n, number) != number]
        gone = [n for n in self.work if n not in now]
        found.remade += len(again) + len(gone)
        found.wrong += [f"made again: {name}" for name in again + gone]
        self.work = now
        if surroundings(case) != self.around:
            found.outside += 1
            found.wrong.append("a file beside the run's folder has changed")
        if ended is not None:
            found.orphans += ended.orphans
            if ended.orphans:
                found.wrong.append(f"{ended.orphans} processes were left over")

    def told(self, ended: Ended, why: str) -> None:
        "A refusal has to be one in words."
        self.found.refused += 1
        if "Traceback (most" in ended.said:
            self.found.tracebacks += 1
            self.found.wrong.append(f"{why}: a traceback: {ended.said[-700:]}")
        elif not ended.in_words:
            self.found.wrong.append(f"{why}: status {ended.status}, {ended.said[-700:]!r}")

    def finish(self, **options) -> Ended:
        "The next start goes on to the same end."
        ended = self.case.start(**options).end()
        self.look(ended)
        if ended.status != 0:
            self.found.wrong.append(f"did not go on: {ended.status}, {ended.said[-1500:]!r}")
            return ended
        self.found.resumed = self.found.tried
        got = result(self.case)
        if got == self.expected:
            self.found.identical = self.found.tried
        else:
            names = sorted(n for n in {*got, *self.expected} if got.get(n) != self.expected.get(n))
            self.found.wrong.append(f"another result: {names}")
        self.found.leftover = len(temporaries(self.case.runs))
        if self.found.leftover:
            self.found.wrong.append(f"{self.found.leftover} temporary files are left")
        return ended


@dataclass(frozen=True)
class Usual:
    "The undisturbed run: its result, its seconds from the first file on, and its writes."

    result: dict[str, str]
    seconds: float
    writes: int
    size: int


def undisturbed(program: Program, place: Path) -> Usual:
    case = Case(program, place)
    started = case.start()
    while not any(case.runs.iterdir()) and started.process.poll() is None:
        time.sleep(0.02)
    began = time.monotonic()
    ended = started.end()
    if ended.status != 0:
        raise SystemExit(f"{program.name} does not run undisturbed: {ended.said[-3000:]}")
    files = [path.stat().st_size for path in case.runs.rglob("*") if path.is_file()]
    seconds = time.monotonic() - began
    return Usual(result(case), seconds, case.events, max(files))


def wait_for_work(trial: Trial, started: Started, delay: float) -> bool:
    "`delay` seconds behind the first write of this start; False if it ended before."
    until = None
    while started.process.poll() is None:
        if until is None and trial.case.events:
            until = time.monotonic() + delay
        if until is not None and time.monotonic() >= until:
            return True
        time.sleep(0.005)
    return False


def kill(trial: Trial, usual: Usual, faults: int) -> None:
    for _ in range(faults):
        started = trial.case.start()
        if not wait_for_work(trial, started, trial.random.uniform(0, usual.seconds)):
            trial.look(started.end())
            break
        started.kill()
        trial.found.tried += 1
        trial.look(started.end())
    trial.finish()


def killed_at_write(trial: Trial, usual: Usual, faults: int, alone: bool) -> None:
    for _ in range(faults):
        whom = "self" if alone and trial.random.random() < 0.5 else "all"
        ended = trial.case.start(trial.random.randint(1, max(2, usual.writes // 2)), whom).end()
        if ended.status == 0:  # it was over before that write
            trial.look(ended)
            break
        trial.found.tried += 1
        trial.look(ended)
        if ended.status is None:
            trial.found.wrong.append(f"did not end: {ended.said[-700:]}")
        elif ended.status > 0 and trial.case.program.name != "app":
            trial.told(ended, "one process was killed")
    trial.finish()


def write(trial: Trial, usual: Usual, faults: int) -> None:
    killed_at_write(trial, usual, faults, trial.case.program.name == "sweep")


def signalled(trial: Trial, usual: Usual, faults: int, number: int) -> None:
    for _ in range(faults):
        started = trial.case.start()
        if not wait_for_work(trial, started, trial.random.uniform(0, usual.seconds)):
            trial.look(started.end())
            break
        if number == signal.SIGINT:
            os.killpg(started.process.pid, number)
        else:
            started.process.send_signal(number)
        trial.found.tried += 1
        ended = started.end(HEARS)
        trial.look(ended)
        if ended.status is None:
            trial.found.wrong.append(f"signal {number} was not heard: {ended.said[-700:]}")
        elif "Traceback (most" in ended.said:
            trial.found.tracebacks += 1
            trial.found.wrong.append(f"signal {number}: a traceback: {ended.said[-900:]}")
    trial.finish()


def term(trial: Trial, usual: Usual, faults: int) -> None:
    signalled(trial, usual, faults, signal.SIGTERM)


def interrupt(trial: Trial, usual: Usual, faults: int) -> None:
    signalled(trial, usual, faults, signal.SIGINT)


def mounted(place: Path, size: int) -> bool:
    "A disk of `size` bytes at `place`; False where that is not allowed."
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    done = subprocess.run(words, capture_output=True) if os.geteuid() == 0 else None
    return done is not None and done.returncode == 0


def full(trial: Trial, usual: Usual, faults: int) -> None:
    "A disk that is too small, then a limit on files; then there is room."
    total = sum(1 for _ in usual.result) * 4096 + usual.size
    size = trial.random.randrange(4096, max(8192, total // 2))
    on_disk = mounted(trial.case.runs, size)
    try:
        if on_disk:
            no_room(trial, "the disk is full", trial.case.start())
            room = ["mount", "-o", "remount,size=256m", str(trial.case.runs)]
            subprocess.run(room, check=True, capture_output=True)
        largest = trial.random.randrange(64, max(128, usual.size))
        no_room(trial, "no file may be so large", trial.case.start(largest=largest))
        trial.finish()
    finally:
        if on_disk:
            subprocess.run(["umount", str(trial.case.runs)], check=True)


def no_room(trial: Trial, why: str, started: Started) -> None:
    ended = started.end()
    if ended.status == 0:
        return
    trial.found.tried += 1
    trial.look(ended)
    if trial.case.program.name != "app":
        trial.told(ended, why)


def bound_by_permissions() -> tuple[str, ...]:
    "What stands before a command so that the permissions of files hold for root, too."
    if os.geteuid():
        return ()
    return ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


def may_write(folder: Path, allowed: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if allowed else mode & ~0o222)


def denied(trial: Trial, usual: Usual, faults: int) -> None:
    if trial.random.random() < 0.7:
        trial.look(trial.case.start(trial.random.randint(2, usual.writes)).end())
    may_write(trial.case.runs, False)
    try:
        ended = trial.case.start(before=bound_by_permissions()).end()
    finally:
        may_write(trial.case.runs, True)
    trial.found.tried += 1
    trial.look(ended)
    if ended.status == 0:
        trial.found.wrong.append("a read-only folder was written to")
    elif trial.case.program.name != "app":
        trial.told(ended, "read-only")
    trial.finish()


def spoil(trial: Trial) -> Path | None:
    "Remove, halve or empty one file of the run's folder."
    files = sorted(p for p in trial.case.runs.rglob("*") if p.is_file() and p.name != ".lock")
    if not files:
        return None
    path, way = trial.random.choice(files), trial.random.choice(["gone", "half", "empty"])
    if way == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if way == "half" else 0)
    trial.case.log = f"{path.relative_to(trial.case.runs)} {way}"
    return path


def damaged(trial: Trial, usual: Usual, faults: int) -> None:
    "The next start mends it, or names the file and goes on when that is deleted."
    early = trial.random.random() < 0.75
    at = trial.random.randint(2, usual.writes) if early else 0
    trial.look(trial.case.start(at).end())
    path = spoil(trial)
    if path is None:
        return
    trial.found.tried += 1
    trial.work = {}  # what was damaged is made again
    ended = trial.case.start().end()
    if ended.status != 0 and trial.case.program.name != "app":
        trial.told(ended, trial.case.log)
        if path.name not in ended.said and path.parent.name not in ended.said:
            trial.found.wrong.append(f"{trial.case.log}: it was not named: {ended.said[-700:]}")
    if ended.status != 0:
        shutil.rmtree(path.parent) if path.name == "manifest.json" else path.unlink(True)
    before = len(trial.found.wrong)
    trial.finish()
    if len(trial.found.wrong) > before:
        trial.found.wrong.append(f"damaged: {trial.case.log}")


def shared(trial: Trial, usual: Usual, faults: int) -> None:
    "Two at once: one does it, the other waits or refuses in words."
    first = trial.case.start()
    time.sleep(trial.random.uniform(0, 1))
    second = trial.case.start()
    ends = [first.end(), second.end()]
    trial.found.tried += 1
    for ended in ends:
        trial.look(ended)
        if ended.status != 0 and trial.case.program.name != "app":
            trial.told(ended, "the folder was in use")
    if all(ended.status != 0 for ended in ends) and trial.case.program.name != "app":
        trial.found.wrong.append(f"neither came to its end: {[e.said[-500:] for e in ends]}")
    trial.finish()


LAUNCH = "-m accelerate.commands.launch --num_machines 1 --mixed_precision no --dynamo_backend no"


def launcher(processes: int) -> tuple[str, ...]:
    if processes == 1:
        return ()
    return (*LAUNCH.split(), "--multi_gpu", "--main_process_port", "0", "--num_processes") + (
        str(processes),
    )


def ranked(case: Case, rank: int) -> int | None:
    "The process of a case that is number `rank` of those launched, in a session of its own."
    marks = {f"LOCAL_RANK={rank}".encode(), f"FAULT_LOG={case.place / 'events'}".encode()}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marks <= set(path.read_bytes().split(b"\0")):
                return int(path.parent.name)
        except OSError:
            continue
    return None


def rows_of(folder: Path) -> list[dict]:
    "What the log of the run says so far."
    lines = [line for log in folder.glob("*/metrics.jsonl") for line in log.read_text().split("\n")]
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for_game(trial: Trial, started: Started) -> bool:
    "Until some moment behind the last step of the fit; False if it ended before."
    while started.process.poll() is None:
        fitted = [row for row in rows_of(trial.case.runs) if row["phase"] == "fit"]
        if fitted and fitted[-1]["step"] == fitted[-1]["steps"]:
            time.sleep(trial.random.uniform(0, 3))
            return started.process.poll() is None
        time.sleep(0.02)
    return False


def kill_one(trial: Trial, started: Started, rank: int) -> None:
    "Kill the process of this rank, and see what the launcher does."
    pid = ranked(trial.case, rank)
    if pid is None:
        trial.look(started.end())
        return
    trial.found.phase = ([row["phase"] for row in rows_of(trial.case.runs)] or ["pairs"])[-1]
    os.kill(pid, signal.SIGKILL)
    trial.found.tried += 1
    ended = started.end()
    trial.look(ended)
    trial.found.seconds = ended.seconds
    if ended.status in (0, None) or ended.seconds > 60:
        trial.found.wrong.append(f"status {ended.status} after {ended.seconds:.0f} s")
    if re.search(rf"rank\s*:\s*{rank}\b", ended.said) and str(pid) in ended.said:
        trial.found.refused += 1
    else:
        trial.found.wrong.append(f"rank {rank} was not named: {ended.said[-1500:]}")


def worker(trial: Trial, usual: Usual, faults: int) -> None:
    "Of two one is killed, in a run with a game every second time there; one or three go on."
    started = trial.case.start(launcher=launcher(2))
    in_game = "game" in trial.case.program.name and trial.random.random() < 0.5
    if in_game:
        came = wait_for_game(trial, started)
    else:
        came = wait_for_work(trial, started, trial.random.uniform(0, usual.seconds))
    if came:
        kill_one(trial, started, trial.random.choice([0, 1]))
    else:
        trial.look(started.end())
    trial.found.processes = trial.random.choice([1, 3])
    trial.finish(launcher=launcher(trial.found.processes))


FAULTS = dict(
    kill=kill,
    write=write,
    term=term,
    int=interrupt,
    full=full,
    denied=denied,
    damaged=damaged,
    shared=shared,
    worker=worker,
)
CALLED = dict(
    kill="kill -9 at a random moment",
    write="kill -9 at a write",
    term="SIGTERM",
    int="Ctrl-C",
    full="no room",
    denied="no permission to write",
    damaged="a file removed or cut",
    shared="two in one folder",
    worker="a worker killed",
)


# ---- the whole of it -----------------------------------------------------------------------------


def one_case(key: str, usual: Usual, faults: int, place: Path) -> Found:
    command, kind, _ = key.split("/")
    trial = Trial(key, PROGRAMS[command], place, usual.result)
    FAULTS[kind](trial, usual, faults)
    return trial.found


def cases_of(command: str, kind: str, wanted: int, known: dict[str, dict], run: Callable) -> None:
    "Case after case, each kept as it ends, until so many faults have been tried."
    for number in range(4 * wanted + 4):
        key = f"{command}/{kind}/{number}"
        tried = sum(c["tried"] for k, c in known.items() if k.startswith(f"{command}/{kind}/"))
        if tried >= wanted:
            return
        if key not in known:
            chained = kind in ("kill", "write", "term", "int")
            run(key, min(CHAIN, wanted - tried) if chained else 1)


def rows(cases: dict[str, dict]) -> list[dict]:
    "A row for each command and kind."
    found: dict[str, dict] = {}
    apart = ("key", "wrong", "phase", "processes")
    counts = [name for name in Found.__dataclass_fields__ if name not in apart]
    for key, case in cases.items():
        command, kind, _ = key.split("/")
        first = dict(
            what=f"{command}: {CALLED[kind]}", command=command, kind=kind, worked=0, lost=0
        )
        row = found.setdefault(f"{command}/{kind}", first)
        for name in counts:
            either = max if name == "seconds" else int.__add__
            row[name] = either(row.get(name, 0), case[name])
        row["worked"] += case["identical"]
        row["lost"] += case["tried"] if case["wrong"] else 0
    return list(found.values())


def machine() -> str:
    return f"{os.uname().sysname} {os.uname().machine}, {os.cpu_count()} cores"


def save(out: Path, cases: dict[str, dict]) -> None:
    facts = dict(machine=machine(), date=time.strftime("%Y-%m-%d"))
    text = json.dumps(facts | dict(rows=rows(cases), cases=cases), indent=1)
    temporary = out.with_suffix(".part")
    temporary.write_text(text + "\n")
    temporary.replace(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", default=",".join(PROGRAMS))
    parser.add_argument("--kinds", default=",".join(FAULTS))
    parser.add_argument("--kills", type=int, default=20, help="of kill, and of write, a command")
    parser.add_argument("--others", type=int, default=4, help="faults of each other kind")
    parser.add_argument("--out", type=Path, default=OUT)
    text = "fork the commands from one process that has imported all, instead of a new Python each"
    parser.add_argument("--warm", action="store_true", help=text)
    text = "how many times longer everything may take, on a machine that is busy"
    parser.add_argument("--slow", type=float, default=1.0, help=text)
    given = parser.parse_args(argv)
    globals()["SLOW"] = given.slow
    if given.warm:
        warm_up()
    cases = json.loads(given.out.read_text())["cases"] if given.out.exists() else {}
    failed = 0
    for command in given.commands.split(","):
        program = PROGRAMS[command]
        with tempfile.TemporaryDirectory() as whole:
            usual = undisturbed(program, Path(whole))
        print(f"{command}: {usual.seconds:.1f} s, {usual.writes} writes", flush=True)

        def run(key: str, faults: int) -> None:
            with tempfile.TemporaryDirectory() as place:
                found = one_case(key, usual, faults, Path(place))
            cases[key] = asdict(found)
            save(given.out, cases)
            print(f"{key}: {found.tried} tried, {found.wrong or 'nothing lost'}", flush=True)

        for kind in [k for k in program.kinds if k in given.kinds.split(",")]:
            wanted = given.kills if kind in ("kill", "write") else given.others
            cases_of(command, kind, wanted, cases, run)
    for key, case in cases.items():
        failed += bool(case["wrong"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
