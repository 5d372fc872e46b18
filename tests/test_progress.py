"""The clock of a long step."""

import re
import threading
import time

import pytest

from vitlens.progress import waiting


def test_the_clock_goes_on_and_stops_with_what_it_waits_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), waiting("a long step", True):
        time.sleep(2.5)
        raise KeyboardInterrupt
    assert threading.active_count() == before
    assert re.search(
        r"a long step 00:00.*a long step 00:0[1-9]", capsys.readouterr().err, re.DOTALL
    )
