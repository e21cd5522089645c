"""`cmake --install` of the folder that the program was built in."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import LQUANT, run

BUILD = Path(LQUANT).resolve().parent
# What mlx_lm has as mlx_lm.NAME, and what of lquant's own goes the same way.
LINKS = "auto awq convert dwq dynamic_quant evaluate generate gptq perplexity report upload".split()


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("prefix")
    subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix], check=True, capture_output=True)
    return prefix


def test_every_command_that_mlx_lm_has_is_a_link(prefix):
    assert sorted(p.name for p in (prefix / "bin").glob("lquant.*")) == [f"lquant.{name}" for name in LINKS]
    for name in LINKS:
        for folder in (prefix / "bin", BUILD):
            assert f"Usage: lquant {name} " in run("--help", program=folder / f"lquant.{name}").stdout


def test_an_installed_program_knows_nothing_of_the_build(prefix):
    """The build folder may go, or become somebody else's, whose libraries the program would then load."""
    said = subprocess.run(["readelf", "-d", prefix / "bin" / "lquant"], check=True, capture_output=True, text=True).stdout if shutil.which("readelf") else ""
    for places in re.findall(r"(?:RPATH|RUNPATH).*\[(.*)\]", said):
        assert not [place for place in places.split(":") if place == str(BUILD) or place.startswith(str(BUILD) + os.sep)]
    assert (str(BUILD) + ":").encode() not in (prefix / "bin" / "lquant").read_bytes()
    assert run("--version", program=prefix / "bin" / "lquant").stdout.strip()
