"""The count of modules that run in an evaluation."""

import importlib
import threading

from benchmarks.executed_modules import executed_modules
from classifiers import errors
from classifiers.errors import lookup


def test_modules_with_an_executed_function_count_in_every_thread():
    def run():
        lookup("head", "gru", {"gru": 1})

    def run_in_a_thread():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    assert executed_modules(run) == executed_modules(run_in_a_thread) == ["classifiers.errors"]


def test_an_import_does_not_count():
    assert executed_modules(lambda: importlib.reload(importlib.import_module("classifiers.protocols"))) == []
    assert executed_modules(lambda: errors) == []
