"""Many visitors at once: 20 requests together to the app on the loopback, and then one more.

    python benchmarks/app_load.py [--requests 20] [--rounds 3] [--teacher digits]
    python benchmarks/app_load.py --minutes 60 [--clients 20] [--out benchmarks/results/load.json]

The first checks that every request of a round is answered, in the order in which they came, that
the next one is told to wait, and that visitors get their own pictures; it prints the memory after
each round. Server and clients share this process, so that the order is read off the desk itself.
The second is `app_hour.py`: the command `python -m gas_nb.app`, visited for as long as one likes.
"""

import argparse
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

NFES = ["4", "6", "8", "10"]
SOLVERS = ["ddim", "dpm_solver_pp", "unipc", "ipndm"]


def memory_mb() -> float:
    """Resident memory of this process (Linux)."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def watched(desk):
    """A desk that writes down who came and who left, in order."""
    desk.came, desk.left = [], []
    enter = desk.enter

    def noted():
        place = enter()
        desk.came.append(place)
        leave = place.leave

        def left():
            desk.left.append(place)
            leave()

        place.leave = left
        return place

    desk.enter = noted
    return desk


class Visitor(threading.Thread):
    """One request with a client of its own; remembers when
    it was answered, and what it was told."""

    def __init__(self, client, teacher: str, seed: int):
        super().__init__(daemon=True)
        self.client, self.teacher, self.seed = client, teacher, seed
        self.answer, self.seconds, self.pictures = "", None, []

    def run(self):
        self.sent = time.perf_counter()
        # teacher, class, guidance, seed, samples,
        # evaluations, solvers, time grid: the fields of Ask
        question = (self.teacher, "mixed", 1, self.seed, 8, NFES, SOLVERS, "best")
        self.job = self.client.submit(*question, api_name="/compare")
        for update in self.job:
            self.answer = re.sub("<[^>]*>", "", str(update[0]))
            page = update[1] if isinstance(update[1], str) else ""
            self.pictures = re.findall(r"src=\"(data:[^\"]+)\"", page) or self.pictures
        self.seconds = time.perf_counter() - self.sent


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--requests", type=int, default=20)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--teacher", default="digits", choices=["digits", "fmnist"])
    p.add_argument("--minutes", type=float, help="visit the command for so long")
    p.add_argument("--clients", type=int, default=20, help="with --minutes")
    p.add_argument("--out", default="benchmarks/results/load.json", help="with --minutes")
    p.add_argument("--seed", type=int, default=0, help="with --minutes: of what the clients do")
    a = p.parse_args()
    if a.minutes:
        from app_hour import visit

        sys.exit(visit(a.minutes, a.clients, a.out, a.seed))
    from gradio_client import Client

    from gas_nb.app import Workbench, build, launch_options

    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(folder, "cpu", limit=a.requests)
        watched(bench.desk)
        page = build(bench=bench)
        _, address, _ = page.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options()
        )
        try:
            clients = [Client(address, verbose=False) for _ in range(a.requests + 1)]
            failures = [f for r in range(a.rounds) for f in one_round(clients, a, bench.desk, r)]
        finally:
            page.close()
    print("\n".join(failures) or "all answered, in order; one more was told to wait")
    sys.exit(bool(failures))


def one_round(clients, a, desk, number: int) -> list[str]:
    desk.came.clear()
    desk.left.clear()
    visitors = [Visitor(c, a.teacher, 1000 * number + i) for i, c in enumerate(clients[:-1])]
    for v in visitors:
        v.start()
    while len(desk.line) < a.requests and len(desk.came) < a.requests:
        time.sleep(0.005)
    late = Visitor(clients[-1], a.teacher, 999)
    full = len(desk.line) == a.requests  # nobody has been served yet
    late.start()
    for v in (*visitors, late):
        v.join(600)
    failures = []
    answered = [v for v in visitors if "pictures in" in v.answer and len(v.pictures) == 18]
    if len(answered) < len(visitors):
        told = [v.answer for v in visitors if v not in answered][:3]
        failures.append(f"round {number}: {len(visitors) - len(answered)} not answered: {told}")
    if desk.left != desk.came:
        failures.append(f"round {number}: not in order")
    if not full:
        print(f"round {number}: the first was served before the last came, so one more had a place")
    elif "try again" not in late.answer:
        failures.append(f"round {number}: the one too many was told {late.answer!r}")
    if len({v.pictures[0] for v in answered}) < len(answered):
        failures.append(f"round {number}: two visitors share a picture")
    waits = sorted(v.seconds for v in visitors if v.seconds)
    print(
        f"round {number}: {len(answered)}/{len(visitors)} answered "
        f"in {waits[0]:.1f} to {waits[-1]:.1f} s; "
        f"one more: {late.answer!r}; {memory_mb():.0f} MB",
        flush=True,
    )
    return failures


if __name__ == "__main__":
    main()
