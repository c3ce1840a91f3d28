"""benchmarks/scale.py: tiny networks through all of it, real ones counted without their weights."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scale  # noqa: E402
from scale_models import MODELS, build_network, call_of  # noqa: E402

LEAST = ["--dry", "--nfes", "4", "--budgets", "150", "--batches", "1"]


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of a Markdown table, by column."""
    lines = [x[2:-2].split(" | ") for x in text.splitlines() if x.startswith("| ")]
    head, _, *rows = lines
    return [dict(zip(head, row, strict=True)) for row in rows]


def run(folder: Path, *more: str) -> dict:
    scale.main([*LEAST, "--out", str(folder), *more])
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The folder of a dry run of all models, and its results."""
    folder = tmp_path_factory.mktemp("scale")
    return folder, run(folder)


@pytest.mark.parametrize("name", MODELS)
def test_a_dry_run_goes_through_every_model(dry, name):
    _, results = dry
    assert results["dry"] and results["device"] == ["CPU"] and not results["left_out"]
    cells = [cell for cell in results["cells"] if cell["model"] == name]
    (distilled,) = [cell for cell in cells if cell["kind"] == "distil"]
    assert distilled["budgeted"] <= 150 and 0 < distilled["checks"] <= scale.CHECKS
    assert distilled["evaluations"] == distilled["budgeted"] + distilled["checks"]
    assert (distilled["schedule"] == "flow") == MODELS[name].flow
    assert distilled["budgeted"] <= distilled["planned"] + 10
    rows = distilled["evaluations"] * MODELS[name].asked
    assert rows >= distilled["network_calls"] * MODELS[name].at_once
    assert 0 < distilled["network_seconds"] < distilled["seconds"]
    assert 0 < distilled["outside"] < 1 and distilled["peak_gib"] is None
    sampled = [cell for cell in cells if cell["kind"] == "sampling"]
    assert {cell["batch"] for cell in sampled} == {b for b in (1, 2, 4) if b <= MODELS[name].batch}
    extra = [row for row in results["extrapolated"] if row["model"] == name]
    assert {row["budget"] for row in extra} == {500, 1500}
    assert all(row["seconds"] > distilled["seconds"] for row in extra)


def test_the_published_recipe_is_measured_on_stable_diffusion(dry):
    _, results = dry
    found = [cell for cell in results["cells"] if cell["kind"].startswith("recipe")]
    assert {(cell["model"], cell["kind"]) for cell in found} == {
        ("sd15", "recipe"),
        ("sd15", "recipe-checkpointed"),
    }
    assert all(row["seconds"] > 0 and row["batch"] == 1 for cell in found for row in cell["rows"])


def test_the_table_has_a_row_for_everything(dry):
    folder, results = dry
    found = scale.report(folder)
    assert found.splitlines()[0] == results["heading"] and "CPU" in results["heading"]
    rows = rows_of(found)
    assert set(rows[0]) == set(scale.COLUMNS)
    assert {row["model"] for row in rows} == {model.title for model in MODELS.values()}
    distilled = [row for row in rows if row["what"] == "distilled, NFE 4, budget 150"]
    assert len(distilled) == len(MODELS)
    for row in distilled:
        assert float(row["s/evaluation"]) > 0 and row["outside the network"].endswith("%")
        assert row["peak memory, GiB"] == "not measured"
    guessed = [row for row in rows if "budget 1,500" in row["what"]]
    assert len(guessed) == len(MODELS)
    assert all(row["remark"].startswith("EXTRAPOLATED from the budget of 150") for row in guessed)


def test_memory_of_a_gpu_stands_beside_that_of_plain_sampling(dry):
    _, results = dry
    peaks = dict(sampling=5.0, distil=12.34)
    cells = [c for c in results["cells"] if c["model"] == "flux"]
    cells = [c | dict(device="one GPU", peak_gib=peaks[c["kind"]]) for c in cells]
    (row,) = [r for r in rows_of(scale.table(cells, [])) if "budget 150" in r["what"]]
    assert row["peak memory, GiB"] == "12.3" and row["plain sampling, GiB"] == "5.0"
    cells[0]["device"] = "another GPU"
    found = rows_of(scale.table(cells, []))
    assert {row["model"].partition(", ")[2] for row in found} == {"one GPU", "another GPU"}


class Marks:
    """Events of CUDA, a second apart."""

    count = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Marks.count += 1
        self.at = Marks.count

    def elapsed_time(self, later):
        return 1000.0 * (later.at - self.at)


def test_time_in_the_network_is_that_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Marks)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    net = torch.nn.Linear(2, 2)
    watch = scale.Watch(net)
    watch.device = torch.device("cuda")
    for rows in (1, 1, 4):
        net(torch.zeros(rows, 2))
    assert watch.seconds() == 3.0 and watch.rows == 6 and watch.sizes == {1: 2, 4: 1}


def test_what_is_there_is_not_run_again(dry, monkeypatch):
    folder, results = dry
    monkeypatch.setattr(scale, "build", None)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*-*.json")}
    assert len(before) == len(results["cells"]) and run(folder) == results
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*-*.json")}


def test_a_fit_says_its_difference_steps(tmp_path):
    scale.main(
        "--dry --models sd15 --nfes 4 --budgets 500 --batches 1 --out".split() + [str(tmp_path)]
    )
    (cell,) = [c for c in scale.read_cells(tmp_path) if c["kind"] == "distil"]
    assert cell["pairs"] == 8 and len(cell["difference_steps"]) == 4
    (row,) = [r for r in rows_of(scale.report(tmp_path)) if "budget 500" in r["what"]]
    assert row["difference steps"].count("e-0") == 2 and row["remark"].startswith("8 pairs")


def test_a_model_that_does_not_fit_the_time_is_skipped_and_said_to_be(tmp_path, monkeypatch):
    results = run(tmp_path, "--models", "flux", "--minutes", "0")
    assert not results["cells"]
    rows = rows_of(results["table"])
    assert rows and all(
        "skipped: building takes about 1 s, 0 s were left" in r["remark"] for r in rows
    )

    monkeypatch.setattr(scale, "pace", lambda *_: 1e6)
    slow = run(tmp_path, "--models", "flux")
    assert all("skipped: takes about" in row["remark"] for row in rows_of(slow["table"]))

    monkeypatch.undo()
    assert not run(tmp_path, "--models", "flux")["left_out"]


def test_memory_that_runs_out_ends_a_recipe_and_nothing_else(tmp_path, monkeypatch):
    made = scale.recipe_step

    def step(bench, nfe, batch):
        if batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made(bench, nfe, batch)

    monkeypatch.setattr(scale, "recipe_step", step)
    results = run(tmp_path, "--models", "sd15", "--batches", "1", "2", "4")
    rows = [row for row in rows_of(results["table"]) if row["what"].startswith("published")]
    assert [row["batch"] for row in rows] == ["1", "2"] * 2
    assert [row["remark"] for row in rows] == ["", "out of memory"] * 2


def test_a_cell_that_fails_leaves_the_others_alone(tmp_path, monkeypatch):
    def distil(*_, **__):
        raise ValueError("no solver today")

    monkeypatch.setattr(scale, "distil", distil)
    results = run(tmp_path, "--models", "wan")
    assert [cell["kind"] for cell in results["cells"]] == ["sampling"]
    assert "skipped: ValueError: no solver today" in results["table"]


def test_real_and_dry_cells_stay_apart(dry, monkeypatch):
    folder, _ = dry
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="give another"):
        scale.main(["--out", str(folder)])
    with pytest.raises(ValueError, match="budget=20.*give more"):
        scale.main(["--dry", "--out", str(folder), "--budgets", "20"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA GPU.*--dry"):
        scale.main(["--out", str(folder)])


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_are_as_large_as_the_published_ones(name):
    """Built without their weights; the sizes are in the model cards."""
    model = MODELS[name]
    net = build_network(model, False, "meta", torch.bfloat16)
    assert type(net).__name__ == model.network
    found = sum(p.numel() for p in net.parameters()) / 1e9
    assert found == pytest.approx(model.parameters, rel=0.01)
    kept = sum(p.numel() for p in net.parameters() if p.dtype != torch.bfloat16)
    assert kept < 0.05e9  # what diffusers keeps in float32: little, and for Wan alone


def test_embeddings_have_the_shapes_of_the_real_text_encoders():
    def shapes(name):
        call = call_of(MODELS[name], False, "meta", torch.bfloat16)
        return {key: tuple(v.shape) for key, v in call.items() if isinstance(v, torch.Tensor)}

    assert shapes("sd15")["negative_prompt_embeds"] == (1, 77, 768)
    assert shapes("sdxl")["prompt_embeds"] == (1, 77, 2048)
    assert shapes("sdxl")["negative_pooled_prompt_embeds"] == (1, 1280)
    assert shapes("sd3")["prompt_embeds"] == (1, 333, 4096)
    assert shapes("sd3")["pooled_prompt_embeds"] == (1, 2048)
    flux = dict(prompt_embeds=(1, 512, 4096), pooled_prompt_embeds=(1, 768))
    assert shapes("flux") == flux
    assert shapes("wan")["prompt_embeds"] == (1, 512, 4096)


@pytest.mark.slow
def test_the_whole_dry_run(tmp_path):
    scale.main(["--dry", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert not results["left_out"] and len(results["cells"]) == 33
