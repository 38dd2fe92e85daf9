"""A campaign fails if anything is lost, if nothing is tried, and if its child crashes, hangs or raises."""

from __future__ import annotations

import os
import signal
import time

import pytest
from campaigns.trial import Tally, in_child, nothing_lost


def loses(tally: Tally) -> None:
    tally.add("tried", 3)
    tally.lose("a table")


def tries_nothing(tally: Tally) -> None:
    assert not tally.notes


def crashes(tally: Tally) -> None:
    tally.add("tried")
    os.kill(os.getpid(), signal.SIGSEGV)


def raises(tally: Tally) -> None:
    tally.add("tried")
    raise KeyError("unexpected")


def hangs(tally: Tally) -> None:
    tally.add("tried")
    time.sleep(60)


@pytest.mark.parametrize(
    ("trial", "why"),
    [(loses, "a table"), (tries_nothing, "nothing was tried"), (crashes, "exit code -11"), (raises, "unexpected")],
)
def test_a_campaign_fails_if_it_should(trial, why):
    counts, notes = in_child(trial)
    with pytest.raises(AssertionError, match=why):
        nothing_lost(counts, notes)


def test_a_trial_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("campaigns.trial.CAMPAIGN", False)
    counts, notes = in_child(hangs, patience=2.0)
    assert counts["lost"] == 1
    assert "Timeout" in notes[0]
