"""OpenMP's threads are told to sleep soon, unless the user has said how they shall wait."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ENVIRONMENT, LQUANT, TINY

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def variables(environment, program=LQUANT):
    """Name, arguments and environment of the program while it waits for its prompt."""
    process = subprocess.Popen([program, "generate", "--model", str(TINY), "--prompt", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        place = Path(f"/proc/{process.pid}")
        for _ in range(200):  # it starts itself again at once
            found = dict(v.split("=", 1) for v in (place / "environ").read_text().split("\0") if "=" in v)
            time.sleep(0.01)
            if "GOMP_SPINCOUNT" in found or "OMP_WAIT_POLICY" in found:
                break
        return (place / "comm").read_text().strip(), (place / "cmdline").read_text().split("\0")[1], found
    finally:
        process.kill()
        process.communicate()


def test_threads_sleep_soon_by_default():
    plain = {k: v for k, v in ENVIRONMENT.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    name, command, found = variables(plain)
    assert name == "lquant" and command == "generate"
    assert found["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "77"}])
def test_what_the_user_says_holds(said):
    plain = {k: v for k, v in ENVIRONMENT.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    _, _, found = variables(dict(plain, **said))
    assert {k: v for k, v in found.items() if k in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} == said
