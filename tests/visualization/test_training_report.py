"""The page of a training run."""

import re
from html.parser import HTMLParser

from maskrcnn.training.config import LOSSES
from maskrcnn.visualization.training_report import render_training

FACTS = {
    "request": {
        "source": "<b>my</b>.json",
        "config": {"epochs": 4, "model": "scenes", "jitter": [0.5, 2.0], "min_size": None},
    },
    "categories": [{"id": 1, "name": "<i>cat</i>"}],
    "images": {"train": 1200, "validation": 30},
    "findings": ["warning: 1 crowd: <x>"],
}


def rows(n, *, measured=True):
    made = []
    for epoch in range(1, n + 1):
        row = {
            "epoch": epoch,
            **dict.fromkeys(LOSSES, 1.0 / epoch),
            "loss": 5 / epoch,
            "learning_rate": 1e-4,
            "seconds": 9,
        }
        made.append(
            row | ({"mask_ap": epoch / 10, "mask_ap50": epoch / 5, "box_ap": 0.1} if measured else {})
        )
    return made


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.seen = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def count(self, tag, **attributes):
        return sum(t == tag and attributes.items() <= a.items() for t, a in self.seen)


def test_each_epoch_is_a_row_and_a_point_of_each_curve():
    tags = Tags(render_training(rows(3), FACTS))
    assert tags.count("tr") == 1 + 3
    assert tags.count("path", **{"class": "curve"}) == len(LOSSES) + 3
    assert tags.count("circle") == 3 * (len(LOSSES) + 3)
    assert tags.count("tr", **{"class": "best"}) == 1


def test_points_are_at_their_values():
    page = render_training(rows(4), FACTS)
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)" r="3"><title>mask AP after', page)]
    assert heights == [round(10 + 210 * (1 - ap / 10), 1) for ap in (1, 2, 3, 4)]


def test_values_that_were_not_measured_are_not_shown():
    tags = Tags(render_training(rows(2, measured=False), FACTS))
    assert tags.count("path", **{"class": "curve"}) == len(LOSSES)
    assert "mask ap" not in render_training(rows(2, measured=False), FACTS)


def test_a_training_run_without_epochs_has_a_page():
    assert "No epoch has finished yet" in render_training([], FACTS)


def test_texts_are_escaped_and_nothing_is_loaded():
    page = render_training(rows(1), FACTS)
    assert "<b>my</b>" not in page
    assert "<i>cat</i>" not in page
    assert "<x>" not in page
    assert not re.search(r'(src|href)="', page)
