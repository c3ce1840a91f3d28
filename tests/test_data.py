"""Teacher pairs: seeds, exact repeatability, and folders that survive stops and damage."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gas_nb import data
from gas_nb.classic import dpm_solver_pp
from gas_nb.data import (
    PairDataset,
    Pairs,
    batch_indices,
    generate_pairs,
    make_pairs,
    noise,
    random_labels,
)
from gas_nb.schedule import NoiseSchedule, spacing
from gas_nb.tableau import sample

SCHEDULE = NoiseSchedule.vp_linear()


class MatrixTeacher:
    """A network of matrix products, whose kernels round
    differently for batches of different size."""

    def __init__(self, nfe=4, stop_after=None, device="cpu"):
        g = torch.Generator().manual_seed(0)
        self.name, self.shape, self.device = "matrix", (3, 5, 7), torch.device(device)
        self.W = (torch.randn(512, 105, generator=g) / 10).to(device)
        self.tableau = dpm_solver_pp(SCHEDULE, spacing(SCHEDULE, nfe), 2)
        self.config = {"name": self.name, "recipe": {"nfe": nfe}, "shape": self.shape}
        self.batches, self.stop_after = [], stop_after

    def denoiser(self, x, t, offset=0.0, condition=None):
        hidden = x.flatten(1) @ self.W.T + (0 if condition is None else condition[:, None])
        return (torch.softmax(hidden, -1) @ self.W).reshape(x.shape)

    def sample(self, x_T, condition=None, tableau=None):
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(len(x_T))
        return sample(self.denoiser, x_T, tableau or self.tableau, condition)

    def random_conditions(self, seeds):
        return random_labels(seeds, 4)


def same(a: Pairs, b: Pairs) -> bool:
    return all(
        torch.equal(getattr(a, k), getattr(b, k)) for k in ("seeds", "x_T", "x_0", "condition")
    )


def small(directory, teacher=None, n=30, **kwargs):
    teacher = teacher or MatrixTeacher()
    kwargs = {"conditions": "random", "shard_size": 10, "chunk": 5} | kwargs
    return generate_pairs(teacher, range(n), directory, **kwargs), teacher


# --- seeds and noise


def test_noise_depends_on_the_seed_alone_and_is_normal():
    many = noise(range(2000), (4, 4, 4))
    assert torch.equal(noise([1999, 3], (4, 4, 4)), many[[1999, 3]])
    assert torch.equal(noise(torch.tensor([3]), (4, 4, 4), torch.float64).float(), many[3:4])
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01
    assert (
        (many[1:] * many[:-1]).mean(0).abs() < 5 / 2000**0.5
    ).all()  # neighbouring seeds are independent


def test_noise_of_a_seed_is_what_it_was():
    """Written down once: a torch that draws other numbers would quietly change every data set."""
    first = noise([0, 49_999], (16,), torch.float64)
    assert first[0, :4].tolist() == pytest.approx(
        [-2.3104118, -0.373250861, -1.060816679, 0.999509355], abs=1e-8
    )
    assert first[1, :2].tolist() == pytest.approx([-1.12577032, 0.174772466], abs=1e-8)
    assert random_labels(range(12), 10).tolist() == [6, 8, 3, 0, 1, 7, 2, 3, 3, 9, 9, 8]


def test_noise_is_the_same_on_a_processor_without_vector_instructions():
    code = "import hashlib; from gas_nb.data import noise\n"
    code += "print(hashlib.sha256(noise(range(20), (3, 8, 8)).numpy()).hexdigest())"
    env = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}
    command = [sys.executable, "-c", code]

    def run(e):
        return subprocess.run(command, env=e, capture_output=True, text=True, check=True).stdout

    digests = [run(e) for e in (env, env | {"ATEN_CPU_CAPABILITY": "default"})]
    assert digests[0] == digests[1] and len(digests[0].strip()) == 64


@pytest.mark.parametrize("seeds", [[2**31], [2**32], [-1], [1.0], [True], ["1"], []])
def test_seeds_that_would_repeat_a_noise_or_make_none_are_refused(seeds):
    with pytest.raises(ValueError, match="seed"):
        noise(seeds, (2,))
    with pytest.raises(ValueError, match="seed"):
        random_labels(seeds, 10)


def test_labels_are_uniform_and_independent_of_the_noise():
    labels = random_labels(range(20_000), 10)
    counts = labels.bincount(minlength=10)
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-square, 9 degrees, p = 0.001
    x = noise(range(4000), (16,)).mean(1)
    means = torch.stack([x[labels[:4000] == k].mean() for k in range(10)])
    assert means.abs().max() < 5 * 0.25 / 400**0.5


def test_training_never_meets_evaluation():
    assert set(data.train_seeds(50_000)).isdisjoint(data.eval_seeds(1000))
    for n in (0, 50_001):
        with pytest.raises(ValueError, match=f"n={n}"):
            data.train_seeds(n)
    with pytest.raises(ValueError, match="n=0"):
        data.eval_seeds(0)


# --- pairs in memory


def test_the_same_seed_gives_the_same_bits_whatever_is_asked_with_it():
    whole = make_pairs(MatrixTeacher(), range(130), "random")
    for some in ([77], [129, 0, 64], range(23, 93)):
        assert same(make_pairs(MatrixTeacher(), some, "random"), whole[list(some)])


def test_without_a_fixed_chunk_matrix_products_would_differ():
    """Why the chunk exists. Equal bits here would mean that
    it is no longer needed, not that something broke."""
    teacher, x_T = MatrixTeacher(), noise(range(50), (3, 5, 7))
    whole, single = teacher.sample(x_T), torch.cat([teacher.sample(x) for x in x_T.split(1)])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-4)
    if torch.equal(single, whole):
        pytest.skip("this CPU's kernels do not depend on the batch size")


def test_the_teacher_sees_only_full_chunks_and_progress_is_told():
    teacher, seen = MatrixTeacher(), []
    pairs = make_pairs(teacher, range(12), chunk=5, progress=lambda *a: seen.append(a))
    assert teacher.batches == [5, 5, 5] and seen == [(5, 12), (10, 12), (12, 12)]
    assert len(pairs) == 12 and pairs.condition is None and pairs.x_0.dtype == torch.float32


def test_samples_that_are_not_finite_are_named_by_seed():
    teacher = MatrixTeacher()
    teacher.sample = lambda x, c=None: torch.where(
        torch.arange(len(x)).reshape(-1, 1, 1, 1) == 2, torch.nan, x
    )
    with pytest.raises(ValueError, match=r"seeds \[12\]"):
        make_pairs(teacher, range(10, 15), chunk=5)


def test_dict_conditions_are_sliced_stored_and_loaded(tmp_path):
    class Text(MatrixTeacher):
        def sample(self, x_T, condition=None, tableau=None):
            return (
                x_T * condition["scale"][:, None, None, None]
                + condition["tokens"].sum(1)[:, None, None, None]
            )

    condition = {"scale": torch.arange(12.0), "tokens": torch.arange(24.0).reshape(12, 2)}
    pairs = make_pairs(Text(), range(12), condition, chunk=5)
    torch.testing.assert_close(pairs.x_0[7], pairs.x_T[7] * 7 + 29)
    assert pairs[[3]].condition["tokens"].tolist() == [[6.0, 7.0]]
    stored = generate_pairs(
        Text(), range(12), tmp_path, condition, shard_size=10, chunk=5
    ).tensors()
    assert torch.equal(stored.x_0, pairs.x_0) and torch.equal(
        stored.condition["tokens"], condition["tokens"]
    )
    with pytest.raises(ValueError, match="11 rows for 12 seeds"):
        generate_pairs(
            Text(), range(12), tmp_path / "b", {"scale": torch.arange(11.0)}, shard_size=10, chunk=5
        )


# --- batches


@pytest.mark.parametrize("n, batch_size", [(10, 3), (10, 10), (7, 20), (1, 4), (128, 24)])
def test_batches_use_every_pair_equally_often(n, batch_size):
    rows = torch.cat([batch_indices(n, batch_size, step, seed=4) for step in range(n)])
    assert Counter(rows.tolist()) == {i: batch_size for i in range(n)}
    epochs = rows[: len(rows) // n * n].reshape(-1, n)
    assert all(epoch.sort().values.tolist() == list(range(n)) for epoch in epochs)


def test_batches_are_a_function_of_seed_and_step():
    assert torch.equal(batch_indices(1000, 24, 77, seed=1), batch_indices(1000, 24, 77, seed=1))
    assert not torch.equal(batch_indices(1000, 24, 77, seed=1), batch_indices(1000, 24, 77, seed=2))
    assert not torch.equal(batch_indices(1000, 1000, 0), batch_indices(1000, 1000, 1))
    batch_indices(50, 10, 0).zero_()  # what a caller does to its rows
    assert batch_indices(50, 50, 0).unique().numel() == 50
    for bad in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ValueError, match="need"):
            batch_indices(*bad)


def test_split_and_endless_batches():
    pairs = make_pairs(MatrixTeacher(), range(20), "random")
    train, val = pairs.split(6)
    assert train.seeds.tolist() == list(range(14)) and val.seeds.tolist() == list(range(14, 20))
    first, resumed = train.batches(4, seed=9), train.batches(4, seed=9, start=5)
    seen = [next(first) for _ in range(8)]
    assert all(same(next(resumed), batch) for batch in seen[5:])
    for n in (0, 20):
        with pytest.raises(ValueError, match=f"n_val={n}"):
            pairs.split(n)


# --- on disk


def test_a_folder_holds_what_make_pairs_makes_in_plain_files(tmp_path):
    dataset, _ = small(tmp_path / "d")
    assert same(
        dataset.verify().tensors(), make_pairs(MatrixTeacher(), range(30), "random", chunk=5)
    )
    assert (
        len(dataset) == 30
        and dataset.shape == (3, 5, 7)
        and dataset.teacher["recipe"] == {"nfe": 4}
    )
    names = [f"pairs-0000{i}.safetensors" for i in range(3)]
    assert sorted(os.listdir(tmp_path / "d")) == [".lock", "manifest.json", *names]
    with safe_open(tmp_path / "d" / names[2], "pt") as f:
        assert set(f.keys()) == {"seeds", "x_T", "x_0", "condition"}
        assert f.get_tensor("seeds").tolist() == list(range(20, 30))
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert manifest["seeds"] == [[0, 30]] and [r["file"] for r in manifest["shards"]] == names
    assert [len(s) for s in dataset.shards()] == [10, 10, 10]


def test_files_are_the_same_bytes_however_the_work_was_cut(tmp_path):
    small(tmp_path / "once")
    for n in (10, 13, 30):  # grown step by step
        small(tmp_path / "grown", n=n)
    for i in range(3):
        name = f"pairs-0000{i}.safetensors"
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "grown" / name).read_bytes()
    other, _ = small(tmp_path / "one-shard", shard_size=30)
    assert same(other.tensors(), PairDataset(tmp_path / "once").tensors())


def test_a_stopped_generation_resumes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, MatrixTeacher(stop_after=3))  # one shard and a half
    with pytest.raises(ValueError, match="holds 10 of 30 pairs"):
        PairDataset(tmp_path)
    seen = []
    _, teacher = small(tmp_path, progress=lambda *a: seen.append(a))
    assert teacher.batches == [5] * 4 and seen[0] == (10, 30) and seen[-1] == (30, 30)
    assert small(tmp_path)[1].batches == []


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm, message, at_opening",
    [
        (flip, "pairs-00001.safetensors is damaged", False),
        (
            lambda p: p.write_bytes(p.read_bytes()[:-8]),
            "pairs-00001.safetensors has .* bytes",
            True,
        ),
        (Path.unlink, "pairs-00001.safetensors is missing", True),
    ],
)
def test_a_harmed_shard_is_named_and_mended(tmp_path, harm, message, at_opening):
    small(tmp_path)
    path = tmp_path / "pairs-00001.safetensors"
    good = path.read_bytes()
    harm(path)
    if at_opening:
        with pytest.raises(ValueError, match=message):
            PairDataset(tmp_path)
    else:
        dataset = PairDataset(tmp_path)
        assert len(dataset.shard(0)) == 10
        for read in (lambda: dataset.shard(1), dataset.verify, dataset.tensors):
            with pytest.raises(ValueError, match=message):
                read()
    assert small(tmp_path)[1].batches == [5, 5] and path.read_bytes() == good


@pytest.mark.parametrize(
    "change, message",
    [
        ({"teacher": MatrixTeacher(nfe=6)}, r"teacher.recipe.nfe is 4 there and 6 here"),
        ({"conditions": None}, "conditions is 'random' there and 'none' here"),
        ({"chunk": 10}, "chunk is 5 there and 10 here"),
        ({"shard_size": 20}, "shard_size is 10 there and 20 here"),
        ({"n": 20}, "none may go"),
    ],
)
def test_pairs_of_another_plan_are_refused_and_left_alone(tmp_path, change, message):
    dataset, _ = small(tmp_path)
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **change)
    dataset.verify()
    assert len(PairDataset(tmp_path)) == 30


def test_other_given_conditions_are_refused(tmp_path):
    given = torch.arange(30)
    small(tmp_path, conditions=given)
    assert small(tmp_path, conditions=given)[1].batches == []
    with pytest.raises(ValueError, match="pairs-00000.safetensors are not the ones given"):
        small(tmp_path, conditions=given.flip(0))


def test_what_would_fail_late_fails_early(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    teacher = MatrixTeacher()
    with pytest.raises(OSError, match="cannot write to"):
        small(tmp_path / "file" / "d", teacher)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10**6, 10**6, 20_000)
    )
    with pytest.raises(OSError, match=r"30 pairs need 0 MB: make room"):
        small(tmp_path / "d", teacher)
    with pytest.raises(ValueError, match="whole chunks"):
        small(tmp_path / "e", teacher, chunk=7)
    assert teacher.batches == []


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda m: "{", "not JSON"),
        (lambda m: "[]", '"format" must be'),
        (lambda m: json.dumps(m | {"version": 2}), "version 2"),
        (lambda m: json.dumps(m | {"shape": [3, 0]}), "'shape' is missing or malformed"),
        (lambda m: json.dumps(m | {"seeds": [[0, 2**40]]}), "'seeds' is missing or malformed"),
        (
            lambda m: json.dumps(
                m | {"shards": [m["shards"][0] | {"file": "../pairs-00000.safetensors"}]}
            ),
            "'shards' is",
        ),
        (
            lambda m: json.dumps({k: v for k, v in m.items() if k != "teacher"}),
            "'teacher' is missing",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, edit, message):
    small(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(edit(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        PairDataset(tmp_path)
    with pytest.raises(ValueError, match=message):
        small(tmp_path)


def test_shards_without_a_manifest_are_not_overwritten(tmp_path):
    small(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest.json: empty it"):
        small(tmp_path)
    with pytest.raises(ValueError, match="no manifest.json"):
        PairDataset(tmp_path)


@pytest.mark.cuda
def test_pairs_on_cuda_start_from_the_same_noise():
    gpu, cpu = (make_pairs(MatrixTeacher(device=d), range(60), "random") for d in ("cuda", "cpu"))
    assert (
        torch.equal(gpu.x_T, cpu.x_T)
        and torch.equal(gpu.condition, cpu.condition)
        and gpu.x_0.device.type == "cpu"
    )
    torch.testing.assert_close(gpu.x_0, cpu.x_0, rtol=1e-3, atol=1e-3)
    assert cpu.to("cuda").x_0.device.type == "cuda"
