"""Pictures of the front page: which run they show, and that a figure is drawn at its own size."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import make_pictures

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="40">'
    '<rect width="{0}" height="40" fill="red"/></svg>'
)


def test_the_newest_finished_run_is_shown(tmp_path):
    for i, name in enumerate(("fmnist-nfe4-1", "fmnist-nfe4-2", "fmnist-nfe4-3", "digits-nfe4-1")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "samples.svg").write_text(SVG.format(30))
        os.utime(folder / "samples.svg", (1000 - i, 1000 - i))
        if name != "fmnist-nfe4-1":
            (folder / "metrics.json").write_text("{}")
    assert make_pictures.newest(tmp_path, "fmnist", 4).parent.name == "fmnist-nfe4-2"
    with pytest.raises(
        SystemExit, match="no finished run of fmnist with 6 evaluations.*make train"
    ):
        make_pictures.newest(tmp_path, "fmnist", 6)


@pytest.mark.browser
def test_a_figure_is_drawn_at_its_own_size(tmp_path):
    from conftest import browser_programs

    browser_programs()
    (tmp_path / "figure.svg").write_text(SVG.format(700))
    picture = make_pictures.results_picture(tmp_path / "figure.svg")
    assert picture.size == (700, 40) and picture.getpixel((690, 20)) == (255, 0, 0)
    make_pictures.keep(picture, tmp_path / "kept.png")
    assert Image.open(tmp_path / "kept.png").size == (700, 40)
