"""Preferences by annotator: the container, readers, features of texts on disk, held-out splits and null controls."""

from maxmin_rlhf.data.controls import redraw_choices, swap_judgments
from maxmin_rlhf.data.feature_store import FeatureStore
from maxmin_rlhf.data.preference_store import PreferenceStore
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.splits import annotator_folds, held_out_masks
from maxmin_rlhf.data.texts import TextPreferences

__all__ = [
    "FeatureStore",
    "PreferenceData",
    "PreferenceStore",
    "TextPreferences",
    "annotator_folds",
    "held_out_masks",
    "redraw_choices",
    "swap_judgments",
]
