"""What tests/test_processes.py runs in one process and in two, and what only several can show."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gas_nb.distil import PARAMETERS, distil
from gas_nb.runtime.processes import (
    gather,
    in_order,
    is_main,
    leave,
    on_main,
    processes,
    require_shared,
    share,
    stop,
    sum_gradients,
    total,
)
from gas_nb.teacher import load_teacher
from gas_nb.training import make_training_pairs, preset_config, train

DEFAULTS = {name: default for name, (default, _) in PARAMETERS.items()} | dict(
    teacher="digits", preset="quick", device="cpu", nfe=3
)
RUNS = dict(
    fit=dict(adversarial=0.0, n_pairs=90, n_eval=130),
    adam=dict(method="adam", iterations=4, n_pairs=90, n_eval=130, batch_size=15),
)


def run(folder: Path) -> dict[str, Path]:
    return {
        name: distil(DEFAULTS | changes | dict(output_dir=str(folder / name)))
        for name, changes in RUNS.items()
    }


def message(f, *args) -> str:
    try:
        f(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def resume(folder: Path) -> bool:
    """A run that stops after two steps and goes on is the
    run that was left alone, in every process."""
    teacher, config = (
        load_teacher("digits", "cpu"),
        preset_config("quick", teacher="digits", device="cpu", nfe=3, checkpoint_every=1),
    )
    pairs = make_training_pairs(config, teacher)
    whole = [r.tableau for r in train(config, teacher, pairs=pairs)][-1]
    steps = train(config, teacher, folder / "resumed", pairs)
    next(steps), next(steps)
    steps.close()
    return whole == [r.tableau for r in train(config, teacher, folder / "resumed", pairs)][-1]


def diverge() -> None:
    """One row of the batch, which one process sees, is not finite: all stop."""
    teacher = load_teacher("digits", "cpu")
    config = preset_config(
        "quick", teacher="digits", device="cpu", nfe=3, method="adam", iterations=2
    )
    training, held_out = make_training_pairs(config, teacher)
    training.x_0[0] = torch.nan
    list(train(replace(config, batch_size=24), teacher, pairs=(training, held_out)))


def several(folder: Path) -> dict:
    def item(i):
        if i == 4:
            raise ValueError("item 4 is bad")
        return processes(), torch.full((2,), i / 10)

    def write():
        if not is_main():
            raise AssertionError("only the main process writes")
        raise OSError("the disk is full")

    rows, p = share(torch.arange(9.0)), torch.nn.Parameter(torch.zeros(2))
    (p.sum() * rows.sum()).backward()
    sum_gradients([p])
    first = list(in_order(item, range(4)))
    mine = folder / "mine"
    if is_main():
        mine.mkdir()
    return dict(
        processes=processes(),
        alone=[n for n, _ in first],
        values=[v.tolist() for _, v in first],
        bad_item=message(lambda: list(in_order(item, range(7)))),
        full_disk=message(on_main, write),
        no_share=message(share, range(1)),
        unseen=message(require_shared, mine if is_main() else folder / "elsewhere"),
        rows=rows.tolist(),
        total=total(dict(loss=rows.sum().item())),
        gradient=p.grad.tolist(),
        resumed=resume(folder),
        diverged=message(diverge).split(":")[0],
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    run(target)
    answers = gather(several(target))
    if is_main():
        (target / "answers.json").write_text(json.dumps(answers))
    stop()
    leave()
