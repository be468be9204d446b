"""Quantisation: fewer bits for weights, and how far that moves a model.

gate.py          how far a quantised model is from its source, and whether that is near enough
text/            texts to measure on and to calibrate with
"""
