"""The app under load: `python benchmarks/app_load.py --minutes 60`.

Clients that think, ask, cancel, reload, leave in the middle, bring good and bad files, while
trainings run. Every picture that comes back is made here once more, from the question that was
sent, and compared byte by byte: an answer of another session would be seen. Every answer is
searched for paths and secrets of the server. Its memory, threads, files and children are sampled.
Results are written as they come. A try is `worked`, `refused` in words, or `lost`. Ctrl-C ends it
early and in order.
"""

import asyncio
import html
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import httpx
from app_visitor import Page, Refused, Visitor, as_file

ROOT = Path(__file__).resolve().parent.parent
SOLVERS = ["ddim", "dpm_solver_pp", "unipc", "ipndm", "deis"]
WARM = 10.0  # minutes before memory is expected to be flat
CANARY = "canary-9f3b1c7e"  # a value of the server's environment that no visitor may see
PLACES = 20  # of the app's line
LONG = 900.0  # seconds that a client waits for a training


class Wrong(Exception):
    """An answer that does not belong to its question."""


class Ledger:
    """Rows of counts, and the file that they are written to."""

    def __init__(self, path: str):
        self.path, self.rows = Path(path), {}
        self.more: dict[str, Any] = {}
        self.lost: list[str] = []

    def note(self, what: str, how: str, why: str = "") -> None:
        row = self.rows.setdefault(what, Counter())
        row["tried"] += 1
        row[how] += 1
        if how == "lost":
            self.lost.append(f"{what}: {why}"[:600])
            print(f"lost: {what}: {why}"[:600], flush=True)

    def write(self) -> None:
        names = ("tried", "refused", "worked", "lost")
        rows = [dict(what=k, **{n: row[n] for n in names}) for k, row in self.rows.items()]
        said = dict(rows=rows, **self.more, lost_in_words=self.lost[:50])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(said, indent=1) + "\n")
        os.replace(temporary, self.path)


class Watch:
    """What a server ever answered, searched for what must not be in it."""

    def __init__(self, ledger: Ledger, needles: dict[str, str]):
        self.ledger, self.needles = ledger, needles

    def __call__(self, where: str, status: int, headers: Any, text: str) -> None:
        everything = text + "".join(f"{k}: {v}\n" for k, v in headers.items())
        found = [name for name, needle in self.needles.items() if needle in everything]
        why = f"{where} ({status}) holds {', '.join(found)}: {text[:200]}"
        name = "answers searched for paths, secrets and tracebacks"
        self.ledger.note(name, "lost" if found else "worked", why)


def needles(runs: Path) -> dict[str, str]:
    return {
        "the runs folder": str(runs),
        "the home folder": str(Path.home()) + "/",
        "site-packages": "site-packages",
        "the source folder": str(ROOT),
        "a value of the environment": CANARY,
        "a traceback": "Traceback (most recent call last)",
    }


# --- the server, and its memory


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_server(folder: Path, *options: str, **environment: str) -> tuple[subprocess.Popen, str]:
    """The command, as its users start it; (process, address) once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "gas_nb.app", "--port", str(port), "--device", "cpu"]
    command += ["--runs", str(folder / "runs"), *options]
    quiet = dict(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    quiet |= dict(PYTHONPATH=str(ROOT), GAS_NB_CANARY=CANARY, **environment)
    quiet |= dict(GRADIO_TEMP_DIR=str(folder / "gradio"))
    with open(folder / "log", "w") as log:
        said = dict(stdout=log, stderr=subprocess.STDOUT, env=os.environ | quiet)
        process = subprocess.Popen(command, cwd=folder, **said)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        with suppress(httpx.HTTPError):
            httpx.get(f"{address}/", timeout=2)
            return process, address
        if process.poll() is not None:
            raise RuntimeError((folder / "log").read_text())
        time.sleep(0.2)
    raise RuntimeError("the server did not come up")


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def sample(pid: int) -> dict[str, float]:
    said = Path(f"/proc/{pid}/status").read_text()
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return dict(
        mb=int(re.search(r"VmRSS:\s+(\d+)", said)[1]) / 1024,
        threads=int(re.search(r"Threads:\s+(\d+)", said)[1]),
        files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        children=len(children(pid)),
        cpu=(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
    )


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(MB a minute, standard error) of means over a minute; the error counts that neighbours are
    alike, by the residuals' correlation with the next."""
    minutes: dict[int, list[float]] = {}
    for at, mb in points:
        minutes.setdefault(int(at), []).append(mb)
    x, y = list(minutes), [statistics.fmean(mbs) for mbs in minutes.values()]
    if len(x) < 4:
        return float("nan"), float("nan")
    line = statistics.linear_regression(x, y)
    rest = [b - line.slope * a - line.intercept for a, b in zip(x, y)]
    spread = sum((a - statistics.fmean(x)) ** 2 for a in x)
    error = (sum(r * r for r in rest) / (len(x) - 2) / spread) ** 0.5
    alike = sum(a * b for a, b in zip(rest, rest[1:])) / (sum(r * r for r in rest) or 1.0)
    alike = min(max(alike, 0.0), 0.9)
    return line.slope, error * ((1 + alike) / (1 - alike)) ** 0.5


# --- what the pictures have to be


def words(line: Any) -> str:
    return html.unescape(re.sub("<[^>]*>", "", str(line)))


class Truth:
    """The pictures of a question, made here by the functions that the app has."""

    def __init__(self) -> None:
        from gas_nb.teacher import load_teacher

        self.teacher = load_teacher("digits", "cpu")

    def pictures(self, question: dict[str, Any], trained: list[Any]) -> dict[str, str]:
        """The <img> of every cell by its name, the noise and the teacher's among them."""
        from gas_nb.app.answer import conditions_for, generate
        from gas_nb.app.ask import Ask
        from gas_nb.app.html import picture
        from gas_nb.data import noise_for

        ask = Ask(**question)
        noise = noise_for(self.teacher, ask.seeds, conditions_for(ask, self.teacher))
        cells = {cell.key: cell for cell in generate(ask, self.teacher, trained)}
        found = {key: picture(cell.pictures, "") for key, cell in cells.items()}
        found = {key: re.search('src="([^"]+)"', img)[1] for key, img in found.items()}
        start = picture(noise / 2.5, "")
        return found | dict(noise=re.search('src="([^"]+)"', start)[1])


def shown(page: str) -> dict[str, str]:
    """The pictures of a grid by their cell's name; the noise's and the teacher's too."""
    found = dict(re.findall(r'<button type="button" data-cell="([^"]+)".*?src="([^"]+)"', page))
    aside = dict(re.findall(r'<figure class="(noise|goal)">.*?src="([^"]+)"', page))
    if "goal" in aside:
        found["teacher|20"] = aside.pop("goal")
    return found | aside


def labelled(page: str, titles: dict[str, str]) -> bool:
    """Whether every button says the solver and the number of evaluations that its cell has."""
    said = re.findall(r'data-cell="([^"|]+)\|(\d+)" aria-label="([^"]+)"', page)
    return all(f"{titles[s]}, {nfe} evaluations" in html.unescape(text) for s, nfe, text in said)


# --- a client


class Client:
    """One of the clients: a page at a time, and what a person does with it."""

    def __init__(self, number: int, world: "World"):
        self.number, self.world, self.asked = number, world, 0
        self.random = random.Random(f"{world.seed} {number}")
        self.visitor: Visitor | None = None

    async def arrive(self) -> None:
        """A new page; what the page asks when it is opened is asked."""
        if self.visitor is not None:
            await self.visitor.close()
        self.visitor = Visitor(self.world.http, self.world.page, self.world.watch)
        self.brought: list[Any] = []
        await self.visitor.open()

    def event(self, name: str) -> dict[str, Any]:
        return self.world.page.event(name)

    def filled(self, name: str, **given: Any) -> tuple[dict[str, Any], list[Any]]:
        """An event, and the values of its widgets: the page's own but for those given by label."""
        event = self.event(name)
        values = self.world.page.values(event)
        for i, label in enumerate(self.world.page.labels(event)):
            key = label.split(" ")[0].lower()
            if key in given:
                values[i] = given[key]
        return event, values

    def question(self, large: bool = False) -> dict[str, Any]:
        """A question that no other client asks: its seeds are of this client alone."""
        self.asked += 1
        seed = 1_000_000 * (self.number + 1) + 20 * self.asked
        if large:
            return dict(seed=seed, n=16, nfes=[4, 6, 8, 10], solvers=SOLVERS[:3])
        nfes = self.random.sample([2, 3, 4, 5, 6, 8], 2)
        solvers = self.random.sample(SOLVERS, 2)
        return dict(seed=seed, n=self.random.randint(1, 4), nfes=nfes, solvers=solvers)

    def values(self, name: str, q: dict[str, Any], one: bool = False) -> tuple[dict, list[Any]]:
        nfes, solvers = [str(nfe) for nfe in q["nfes"]], list(q["solvers"])
        if one:
            given = dict(nfe=nfes[0], solver=solvers[0])
        else:
            given = dict(evaluations=nfes, solvers=solvers)
        return self.filled(name, teacher="digits", seed=q["seed"], samples=q["n"], **given)

    async def check(self, q: dict[str, Any], page: str, whole: bool) -> None:
        """Wrong unless every picture is that of this question; `whole`: and none is missing."""
        asked = q | dict(
            teacher="digits",
            condition="mixed",
            nfes=tuple(sorted(q["nfes"])),
            solvers=tuple(q["solvers"]),
        )
        expected = await self.world.truth(asked, self.brought)
        found = shown(page)
        name = "answers that carry their own seed, solvers and NFE"
        wrong = [key for key, src in found.items() if expected.get(key) != src]
        missing = sorted(set(expected) - set(found)) if whole else []
        titles = {s: self.world.titles.get(s, s) for s in q["solvers"]}
        if wrong or missing or not labelled(page, titles):
            self.world.ledger.note(name, "lost", f"{asked}: wrong {wrong}, missing {missing}")
            raise Wrong(f"wrong {wrong}, missing {missing}")
        self.world.ledger.note(name, "worked")

    # --- what it does; each returns "worked", or "refused" with words

    async def compare(self, large: bool = False) -> str:
        q = self.question(large)
        if self.brought:
            q["solvers"] = [*q["solvers"][:1], self.brought[-1].key]
            q["nfes"] = [4]
        line, page, *_ = await self.visitor.last(*self.values("generate.click", q))
        return await self.judged(q, words(line), page)

    async def judged(self, q: dict[str, Any], line: str, page: Any) -> str:
        if "pictures in" in line:
            await self.check(q, page, whole=True)
            return "worked"
        if "Please try again" in line or "Please start it again" in line:
            return "refused"
        raise Wrong(f"was told {line!r}")

    async def look_closer(self) -> str:
        q = self.question()
        line, page, *_ = await self.visitor.last(*self.values("generate.click", q))
        if await self.judged(q, words(line), page) == "refused":
            return "refused"
        key = f"{q['solvers'][0]}|{min(q['nfes'])}"
        (large,) = await self.visitor.ask(self.event("grid.click"), [None], {"cell": key})
        both = re.findall('src="([^"]+)"', str(large))[:2]
        if both != [shown(page)[key], shown(page)["teacher|20"]]:
            raise Wrong(f"the large view of {key} is another's: {str(large)[:100]}")
        return "worked"

    async def cancel(self) -> str:
        q = self.question(large=True)
        event, values = self.values("generate.click", q)
        seen, line = "", ""
        async with self.visitor.asking(event, values) as (number, stream):
            async for line, page, *_ in stream:
                seen = page if isinstance(page, str) else seen
                if "src=" in seen and self.random.random() < 0.3:
                    await self.visitor.cancel(event, number)
                    await self.visitor.ask(self.event("cancel.click"), [])
                    break
        if "try again" in words(line):
            return "refused"
        await self.check(q, seen, whole=False)
        return "worked"

    async def leave_in_the_middle(self) -> str:
        """The tab is closed while pictures come; then a new page asks and is answered."""
        event, values = self.values("generate.click", self.question(large=True))
        async with self.visitor.asking(event, values) as (_, stream):
            async for _ in stream:
                break
        await self.arrive()
        return await self.compare()

    async def reload(self) -> str:
        """The first thing that a page asks, and the menus of it."""
        await self.arrive()
        event, values = self.filled("0.load", teacher="digits", seed=7, samples=2)
        line, *_ = await self.visitor.last(event, values)
        if "pictures in" in words(line):
            return await self.menus()
        if "try again" in words(line):
            return "refused"
        raise Wrong(f"was told {words(line)!r}")

    async def menus(self) -> str:
        """The solvers that the page offers: its own uploads are among them, nobody else's."""
        event, values = self.filled("Teacher.change", teacher="digits", solvers=["ddim"])
        _, offered, _ = await self.visitor.ask(event, values)
        keys = [key for _, key in offered["choices"]]
        mine = [one.key for one in self.brought]
        others = [key for key in keys if re.match(r"client\d", key) and key not in mine]
        if others or not set(mine) <= set(keys):
            raise Wrong(f"{mine} brought, {others} of others are offered")
        return "worked"

    async def look_inside(self) -> str:
        q = self.question()
        event, values = self.values("show.click", q, one=True)
        line, *figures = await self.visitor.last(event, values)
        if "try again" in words(line):
            return "refused"
        from gas_nb.registry import solver_title

        said = f"{solver_title(q['solvers'][0])}, {q['nfes'][0]} evaluations, seed {q['seed']}"
        if words(line) != said or not all(figures):
            raise Wrong(f"asked {said!r}, was told {words(line)!r}")
        return "worked"

    async def measure(self) -> str:
        event, values = self.values("measure.click", self.question())
        line, _, figure = await self.visitor.last(event, values)
        if "try again" in words(line):
            return "refused"
        if "pictures in" not in words(line) or not figure:
            raise Wrong(f"was told {words(line)!r}")
        return "worked"

    async def download(self) -> str:
        q = self.question()
        event, values = self.values("prepare.click", q, one=True)
        line, files, _ = await self.visitor.last(event, values)
        if "files are ready" not in words(line):
            raise Wrong(f"was told {words(line)!r}")
        from gas_nb.tableau import Tableau

        got = await self.visitor.get(f"/gradio_api/file={files[0]['path']}")
        table = Tableau.from_json(got.text)
        if (table.nfe, table.meta.get("name")) != (q["nfes"][0], q["solvers"][0]):
            raise Wrong(f"asked {q}, got {table.nfe} {table.meta}")
        return "worked"

    async def bring(self) -> str:
        """A good file: it is offered here, and its pictures are those of its numbers."""
        if len(self.brought) >= 8:
            await self.arrive()
        solver, key = self.world.solver(f"client{self.number}-{self.asked}", len(self.brought))
        line = await self.send(f"{solver.stem}.json", solver.read_bytes())
        if "is now among the solvers" not in line:
            raise Wrong(f"was told {line!r}")
        self.brought.append(key)
        self.world.titles[key.key] = key.title
        await self.menus()
        return await self.compare()

    async def send(self, name: str, content: bytes) -> str:
        """An upload as the page makes it; what the page says of it."""
        answer = await self.visitor.upload(name, content)
        if answer.status_code != 200:
            return f"refused: {answer.text}"
        path = answer.json()[0]
        event, values = self.filled("upload.upload", teacher="digits")
        values[0] = as_file(path, name)
        try:
            return words((await self.visitor.last(event, values))[0])
        except Refused as error:
            return f"refused: {error}"

    async def bring_bad(self) -> str:
        name, content = self.random.choice(self.world.bad_files)
        line = await self.send(name, content)
        if "is now among" in line or "Something went wrong" in line or not line:
            raise Wrong(f"{name}: was told {line!r}")
        return "refused"

    async def ask_wrong(self) -> str:
        """A question that no page would send."""
        wrong = [
            ("seed", -1),
            ("seed", 2**40),
            ("seed", "x"),
            ("seed", None),
            ("samples", 1e9),
            ("samples", None),
            ("teacher", "../../etc"),
            ("teacher", None),
            ("class", "99"),
            ("guidance", "x"),
            ("guidance", 1e300),
            ("evaluations", ["1000"]),
            ("evaluations", []),
            ("solvers", []),
            ("time", "random"),
            ("prompt", "x" * 5000),
        ]
        key, value = self.random.choice(wrong)
        event, values = self.values("generate.click", self.question())
        for i, label in enumerate(self.world.page.labels(event)):
            if label.split(" ")[0].lower() == key:
                values[i] = value
        try:
            line = words((await self.visitor.last(event, values))[0])
        except Refused as error:
            line = str(error)
        if "pictures in" in line or "Something went wrong" in line:
            raise Wrong(f"{key}={str(value)[:40]!r}: was told {line!r}")
        return "refused"

    # --- the day of a client

    DAY = dict(
        compare=30,
        look_closer=10,
        cancel=10,
        leave_in_the_middle=8,
        reload=8,
        look_inside=5,
        measure=3,
        download=5,
        bring=5,
        bring_bad=8,
        ask_wrong=8,
    )

    async def tried(self, what: str, deed: Any, patience: float = 240) -> str:
        try:
            how, why = await asyncio.wait_for(deed, patience), ""
        except (Wrong, Refused, AssertionError, httpx.HTTPError, TimeoutError, ValueError) as error:
            how, why = "lost", f"client {self.number}: {type(error).__name__}: {error}"
        except (LookupError, TypeError) as error:
            how, why = "lost", f"client {self.number}: not an answer: {error!r}"
        self.world.ledger.note(what, how, why)
        return how

    async def live(self) -> None:
        await asyncio.sleep(self.random.uniform(0, 20))
        await self.arrive()
        names, weights = list(self.DAY), list(self.DAY.values())
        while not self.world.over:
            name = self.random.choices(names, weights)[0]
            await self.tried(name.replace("_", " "), getattr(self, name)())
            await self.world.pause(self.random.uniform(5, 40))
        await self.visitor.close()


# --- all of it


class World:
    """The server's address, the page, the clients, and what they share."""

    def __init__(
        self, http: httpx.AsyncClient, page: Page, ledger: Ledger, watch: Watch, seed: int
    ):
        from gas_nb.registry import SOLVERS as KNOWN

        self.http, self.page, self.ledger, self.watch = http, page, ledger, watch
        self.seed, self.ended, self.made = seed, asyncio.Event(), Truth()
        self.titles = {name: spec.title for name, spec in KNOWN.items()}
        self.folder = Path(tempfile.mkdtemp(prefix="brought-"))
        self.bad_files = self._bad_files()

    @property
    def over(self) -> bool:
        return self.ended.is_set()

    async def pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)

    async def truth(self, question: dict[str, Any], trained: list[Any]) -> dict[str, str]:
        return await asyncio.to_thread(self.made.pictures, question, list(trained))

    def solver(self, name: str, before: int) -> tuple[Path, Any]:
        """A file that a visitor brings, and what the app makes of it."""
        from dataclasses import replace

        from gas_nb.app.files import add_upload
        from gas_nb.classic import classic_tableau

        table = classic_tableau("unipc", self.made.teacher.schedule, 4)
        table = replace(table, meta=table.meta | dict(name="gs", teacher="digits"))
        path = self.folder / f"{name}.json"
        table.save(path)
        (one,) = add_upload(str(path), self.made.teacher, [])
        number = f" {before + 1}" if before else ""
        return path, replace(one, key=one.key + number, teacher="digits")

    def _bad_files(self) -> list[tuple[str, bytes]]:
        good = self.solver("good", 0)[0].read_bytes()
        return [
            ("empty.json", b""),
            ("half.json", good[: len(good) // 2]),
            ("binary.json", bytes(range(256)) * 40),
            ("deep.json", b"[" * 50_000),
            ("other.json", b'{"format": "other"}'),
            ("large.json", b" " * 200_001),
            ("huge.json", b" " * 3_000_000),
            ("pickle.pkl", b"\x80\x04\x95\x00\x00\x00\x00."),
            ("name.json.exe", good),
            ("many.json", b'{"format": "gas_nb.tableau", "version": 1, "nfe": 1000000000}'),
            ("nan.json", good.replace(b"1.0", b"NaN", 1)),
            ("page.json", b"<script>alert(1)</script>"),
        ]


async def train(client: Client, nfe: int, size: str, until: str = "") -> str:
    """A training watched to its end; `until` "stop" presses the button, "leave" closes the tab."""
    event, values = client.filled("train.click", teacher="digits", nfe=nfe, effort=size)
    said = ""
    async with client.visitor.asking(event, values) as (_, stream):
        async for line, *_ in stream:
            said = words(line)
            if until and re.search(r"(fit|gs|gas) \d+ of", said):
                if until == "leave":
                    break
                await client.visitor.ask(client.event("stop.click"), [None])
                until = ""
    if until == "leave":
        await client.arrive()
        return "worked"
    if "one at a time is allowed" in said:
        return "refused"
    if "kept in digits-nfe" not in said:
        raise Wrong(f"was told {said!r}")
    return "worked"


async def trainings(world: World, minutes: float) -> None:
    """Two at once, of which one is refused; one to the end; one stopped; one left, one after it."""
    one, two = Client(90, world), Client(91, world)
    await one.arrive()
    await two.arrive()
    await world.pause(60 * minutes * 0.1)
    first = asyncio.create_task(one.tried("training to its end", train(one, 4, "quick"), LONG))
    await asyncio.sleep(1.0)
    if not first.done():
        await two.tried("a second training beside it", train(two, 5, "quick"))
    await first
    await world.pause(60 * minutes * 0.2)
    await two.tried("training to its end", train(two, 5, "quick"), LONG)
    await world.pause(60 * minutes * 0.15)
    await one.tried("training stopped by its button", train(one, 6, "cpu", "stop"), LONG)
    await world.pause(60 * minutes * 0.15)
    await one.tried("training whose watcher leaves", train(one, 7, "cpu", "leave"), LONG)
    await two.tried("training to its end", train(two, 3, "quick"), LONG)
    await one.visitor.close()
    await two.visitor.close()


async def crowds(world: World, minutes: float) -> None:
    """Five times, more visitors at once than the line has places."""
    crowd = [Client(30 + i, world) for i in range(PLACES + 5)]
    for client in crowd:
        await client.arrive()
    for _ in range(5):
        await world.pause(60 * minutes / 6)
        if world.over:
            break
        what = f"one of {len(crowd)} large questions at once"
        await asyncio.gather(*(c.tried(what, c.compare(large=True)) for c in crowd))
    for client in crowd:
        await client.visitor.close()


async def sampled(world: World, pid: int, begun: float, minutes: float) -> None:
    points: list[dict[str, float]] = []
    warm = WARM if minutes > 1.5 * WARM else minutes / 3
    while not world.over:
        at = (time.monotonic() - begun) / 60
        points.append(dict(minute=round(at, 3), **sample(pid)))
        late = [(p["minute"], p["mb"]) for p in points if p["minute"] >= warm]
        rate, error = slope(late)
        more = world.ledger.more
        more["minutes"] = round(at, 2)
        more["slope_mb_per_minute"] = round(rate, 4) if rate == rate else None
        more["slope_error"] = round(error, 4) if error == error else None
        more["slope_from_minute"] = warm
        more["memory_mb"] = [round(p["mb"], 1) for p in points[::6]]
        more["threads"] = [points[0]["threads"], max(p["threads"] for p in points)]
        more["open_files"] = [points[0]["files"], max(p["files"] for p in points)]
        more["children"] = max(p["children"] for p in points)
        more["server_cpu_seconds"] = round(points[-1]["cpu"] - points[0]["cpu"], 1)
        world.ledger.write()
        await world.pause(10)


async def shut_down(world: World, process: subprocess.Popen, folder: Path) -> None:
    """SIGTERM while pages are open and a training runs."""
    one, ledger = Client(92, world), world.ledger
    await one.arrive()
    line = ""
    event, values = one.filled("train.click", teacher="digits", nfe=8, effort="cpu")
    before = children(process.pid)
    with suppress(httpx.HTTPError, Refused):
        async with one.visitor.asking(event, values) as (_, stream):
            async for line, *_ in stream:
                if re.search(r"(fit|gs|gas) \d+ of", words(line)) and process.poll() is None:
                    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    try:
        status = await asyncio.to_thread(process.wait, 60)
    except subprocess.TimeoutExpired:
        status = None
        process.kill()
    await one.visitor.close()
    left = [pid for pid in before if Path(f"/proc/{pid}").exists()]
    owners = [str(p) for p in (folder / "runs").rglob(".owner.json")]
    half = [str(p) for p in (folder / "runs").rglob("*.tmp")]
    log = (folder / "log").read_text()
    world.ledger.more["shutdown"] = dict(
        exit_status=status,
        seconds=round(time.monotonic() - began, 1),
        children_left=len(left),
        folders_still_claimed=len(owners),
        half_files=len(half),
        said=words(line),
    )
    good = status == 0 and not (left or owners or half)
    ledger.note("SIGTERM with a training and open pages", "worked" if good else "lost", log[-400:])
    ledger.more["errors_in_the_log"] = dict(
        Counter(re.findall(r"^([\w.]*(?:Error|Exception|Interrupt))\b", log, re.M))
    )


def machine() -> str:
    name = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    cpu = name[1] if name else platform.processor()
    return f"{cpu}, {os.cpu_count()} cores shared with other work, Python {sys.version.split()[0]}"


async def visited(minutes: float, clients: int, out: str, seed: int) -> int:
    folder = Path(tempfile.mkdtemp(prefix="app-load-"))
    (folder / "runs").mkdir()
    process, address = await asyncio.to_thread(start_server, folder)
    ledger = Ledger(out)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True)
    ledger.more |= dict(machine=machine(), date=str(date.today()), clients=clients)
    ledger.more |= dict(commit=head.stdout.decode().strip(), teacher="digits")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=40)
    begun = time.monotonic()
    try:
        async with httpx.AsyncClient(base_url=address, timeout=90, limits=limits) as http:
            page = Page((await http.get("/config")).json())
            world = World(http, page, ledger, Watch(ledger, needles(folder / "runs")), seed)
            lives = [Client(i, world).live() for i in range(clients)]
            jobs = [trainings(world, minutes), crowds(world, minutes)]
            jobs += [sampled(world, process.pid, begun, minutes), *lives]
            tasks = [asyncio.create_task(job) for job in jobs]
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, world.ended.set)
            await world.pause(60 * minutes)
            world.ended.set()
            done, late = await asyncio.wait(tasks, timeout=LONG)
            for task in done:
                if task.exception() is not None:
                    ledger.note("clients that lived", "lost", repr(task.exception()))
            for task in late:
                task.cancel()
            last = Client(93, world)
            await last.arrive()
            await last.tried("the first question after all have gone", last.compare())
            await last.visitor.close()
            await shut_down(world, process, folder)
    finally:
        if process.poll() is None:
            process.kill()
        ledger.write()
    print((folder / "log").read_text()[-2000:], file=sys.stderr)
    for row in ledger.rows:
        print(row, dict(ledger.rows[row]))
    return int(bool(ledger.lost))


def visit(minutes: float, clients: int, out: str, seed: int) -> int:
    """Run it; the exit status is 1 if anything was lost."""
    return asyncio.run(visited(minutes, clients, out, seed))
