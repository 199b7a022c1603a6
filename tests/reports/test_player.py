"""The page that plays a recording: what is in it, then what it does in a browser

The second half needs the extra `browser`, and a Chromium that is installed (`apt-get install chromium`): it is skipped
where either is missing.
"""

import base64
import io
import json
import os
import shutil
from html.parser import HTMLParser
from time import monotonic

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment
from pyannote.database.util import load_rttm

from pyannote_prune.pipelines.output import to_audacity, to_rttm
from pyannote_prune.reports.player import SAMPLE_RATE, player_content, write_player
from pyannote_prune.reports.timeline import PALETTE
from tests.conftest import SAMPLE

ODD = "</script><b>&\"'<!--${1}{{ 2 }}\\ é"


class Page(HTMLParser):
    """Texts of the elements of a page, and their attributes, as a browser sees them."""

    def __init__(self, path):
        super().__init__()
        self.elements = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2].append(data)

    def texts(self, tag):
        return ["".join(texts).strip() for name, _, texts in self.elements if name == tag]

    def attributes(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def content(self):
        return json.loads(self.texts("script")[0])

    @property
    def audio(self):
        return soundfile.read(io.BytesIO(base64.b64decode(self.texts("script")[1])), dtype="float32")


def conversation(uri="meeting", names=("SPEAKER_10", "SPEAKER_2")):
    """Ten seconds, two speakers who overlap."""
    annotation = Annotation(uri=uri)
    for track, (start, end, speaker) in enumerate([(0.5, 3.0, 0), (2.5, 4.0, 1), (6.0, 7.2504, 0)]):
        annotation[Segment(start, end), track] = names[speaker]
    return annotation


def noise(seconds, sample_rate=SAMPLE_RATE):
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * sample_rate)).astype(np.float32)


@pytest.fixture
def written(tmp_path):
    def written(annotation, samples, sample_rate=SAMPLE_RATE):
        write_player(annotation, samples, sample_rate, tmp_path / "page.html")
        return Page(tmp_path / "page.html")

    return written


seconds = st.floats(0, 9.9, allow_nan=False)


@given(st.lists(st.tuples(seconds, seconds, st.sampled_from(["a", "b", "c 1", "c 10"])), max_size=20))
def test_turns_are_those_of_rttm(tmp_path_factory, turns):
    annotation = Annotation(uri="meeting")
    for track, (start, end, speaker) in enumerate(turns):
        annotation[Segment(min(start, end), max(start, end)), track] = speaker.replace(" ", "_")
    content = player_content(annotation, noise(10))
    lines = [
        f"SPEAKER meeting 1 {start / 1000:.3f} {(end - start) / 1000:.3f} <NA> <NA> {name} <NA> <NA>"
        for start, end, name in ((start, end, content["speakers"][index]) for start, end, index in content["turns"])
    ]
    assert lines == to_rttm(annotation, 10.0).splitlines()
    assert len(content["colors"]) == len(content["speakers"]) == len(set(content["speakers"]))


def test_speakers_have_the_order_and_colors_of_pictures(written):
    page = written(conversation(), noise(10))
    assert page.content["speakers"] == ["SPEAKER_2", "SPEAKER_10"]
    assert page.content["colors"] == list(PALETTE[:2])
    assert [turn[2] for turn in page.content["turns"]] == [1, 0, 1]
    assert [each["value"] for each in page.attributes("input")] == ["SPEAKER_2", "SPEAKER_10"]
    assert page.texts("small") == ["0:02", "0:04"]


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_audio_is_the_recording(written, sample_rate):
    times = np.arange(5 * sample_rate) / sample_rate
    # a click in each second, later and later
    samples = np.sin(2 * np.pi * 440 * times) * (np.abs(times % 1 - 0.1 * times) < 0.02)
    page = written(conversation(), samples, sample_rate)
    decoded, rate = page.audio
    assert (rate, len(decoded), page.content["duration"]) == (16000, 5 * 16000, 5000)
    wanted = samples if sample_rate == rate else np.interp(np.arange(5 * rate) / rate, times, samples)
    lags = range(-8, 9)
    likeness = [float(np.dot(np.roll(wanted, lag), decoded)) for lag in lags]
    assert abs(lags[int(np.argmax(likeness))]) <= 1
    assert max(likeness) > 0.9 * float(np.dot(wanted, wanted))


def test_an_hour_is_small(written):
    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    page = written(conversation(), samples, rate)
    hours = len(samples) / rate / 3600
    assert len(base64.b64decode(page.texts("script")[1])) < 13e6 * hours
    assert len(page.texts("script")[0]) < 0.6e6 * hours


def test_waveform(written):
    samples = np.concatenate([np.zeros(16000), np.full(8000, -0.25), np.full(8000, 0.125)])
    peaks = np.frombuffer(base64.b64decode(written(conversation(), samples).content["peaks"]), np.uint8)
    assert peaks.tolist() == [0] * 100 + [255] * 50 + [128] * 50


@pytest.mark.parametrize("samples", [np.zeros(1), np.zeros(160000), noise(3)[:-7]])
def test_unusual_recordings(written, samples):
    page = written(Annotation(uri="silence"), samples)
    decoded, _ = page.audio
    assert (page.content["turns"], page.content["speakers"]) == ([], [])
    assert len(decoded) == len(samples)


def test_samples_beyond_full_scale_are_not_clipped(written):
    samples = 50 * np.sin(np.arange(16000) / 7)
    decoded, _ = written(conversation(), samples).audio
    # of what is clipped, the likeness is 0.9
    assert np.corrcoef(samples, decoded)[0, 1] > 0.99


def test_odd_names(written):
    page = written(conversation(uri=ODD, names=(ODD, "</textarea>")), noise(10))
    assert page.texts("title") == page.texts("h1") == [ODD]
    assert page.content["uri"] == ODD
    assert sorted(page.content["speakers"]) == sorted([ODD, "</textarea>"])
    assert sorted(each["value"] for each in page.attributes("input")) == sorted([ODD, "</textarea>"])
    assert len(page.texts("script")) == 3
    assert page.texts("b") == []
    assert "/" not in page.content["file"]
    # bytes of a file name that are no text
    assert written(conversation(uri="caf\udce9"), noise(1)).texts("h1") == ["caf?"]
    assert written(conversation(uri=None), noise(1)).texts("h1") == ["recording"]


def test_no_network(written, tmp_path):
    page = written(conversation(), noise(10))
    assert "://" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    for tag, attributes, _ in page.elements:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
    (policy,) = [each["content"] for each in page.attributes("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src" not in policy


# ---- in Chromium


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra `browser`")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    # what root may not do otherwise
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


class Player:
    """The page of the sample conversation, open in a browser."""

    def __init__(self, context, path, annotation):
        self.annotation, self.path = annotation, path
        self.page = context.new_page()
        self.errors, self.requests = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.open()

    def open(self):
        self.page.goto(self.path.as_uri())
        self.wait("document.querySelector('audio').readyState > 0")

    @property
    def time(self):
        return self.page.evaluate("document.querySelector('audio').currentTime")

    @property
    def paused(self):
        return self.page.evaluate("document.querySelector('audio').paused")

    def text(self, selector):
        # what is drawn next tells it
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.page.locator(selector).inner_text()

    def wait(self, condition):
        # the page's policy allows no `wait_for_function`, which evaluates text
        deadline = monotonic() + 10
        while not self.page.evaluate(condition):
            assert monotonic() < deadline, condition
            self.page.wait_for_timeout(20)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def saved(self, button, path):
        with self.page.expect_download() as download:
            self.page.locator(button).click()
        download.value.save_as(path)
        return download.value.suggested_filename


@pytest.fixture
def opened(browser, tmp_path):
    """Write a page and open it: it fails at nothing, and asks no server for anything."""
    context = browser.new_context(viewport={"width": 1000, "height": 700}, accept_downloads=True)
    players = []

    def opened(annotation, samples):
        path = tmp_path / "sample #1 50%.html"
        write_player(annotation, samples, SAMPLE_RATE, path)
        players.append(Player(context, path, annotation))
        return players[-1]

    yield opened
    for player in players:
        assert player.errors == []
        assert [url for url in player.requests if not url.startswith(("file:", "blob:"))] == []
    context.close()


@pytest.fixture
def player(opened):
    return opened(load_rttm(SAMPLE.with_suffix(".rttm"))["sample"], soundfile.read(SAMPLE, dtype="float32")[0])


def test_click_plays_from_there(player):
    turn, _, speaker = next(track for track in player.annotation.itertracks(yield_label=True) if track[0].duration > 2)
    canvas = player.page.locator("canvas")
    box = canvas.bounding_box()
    # the middle of the turn, in the lane of its speaker
    row = player.page.get_by_label(f"Name of {speaker}").bounding_box()
    x, y = turn.middle / 30 * box["width"], row["y"] + row["height"] / 2 - box["y"]
    canvas.click(position={"x": x, "y": y})
    player.wait("!document.querySelector('audio').paused && document.querySelector('audio').currentTime > 0")
    player.press("Space")
    assert player.paused
    assert turn.middle - 0.1 < player.time < turn.end
    assert player.page.locator("li.now input").evaluate_all("all => all.map(each => each.value)") == [speaker]
    assert player.text("#now").startswith(speaker)
    # its outline is drawn: a turn that is not played has none
    pixel = """([x, y]) => [...document.querySelector('canvas').getContext('2d').getImageData(x, y, 1, 1).data]"""
    top = row["y"] + row["height"] / 2 - box["y"] - 12
    left = (turn.start + 0.3) / 30 * box["width"]
    outlined = player.page.evaluate(pixel, [left, top])
    player.press("Home")
    player.text("#now")
    assert player.page.evaluate(pixel, [left, top]) != outlined


def test_keys(player):
    starts = sorted({round(segment.start, 3) for segment in player.annotation.itersegments()})
    for start in starts[:3]:
        player.press("n")
        assert player.time == pytest.approx(start, abs=2e-3)
    player.press("P")
    assert player.time == pytest.approx(starts[1], abs=2e-3)
    player.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert player.time == pytest.approx(starts[1] + 5, abs=2e-3)
    player.press("Home")
    assert player.time == 0
    assert player.text("#time") == "0:00 / 0:30"
    player.press("Space")
    player.wait("document.querySelector('audio').currentTime > 0.2")
    assert player.text("#play") == "Pause"
    player.press("Space")
    assert player.paused


def test_zoom(player):
    view = player.page.locator("#view")
    widths = "view => [view.clientWidth, view.scrollWidth]"
    shown, whole = view.evaluate(widths)
    assert shown == whole
    player.press("End", "+", "+")
    assert view.evaluate(widths)[1] == pytest.approx(4 * shown, abs=2)
    # the playhead stays in view
    assert view.evaluate("view => view.scrollLeft") == pytest.approx(3 * shown, abs=2)
    player.press("Home")
    assert view.evaluate("view => view.scrollLeft") == 0
    player.press("-")
    assert view.evaluate(widths)[1] == pytest.approx(2 * shown, abs=2)
    player.press("0")
    assert view.evaluate(widths) == [shown, shown]
    player.page.set_viewport_size({"width": 400, "height": 700})
    player.wait("document.querySelector('#view').clientWidth < 400")
    player.text("#now")
    shown, whole = view.evaluate(widths)
    assert shown == whole


def test_rename_and_save(player, tmp_path):
    assert player.saved("#rttm", tmp_path / "before.rttm") == "sample.rttm"
    assert (tmp_path / "before.rttm").read_text() == to_rttm(player.annotation, 30.0)
    speaker = player.annotation.labels()[0]
    player.page.get_by_label(f"Name of {speaker}").fill("Zoë  <Smith>")
    # keys that are typed are no commands
    player.press("n", "p", "Enter")
    assert player.time == 0
    renamed = player.annotation.rename_labels({speaker: "Zoë_<Smith>np"})
    player.saved("#rttm", tmp_path / "after.rttm")
    assert (tmp_path / "after.rttm").read_text(encoding="utf-8") == to_rttm(renamed, 30.0)
    assert load_rttm(tmp_path / "after.rttm")["sample"].label_duration("Zoë_<Smith>np") > 1
    assert player.saved("#labels", tmp_path / "after.txt") == "sample.txt"
    labels = (tmp_path / "after.txt").read_text(encoding="utf-8")
    assert labels == to_audacity(renamed, 30.0).replace("Zoë_<Smith>np", "Zoë <Smith>np")
    # names are kept, and an empty one is that of before
    player.open()
    assert player.page.get_by_label(f"Name of {speaker}").input_value() == "Zoë <Smith>np"
    player.page.get_by_label(f"Name of {speaker}").fill(" ")
    player.saved("#rttm", tmp_path / "again.rttm")
    assert (tmp_path / "again.rttm").read_text() == (tmp_path / "before.rttm").read_text()


def test_labels_and_focus(player):
    """Everything has a name, and is reached by the tab key."""
    view = player.page.get_by_role("slider", name="Position in the recording")
    player.press("n")
    said = player.text("#now").split(",")[0]
    assert said in player.annotation.labels()
    assert said in view.get_attribute("aria-valuetext")
    reached = set()
    for _ in range(8 + len(player.annotation.labels()) + 1):
        player.press("Tab")
        reached.add(player.page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
    assert {"previous", "play", "next", "in", "out", "whole", "rttm", "labels", "view"} <= reached
    assert {f"Name of {speaker}" for speaker in player.annotation.labels()} <= reached
    for button in player.page.get_by_role("button").all():
        assert button.get_attribute("aria-label") or button.inner_text()


def test_dark(player):
    background = "getComputedStyle(document.body).backgroundColor"
    player.page.emulate_media(color_scheme="light")
    light = player.page.evaluate(background)
    player.page.emulate_media(color_scheme="dark")
    assert player.page.evaluate(background) != light == "rgb(255, 255, 255)"


@pytest.mark.parametrize("samples", [np.zeros(1), noise(2)])
def test_nobody_speaks(opened, tmp_path, samples):
    player = opened(Annotation(uri="silence"), samples)
    player.press("n", "p", "+", "0", "End", "Home", "Space")
    assert player.text("#now") == "nobody speaks"
    player.saved("#rttm", tmp_path / "empty.rttm")
    assert (tmp_path / "empty.rttm").read_text() == ""


def test_odd_names_in_a_browser(opened, tmp_path):
    player = opened(conversation(uri=ODD, names=(ODD, "</textarea>")), noise(10))
    assert player.text("h1") == player.page.title() == ODD
    assert player.page.get_by_label("Name of </textarea>", exact=True).input_value() == "</textarea>"
    player.press("n")
    assert player.text("#now").startswith(ODD)
    player.saved("#rttm", tmp_path / "odd.rttm")
    name = ODD.replace(" ", "_")
    assert list(load_rttm(tmp_path / "odd.rttm")) == [name]
    assert set(load_rttm(tmp_path / "odd.rttm")[name].labels()) == {name, "</textarea>"}
