"""What asking through a pipeline costs beside its bare network.

    python benchmarks/asking.py [--milliseconds 50] [--questions 24] [--repetitions 7]

A tiny Stable Diffusion pipeline whose U-Net takes 50 ms a call longer, by sleeping. Every
question, one row, goes to both, in turning order: to the bare U-Net with the prompt's embedding,
and to the pipeline through its scheduler. Evaluations are counted at the U-Net on both sides; the
wall time of a repetition's median question is divided by that of the bare one. Processor time
is kept as well, which other programs disturb less. Then the same without the sleep: what
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
    """Seconds, processor seconds and rows of both sides in each repetition."""
    pipe = build("StableDiffusionPipeline")
    call = dict(prompt="a cat", guidance_scale=1.0, width=16, height=16)
    teacher = PipelineTeacher(pipe, calls=[call], batch_size=1)
    words = pipe.encode_prompt("a cat", torch.device("cpu"), 1, False)[0]
    slow = Slow(pipe.unet, milliseconds / 1000)
    x = teacher.noise([0])
    times = torch.linspace(990.0, 10.0, questions)
    teacher.network(x, times[:1])  # entered, as it stays for all questions of a call

    def bare(t):
        return pipe.unet(x, t, encoder_hidden_states=words, return_dict=False)[0]

    def asked(t):
        return teacher.network(x, t[None])

    assert all(torch.allclose(asked(t), bare(t), atol=1e-5) for t in times)
    found = []
    for _ in range(repetitions):
        row = {name: dict(seconds=[], cpu=[], rows=0) for name in ("bare", "asked")}
        for k, t in enumerate(times):
            turns = [("asked", asked), ("bare", bare)]
            for name, run in reversed(turns) if k % 2 else turns:
                slow.rows, begun, cpu = 0, time.perf_counter(), time.process_time()
                run(t)
                row[name]["cpu"].append(time.process_time() - cpu)
                row[name]["seconds"].append(time.perf_counter() - begun)
                row[name]["rows"] += slow.rows
        found.append(row)
    teacher.close()
    return found


def summary(rows):
    """Of each repetition the median question on both sides; of those the median, and the range."""

    def middle(row, name, clock):
        return 1000 * statistics.median(row[name][clock])

    ratios = [middle(row, "asked", "seconds") / middle(row, "bare", "seconds") for row in rows]
    found = dict(rows={name: rows[0][name]["rows"] for name in ("bare", "asked")})
    found["bare_ms"] = statistics.median(middle(row, "bare", "seconds") for row in rows)
    found |= dict(ratio=statistics.median(ratios), ratio_range=[min(ratios), max(ratios)])
    for clock, name in (("seconds", "extra_ms"), ("cpu", "extra_cpu_ms")):
        extra = [middle(row, "asked", clock) - middle(row, "bare", clock) for row in rows]
        found |= {name: statistics.median(extra), f"{name}_range": [min(extra), max(extra)]}
    return found


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
        found[name] = dict(milliseconds=pause) | summary(rows)
        print(json.dumps(found[name], indent=1), flush=True)
    found |= dict(questions=given.questions, repetitions=given.repetitions, torch=torch.__version__)
    write_json_atomic(RESULTS, found)
    share = found["slow"]["ratio"] - 1
    print(
        f"asking costs {share:.1%} more than a network of {given.milliseconds:g} ms a call, "
        f"{found['quick']['extra_ms']:.2f} ms a question by itself "
        f"({found['quick']['extra_cpu_ms']:.2f} ms of processor time)"
    )


if __name__ == "__main__":
    main()
