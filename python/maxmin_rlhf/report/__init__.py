"""Figures and pages about a fit. Figures need matplotlib (extra ``report``)."""
