"""gas_nb.app without a browser: what may be asked, what is
answered, who waits, and what is refused."""

import json
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gas_nb import app
from gas_nb.app import Ask, Busy, Desk, Trained, Workbench, generate, read_solver, shared
from gas_nb.classic import classic_tableau
from gas_nb.runtime.files import claim_folder, release_folder
from gas_nb.tableau import Tableau
from gas_nb.teacher import load_teacher

ROOT = Path(__file__).resolve().parent.parent
ASK = Ask("digits", seed=5, n=4, nfes=(4, 6), solvers=("ddim", "gs"))


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits", "cpu")


@pytest.fixture
def bench(tmp_path, digits):
    bench = Workbench(tmp_path / "runs", "cpu")
    bench.teachers["digits"] = digits
    return bench


def solver(digits, nfe=4, kind="gs", **meta):
    tab = classic_tableau("unipc", digits.schedule, nfe)
    return Tableau(
        tab.times, tab.offsets, tab.A, tab.C, dict(tab.meta, name=kind, teacher="digits") | meta
    )


def put(bench, digits, folder="one", name="gs.json", **kwargs):
    path = bench.runs / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    solver(digits, **kwargs).save(path)
    return path


# --- what may be asked


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(seed=2**31), "seed"),
        (dict(seed=True), "seed"),
        (dict(n=0), "samples"),
        (dict(n=17), "samples"),
        (dict(guidance=11.0), "guidance"),
        (dict(guidance=float("nan")), "guidance"),
        (dict(guidance=3.0), "needs a class"),
        (dict(nfes=()), "evaluations"),
        (dict(nfes=(4, 1000)), "evaluations"),
        (dict(solvers=()), "solver"),
        (dict(spacing="random"), "time grid"),
        (dict(n=16, nfes=app.NFES, solvers=("ddim",) * 9), "fewer samples"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(change, words):
    with pytest.raises(ValueError, match=words):
        replace(ASK, **change)


@pytest.mark.parametrize(
    "values, words",
    [
        (("nobody", "none"), "teacher"),
        (("digits", "12"), "no such class"),
        (("digits", None), "no such class"),
        (("fmnist", "-1"), "no such class"),
    ],
)
def test_controls_are_checked_again_on_the_server(values, words):
    with pytest.raises(ValueError, match=words):
        app.make_ask(*values, 1.0, 0, 8, [4], ["ddim"], "best")


# --- how it is answered


def test_cells_are_the_teachers_own_samples(bench, digits):
    cells = {
        c.key: c for c in generate(ASK, digits, [Trained("gs-4", "gs", "digits", solver(digits))])
    }
    target = digits.generate(range(5, 9))
    assert torch.equal(cells["teacher|20"].images, target)
    alone = digits.generate(range(5, 9), tableau=solver(digits))
    assert torch.equal(cells["gs|4"].images, alone)
    assert cells["gs|4"].l1 == pytest.approx((alone - target).abs().mean().item())
    assert cells["gs|6"].images is None and "none trained for 6" in cells["gs|6"].note
    assert all(c.seconds > 0 for c in cells.values() if c.images is not None)


def test_a_solver_that_is_not_featured_can_be_chosen_and_is_not_shown_unasked(bench):
    assert ("DEIS", "deis") in bench.solver_choices("digits")
    assert "deis" not in (*app.DEFAULT.solvers, *Ask("digits").solvers)
    ask = app.make_ask("digits", "none", 1.0, 5, 4, [4, 6], ["deis", "gs"], "best", bench=bench)
    *_, (_, page, results) = bench.compare(ask)
    assert 'aria-label="DEIS, 6 evaluations, L1' in page
    assert results["cells"]["deis|6"].l1 < results["cells"]["deis|4"].l1


def test_the_first_cell_comes_before_the_teacher(digits):
    made = [c.key for c in generate(ASK, digits) if c.images is not None]
    assert made[:3] == ["ddim|4", "teacher|20", "ddim|4"]


def test_equal_seeds_give_equal_pictures_and_other_seeds_others(digits):
    one, two, other = (
        {c.key: c.images for c in generate(replace(ASK, seed=s, solvers=("unipc",)), digits)}
        for s in (5, 5, 6)
    )
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["unipc|4"], other["unipc|4"])
    assert torch.equal(one["unipc|4"][1:], other["unipc|4"][:-1])


def test_classes_and_guidance_reach_the_network(digits):
    plain, guided = (
        {c.key: c.images for c in generate(replace(ASK, condition=3, guidance=g), digits)}[
            "teacher|20"
        ]
        for g in (1.0, 3.0)
    )
    assert torch.equal(plain, digits.generate(range(5, 9), 3)) and not torch.equal(plain, guided)


def test_a_question_that_was_answered_is_not_computed_again(bench, monkeypatch):
    list(bench.compare(ASK))
    monkeypatch.setattr(shared, "run_cell", lambda *args: pytest.fail("computed again"))
    *_, (_, page, _) = bench.compare(ASK)
    assert page.count("<button") == 2


def test_what_is_kept_is_bounded(bench):
    bench.keep = 4
    for seed in range(5):
        list(bench.compare(replace(ASK, seed=seed)))
    assert len(bench.cells) == 4


def test_results_come_cell_by_cell(bench):
    buttons = [
        page.count("<button")
        for _, page, _ in bench.compare(replace(ASK, solvers=("ddim", "unipc")))
    ]
    assert buttons == sorted(buttons) and buttons[0] == 0 and buttons[-1] == 4 and len(buttons) >= 6


def test_the_page_escapes_names(bench, digits):
    evil = Trained('"><script>alert(1)</script>', "gs", "digits", solver(digits))
    ask = replace(ASK, solvers=(evil.key,))
    for _, page, _ in bench.compare(ask, {evil.key: evil.title}, [evil]):
        assert "<script" not in page


def test_the_large_view_shows_student_teacher_and_error(bench):
    *_, (_, _, results) = bench.compare(ASK)
    cells = results["cells"]
    page = app.detail_html(cells["ddim|4"], cells["teacher|20"], "DDIM")
    assert (
        page.count("<img") == 3 and 'type="range"' in page and f"{cells['ddim|4'].l1:.4f}" in page
    )


def test_every_picture_has_a_name_for_a_screen_reader(bench):
    *_, (_, page, _) = bench.compare(ASK)
    assert 'aria-label="DDIM, 4 evaluations, L1' in page and page.count("alt=") == page.count(
        "<img"
    )


# --- who waits


def test_the_line_is_served_in_order_and_is_limited():
    desk = Desk(limit=20)
    places = [desk.enter() for _ in range(20)]
    assert [p.ahead() for p in places] == list(range(20))
    with pytest.raises(Busy, match="try again"):
        desk.enter()
    places[0].leave()
    assert places[1].ahead() == 0 and desk.enter().ahead() == 19


def test_a_cancelled_request_gives_its_place_back(bench):
    running = bench.compare(ASK)
    next(running)
    assert len(bench.desk.line) == 1
    running.close()
    assert len(bench.desk.line) == 0


def test_the_one_who_waits_is_told_and_then_served(bench):
    with bench.desk.enter() as place:
        waiting = bench.compare(ASK)
        line, page, _ = next(waiting)
        assert (
            "1 request is before yours" in line
            and "The same noise" in page
            and "<button" not in page
        )
        place.leave()
        *_, (line, page, _) = waiting
    assert page.count("<button") == 2


def test_waiting_leaves_nothing_behind_in_the_session(bench):
    """Gradio keeps one more component of a session for every request that skips an output."""
    from gradio_client import Client

    page = app.build(bench=bench)
    server, address, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **app.launch_options()
    )
    try:
        visitor, components = Client(address, verbose=False), []
        for seed in range(3):
            place, told = bench.desk.enter(), []
            question = ("digits", "mixed", 1, seed, 2, ["4"], ["ddim"], "best")
            for update in visitor.submit(*question, api_name="/compare"):
                told.append(update[0])
                if len(told) == 2:
                    place.leave()
            assert "before yours" in told[0] and "pictures in" in told[-1]
            components += [
                len(s.blocks_config.blocks) for s in server.state_holder.session_data.values()
            ]
        assert len(components) == 3 and len(set(components)) == 1
    finally:
        page.close()


def test_two_at_once_get_their_own(bench):
    found = {}

    def visit(seed):
        *_, (_, _, found[seed]) = bench.compare(replace(ASK, seed=seed))

    visitors = [threading.Thread(target=visit, args=[s]) for s in (1, 2, 3)]
    [v.start() for v in visitors]
    [v.join(60) for v in visitors]
    teacher = bench.teacher("digits")
    for seed, results in found.items():
        assert torch.equal(
            results["cells"]["teacher|20"].images, teacher.generate(range(seed, seed + 4))
        )


# --- errors in words


def test_an_error_becomes_a_status_and_no_traceback(capsys):
    def broken(what):
        yield "fine", 1
        raise what

    *_, (line, rest) = app.told(broken, ["kept"])(ValueError("give <another> seed"))
    assert "give &lt;another&gt; seed" in line and 'role="alert"' in line and rest == "kept"
    *_, (line, _) = app.told(broken, ["kept"])(RuntimeError("secret detail"))
    assert "secret" not in line and "log has the details" in line
    assert "secret detail" in capsys.readouterr().err


# --- files


def test_only_solvers_inside_the_folder_are_found(bench, digits, tmp_path):
    put(bench, digits, "one")
    put(bench, digits, "two", "gas.json", kind="gas", nfe=6)
    outside = tmp_path / "outside" / "gs.json"
    outside.parent.mkdir()
    solver(digits).save(outside)
    (bench.runs / "link").symlink_to(outside.parent)
    (bench.runs / "three").mkdir()
    (bench.runs / "three" / "gs.json").symlink_to(outside)
    (bench.runs / "four").mkdir()
    (bench.runs / "four" / "gs.json").write_text("{")
    assert {(s.kind, s.nfe) for s in app.run_solvers(bench.runs)} == {("gs", 4), ("gas", 6)}


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("x.json", "{", "not JSON"),
        ("x.json", '{"format": "other"}', "format"),
        ("x.json", "[" * 50_000, "not JSON"),
        ("x.json", b"\xff\xfe\x00", "not a text file"),
        ("x.json", " " * (app.MAX_FILE + 1), "at most"),
        ("x.pkl", b"\x80\x04\x95", ".json file"),
        ("x.json", json.dumps(dict(format="gas_nb.tableau", version=1, nfe=10**9)), "nfe"),
    ],
)
def test_a_bad_upload_is_refused_in_words(tmp_path, digits, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        app.add_upload(str(path), digits, [])


def test_infinite_and_huge_solvers_are_refused(tmp_path, digits):
    d = json.loads(solver(digits).to_json())
    d["C"][0][0] = float("inf")
    (tmp_path / "x.json").write_text(json.dumps(d))
    with pytest.raises(ValueError, match="finite"):
        read_solver(tmp_path / "x.json")
    n = 60
    big = Tableau(torch.linspace(1, 1e-3, n + 1), torch.zeros(n), torch.eye(n), torch.eye(n))
    big.save(tmp_path / "y.json")
    with pytest.raises(ValueError, match="at most"):
        read_solver(tmp_path / "y.json")


def test_a_download_can_be_uploaded_and_gives_the_same_pictures(bench, digits):
    put(bench, digits)
    ask = replace(ASK, solvers=("gs",), nfes=(4,))
    paths, lines = bench.downloads(ask)
    uploads = app.add_upload(paths[0], digits, [])
    assert uploads[0].tableau == solver(digits)
    cells = {
        c.key: c
        for c in generate(
            replace(ask, solvers=("gs", uploads[0].key)), digits, bench.solvers(uploads)
        )
    }
    assert torch.equal(cells["gs|4"].images, cells[f"{uploads[0].key}|4"].images)
    assert uploads[0].key in [key for _, key in bench.solver_choices("digits", uploads)]
    name = Path(paths[0]).name
    assert name in lines and compile(lines, "lines", "exec")


def test_the_scheduler_folder_can_be_loaded_by_diffusers_means(bench, digits, tmp_path):
    interop = pytest.importorskip("gas_nb.interop")
    put(bench, digits)
    paths, _ = bench.downloads(replace(ASK, solvers=("gs",), nfes=(4,)))
    with zipfile.ZipFile(paths[1]) as z:
        z.extractall(tmp_path / "s")
    folder = next((tmp_path / "s").iterdir())
    scheduler = interop.GASScheduler.from_pretrained(folder)
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 4


def test_results_of_runs_that_are_nonsense_are_passed_over(bench):
    for name, text in dict(
        a='{"teacher": "digits", '
        '"rows": [{"solver": "gs", "nfe": 4, "l1": 0.1}, 3, {"solver": "gs"}]}',
        b="[]",
        c="{",
        d='{"teacher": "digits", "rows": "x"}',
    ).items():
        (bench.runs / name).mkdir(parents=True)
        (bench.runs / name / "metrics.json").write_text(text)
    assert bench.sweep_rows("digits") == [dict(solver="gs", nfe=4, l1=0.1)]


# --- training


def is_free(folder):
    """Whether nobody has claimed the folder, this process included."""
    free = claim_folder(folder)
    release_folder(folder)
    return free


def test_a_training_appears_in_compare(bench):
    lines = [line for line, _ in bench.distil("digits", 5, "quick", pause=0.02)]
    assert "kept in digits-nfe5-1" in lines[-1]
    assert {(s.kind, s.nfe) for s in bench.solvers() if s.key.startswith("digits-nfe5")} == {
        ("gs", 5),
        ("gas", 5),
    }
    cells = {
        c.key: c
        for c in generate(
            replace(ASK, nfes=(5,), solvers=("gs", "gas")), bench.teacher("digits"), bench.solvers()
        )
    }
    assert cells["gs|5"].l1 < 0.3 and cells["gas|5"].images is not None


def test_a_stopped_training_keeps_what_it_has_and_goes_on_later(bench):
    jobs, lines = {}, []
    for line, _ in bench.distil("digits", 4, "cpu", jobs=jobs, pause=0.01):
        lines.append(line)
        if len(jobs["now"].records) >= 1:
            jobs["now"].stop.set()
    assert "kept in digits-nfe4-1" in lines[-1]
    before = len(jobs["now"].records)
    assert not (bench.runs / "digits-nfe4-1" / "metrics.json").exists()
    for _ in bench.distil("digits", 4, "cpu", jobs=jobs, pause=0.01):
        if len(jobs["now"].records) > before:
            jobs["now"].stop.set()
    assert jobs["now"].folder.name == "digits-nfe4-1" and len(jobs["now"].records) > before


def test_a_training_stopped_while_pairs_are_made_keeps_nothing_and_can_start_again(bench, digits):
    config = bench.config("digits", "quick", nfe=4)
    job = app.Job(config, digits, bench.runs)
    job.stop.set()
    job.run()
    assert (job.stage, job.solvers, job.error) == ("stopped before training began", [], None)
    assert not list(job.folder.glob("g*.json")) and is_free(job.folder)
    *_, (line, _) = bench.distil("digits", 4, "quick", pause=0.01)
    assert f"kept in {job.folder.name}: gas.json, gs.json" in line


def test_a_training_that_fails_says_why_and_gives_its_folder_back(bench, digits, monkeypatch):
    def broken(*args, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr("gas_nb.runs.pairs_in_steps", broken)
    jobs = {}
    with pytest.raises(OSError, match="disk is full"):
        list(bench.distil("digits", 4, "quick", jobs=jobs, pause=0.01))
    assert is_free(jobs["now"].folder) and not bench.training_desk.line


def test_leaving_the_page_stops_the_training(bench):
    jobs = {}
    running = bench.distil("digits", 4, "cpu", jobs=jobs, pause=0.01)
    next(running)
    running.close()
    jobs["now"].join(60)
    assert not jobs["now"].is_alive() and not bench.training_desk.line


# --- the page


def test_build_launches_nothing_and_opens_few_endpoints(bench):
    demo = app.build(bench=bench)
    assert not demo.is_running
    assert {f.api_name for f in demo.fns.values() if f.api_visibility == "public"} == {
        "compare",
        "look_inside",
    }


def test_the_look_asks_nobody_else():
    options = app.launch_options()
    theme = options["theme"]
    assert not any(
        "http" in str(f if isinstance(f, str) else f.stylesheet())
        for f in [*theme._font, *theme._font_mono]
    )
    assert "http" not in app.CSS and "url(" not in app.CSS


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--help"], "--runs DIR"),
        (["--device", "abacus"], "abacus"),
        (["--port", "many"], "invalid int"),
    ],
)
def test_the_command_line_explains_itself(arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "gas_nb.app", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert words in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_first_picture_is_quick_on_a_cpu(digits):
    start = time.perf_counter()
    next(generate(Ask("digits", n=8, nfes=(4,), solvers=("unipc",)), digits))
    assert time.perf_counter() - start < 5
