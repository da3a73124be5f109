"""The page about a fitted mixture: its numbers, that it stands alone, and texts of strangers."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from maxmin_rlhf import PreferenceData
from maxmin_rlhf.cli import main
from maxmin_rlhf.mixture.matching import match_groups
from maxmin_rlhf.report import html, taste

HOSTILE = ["<script>alert(1)</script>", "\u202eright to left", "nul\x00 and \x1b[31m", "&amp; \"quoted\" 'it'", "x" * 100_000]  # fmt: skip


def write_csv(path, head, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two opposed groups rank twelve items; some of the items' texts are hostile. The page and its numbers."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    items = rng.standard_normal((12, 3))
    heads = np.array([[2.5, 0.0, 1.0], [-2.5, 0.0, 1.0]])
    rows = []
    for annotator in range(50):
        reward = items @ heads[annotator % 5 // 4]
        for _ in range(25):
            a, b = rng.choice(12, 2, replace=False)
            if rng.random() > 1 / (1 + np.exp(reward[b] - reward[a])):
                a, b = b, a
            rows.append((f"who <b>{annotator}</b>", f"i{a}", f"i{b}"))
    write_csv(folder / "votes.csv", ["judge", "winner", "loser"], rows)
    write_csv(folder / "items.csv", ["id", "x", "y", "z"], [(f"i{i}", *x) for i, x in enumerate(items)])  # fmt: skip
    texts = [HOSTILE[i % len(HOSTILE)].replace("\x00", "") for i in range(12)]
    write_csv(folder / "texts.csv", ["id", "text"], [(f"i{i}", t) for i, t in enumerate(texts)])
    columns = ["--annotator", "judge", "--chosen", "winner", "--rejected", "loser", "--items", str(folder / "items.csv")]  # fmt: skip
    mixture, votes = str(folder / "m.safetensors"), str(folder / "votes.csv")
    assert main(["fit", votes, *columns, "--groups", "1-2", "--restarts", "2", "--seed", "0", "-o", mixture]) == 0  # fmt: skip
    assert main(["report", mixture, votes, *columns, "--texts", str(folder / "texts.csv"), "--refits", "20",
                 "--out", str(folder / "out")]) == 0  # fmt: skip
    return folder


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]


def test_the_page_stands_alone_and_strangers_words_are_words(folder):
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.names and "b" not in tags.names
    assert not [link for link in tags.links if not link.startswith("#")]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    assert "&lt;script&gt;alert(1)" in page
    assert "\u202e" not in page and "\x1b" not in page
    assert len(page) < 500_000  # a text of a megabyte is cut
    assert "prefers-color-scheme: dark" in page and "viewport" in page


def test_its_numbers_are_those_of_the_fit(folder):
    facts = json.loads((folder / "out" / "metrics.json").read_text())
    kept = json.loads((folder / "m.safetensors.selection.json").read_text())
    assert kept["best"] == 2 and facts["selection"]["best"] == 2
    shares = [g["share"] for g in facts["groups"]]
    assert sum(shares) == pytest.approx(1) and shares[0] == pytest.approx(0.8, abs=0.05)
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{100 * shares[0]:.0f}" in page


@pytest.mark.parametrize("text", HOSTILE)
def test_escape(text):
    escaped = html.escape(text)
    assert not set(escaped) & set("<>\"'\x00\x1b\u202e")


@pytest.mark.parametrize("unseen", "\u200b\ufeff\xad\u2028\u2029\U000e0041\u202e\u2066\u061c")
def test_what_cannot_be_seen_is_shown(unseen):
    assert html.escape(f"a{unseen}b") == f"a[U+{ord(unseen):04X}]b"
    assert html.escape("naïve – 中文 👍") == "naïve – 中文 👍"


def test_bad_input(folder, capsys):
    mixture, votes = str(folder / "m.safetensors"), str(folder / "votes.csv")
    columns = ["--annotator", "judge", "--chosen", "winner", "--rejected", "loser", "--items", str(folder / "items.csv")]  # fmt: skip
    write_csv(folder / "few.csv", ["id", "text"], [("i0", "one")])
    write_csv(folder / "index.csv", ["", "id", "text"], [(i, f"i{i}", "one") for i in range(12)])
    (folder / "broken.json").write_text("{")
    for extra, said in (
        (["--texts", str(folder / "few.csv")], "no row for item"),
        (["--texts", str(folder / "index.csv")], "looks like a saved row index"),
        (["--selection", str(folder / "broken.json")], "expected JSON"),
    ):
        capsys.readouterr()
        assert main(["report", mixture, votes, *columns, *extra, "--out", str(folder / "no")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (folder / "no" / "report.html").exists()


def test_groups_are_matched_by_the_largest_sum():
    rng = np.random.default_rng(0)
    order = rng.permutation(5)
    agreement = rng.random((5, 5)) * 0.1
    agreement[np.arange(5), order] += 1
    assert match_groups(agreement).tolist() == order.tolist()
    with pytest.raises(ValueError, match="agreement: expected shape"):
        match_groups(np.zeros((2, 3)))


def test_a_browser_shows_it(folder):
    """Where there is one: it is no part of the environment."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser here")
    for width in (1280, 390):
        dom = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000",
             "--virtual-time-budget=2000", "--dump-dom", (folder / "out" / "report.html").as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
        assert "<svg" in dom and "</html>" in dom


def test_what_one_reward_costs(folder):
    facts = json.loads((folder / "out" / "metrics.json").read_text())
    costs, diversity = facts["one_reward"], facts["diversity"]
    gaps = [g["value"] for g in costs["gaps"]]
    # The pooled reward is the majority's: the minority pays, and more than what some single reward would ask of anybody.
    assert gaps[1] > costs["unavoidable"]["value"] > 0.05 and gaps[1] > gaps[0]
    assert all(g["low"] <= g["high"] for g in costs["gaps"])
    apart = diversity["matrix"][0][1]
    assert diversity["low"][0][1] < apart < diversity["high"][0][1] and apart > 0.2
    published = costs["published"]
    assert len(published["gap"]) == 2 and published["distance"][1] >= published["lemma"][1] > 0
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    said = f"cost group B {gaps[1]:.2f} ("
    assert page.count(said) == 2 and "no single reward can avoid it" in page
    assert f"{apart:.2f}<small>" in page


@pytest.mark.parametrize("unit", [1.0, 10.0, 100.0])
def test_taste_does_not_follow_the_features_units(unit):
    """Two groups opposed on one feature agree on another: the same people, whatever it is measured in."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4000, 2)) * [1.0, 0.1]
    heads = np.array([[1.5, 15.0], [-1.5, 15.0]])
    data = PreferenceData.from_arrays(rows * [1.0, unit], np.repeat(np.arange(200), 20))
    found = taste.described(data, heads / [1.0, unit], seed=0)
    assert abs(found["cosines"][0][1]) < 0.1 and not found["alike"] and not found["unclear"]
    assert found["low"][0][1] < found["cosines"][0][1] < found["high"][0][1]
    np.testing.assert_allclose(found["sharpness"], np.hypot(1.5, 1.5), rtol=0.05)


def test_the_same_taste_and_what_is_not_clear_are_said():
    rng = np.random.default_rng(1)
    data = PreferenceData.from_arrays(rng.standard_normal((400, 2)), np.repeat(np.arange(40), 10))
    tilt = np.array([np.cos(0.45), np.sin(0.45)])  # a cosine of .90
    found = taste.described(data, np.array([[1.0, 0.0], [3.0, 0.0], 2 * tilt]), seed=0)
    assert [pair["groups"] for pair in found["alike"]] == [["A", "B"]]
    assert [pair["groups"] for pair in found["unclear"]] == [["A", "C"], ["B", "C"]]
    page = "".join(taste.section({"heads": found, "groups": [{"name": n} for n in "ABC"]}))
    assert "A and B have a cosine of 1.00 (1.00 to 1.00): they differ in how sharply" in page
    assert page.count("is not clear") == 2


def test_too_few_resamples_for_an_interval_are_refused(folder, capsys):
    columns = ["--annotator", "judge", "--chosen", "winner", "--rejected", "loser", "--items", str(folder / "items.csv")]  # fmt: skip
    for refits in ("-1", "0", "1", "19"):
        argv = ["report", str(folder / "m.safetensors"), str(folder / "votes.csv"), *columns]
        assert main([*argv, "--refits", refits, "--out", str(folder / "few")]) == 2
        assert f"refits: expected at least 20, got {refits}" in capsys.readouterr().err


def test_letters_and_pictures_stay_joined():
    for text in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f4bb"):
        assert html.escape(text) == text
    assert html.escape("a\u200d") == "a[U+200D]" and html.escape("a\u200db") == "a[U+200D]b"
    assert html.escape("\U0001f469\u200d\u200d\U0001f4bb").count("[U+200D]") == 2
