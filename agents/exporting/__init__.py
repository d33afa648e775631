"""Exports of a classifier and its policy, as a folder with a card or as ONNX files."""
