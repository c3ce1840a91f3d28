"""gas_nb.figures: figures carry the right data, stay small, and stills are well-formed."""

import base64
import io
import json
import math
import os
import time
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

from gas_nb import figures
from gas_nb.classic import classic_tableau
from gas_nb.schedule import NoiseSchedule
from gas_nb.tableau import Trajectory, sample

SCHEDULE = NoiseSchedule.vp_linear()


def images(n=8, c=1, size=8, seed=0):
    return torch.rand(n, c, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def decode(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_uri_keeps_every_pixel(channels):
    x = images(1, channels, 16)[0]
    wanted = ((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    got = decode(figures.png_uri(x))
    assert np.array_equal(got if channels == 3 else got[..., None], wanted)


def test_images_outside_the_range_are_clipped_and_nan_is_grey():
    x = torch.tensor([[[-3.0, 3.0], [float("nan"), 0.0]]])
    assert decode(figures.png_uri(x)).tolist() == [[0, 255], [128, 128]]


@pytest.mark.parametrize(
    "n, shape", [(1, (8, 8)), (4, (17, 17)), (6, (17, 26)), (8, (17, 35)), (7, (26, 26))]
)
def test_contact_sheet_places_images_row_by_row(n, shape):
    x = images(n)
    sheet = figures.contact_sheet(x)
    assert sheet.shape[:2] == shape
    first = ((x[0, 0] + 1) * 127.5).round().byte().numpy()
    assert np.array_equal(sheet[:8, :8, 0], first) and (sheet[:8, :8, 3] == 255).all()
    if n > 1:
        second = ((x[1, 0] + 1) * 127.5).round().byte().numpy()
        assert np.array_equal(sheet[:8, 9:17, 0], second) and (sheet[:, 8, 3] == 0).all()


def test_samples_has_a_picture_per_cell_in_its_place():
    cells = {"ddim": {4: images(), 6: images(seed=1)}, "gas": {4: images(seed=2), 6: None}}
    fig = figures.samples(cells, {"gas": {6: "none trained"}})
    shown = [t for t in fig.data if t.type == "image"]
    assert [t.name for t in shown] == ["DDIM, 4", "DDIM, 6", "GAS, 4"]
    assert shown[0].x0 < shown[1].x0 and shown[0].y0 == shown[1].y0 and shown[2].y0 > shown[0].y0
    assert list(fig.layout.xaxis.ticktext) == ["4", "6"] and list(fig.layout.yaxis.ticktext) == [
        "DDIM",
        "GAS",
    ]
    assert fig.data[-1].text == ("none trained",)
    assert len(fig.to_json()) < 20_000


def test_comparison_states_the_distance():
    x, y = images(3), images(3, seed=1)
    fig = figures.comparison({"teacher": x, "gas": y}, errors=True)
    rows = list(fig.layout.yaxis.ticktext)
    assert f"{(x - y).abs().mean():.4f}" in rows[1] and "|GAS - Teacher|" in rows[2]
    with pytest.raises(ValueError, match="reference"):
        figures.comparison({"gas": y})


def test_error_image_is_dark_where_equal_and_bright_where_far():
    x = torch.zeros(1, 2, 2)
    y = x.clone()
    y[0, 1, 1] = 1.0
    error = figures.error_image(x, y)
    assert error[0, 0].sum() < 10 and error[1, 1].sum() > 500
    with pytest.raises(ValueError, match="differ"):
        figures.error_map(x, torch.zeros(1, 4, 4))


def test_time_grids_show_the_same_grid_on_both_axes():
    grids = figures.reference_grids(SCHEDULE, 5)
    fig = figures.time_grids(grids, SCHEDULE)
    assert len(fig.data) == 2 * len(grids) == 6
    shown = {(t.name, t.xaxis): list(t.x) for t in fig.data}
    lam = shown["uniform in log-SNR", "x2"]
    assert np.allclose(np.diff(lam), np.diff(lam)[0], rtol=1e-4)
    assert np.allclose(shown["uniform in t", "x"], grids["time_uniform"], rtol=1e-5)


def test_coefficients_of_dpm_solver_do_not_differ_from_themselves():
    tab = classic_tableau("dpm_solver_pp", SCHEDULE, 5)
    fig = figures.coefficients(tab, SCHEDULE)
    assert len(fig.data) == 6
    for index in (2, 5):
        assert max(abs(v) for row in fig.data[index].z for v in row if v is not None) < 1e-9
    other = figures.coefficients(classic_tableau("unipc", SCHEDULE, 5), SCHEDULE)
    assert max(abs(v) for row in other.data[5].z for v in row if v is not None) > 0.1


def test_trajectory_shows_states_and_predictions_with_the_target_last():
    tab = classic_tableau("ddim", SCHEDULE, 3)
    _, path = sample(
        lambda x, t, offset, condition: 0.5 * x, images(2), tab, return_trajectory=True
    )
    assert sum(t.type == "image" for t in figures.trajectory(path).data) == 4 + 3
    fig = figures.trajectory(path, 1, images(1)[0])
    assert sum(t.type == "image" for t in fig.data) == 4 + 4
    with pytest.raises(ValueError, match="index=2"):
        figures.trajectory(path, 2)


def test_trajectory_tells_equal_times_apart():
    path = Trajectory(torch.tensor([1.0, 0.5, 0.4999, 0.001]), [images(1)] * 4, [images(1)] * 3)
    assert len(figures.trajectory(path).layout.xaxis.ticktext) == 4


def test_learning_curves_keep_phases_apart_and_thin_long_runs():
    rows = [dict(phase="fit", step=i + 1, loss=0.1, val_loss=0.2) for i in range(3)]
    rows += [
        dict(phase="gas", step=i + 1, loss=0.05, val_loss=None if i % 100 else 0.06)
        for i in range(5000)
    ]
    fig = figures.learning_curves(rows, baseline=("unipc", 0.15))
    assert [t.xaxis for t in fig.data] == ["x", "x", "x2", "x2"]
    assert len(fig.data[2].x) <= 400 and len(fig.data[3].x) == 50
    assert all(math.isclose(v, 0.05) for v in fig.data[2].y)


def test_learning_curves_skip_what_is_not_a_number():
    rows = [
        dict(phase="gs", step=1, loss=float("nan"), val_loss=None),
        dict(phase="gs", step=2, loss=0.1, val_loss=None),
    ]
    assert list(figures.learning_curves(rows).data[0].x) == [2]


def test_tradeoff_takes_the_best_spacing_and_leaves_the_teacher_as_a_level():
    rows = [
        dict(solver="ddim", nfe=4, spacing=s, l1=v, frechet=9 * v, seconds_per_image=0.1)
        for s, v in (("a", 0.3), ("b", 0.2))
    ]
    rows += [
        dict(solver="ddim", nfe=6, l1=0.1, frechet=1.0, seconds_per_image=0.2),
        dict(solver="teacher", nfe=20, l1=1e-7, frechet=0.5, seconds_per_image=1.0),
    ]
    fig = figures.tradeoff(rows)
    assert [t.name for t in fig.data] == ["DDIM"] and list(fig.data[0].y) == [0.2, 0.1]
    assert not fig.layout.shapes and len(figures.tradeoff(rows, y="frechet").layout.shapes) == 1
    with pytest.raises(ValueError, match="fid"):
        figures.tradeoff(rows, y="fid")


def test_results_table_marks_the_best_of_each_nfe():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([dict(solver="ddim", nfe=4, l1=0.3), dict(solver="gas", nfe=4, l1=0.1)])
    table = figures.results_table(frame).data[0]
    assert list(table.cells["values"][2]) == ["0.3", "<b>0.1</b>"]


def every_figure():
    tab = classic_tableau("unipc", SCHEDULE, 4)
    _, path = sample(
        lambda x, t, offset, condition: 0.5 * x, images(1), tab, return_trajectory=True
    )
    rows = [
        dict(solver=s, nfe=n, l1=0.5 / n, seconds_per_image=0.01 * n)
        for s in ("ddim", "gas")
        for n in (4, 6)
    ]
    steps = [
        dict(phase="fit", step=i + 1, loss=0.1 / (i + 1), val_loss=0.2 / (i + 1)) for i in range(5)
    ]
    return dict(
        samples=figures.samples({"a<b": {4: images()}}, {"a<b": {4: "L1 & more"}}, title="T & U"),
        comparison=figures.comparison({"teacher": images(), "gs": images(seed=1)}, errors=True),
        error_map=figures.error_map(images()[0], images()[1]),
        grids=figures.time_grids(figures.reference_grids(SCHEDULE, 4), SCHEDULE),
        coefficients=figures.coefficients(tab, SCHEDULE),
        trajectory=figures.trajectory(path),
        curves=figures.learning_curves(steps, baseline=("ddim", 0.3)),
        tradeoff=figures.tradeoff(rows),
        seconds=figures.tradeoff(rows, x="seconds_per_image"),
        table=figures.results_table(rows),
    )


@pytest.mark.parametrize("name, fig", every_figure().items(), ids=list(every_figure()))
def test_every_figure_is_small_and_has_a_well_formed_still(name, fig):
    bundle = fig._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
    assert len(json.dumps(bundle, default=list)) < 90_000
    tree = ElementTree.fromstring(bundle["image/svg+xml"])
    marks = [e.tag.rpartition("}")[2] for e in tree.iter()]
    assert marks.count("image") == sum(t.type == "image" for t in fig.data)
    assert "nan" not in bundle["image/svg+xml"]


def test_a_still_draws_a_line_where_its_numbers_say():
    fig = figures.styled(
        go.Figure(go.Scatter(x=[0, 1, 2], y=[0, 1, 0], mode="lines")), width=400, height=300
    )
    line = next(
        e for e in ElementTree.fromstring(figures.still(fig)).iter() if e.tag.endswith("polyline")
    )
    (x0, y0), (x1, y1), (x2, y2) = (
        (float(v) for v in p.split(",")) for p in line.get("points").split()
    )
    assert math.isclose(x1, (x0 + x2) / 2, abs_tol=0.2) and y0 == y2 > y1


def test_explorer_changes_its_figure_and_is_a_still_without_a_page(monkeypatch):
    cells = {n: {"ddim": images(seed=n), "gas": images(seed=n + 1)} for n in (4, 6)}
    explorer = figures.nfe_explorer(cells, images())
    before = explorer.view.data[0].source
    explorer.slider.value = 6
    assert explorer.view.data[0].source != before
    assert "image/svg+xml" in explorer._repr_mimebundle_()
    monkeypatch.setenv("GAS_NB_WIDGETS", "1")
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()
    live = figures.nfe_explorer(cells, images())
    assert type(live.view).__name__ == "FigureWidget" and live.view in live.children


def test_parameter_form_edits_the_dict_in_place():
    settings = dict(nfe=4, teacher="digits", lr=1e-3, deep=True, order=None)
    form = figures.parameter_form(settings, dict(nfe=(1, 20), teacher=["digits", "fmnist"]))
    (
        form.fields["nfe"].value,
        form.fields["teacher"].value,
        form.fields["lr"].value,
        form.fields["deep"].value,
    ) = 7, "fmnist", 0.01, False
    form.fields["order"].value = "3"
    assert settings == dict(nfe=7, teacher="fmnist", lr=0.01, deep=False, order=3)
    assert "nfe = 7" in form._repr_mimebundle_()["text/plain"]


def test_dashboard_stops_and_resumes_where_it_was():
    dashboard = figures.LiveDashboard()
    for record in dashboard.watch(
        dict(phase="gs", step=i + 1, steps=20, loss=0.1, val_loss=None) for i in range(20)
    ):
        if record["step"] == 7:
            dashboard.stop_button.click()
    assert (
        dashboard.state == "stopped"
        and dashboard.last["step"] == 7
        and not dashboard.resume_button.disabled
    )
    dashboard.resume_button.click()
    dashboard._thread.join(10)
    assert dashboard.state == "done" and [r["step"] for r in dashboard.records] == list(
        range(1, 21)
    )


def test_dashboard_passes_errors_on_and_says_so():
    def broken():
        yield dict(phase="gs", step=1, steps=2, loss=0.1, val_loss=None)
        raise FloatingPointError("loss is nan")

    dashboard = figures.LiveDashboard()
    with pytest.raises(FloatingPointError):
        list(dashboard.watch(broken()))
    assert "loss is nan" in dashboard.text.value and dashboard.resume_button.disabled


def test_without_a_kernel_there_is_no_frontend():
    assert os.environ.get("GAS_NB_WIDGETS") is None and figures.has_frontend() is False


def test_drawing_is_quick():
    start = time.perf_counter()
    figures.samples(
        {s: {n: images(8, 1, 32, n) for n in (4, 6, 8, 10)} for s in ("ddim", "unipc", "gs", "gas")}
    )
    assert time.perf_counter() - start < 3
