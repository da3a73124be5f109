"""Preferences by annotator: the container, readers, held-out splits and null controls."""

from maxmin_rlhf.data.controls import redraw_choices, swap_judgments
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.splits import annotator_folds, held_out_masks

__all__ = [
    "PreferenceData",
    "annotator_folds",
    "held_out_masks",
    "redraw_choices",
    "swap_judgments",
]
