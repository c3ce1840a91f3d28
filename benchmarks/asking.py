"""What asking through a pipeline costs beside its bare network.

    python benchmarks/asking.py [--milliseconds 50] [--questions 24] [--repetitions 7]

A tiny Stable Diffusion pipeline whose U-Net takes 50 ms a call longer, by sleeping. Every
repetition asks the same questions of both, in turning order, one row each: the bare U-Net with the
prompt's embedding, and the pipeline through its scheduler. Evaluations are counted at the U-Net on
both sides; wall times are divided within their repetition. Then the same without the sleep: what
is left is the time that a question takes by itself. On one thread of the CPU, because the two
sides of a question wait for each other. Results go to benchmarks/results/asking.json.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gas_nb.runtime.device  # noqa: E402, F401  (before diffusers)

import torch  # noqa: E402
from tiny import build  # noqa: E402

from gas_nb.runtime.files import write_json_atomic  # noqa: E402
from gas_nb.teachers.diffusers import PipelineTeacher  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "asking.json"


class Slow:
    """Makes every call of a module longer, and counts their rows."""

    def __init__(self, module, seconds):
        self.seconds, self.rows = seconds, 0
        module.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, module, args, given):
        first = next(v for v in (*args, *given.values()) if isinstance(v, torch.Tensor))
        self.rows += len(first)
        if self.seconds:
            time.sleep(self.seconds)


@torch.no_grad()
def measured(milliseconds, questions, repetitions):
    """Seconds and rows of both sides in each repetition; the first one is not kept."""
    pipe = build("StableDiffusionPipeline")
    call = dict(prompt="a cat", guidance_scale=1.0, width=16, height=16)
    teacher = PipelineTeacher(pipe, calls=[call], batch_size=1)
    words = pipe.encode_prompt("a cat", torch.device("cpu"), 1, False)[0]
    slow = Slow(pipe.unet, milliseconds / 1000)
    x = teacher.noise([0])
    times = torch.linspace(990.0, 10.0, questions)
    teacher.network(x, times[:1])  # entered, as it stays for all questions of a call

    def bare():
        return [pipe.unet(x, t, encoder_hidden_states=words, return_dict=False)[0] for t in times]

    def asked():
        return [teacher.network(x, t[None]) for t in times]

    for ours, theirs in zip(asked(), bare()):
        assert torch.allclose(ours, theirs, atol=1e-5)
    found = []
    for k in range(repetitions + 1):
        row, turns = {}, [("asked", asked), ("bare", bare)]
        for name, run in reversed(turns) if k % 2 else turns:
            slow.rows, begun = 0, time.perf_counter()
            run()
            row[name] = dict(seconds=time.perf_counter() - begun, rows=slow.rows)
        found.append(row)
    teacher.close()
    return found[1:]


def summary(rows, questions):
    """Medians over the repetitions, and their range."""
    ratios = [row["asked"]["seconds"] / row["bare"]["seconds"] for row in rows]
    extra = [1000 * (row["asked"]["seconds"] - row["bare"]["seconds"]) / questions for row in rows]
    return dict(
        rows={name: rows[0][name]["rows"] for name in ("bare", "asked")},
        seconds={
            name: statistics.median(row[name]["seconds"] for row in rows)
            for name in ("bare", "asked")
        },
        ratio=statistics.median(ratios),
        ratio_range=[min(ratios), max(ratios)],
        extra_ms=statistics.median(extra),
        extra_ms_range=[min(extra), max(extra)],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--milliseconds", type=float, default=50.0)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name, pause in (("slow", given.milliseconds), ("quick", 0.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = measured(pause, given.questions, given.repetitions)
        found[name] = dict(milliseconds=pause) | summary(rows, given.questions)
        print(json.dumps(found[name], indent=1), flush=True)
    found |= dict(questions=given.questions, repetitions=given.repetitions, torch=torch.__version__)
    write_json_atomic(RESULTS, found)
    share = found["slow"]["ratio"] - 1
    print(
        f"asking costs {share:.1%} more than a network of {given.milliseconds:g} ms a call, "
        f"{found['quick']['extra_ms']:.2f} ms a question by itself"
    )


if __name__ == "__main__":
    main()
