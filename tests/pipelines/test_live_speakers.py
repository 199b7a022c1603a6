"""Names of speakers who come and go, in bounded memory."""

import numpy as np
import pytest

from pyannote_prune.pipelines import live_speakers
from pyannote_prune.pipelines.clustering import AgglomerativeClustering
from pyannote_prune.pipelines.live_speakers import NOBODY, LiveSpeakers, Window

FRAMES, STEP = 10, 0.4


@pytest.fixture
def clustering():
    return AgglomerativeClustering().instantiate({"method": "centroid", "min_cluster_size": 2, "threshold": 0.7})


class Room:
    """People with voices of their own, and windows in which they speak."""

    def __init__(self, people, seed=0):
        self.generator = np.random.default_rng(seed)
        self.voices = np.linalg.qr(self.generator.standard_normal((32, people)))[0].T
        self.time = -2.0

    def window(self, *people):
        """People who speak in turn in a window: in a random order of its speakers, with noise in their voices."""
        self.time += STEP
        slots = self.generator.permutation(3)[: len(people)]
        binary, embeddings = np.zeros((FRAMES, 3), np.float32), np.full((3, 32), np.nan, np.float32)
        for slot, person, frames in zip(slots, people, np.array_split(np.arange(FRAMES), max(1, len(people)))):
            binary[frames, slot] = 1
            embeddings[slot] = 3 * self.voices[person] + 0.2 * self.generator.standard_normal(32)
        window = Window(self.time, binary, binary, embeddings, np.full(3, NOBODY), STEP / FRAMES)
        return window, {person: slot for slot, person in zip(slots, people)}


def follow(room, speakers, clustering, script, named=None):
    """Names that people have in each window of a script."""
    named, recent = {} if named is None else named, []
    for people in script:
        window, slots = room.window(*people)
        recent = [*recent[-3:], window]
        speakers.follow(window, recent, clustering)
        assert set(window.names[window.binary.sum(axis=0) == 0]) <= {NOBODY}
        for person, slot in slots.items():
            named.setdefault(person, []).append(window.names[slot])
    return named


def test_names_last_in_bounded_memory(clustering, monkeypatch):
    """Four people, of whom one is away for longer than all windows that are kept"""
    monkeypatch.setattr(live_speakers, "MOST_WINDOWS", 40)
    room, speakers = Room(4), LiveSpeakers(2.0, STEP, 1, 100)
    turn = [(0,)] * 8 + [(0, 1)] + [(1,)] * 6 + [(1, 2)] + [(2,)] * 8 + [()] * 3
    named, sizes = follow(room, speakers, clustering, [(3,)] * 10 + turn), []
    for _ in range(12):
        follow(room, speakers, clustering, turn, named)
        sizes.append(len(speakers.windows))
    follow(room, speakers, clustering, [(3,)] * 5, named)
    assert max(sizes) <= 60
    for person, names in named.items():
        # a new voice may be taken for another one in its first window
        assert np.mean(np.array(names) == names[-1]) > 0.97, (person, names)
    assert len({names[-1] for names in named.values()}) == 4
    assert speakers.num_names <= 5


def test_at_most_as_many_speakers_as_there_are(clustering):
    room, speakers = Room(4), LiveSpeakers(2.0, STEP, 1, 2)
    follow(room, speakers, clustering, [(person,) for person in (0, 1, 2, 3) for _ in range(5)])
    assert speakers.num_names == 2


def test_speakers_who_are_not_embedded_are_nobody_until_someone_is(clustering):
    room, speakers = Room(1), LiveSpeakers(2.0, STEP, 1, 100)
    window, slots = room.window(0)
    window.embed(np.full_like(window.embeddings, np.nan))
    speakers.follow(window, [window], clustering)
    assert window.names[slots[0]] == NOBODY
    assert follow(room, speakers, clustering, [(0,)])[0] == [0]
