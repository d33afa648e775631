import io

import pytest
from rich.console import Console
from rich.table import Table

from adafocus_env.clips.store import listed
from adafocus_env.terminal import plain, printable
from agents.config.command import say
from agents.runs import listing
from agents.runs.progress import Display
from agents.runs.report import table

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\u202egpj.[red]a[/red]\udcff"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\r\u202egpj.[red]a[/red]\udcff"


@pytest.mark.parametrize("text", ["a\tb\nc", "café 動画 \u3000 \U0001f469\u200d\U0001f52c", "می\u200cخواهم", "[red]"])
def test_names_that_people_use_stay_as_they_are(text):
    assert printable(text) == text


def test_control_characters_become_escapes():
    assert printable(HOSTILE) == SHOWN
    assert printable("\x00\x7f\x9b\u2066") == r"\x00\x7f\x9b\u2066"


def test_no_name_is_markup_or_a_command_to_the_terminal(capsys):
    console = Console(file=io.StringIO(), width=200)  # on a terminal, rich writes control characters itself
    with Display(console) as display:
        display.say(HOSTILE)
    cells = Table(title=plain(HOSTILE))
    cells.add_row(plain(HOSTILE))
    console.print(cells)
    console.print(table({"random": {}}, HOSTILE))
    run = {"run": HOSTILE, "data": HOSTILE, "command": HOSTILE, "seed": 0, "state": "finished"}
    runs = [listing.Run(**run), listing.Run(**{**run, "seed": 1}), listing.Run(**run, broken=HOSTILE)]
    listing.show(runs, console)
    say(HOSTILE)
    assert listed([(HOSTILE, "it is cut")]) == f"  {SHOWN}: it is cut"
    text = console.file.getvalue()
    assert text.count(SHOWN) >= 7 and SHOWN in capsys.readouterr().err
    assert not {"\x1b", "\x07", "\r", "\u202e", "\udcff"} & set(text)
