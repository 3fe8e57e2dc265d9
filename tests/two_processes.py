"""A run of all tests in two processes, each of which takes the next file that none has taken.

pytest_configure forks, before JAX opens its devices, and before the tests are collected. The child
prints nothing. It writes its reports to a file, and the parent passes them on at the end.
"""

import itertools
import json
import os
import tempfile
import types

import pytest

MOST_FILES = 250

parts = pytest.StashKey()


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    special = "collectonly", "usepdb", "maxfail", "lf", "failedfirst", "stepwise"
    is_plain = not any(getattr(config.option, name, False) for name in special)
    if config.args_source is not config.ArgsSource.TESTPATHS or not is_plain:
        return
    numbers, write = os.pipe()
    os.write(write, bytes(range(MOST_FILES)))
    reports = tempfile.TemporaryFile("w+")
    child = os.fork()
    config.stash[parts] = numbers, reports, child
    if child:
        return

    def pytest_runtest_logreport(report):
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        reports.write(json.dumps(data) + "\n")

    plugin = types.SimpleNamespace(pytest_runtest_logreport=pytest_runtest_logreport)
    config.pluginmanager.register(plugin)
    config.pluginmanager.unregister(name="terminalreporter")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    config = session.config
    if parts not in config.stash or session.testsfailed:
        return None
    numbers, reports, child = config.stash[parts]
    files = [list(items) for _, items in itertools.groupby(session.items, lambda item: item.path)]
    assert len(files) < MOST_FILES
    while (number := os.read(numbers, 1)[0]) < len(files):
        items = files[number]
        for item, following in itertools.zip_longest(items, items[1:]):
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    if not child:
        reports.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    reports.seek(0)
    for line in reports:
        report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
        config.hook.pytest_runtest_logreport(report=report)
    if status:
        pytest.exit(f"the second process ended with wait status {status}", returncode=1)
    return True
