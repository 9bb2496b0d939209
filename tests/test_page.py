"""The page of a run: one file that shows what the run left, whatever stands in it; its script in a real browser."""

import base64
import io
import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import report
from jax_ddpm.commands.train import parse_run
from jax_ddpm.report import html_page
from jax_ddpm.spec.json_text import to_json
from jax_ddpm.training.run_page import train_command, write_page
from tests import browser
from tests.small import small

HOSTILE = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>@DATA@"
NAME = "a <b>'bold'"
FRAMES, COUNT = 7, 3
LIMIT = 5_000_000  # bytes


def made_up_run(folder, shape=(8, 8, 1), frames=FRAMES, count=COUNT, steps=(10, 20, 30), num_rows=40, noise=False):
    """A run's folder without a run: frame f of image i is gray with level 20 f + i, grid number g has level 50 g."""
    (folder / "samples").mkdir(parents=True)
    config = small(widths=(32, 64), dataset=f"folder:/pictures/{HOSTILE}")
    (folder / "config.json").write_text(to_json(config))
    rows = [
        {"step": 10 * n, "epoch": 0, "loss": 1 / n, "grad_norm": 2.0, "learning_rate": 0.1, "images_per_second": 100.0}
        for n in range(1, num_rows + 1)
    ]
    rows[1] |= {"validation_loss": 0.75}
    rows[2] |= {"loss": None}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng = np.random.default_rng(0)

    def images(*lead, levels):
        if noise:
            return rng.integers(0, 256, (*lead, *shape), np.uint8)
        return np.broadcast_to(np.asarray(levels, np.uint8)[..., None, None, None], (*lead, *shape))

    for number, step in enumerate(steps):
        tiles = images(16, levels=np.full(16, 50 * number))
        report.grid(tiles).save(folder / "samples" / f"step-{step:07d}.png")
    for name in ("grid.png", "data.png", "forward.png", "reverse.png", "x0.png"):
        report.grid(images(64, levels=np.arange(64))).save(folder / "samples" / name)
    levels = 20 * np.arange(frames)[:, None] + np.arange(count)
    np.savez(
        folder / "samples" / "closing.npz",
        step=steps[-1],
        num_parameters=1234,
        num_samples=16,
        frames_t=np.arange(frames - 1)[::-1],
        frames_log_snr=np.linspace(-9, 9, frames - 1),
        frames_x_t=images(frames, count, levels=levels),
        frames_x_0=images(frames, count, levels=levels + 5),
        bins=np.linspace(-1.5, 1.5, 61),
        sampled_shares=np.eye(60)[15],
        data_shares=np.eye(60)[20],
        loss_t=np.arange(0, 20, 5),
        loss_by_t=np.asarray([1.0, 0.5, 0.25, np.nan]),
        nearest_index=np.arange(count * 5).reshape(count, 5),
        nearest_distance=np.arange(count * 5).reshape(count, 5) / 4,
        nearest_images=images(count, 5, levels=np.arange(count * 5).reshape(count, 5)),
        num_compared=100,
        num_train=100,
        num_held_out=10,
        held_out_distance=np.asarray([7.0, 8.0, 9.0]),
    )
    return folder


def carried(text: str) -> dict:
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def picture(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/webp;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_up_run(tmp_path_factory.mktemp("runs") / NAME)


def test_the_page_holds_what_the_run_left(run, tmp_path):
    text = write_page(run, tmp_path / "page.html", ("A note.",)).read_text()
    data = carried(text)
    assert data["title"] == NAME and data["notes"] == ["A note."]
    assert [grid["text"].split(",")[0] for grid in data["grids"]] == ["step 10", "step 20", "step 30"]
    assert data["grids"][1]["text"] == "step 20, validation loss 0.75"
    assert "20 steps" in data["grids_text"]  # T
    assert [picture(grid["src"])[20, 20, 0] for grid in data["grids"]] == [0, 50, 100]
    sheet = picture(data["reverse"]["sheets"][0]["src"])
    assert sheet.shape == (8 * COUNT, 8 * FRAMES, 3) and sheet[8 * 2 + 4, 8 * 5 + 4, 1] == 20 * 5 + 2
    charts = {chart["title"]: chart for chart in data["charts"]}
    loss = {line["name"]: line for line in charts["Loss"]["series"]}
    assert loss["training"]["x"][:4] == [10, 20, 30, 40] and loss["training"]["y"][:4] == [1, 0.5, None, 0.25]
    assert (loss["validation"]["x"], loss["validation"]["y"]) == ([20], [0.75])
    assert charts["Loss by timestep"]["series"][0]["y"] == [1, 0.5, 0.25, None]
    assert {"Images per second", "Gradient norm", "Learning rate", "Pixel values"} <= set(charts)
    assert data["nearest"]["rows"][1]["near"][2]["text"] == f"{7 / 4:.1f}" and "8.0" in data["nearest"]["text"]
    assert {name: value for part in data["settings"] for name, value in part["values"]}["widths"] == "32 64"


def test_nothing_in_a_run_becomes_html(run, tmp_path):
    text = write_page(run, tmp_path / "page.html").read_text()
    assert HOSTILE not in text and text.count("<script") == 2 and "<b>" not in text
    dataset = dict(next(part["values"] for part in carried(text)["settings"] if part["name"] == "data"))["dataset"]
    assert dataset == f"folder:/pictures/{HOSTILE}"


def test_the_page_names_no_other_place(run, tmp_path):
    text = write_page(run, tmp_path / "page.html").read_text()
    assert set(re.findall(r"\w+://[^\s\"'`]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src 'none'" in text and "unsafe" not in text


@pytest.mark.slow
def test_a_large_run_of_noise_stays_under_five_megabytes(tmp_path):
    """Noise is what no format makes small."""
    steps = tuple(range(1000, 61_000, 1000))
    folder = made_up_run(tmp_path / "run", (64, 64, 3), 31, 8, steps, num_rows=20_000, noise=True)
    page = write_page(folder)
    assert page.stat().st_size < LIMIT
    data = carried(page.read_text())
    shown = [int(re.sub(r"\D", "", grid["text"].partition(", ")[0])) for grid in data["grids"]]
    assert (shown[0], shown[-1], len(shown)) == (1000, 60_000, 12)
    line = data["charts"][0]["series"][0]
    assert len(line["x"]) <= 600 and line["x"][-1] == 200_000


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "config.json").write_text(to_json(small()))
    data = carried(write_page(tmp_path).read_text())
    assert data["charts"] == data["grids"] == data["pictures"] == [] and data["reverse"] is data["nearest"] is None
    assert "end of the run" in data["notes"][0]
    (tmp_path / "samples" / "closing.npz").write_bytes(b"PK\3\4 broken")
    (tmp_path / "samples" / "step-0000010.png").write_bytes(b"broken")
    assert carried(write_page(tmp_path).read_text())["grids"] == []


def test_the_command_repeats_the_settings(run, tmp_path):
    config = small(widths=(32, 64, 128), dataset="folder:/a b/'c'", flip=True, ema=False, clip_norm=1.0, steps=7)
    (tmp_path / "config.json").write_text(to_json(config))
    program, name, *arguments = shlex.split(train_command(config, tmp_path, sample_every=5))
    assert (program, name) == ("jax-ddpm", "train")
    flags = parse_run(arguments, "train")
    assert flags.config == replace(config, output=replace(config.output, sample_every=5))
    assert flags.out == tmp_path.with_name(f"{tmp_path.name}-again")


# In a browser


needs_browser = pytest.mark.skipif(browser.PROGRAM is None, reason=f"no browser: none of {', '.join(browser.NAMES)}")


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    window = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return write_page(run, tmp_path_factory.mktemp("pages") / "page.html").as_uri()


READY = (
    "Promise.all([...document.images].map((image) => image.decode())).then(() => new Promise(requestAnimationFrame))"
)
LEVELS = """[...document.querySelectorAll("%s")].map((picture) => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return context.getImageData(%d, 4, 1, 1).data[0];
})"""


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_the_page_opens_without_a_complaint(window, page, width, scheme):
    window.open(page, width=width, scheme=scheme)
    window.run(READY)
    assert window.complaints() == []
    assert window.run("document.title") == window.run("document.querySelector('h1').textContent") == NAME
    assert window.run("document.querySelectorAll('section[id]').length") == 6
    assert HOSTILE in window.run("document.getElementById('settings').textContent")
    assert window.run("document.documentElement.scrollWidth <= innerWidth")
    assert window.run("[...document.images].every((image) => image.naturalWidth > 0 && image.alt)")
    unnamed = "[...document.querySelectorAll('input')].filter((input) => !input.labels.length).length"
    assert window.run(unnamed) == 0


@needs_browser
def test_the_sliders_move_and_the_pictures_change(window, page):
    window.open(page)
    window.run(READY)
    window.run("document.querySelector('#samples input').focus()")
    seen = []
    for key in ("End", "ArrowLeft", "Home", "ArrowRight"):
        window.press(key)
        window.run(READY)
        said = window.run("document.querySelector('#samples output').textContent")
        level = window.run(LEVELS % ("#grid", 20))[0]
        assert window.run("document.querySelector('#samples input').getAttribute('aria-valuetext')") == said
        seen.append((said, level))
    steps = [("step 30", 100), ("step 20, validation loss 0.75", 50), ("step 10", 0)]
    assert seen == [*steps, steps[1]]
    window.run("document.querySelector('#reverse input').focus()")
    for key, frame, said in (
        ("Home", 0, "t = 5, logSNR -9.0 (x_T, pure noise)"),
        ("ArrowRight", 1, "t = 4, logSNR -5.4"),
        ("End", FRAMES - 1, "x_0, the sample"),
    ):
        window.press(key)
        assert window.run("document.querySelector('#reverse output').textContent") == said
        levels = window.run(LEVELS % ("#reverse canvas", 4))
        assert levels == [20 * frame + image + kind for image in range(COUNT) for kind in (0, 5)]
    assert window.complaints() == []


@needs_browser
def test_play_runs_to_the_picture_and_stops(window, page):
    window.open(page)
    window.run(READY)
    window.run("document.querySelector('#reverse button').click()")
    said = window.run(
        """new Promise((done) => {
          const seen = new Set();
          const timer = setInterval(() => {
            seen.add(document.querySelector("#reverse output").textContent);
            const stopped = document.querySelector("#reverse button").textContent === "Play";
            if (stopped) { clearInterval(timer); done([...seen]); }
          }, 20);
        })"""
    )
    assert len(said) == FRAMES and said[-1] == "x_0, the sample"


@needs_browser
def test_curves_are_read_off_by_pointer_and_by_keys(window, page):
    window.open(page)
    window.run("document.querySelector('#curves').scrollIntoView()")
    box = window.run(
        "(({left, top, width, height}) => [left, top, width, height])("
        "document.querySelector('#curves svg').getBoundingClientRect())"
    )
    said = "document.querySelector('#curves output').textContent"
    assert window.run(said).startswith("step 400: training 0.025")
    window.move(box[0] + 53, box[1] + box[3] / 2)
    assert window.run(said).startswith("step 10: training 1,")
    window.run("document.querySelector('#curves input').focus()")
    window.press("ArrowRight")
    assert window.run(said).startswith("step 20: training 0.5,") and "validation 0.75" in window.run(said)
    window.press("ArrowRight")
    assert "training none" in window.run(said)


@needs_browser
def test_commands_can_be_copied(window, page, run):
    window.open(page)
    count = window.run("document.querySelectorAll('.command button').length")
    assert count == 9  # grid, reverse process, nearest, five pictures, the training
    window.run("document.querySelector('#nearest .command button').focus()")
    window.press("Enter")
    told = window.run(
        "new Promise((done) => setTimeout(() => done(document.getElementById('status').textContent), 300))"
    )
    assert told in ("Copied.", "Selected. Press Ctrl+C to copy.")
    assert window.run("document.querySelector('#nearest code').textContent").strip() == shlex.join(
        ["jax-ddpm", "report", str(run)]
    )


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(window, page, scheme):
    """WCAG 2.1, 1.4.3: text at 4.5 to 1 or more; 1.4.11: curves at 3 to 1."""
    window.open(page, scheme=scheme)
    style = "getComputedStyle(document.documentElement).getPropertyValue('--%s')"
    colours = {
        name: window.run(style % name).strip()
        for name in ("background", "panel", "text", "muted", "accent", *html_page.COLOURS)
    }

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        low, high = sorted((luminance(colours[a]), luminance(colours[b])))
        return (high + 0.05) / (low + 0.05)

    assert luminance(colours["background"]) > 0.9 if scheme == "light" else luminance(colours["background"]) < 0.05
    assert all(
        contrast(text, under) >= 4.5 for text in ("text", "muted", "accent") for under in ("background", "panel")
    )
    assert all(contrast(line, "background") >= 3 for line in html_page.COLOURS)
