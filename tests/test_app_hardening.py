"""The app against those who want more than it offers: paths, forged requests, other sites, a login,
and the end of the process."""

import asyncio
import http.client
import json
import re
import signal
import stat
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import httpx
import pytest
import torch

pytest.importorskip("gradio")

from gas_nb import app
from gas_nb.app import Ask, Workbench, files, page, shared
from gas_nb.app.guard import HEADERS
from gas_nb.app.messages import in_words, without_paths
from gas_nb.app.style import MAX_SESSIONS
from gas_nb.classic import classic_tableau
from gas_nb.runtime.files import FolderInUse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from app_hour import children, slope, start_server
from app_visitor import Page, Refused, Visitor, as_file

CANARY = "canary-5d1e"
ASK = Ask("digits", seed=5, n=1, nfes=(4,), solvers=("ddim",))


def put(bench, path):
    """A good solver's file at `path`, with a word that nobody outside may read."""
    table = classic_tableau("unipc", bench.teacher("digits").schedule, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(table, meta=dict(name="gs", teacher="digits", note=CANARY)).save(path)
    return path


class Site:
    """A page that is served, the files around it, and all that it ever answered."""

    def __init__(self, folder):
        self.folder, self.answers = folder, []
        self.bench = Workbench(folder / "runs", "cpu")
        self.outside = put(self.bench, folder / "outside" / "secret.json")
        self.inside = put(self.bench, folder / "runs" / "one" / "gs.json")
        (folder / "runs" / "link").symlink_to(folder / "outside")
        (folder / "runs" / "three").mkdir()
        (folder / "runs" / "three" / "gs.json").symlink_to(self.outside)
        self.served = app.build(bench=self.bench)
        where = dict(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        _, self.address, _ = self.served.launch(**where, **app.launch_options())
        self.port = httpx.URL(self.address).port
        self.page = Page(httpx.get(f"{self.address}config").json())

    def raw(self, path, method="GET", **headers):
        """One request whose path is sent as it is, by no client's rules."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection._validate_path = lambda url: None
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        connection.close()
        self.seen(path, answer.status, dict(answer.getheaders()), text)
        return answer.status, text, {k.lower(): v for k, v in answer.getheaders()}

    def seen(self, where, status, headers, text):
        self.answers.append((where, text + json.dumps(dict(headers))))

    def visit(self, doing):
        """`doing(visitor)` with a page of its own."""

        async def visiting():
            async with httpx.AsyncClient(base_url=self.address, timeout=60) as client:
                visitor = Visitor(client, self.page, self.seen)
                try:
                    return await doing(visitor)
                finally:
                    await visitor.close()

        return asyncio.run(visiting())

    def values(self, event, **given):
        """The values of an event's widgets, some of them given by the first word of the label."""
        values = self.page.values(event)
        for i, label in enumerate(self.page.labels(event)):
            values[i] = given.get(label.split(" ")[0].lower(), values[i])
        return values

    def told(self, name, **given):
        """What is said of an event: the words of its status, or of the refusal."""
        event = self.page.event(name)

        async def ask(visitor):
            with suppress(Refused):
                return str(await visitor.last(event, self.values(event, **given)))
            return "refused"

        return self.visit(ask)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hardening")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setenv("GAS_NB_CANARY", CANARY)
        made = Site(folder)
        yield made
        made.served.close(verbose=False)


def everything(folder, but):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if not p.is_relative_to(but)}


# --- reading by a path


def ways(target):
    """Addresses that would lead to the file `target`, if they led anywhere."""
    target = str(target)
    up = "../" * 12 + target.lstrip("/")
    dots = [up, quote(up, safe=""), up.replace("../", "%2e%2e/"), up.replace("../", "..%2f")]
    dots += [up.replace("../", "%252e%252e%252f"), up.replace("/", "\\"), up.replace("/", "%5c")]
    others = [target, quote(target, safe=""), f"/{target}", f"file://{target}", f"{target}%00.json"]
    others += [f"\\\\localhost\\c${target}", f"//localhost{target}", f"/gradio/{up}", f"{target}/."]
    doors = ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/", "/static/", "/assets/"]
    doors += ["/svelte/", "/gradio_api/custom_component/", "/gradio_api/stream/", "/", "/proxy="]
    doors += ["/gradio_api/proxy=", "/gradio_api/deep_link?session_hash="]
    return [door + way for door in doors for way in (*dots, *others)]


def test_no_path_leads_to_a_file_of_the_machine(site):
    read = []
    link = site.folder / "runs" / "link" / "secret.json"
    for target in (site.outside, link, Path("/etc/passwd")):
        for way in ways(target):
            _, text, _ = site.raw(way)
            if CANARY in text or "root:" in text:
                read.append(way)
    for target in (site.inside, ROOT / "settings.ini"):
        read += [site.raw(f"{door}{target}") for door in ("/gradio_api/file=", "/file=")]
    assert [one for one in read if isinstance(one, str) or one[0] == 200] == []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/config", "file:///etc/passwd", "http://169.254.169.254/x"]
)
def test_the_server_asks_no_address_for_a_visitor(site, url):
    where = quote(url.format(port=site.port), safe="")
    statuses = [site.raw(f"/gradio_api/{door}={where}")[0] for door in ("proxy", "file")]
    assert all(400 <= status < 500 or status == 302 for status in statuses), statuses


# --- files that a visitor brings


NAMES = [
    "../../../escaped.json",
    "..\\..\\escaped.json",
    "/etc/escaped.json",
    "%2e%2e%2fescaped.json",
    "..%2f..%2fescaped.json",
    "a/b/escaped.json",
    "\\\\host\\share\\escaped.json",
    "C:\\escaped.json",
    "escaped\x00.json",
    "CON.json",
    "...json",
    "x" * 300 + ".json",
    "<script>alert(1)</script>.json",
]


def test_a_name_of_an_upload_leads_nowhere(site):
    before = everything(site.folder, site.folder / "gradio")

    async def upload(visitor):
        answers = [await visitor.upload(name, b"{}") for name in NAMES]
        paths = [Path(a.json()[0]) for a in answers if a.status_code == 200]
        event, lines = site.page.event("upload.upload"), []
        for path, name in zip(paths, NAMES):
            values = [as_file(str(path), name), "digits", None]
            lines += [str((await visitor.last(event, values))[0])]
        return answers, paths, lines

    answers, paths, lines = site.visit(upload)
    assert all(a.status_code < 500 for a in answers) and len(paths) >= len(NAMES) - 3
    assert all(p.resolve().is_relative_to(site.folder / "gradio") for p in paths)
    assert everything(site.folder, site.folder / "gradio") == before
    assert all("format" in line and "<script" not in line for line in lines)


def test_a_forged_file_is_not_read(site):
    event, seen = site.page.event("upload.upload"), []
    paths = [str(site.outside), str(site.inside), "/etc/passwd", "../outside/secret.json", ""]
    paths += [f"{site.folder}/gradio/../outside/secret.json", f"{site.outside}\x00", "\\\\host\\x"]
    forged = [as_file(path, "x.json") for path in paths]
    forged += [dict(as_file("x.json", "x.json"), url=f"{site.address}config")]
    forged += [str(site.outside), [str(site.outside)], dict(path=str(site.outside)), 5]

    async def bring(visitor):
        for value in forged:
            try:
                seen.append(str(await visitor.last(event, [value, "digits", None])))
            except Refused as error:
                seen.append(str(error))

    site.visit(bring)
    assert len(seen) == len(forged)
    assert not [line for line in seen if "now among" in line or CANARY in line or "root:" in line]


# --- who leaves


def test_who_leaves_while_waiting_gives_the_place_back(site):
    event = site.page.event("generate.click")

    async def leave(visitor):
        async with visitor.asking(event, site.values(event, teacher="digits")) as (_, stream):
            async for line, *_ in stream:
                assert "1 request is before yours" in line
                return len(site.bench.desk.line)

    with site.bench.desk.enter() as first:
        assert site.visit(leave) == 2
        for _ in range(300):
            first.ahead()
            if len(site.bench.desk.line) == 1:
                break
            time.sleep(0.05)
        assert len(site.bench.desk.line) == 1


# --- more pages than are kept


PICTURE = re.compile(r'src="(data:[^"]+)"')


def test_the_oldest_of_many_pages_is_forgotten_and_each_is_answered_its_own(site):
    """One waits for its pictures while more come than are kept; all get those of their seeds."""
    event, look = site.page.event("generate.click"), site.page.event("grid.click")
    asked = dict(teacher="digits", samples=1, evaluations=["4"], solvers=["ddim"])
    kept = site.served.state_holder.session_data

    def visitor(client):
        return Visitor(client, site.page, site.seen)

    def closer(one):
        return one.ask(look, [None], {"cell": "ddim|4"})

    async def crowd(client):
        for _ in range(MAX_SESSIONS):
            await closer(visitor(client))

    async def one_and_many():
        async with httpx.AsyncClient(base_url=site.address, timeout=60) as client:
            first, last = visitor(client), visitor(client)
            values = [site.values(event, seed=seed, **asked) for seed in (1, 2)]
            before = (await first.last(event, values[0]))[1]
            assert PICTURE.search(str(await closer(first)))
            with site.bench.desk.enter() as place:
                async with first.asking(event, values[0]) as (_, stream):
                    assert "before yours" in str(await anext(stream))
                    await crowd(client)
                    place.leave()
                    waited = [outputs async for outputs in stream][-1][1]
            await crowd(client)
            gone = first.session not in kept
            forgotten = not PICTURE.search(str(await closer(first)))
            again, other = [
                (await one.last(event, given))[1] for one, given in zip((first, last), values)
            ]
        return gone, forgotten, [PICTURE.findall(page) for page in (before, waited, again, other)]

    gone, forgotten, (before, waited, again, other) = asyncio.run(one_and_many())
    assert len(kept) == MAX_SESSIONS and gone and forgotten
    assert before == waited == again and len(before) == len(other) >= 3
    assert not set(before) & set(other)


# --- names that a visitor types


BAD_NAMES = ["../../outside/secret", "x\x00\\\\host\\x", ["digits"], None]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_typed_name_reads_and_writes_nothing(site, name):
    before = everything(site.folder, site.folder / "gradio")
    told = [
        site.told("train.click", teacher=name),
        site.told("train.click", effort=name) if name is not None else "",
        site.told("prepare.click", teacher="digits", solver=name),
        site.told("prepare.click", teacher="digits", **{"for": name or "../x"}),
        site.told("generate.click", teacher=name),
        site.told("Trade-off.select", teacher=name, cost=name),
    ]
    assert everything(site.folder, site.folder / "gradio") == before
    assert not [line for line in told if CANARY in line or "kept in" in line]
    assert not [line for line in told if "went wrong" in line]


def test_a_link_in_the_runs_is_not_followed_by_a_training(tmp_path):
    bench = Workbench(tmp_path / "runs", "cpu")
    outside = tmp_path / "outside"
    outside.mkdir()
    bench.runs.mkdir()
    (bench.runs / "digits-nfe4-1").symlink_to(outside)
    *_, (line, _) = bench.distil("digits", 4, "quick", adversarial=False, pause=0.01)
    assert "kept in digits-nfe4-2" in line and list(outside.iterdir()) == []


# --- what is said


def test_headers_of_every_kind_of_answer(site):
    for path in ("/", "/config", "/nowhere", "/gradio_api/file=/etc/passwd", "/gradio_api/info"):
        _, _, headers = site.raw(path)
        assert all(headers[name.decode()] == value.decode() for name, value in HEADERS.items())


def test_no_other_site_may_ask(site):
    _, _, headers = site.raw("/config", Origin="https://evil.example")
    assert "access-control-allow-origin" not in headers
    asked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    status, text, _ = site.raw("/config", Origin="https://evil.example", **asked)
    assert (status, text) == (403, "Another site asked for this; open the page itself.")
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert [site.raw("/", **link)[0], site.raw("/config", **own)[0]] == [200, 200]


def test_nothing_of_the_machine_was_in_any_answer(site):
    """Of all the tests above; the page itself and an error are asked for once more."""
    site.raw("/")
    site.raw("/gradio_api/info")
    site.told("generate.click", teacher="digits", seed=2**40)
    words = [str(site.bench.runs), str(Path.home()) + "/", str(ROOT), "site-packages"]
    words += ["Traceback", sys.prefix]
    found = []
    for where, text in site.answers:
        asked = unquote(unquote(where))  # an answer may repeat what it was asked for
        found += [(where, word) for word in words if word in text and word not in asked]
    assert site.answers and found == []


def test_an_error_keeps_paths_and_people_to_itself(capsys):
    error = FolderInUse("/srv/ada/runs/one is in use by ada on host, process 3 (python x)")
    assert not re.search("ada|host|python", in_words(error))
    told = in_words(ValueError("/srv/ada/runs/one/config.json: not JSON"))
    assert told == "config.json: not JSON"
    assert without_paths("seed 3/4 of https://a.b/c/d") == "seed 3/4 of https://a.b/c/d"


def test_a_given_teacher_goes_by_its_last_name(tmp_path):
    (tmp_path / "digits").write_bytes(b"")
    assert shared.shown_name(str(tmp_path)) == tmp_path.name
    assert shared.shown_name(str(tmp_path / "digits")) == "digits (given)"
    assert [shared.shown_name(name) for name in ("", "digits", "a/b")] == ["", "digits", "a/b"]


# --- files and answers that are kept


def test_files_for_visitors_are_nobody_elses_and_few(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_KEPT", 3)
    one, two = (Workbench(tmp_path / name, "cpu") for name in "ab")
    for nfe in range(2, 8):
        paths, _ = one.downloads(replace(ASK, nfes=(nfe,)))
    folder = Path(one.files.name)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 3 and all(Path(path).is_file() for path in paths)
    assert folder not in Path(two.downloads(ASK)[0][0]).parents
    assert not list(folder.rglob("*.tmp"))


def test_many_may_ask_the_same_at_once(tmp_path, monkeypatch):
    """One who forgets an answer while another looks it up does no harm."""
    monkeypatch.setattr(shared, "run_cell", lambda *args: (torch.zeros(1), 0.0))
    bench, failed = Workbench(tmp_path, "cpu", keep=1), []
    table = classic_tableau("ddim", bench.teacher("digits").schedule, 2)

    def visit():
        try:
            for i in range(300):
                bench.run(replace(ASK, seed=i % 2), None, table)
        except KeyError as error:
            failed.append(error)

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    visitors = [threading.Thread(target=visit) for _ in range(6)]
    [v.start() for v in visitors]
    [v.join(60) for v in visitors]
    sys.setswitchinterval(usual)
    assert failed == [] and len(bench.cells) == 1


# --- a user and a password


@pytest.mark.parametrize(
    ("arguments", "password", "words"),
    [
        (["--user", "ada"], "", "GAS_NB_PASSWORD in the environment or --password-file"),
        ([], "open sesame", "give --user NAME"),
        (["--user", " "], "open sesame", "give a name"),
        (["--user", "ada", "--password-file", "nowhere"], "", "cannot be read"),
    ],
)
def test_a_login_is_whole_or_refused(monkeypatch, capsys, arguments, password, words):
    monkeypatch.setenv("GAS_NB_PASSWORD", password)
    with pytest.raises(SystemExit) as ended:
        page.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and "sesame" not in said


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (["--host", "0.0.0.0"], True),
        (["--share"], True),
        (["--host", "127.0.0.1"], False),
        (["--host", "0.0.0.0", "--user", "ada"], False),
    ],
)
def test_an_open_page_is_warned_of(monkeypatch, capsys, tmp_path, arguments, warned):
    monkeypatch.setenv("GAS_NB_PASSWORD", "open sesame" if "--user" in arguments else "")
    served = []
    monkeypatch.setattr(page, "_serve", lambda bench, where: served.append(where))
    page.main([*arguments, "--runs", str(tmp_path)])
    said = capsys.readouterr().err
    assert ("whoever reaches" in said and "--user NAME" in said) == warned
    assert served[0]["auth"] == (("ada", "open sesame") if "--user" in arguments else None)


@pytest.mark.parametrize("at", ["pictures", pytest.param("waiting", marks=pytest.mark.slow)])
def test_sigterm_ends_it_in_order_while_pictures_are_made(tmp_path, at):
    """Also with a second visitor in the line, and before the page's first answer is there."""
    process, address = start_server(tmp_path)
    try:
        config = httpx.get(f"{address}/config").json()
        asyncio.run(asked_until_told(address, config, process, at))
        assert process.wait(60) == 0
    finally:
        process.kill()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log and "terminate called" not in log
    assert not children(process.pid)


async def asked_until_told(address, config, process, at):
    """Two ask for many pictures at once; SIGTERM when the second has been told to wait, or when
    some pictures of the first are there."""
    sign, whole = dict(waiting="before yours", pictures="src=")[at], []
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:

        async def ask(seed):
            visitor = Visitor(client, Page(config))
            event = visitor.page.event("generate.click")
            values = visitor.page.values(event)
            where = [label.split(" ")[0].lower() for label in visitor.page.labels(event)]
            values[where.index("seed")], values[where.index("samples")] = seed, 16
            with suppress(Refused, httpx.HTTPError):
                async with visitor.asking(event, values) as (_, stream):
                    async for outputs in stream:
                        if sign in str(outputs[:2]) and process.poll() is None:
                            process.send_signal(signal.SIGTERM)
                        whole.append("pictures in" in str(outputs[0]))

        await asyncio.gather(ask(1), ask(2))
    assert whole and not all(whole)


BEHIND = ["/config", "/gradio_api/info", "/gradio_api/file=x", "/gradio_api/queue/data"]


def test_nobody_comes_in_without_the_password_and_sigterm_ends_it_in_order(tmp_path):
    """The command as it is started: a login, a training, and SIGTERM in its middle."""
    password = "päss wörd 7"
    process, address = start_server(tmp_path, "--user", "ada", GAS_NB_PASSWORD=password)
    try:
        with httpx.Client(base_url=address, timeout=30) as http:
            start = http.get("/")
            assert start.status_code in (200, 401) and "DPM-Solver" not in start.text
            assert [http.get(path).status_code for path in BEHIND] == [401] * len(BEHIND)
            for door in ("queue/join", "upload", "run/change"):
                assert http.post(f"/gradio_api/{door}", json={}).status_code in (401, 422)
            wrong = http.post("/login", data=dict(username="ada", password="x"))
            assert wrong.status_code == 400
            right = http.post("/login", data=dict(username="ada", password=password))
            assert right.status_code == 200 and "HttpOnly" in right.headers["set-cookie"]
            config = http.get("/config")
            assert config.status_code == 200 and "DPM-Solver" in config.text
            assert password not in config.text + start.text + right.text
            asyncio.run(trained_until_told(address, dict(http.cookies), config.json(), process))
        assert process.wait(60) == 0
    finally:
        process.kill()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log and password not in log
    assert not children(process.pid)
    assert list((tmp_path / "runs").glob("digits-nfe4-1/gs.json"))
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.name == ".owner.json"]


async def trained_until_told(address, cookies, config, process):
    """Start a training; SIGTERM at its first step."""
    async with httpx.AsyncClient(base_url=address, cookies=cookies, timeout=60) as client:
        visitor = Visitor(client, Page(config))
        event = visitor.page.event("train.click")
        values = ["digits", 4, "cpu", True, 0, None]
        with suppress(Refused, httpx.HTTPError):
            async with visitor.asking(event, values) as (_, stream):
                async for line, *_ in stream:
                    if re.search(r"(fit|gs|gas) \d+ of", str(line)) and process.poll() is None:
                        process.send_signal(signal.SIGTERM)


def test_a_steady_growth_is_found_in_the_samples_of_memory():
    points = [(i / 6, 500 + 0.5 * (i / 6) + (i % 2)) for i in range(360)]
    rate, error = slope(points)
    assert rate == pytest.approx(0.5, abs=0.01) and 0 <= error < 0.01
