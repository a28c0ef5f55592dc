"""report.html: one file, nothing loaded, every number that of metrics.json."""

from __future__ import annotations

import base64
import doctest
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vaekern.evaluation import html
from vaekern.training import RunDirectory, RunError, TrainConfig
from vaekern.training.page import write_page

METRICS = {
    "nll_nats_per_dim": -0.57712345678901,
    "reconstruction_nats_per_dim": -0.9,
    "kl_nats_per_dim": 1 / 3,
    "kl_nats": 21.3,
    "sigma": 0.0804,
    "mse": 0.0093,
    "dimensions": 64,
    "active_units": 9,
    "active_units_std": 8,
    "delta_kl": 0.0617,
    "latent_dim": 16,
    "polarized_training_percent": 0.0,
    "mmd_stage1": 0.0139,
    "mmd_stage2": 0.0017,
    "fd_reconstructions": 0.0793,
    "fd_stage1": 5.8335,
    "fd_stage2": 1.096,
    "fd_test_images": 0.7414,
    "fd_name": "FD-digits",
    "fd_samples": 1617,
    "fd_test_samples": 180,
    "fd_extractor": "64 features of a classifier of digits, test accuracy 98.3%",
    "fd_classifier_accuracy": 0.983,
}
FIGURES = (
    *("reconstructions", "samples_stage1", "samples_stage2"),
    *("training", "latent_spectrum", "encoder_variances"),
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """What a browser would find: the elements, their attributes and the texts."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.values: list[tuple[float, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)
        if self.open and self.open[-1] == "data":
            self.values.append((float(self.elements[-1][1]["value"]), data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(page: Path) -> Reader:
    """The page, once it is clear that it is whole and loads nothing."""
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    assert page.stat().st_size < 2e6
    reader = Reader(text)
    for tag in ("script", "link", "iframe", "object", "embed", "base", "form"):
        assert not reader.all(tag)
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "poster", "action", "background"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?:|@import|url\(|//\w", re.sub(r"base64,[\w+/=]*", "", text))
    policy = next(meta["content"] for meta in reader.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")
    return reader


def images(reader: Reader) -> list[bytes]:
    """The embedded pictures, each decoded and described."""
    from PIL import Image

    contents = []
    for image in reader.all("img"):
        content = base64.b64decode(image["src"].partition("base64,")[2], validate=True)
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.size == (int(image["width"]), int(image["height"]))
        assert len(image["alt"]) > 20
        contents.append(content)
    return contents


def draw(path: Path, width: int) -> None:
    from PIL import Image

    Image.new("RGB", (width, 20), "white").save(path)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """What a finished run leaves behind, without the training."""
    directory = RunDirectory(tmp_path / "a & b")
    data = {"name": "<digits>", "kind": "image", "sample_shape": [1, 8, 8], "train": 90, "test": 9}
    about = {"vaekern": "0.1", "torch": "2.13", "device": "cpu, kernels: cpu", "data": data}
    directory.start(TrainConfig.from_flat({"latent_dim": 16, "seed": 41}), about)
    directory.metrics.write_text(json.dumps(METRICS))
    for index, name in enumerate(FIGURES):
        draw(directory.figures / f"{name}.png", 30 + index)
    return directory


def test_the_numbers_are_those_of_metrics_json(run: RunDirectory) -> None:
    page = write_page(run.path)
    assert page == run.path / "report.html"
    reader = read(page)
    rows = [
        *("nll_nats_per_dim", "kl_nats_per_dim", "sigma", "mse", "active_units", "delta_kl"),
        *("mmd_stage1", "mmd_stage2"),
        *("fd_reconstructions", "fd_stage1", "fd_stage2", "fd_test_images"),
    ]
    assert [value for value, _ in reader.values] == [METRICS[name] for name in rows]
    shown = [text for _, text in reader.values]
    assert shown[:6] == ["-0.5771", "0.3333", "0.0804", "0.0093", "9 of 16", "6.2%"]
    text = " ".join(reader.texts)
    for name, value in METRICS.items():  # all of them, where "All numbers" is unfolded
        assert name in text
        assert str(value) in text
    for setting in ("latent_dim", "stage2.epochs", "41", "kernels: cpu", "2.13"):
        assert setting in text


def test_pictures_are_embedded_as_they_are(run: RunDirectory) -> None:
    reader = read(write_page(run.path))
    expected = [(run.figures / f"{name}.png").read_bytes() for name in FIGURES]
    assert images(reader) == expected
    alternatives = " ".join(image["alt"] for image in reader.all("img"))
    for number in ("0.0093", "5.83", "1.096", "9 of 16", "0.0017"):
        assert number in alternatives


def test_text_of_others_stays_text(run: RunDirectory) -> None:
    content = write_page(run.path).read_text()
    assert "<title>&lt;digits&gt;: iso-i, mle</title>" in content
    assert "<digits>" not in content
    assert "a &amp; b&quot;)</code>" in content


def test_a_run_without_second_stage_and_labels(run: RunDirectory) -> None:
    short = {k: v for k, v in METRICS.items() if "stage2" not in k and not k.startswith("fd_")}
    run.metrics.write_text(json.dumps(short))
    (run.figures / "samples_stage2.png").unlink()
    reader = read(write_page(run.path))
    assert len(reader.values) == 7
    assert len(images(reader)) == 5
    text = " ".join([*reader.texts, *(image["alt"] for image in reader.all("img"))])
    assert "FD" not in text
    assert "nan" not in text
    assert "Evaluation" not in text


def test_the_evaluation_is_shown_where_there_is_one(run: RunDirectory) -> None:
    folder = run.path / "evaluation"
    folder.mkdir()
    outcomes: dict[str, Any] = {
        "orthogonality": {
            "status": "done",
            "figures": ["singular_value_gaps.png", "gone.png", "training.png"],
        },
        "information": {"status": "skipped", "reason": "none"},
    }
    (folder / "evaluation.json").write_text(json.dumps({"diagnostics": outcomes}))
    (folder / "table.txt").write_text("orthogonality\n  DtO  < 0.3\n")
    draw(folder / "singular_value_gaps.png", 77)
    reader = read(write_page(run.path))
    assert "orthogonality\n  DtO  < 0.3" in "".join(reader.texts)
    assert len(images(reader)) == 7
    assert images(reader)[-1] == (folder / "singular_value_gaps.png").read_bytes()
    run.model.touch()
    os.utime(folder / "evaluation.json", (0, 0))  # of weights that are no longer there
    assert len(images(read(write_page(run.path)))) == 6


def test_what_is_missing_or_damaged_is_named(run: RunDirectory) -> None:
    (run.figures / "training.png").write_text("<svg>")
    with pytest.raises(RunError, match=r"are damaged \(.*training.png must be a PNG picture"):
        write_page(run.path)
    run.metrics.write_text("{")
    with pytest.raises(RunError, match=r"are damaged .*write them again with vaekern train"):
        write_page(run.path)
    run.metrics.unlink()
    with pytest.raises(RunError, match=r"holds no metrics.json yet; finish the run with vaekern"):
        write_page(run.path)
    with pytest.raises(RunError, match=r"is not a vaekern run"):
        write_page(run.path.parent)
    assert not run.page.exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_it_and_complains_of_nothing(run: RunDirectory, tmp_path: Path) -> None:
    def render(page: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu"),
                *("--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"),
                *("--enable-logging=stderr", "--dump-dom", page.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    page = write_page(run.path)
    done = render(page)
    assert "CONSOLE" not in done.stderr
    Reader(done.stdout)
    # And what a browser refuses is seen here.
    page.write_text(page.read_text().replace("<main>", '<main><img alt="" src="file:///x.png">'))
    assert "Content Security Policy" in render(page).stderr


def test_a_table_keeps_every_digit() -> None:
    class One:
        name, text, unit, part, value = "x", "0.3333", "", False, 1 / 3

    assert Reader(html.number_table([One()], "")).values == [(1 / 3, "0.3333")]


def test_the_examples_are_true() -> None:
    assert doctest.testmod(html) == (0, 2)
