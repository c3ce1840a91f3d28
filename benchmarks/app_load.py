"""Many visitors at once: start the app on the loopback, send it 20 requests together and one more, and watch what happens.

    python benchmarks/app_load.py [--requests 20] [--rounds 3] [--teacher digits]

Checks that every request of a round is answered, in the order in which they came, that the next one is told to wait,
that equal questions get equal answers, and prints the server's memory after each round.
"""
import argparse
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOLVERS = ["ddim", "dpm_solver_pp", "unipc", "ipndm"]


def memory_mb(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def start(folder: str) -> tuple[subprocess.Popen, str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "gas_nb.app", "--port", str(port), "--runs", folder, "--device", "cpu"]
    server, address = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL), f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return server, address
        except OSError:
            time.sleep(0.5)
    server.terminate()
    raise SystemExit("the app did not start")


class Visitor(threading.Thread):
    """One request with a client of its own; remembers when its turn came, when it was answered, and what it was told."""

    def __init__(self, client, teacher: str, seed: int):
        super().__init__(daemon=True)
        self.client, self.teacher, self.seed = client, teacher, seed
        self.answer, self.turn, self.seconds, self.pictures = "", None, None, []

    def run(self):
        self.sent = time.perf_counter()
        self.job = self.client.submit(self.teacher, "mixed", 1, self.seed, 8, ["4", "6", "8", "10"], SOLVERS, "best", api_name="/compare")
        self.pictures = []
        for update in self.job:
            text = re.sub("<[^>]*>", "", str(update[0]))
            if self.turn is None and "waiting" not in text:
                self.turn = time.perf_counter()
            self.answer = text
            page = update[1] if isinstance(update[1], str) else ""
            self.pictures = re.findall(r"src=\"(data:[^\"]+)\"", page) or self.pictures
        self.seconds = time.perf_counter() - self.sent


def main() -> None:
    from gradio_client import Client

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--requests", type=int, default=20)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--teacher", default="digits", choices=["digits", "fmnist"])
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, address = start(folder)
        try:
            time.sleep(12)  # let the app answer its first question
            clients = [Client(address, verbose=False) for _ in range(a.requests + 1)]
            failures = [f for r in range(a.rounds) for f in one_round(clients, a, server.pid, r)]
        finally:
            server.terminate()
            server.wait(20)
    print("\n".join(failures) or "all answered, in order; one more was told to wait")
    sys.exit(bool(failures))


def one_round(clients, a, pid: int, number: int) -> list[str]:
    visitors = [Visitor(c, a.teacher, 1000 * number + i) for i, c in enumerate(clients[:-1])]
    for v in visitors:
        v.start()
        time.sleep(0.02)
    late = Visitor(clients[-1], a.teacher, 999)
    while any(v.is_alive() and not v.answer and v.turn is None for v in visitors):
        time.sleep(0.01)
    late.start()
    for v in (*visitors, late):
        v.join(600)
    failures = []
    answered = [v for v in visitors if "pictures in" in v.answer and len(v.pictures) == 18]
    if len(answered) < len(visitors):
        failures.append(f"round {number}: {len(visitors) - len(answered)} not answered: {[v.answer for v in visitors if v not in answered][:3]}")
    turns = [v.turn for v in visitors if v.turn]
    if turns != sorted(turns):
        failures.append(f"round {number}: not in order")
    if "try again" not in late.answer:
        failures.append(f"round {number}: the one too many was told {late.answer!r}")
    if len({v.pictures[0] for v in answered}) < len(answered):
        failures.append(f"round {number}: two visitors share a picture")
    waits = sorted(v.seconds for v in visitors if v.seconds)
    print(f"round {number}: {len(answered)}/{len(visitors)} answered in {waits[0]:.1f} to {waits[-1]:.1f} s; one more: {late.answer!r}; server {memory_mb(pid):.0f} MB", flush=True)
    return failures


if __name__ == "__main__":
    main()
