"""A run's folder: its files by name, whose settings it has,
who owns it, and what is read of a damaged one."""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gas_nb.classic import ddim
from gas_nb.data import finish
from gas_nb.runs import (
    Run,
    claim_run,
    distilled_from,
    finished_run,
    kept_pairs,
    open_run,
    ran_with,
    read_object,
    run_name,
    runs_in,
    runs_with,
    settings_of,
)
from gas_nb.runtime.files import claim_folder, folder_owner, release_folder
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.tableau import Tableau
from gas_nb.teacher import load_teacher
from gas_nb.training import preset_config

ROOT = Path(__file__).resolve().parent.parent
QUICK = preset_config("quick", teacher="digits", device="cpu")
SCHEDULE = NoiseSchedule.ddpm()


def table(nfe):
    return ddim(SCHEDULE, spacing(SCHEDULE, nfe))


# --- files


def test_what_is_saved_is_found_again(tmp_path):
    run = Run.at(tmp_path)
    assert (run.config, run.solvers(), run.metrics(), run.finished) == ({}, {}, None, False)
    run.save_solvers(dict(gs=table(2), gas=table(3)))
    assert [(name, Tableau.load(path).nfe) for name, path in run.solvers().items()] == [
        ("gas", 3),
        ("gs", 2),
        ("solver", 3),
    ]
    run.write_metrics(dict(rows=[1]))
    assert run.finished and run.metrics() == dict(rows=[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gas.json",
        "gs.json",
        "metrics.json",
        "solver.json",
    ]


def test_a_run_stands_where_a_path_can(tmp_path):
    run = Run.at(tmp_path)
    assert Path(run) == tmp_path and claim_folder(run) is True
    run.release()
    assert folder_owner(run) == "another process"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\udcff", "[" * 100_000])
def test_a_damaged_object_counts_as_none(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_object(tmp_path / "a.json") is None and read_object(tmp_path) is None


def test_an_object_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "config.json").write_text('{"teacher": "digits"}')
    assert Run.at(tmp_path).config == dict(teacher="digits")
    assert Run.at(tmp_path, largest=10).config == {}


def test_a_checkpoint_names_the_teacher(tmp_path):
    run = Run.at(tmp_path)
    assert distilled_from(run) is None
    for state in ("{}", "[]", '{"teacher": 3}', "{"):
        save_file(dict(x=torch.zeros(1)), run.checkpoint, dict(state=state))
        with pytest.raises(ValueError, match="checkpoint.safetensors is not a checkpoint of a run"):
            distilled_from(run)
    state = json.dumps(dict(teacher=dict(name="digits")))
    save_file(dict(x=torch.zeros(1)), run.checkpoint, dict(state=state))
    assert distilled_from(run) == dict(name="digits")


def test_the_names_of_a_runs_files_stand_in_one_module():
    """No other module writes them out; the training of the
    fmnist teacher has a folder of its own kind."""
    names = re.compile(
        r"""["'](metrics\.jsonl?|checkpoint\.safetensors|(gs|gas|solver)\.json|pairs)["']"""
    )
    found = {}
    for path in (ROOT / "gas_nb").rglob("*.py"):
        if path.name != "runs.py" and not path.name.startswith(("_modidx", "fmnist")):
            found[str(path.relative_to(ROOT))] = sorted(
                {hit[0] for hit in names.finditer(path.read_text())}
            )
    assert {name: hits for name, hits in found.items() if hits} == {}


# --- settings


def test_settings_are_compared_as_json_has_them():
    assert run_name(QUICK) == "digits-nfe4" == run_name(asdict(QUICK))
    assert settings_of(QUICK) == settings_of(asdict(QUICK)) == json.loads(json.dumps(asdict(QUICK)))
    run = Run(Path("digits-nfe4-1"), settings_of(QUICK))
    assert ran_with(run, QUICK) and ran_with(run, asdict(QUICK))
    assert not ran_with(run, replace(QUICK, seed=1))
    assert not ran_with(Run(Path("digits-nfe4-1")), QUICK)


@dataclass(frozen=True)
class Inner:
    rounds: tuple = (1, 2)


@dataclass(frozen=True)
class Newer:
    teacher: str = "digits"
    nfe: int = 4
    fit: Inner = Inner()


def test_a_setting_that_is_younger_than_the_run_had_its_default():
    run = Run(Path("digits-nfe4-1"), dict(teacher="digits", nfe=4))
    assert ran_with(run, Newer())
    assert not ran_with(run, Newer(fit=Inner((3,))))
    assert not ran_with(Run(run.folder, run.config | dict(other=1)), Newer())


# --- opening


def test_an_unfinished_run_is_taken_up_and_a_finished_one_is_not(tmp_path):
    first = claim_run(tmp_path, QUICK)
    assert claim_run(tmp_path, QUICK) == first and first.config == settings_of(QUICK)
    other = claim_run(tmp_path, replace(QUICK, seed=1))
    assert other.folder.name == "digits-nfe4-2"
    first.write_metrics({})
    assert open_run(tmp_path, QUICK).name == "digits-nfe4-3"
    assert [run.folder.name for run in runs_with(tmp_path, QUICK)] == [
        "digits-nfe4-1",
        "digits-nfe4-3",
    ]
    for run in runs_in(tmp_path):
        run.release()


def test_a_finished_run_has_figures_and_a_solver(tmp_path):
    run = claim_run(tmp_path, QUICK)
    assert finished_run(tmp_path, QUICK) is None
    run.write_metrics({})
    assert finished_run(tmp_path, QUICK) is None
    run.save_solvers(dict(gs=table(4)))
    assert (
        finished_run(tmp_path, QUICK) == run
        and finished_run(tmp_path, replace(QUICK, seed=1)) is None
    )
    run.release()


def test_a_run_that_ends_while_it_is_being_opened_is_not_taken_up(tmp_path, monkeypatch):
    first = claim_run(tmp_path, QUICK)

    def claim(self, wait=0.0):
        if self.folder == first.folder:
            first.write_metrics({})
        return claim_folder(self.folder, wait)

    monkeypatch.setattr(Run, "claim", claim)
    second = claim_run(tmp_path, QUICK)
    assert second.folder.name == "digits-nfe4-2"
    second.release()
    assert claim_folder(first) is True  # it was given back
    release_folder(first)


def test_folders_whose_numbers_are_no_numbers_are_no_hindrance(tmp_path):
    (tmp_path / "digits-nfe4-x").mkdir()
    (tmp_path / "digits-nfe4-7").mkdir()
    run = claim_run(tmp_path, QUICK)
    assert run.folder.name == "digits-nfe4-8"
    run.release()


def test_runs_of_a_folder_come_newest_first_and_links_out_of_it_are_passed_over(tmp_path):
    import os

    root = tmp_path / "runs"
    for age, name in enumerate(("old", "new")):
        (root / name).mkdir(parents=True)
        os.utime(root / name, (age, age))
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "file").write_text("")
    assert [run.folder.name for run in runs_in(root)] == ["new", "old"]
    assert {run.folder.name for run in runs_in(root, links=True)} == {"old", "new", "link"}
    assert runs_in(root / "nowhere") == []


# --- pairs


def test_pairs_are_kept_beside_the_runs_and_their_folder_is_given_back(tmp_path):
    digits = load_teacher("digits", "cpu")
    steps = kept_pairs(tmp_path, digits, range(120))
    assert next(steps) == (0, 120)
    (folder,) = (tmp_path / "pairs").iterdir()
    steps.close()
    assert claim_folder(folder) is True
    release_folder(folder)
    seen = []
    pairs = finish(kept_pairs(tmp_path, digits, range(120)), lambda *count: seen.append(count))
    assert len(pairs) == 120 and seen[0] == (0, 120) and seen[-1] == (120, 120)
    assert next(kept_pairs(tmp_path, digits, range(120))) == (120, 120)
