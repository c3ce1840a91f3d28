"""tools/publish_results.py: what of a sweep reaches nbs/results/ and the front page."""

import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from publish_results import compact, front_table, main, place

from gas_nb.sweep import LEARNED, markdown_tables, training_free_rows

ROOT = Path(__file__).resolve().parent.parent
MEANS = [
    dict(
        solver="teacher",
        choice="own",
        nfe=20,
        l1=0.0,
        l1_std=0.0,
        frechet=3.254,
        frechet_std=0.5,
        n=60,
        repeats=2,
    ),
    dict(
        solver="unipc",
        choice="best",
        nfe=4,
        l1=0.1234,
        l1_std=0.001,
        frechet=7.0,
        frechet_std=None,
        spacing="edm",
        n=60,
        repeats=2,
    ),
    dict(
        solver="gs",
        choice="learned",
        nfe=5,
        l1=0.05,
        l1_std=0.002,
        frechet=None,
        frechet_std=None,
        spacing="learned",
        n=60,
        repeats=2,
    ),
]


@pytest.fixture
def results():
    config = dict(
        teacher="digits",
        n_samples=60,
        repeats=2,
        n_search=20,
        reference="/somewhere/else/refs",
        weights="/w",
        inception="",
        device="cpu",
    )
    made = dict(
        date="2026-01-02T03:04:05+00:00",
        commit="abcdef0123+",
        versions={},
        device="cpu",
        device_name="x, 2 cores",
        threads=1,
    )
    return dict(
        config=config,
        teacher=dict(weights="hash"),
        metrics=["l1"],
        features="pixels",
        reference="90 images of /somewhere/else/refs",
        provenance=made,
        failed=[],
        rows=[dict(l1=1.0)],
        summary=MEANS,
    )


def test_tables_hold_means_and_spreads_and_a_dash_where_nothing_was_measured(results):
    lines = markdown_tables(MEANS, results).splitlines()
    assert "2026-01-02" in lines[0] and "60 samples" in lines[0] and "abcdef0" in lines[0]
    assert (
        "| UniPC, best | 0.1234 ± 0.0010 | - |" in lines
        and "| **GS** | - | 0.0500 ± 0.0020 |" in lines
    )
    assert "| UniPC, best | 7.00 | - |" in lines
    assert "The teacher itself (20 evaluations): 3.25 ± 0.50." in lines


def test_what_is_kept_holds_no_path(results):
    kept = compact(results)
    assert (
        "/" not in json.dumps(kept["config"]) + kept["reference"]
        and kept["summary"] == MEANS
        and "rows" not in kept
    )
    assert kept["weights_hash"] == "hash" and "weights" not in kept["config"]


def test_only_the_block_of_the_teacher_changes():
    text = (
        "a\n<!-- results: digits -->\nold\n<!-- end -->\n"
        "b\n<!-- results: fmnist -->\nkeep\n<!-- end -->\n"
    )
    assert place(text, "digits", "new\n") == text.replace("old\n", "\nnew\n\n")
    assert place(text, "other", "new") == text


def test_a_sweep_reaches_the_results_and_the_front_page_once(tmp_path, results, capsys):
    runs, nbs = tmp_path / "runs", tmp_path / "nbs"
    (runs / "sweep-digits").mkdir(parents=True)
    (runs / "sweep-digits" / "results.json").write_text(json.dumps(results))
    nbs.mkdir()
    cells = [
        new_markdown_cell("<!-- results: digits -->\nold\n<!-- end -->"),
        new_code_cell("'<!-- results: digits -->'"),
    ]
    nbformat.write(new_notebook(cells=cells), nbs / "index.ipynb")
    for _ in range(2):
        assert main([str(runs), "--root", str(tmp_path)]) == 0
        nb = nbformat.read(nbs / "index.ipynb", 4)
        assert (
            nb.cells[0].source.count("| best training-free |") == 1
            and "old" not in nb.cells[0].source
        )
        assert nb.cells[1].source == cells[1].source
    assert json.loads((nbs / "results" / "digits.json").read_text()) == compact(results)
    assert (
        main([str(runs), "--root", str(tmp_path), "--teacher", "fmnist"]) == 1
        and "make sweep" in capsys.readouterr().err
    )


def test_what_large_models_cost_is_published_unless_it_was_a_dry_run(tmp_path):
    results = tmp_path / "results.json"
    told = ["no-runs", "--root", str(tmp_path), "--scale", str(results)]
    results.write_text(json.dumps(dict(dry=True)))
    with pytest.raises(ValueError, match="dry run: give the results of a run on a GPU"):
        main(told)
    results.write_text(json.dumps(dict(dry=False, heading="one GPU", table="| model |")))
    assert main(told) == 0
    assert json.loads((tmp_path / "nbs" / "results" / "scale.json").read_text())["dry"] is False


def test_published_figures_are_complete_and_named_with_their_source():
    paper = json.loads((ROOT / "nbs" / "results" / "paper.json").read_text())
    assert "2510.17699" in paper["source"] and paper["figure"] == "FID"
    from gas_nb.teacher import PAPER_SETTINGS

    assert set(paper["settings"]) == set(PAPER_SETTINGS)
    for setting in paper["settings"].values():
        assert {"GS", "GAS"} <= set(setting["rows"]) and len(setting["teacher"]) == len(
            setting["nfe"]
        ) == 4
        assert all(len(values) == 4 and min(values) > 2 for values in setting["rows"].values())
    cifar10 = paper["settings"]["cifar10"]["rows"]
    assert cifar10["GAS"] == [4.05, 2.49, 2.24, 2.17] and cifar10["GS"][0] == 4.41


def test_stored_results_of_our_own_come_from_sweeps():
    for path in (ROOT / "nbs" / "results").glob("*.json"):
        found = json.loads(path.read_text())
        if path.stem not in ("paper", "scale"):
            known = {"teacher", *training_free_rows(), *LEARNED}
            assert found["provenance"]["date"]
            assert {r["solver"] for r in found["summary"]} <= known
            assert all(r["n"] == found["config"]["n_samples"] for r in found["summary"])


def test_the_front_page_has_the_best_training_free_solver_of_each_column_beside_the_learned_ones(
    results,
):
    other = dict(MEANS[1], solver="ddim", l1=0.2)
    closer = dict(MEANS[1], choice="default", spacing="logSNR", l1=0.1, l1_std=None)
    lines = front_table(results | dict(summary=[*MEANS, other, closer])).splitlines()
    assert lines[0] == "| solver | NFE 4 | NFE 5 |"
    assert lines[2:4] == ["| best training-free | 0.1000 | - |", "| **GS** | - | 0.0500 ± 0.0020 |"]
    assert (
        "60 samples, mean ± standard deviation over 2 sets of seeds" in lines[-1]
        and "2026-01-02" in lines[-1]
    )
