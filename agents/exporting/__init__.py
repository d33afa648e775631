"""Exports of a classifier and its policy: a folder with a card, and ONNX files."""
