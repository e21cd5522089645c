"""tests/shared needs models and texts that are not part of a clone; LQUANT_SHARED names the folder that holds them.

Tests of families tell by `ran` what they have shown; with --families-page it is gathered and docs/families.md written of it.
"""

import os

import pytest

collect_ignore = [] if os.environ.get("LQUANT_SHARED") else ["shared"]
records = []


def pytest_addoption(parser):
    parser.addoption("--families-page", action="store_true", help="write docs/families.md of what this run has shown of the families")


@pytest.fixture
def ran(record_property):
    """ran(column, name, figure): this test, if it passes, has shown that column of docs/families.md for a row of families.FAMILIES."""
    return lambda column, name, figure=None: record_property("ran", (column, name, figure))


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        records.extend(value for key, value in report.user_properties if key == "ran")


def pytest_sessionfinish(session):
    if session.config.getoption("--families-page"):
        import families_page

        if missing := families_page.write(records):
            session.exitstatus = 1
            print(f"\ndocs/families.md is not written, for these did not run: {sorted(missing)}")
