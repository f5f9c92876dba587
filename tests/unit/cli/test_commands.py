"""Every command says what it takes, commands that do not exist are answered with those that do, bad settings at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from services.cli.__main__ import cli
from services.cli.group import explain
from services.cli.log import BrokerUnreachable, NoSuchTopic
from tollgate.ledger.errors import LedgerNotReady, LedgerRefused, LedgerUnavailable


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(cli))


def test_every_command_of_the_outline_is_there() -> None:
    """The outline names a command for whatever an operator has to know or do."""
    wanted = (
        "init|demo|run|doctor|meters apply|meters list|meters explain|tokens create|tokens list|tokens revoke|"
        "events tail|usage|postings list|postings summary|postings park|postings resume|held|dead list|dead show|"
        "dead replay|sync pause|sync resume|sync now|customers list|customers mappings|customers import|stripe connect|replay|events find|verify"
    )
    assert {tuple(words.split()) for words in wanted.split("|")} <= ALL.keys()


@pytest.mark.parametrize("path", [(), *ALL], ids=lambda path: " ".join(path) or "tollgate")
def test_help_names_every_option(path: tuple[str, ...]) -> None:
    """--help ends with 0 and names each option, and each command of a group."""
    command = ALL.get(path, cli)
    done = CliRunner().invoke(cli, [*path, "--help"])
    assert done.exit_code == 0, done.output
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert all(name in done.output for name in parameter.opts), parameter
            assert parameter.help, parameter
    if isinstance(command, click.Group):
        assert all(name in done.output for name in command.list_commands(click.Context(command)))
    assert command.help


@pytest.mark.parametrize(
    ("words", "meant"), [(["usge"], "usage"), (["meters", "aply"], "apply"), (["dead", "reply"], "replay")]
)
def test_an_unknown_command_is_answered_with_the_nearest(words: list[str], meant: str) -> None:
    """A slip of the finger ends with 2 and names what may have been meant, in groups too."""
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert f"Did you mean {meant!r}?" in done.output


def test_settings_errors_come_all_at_once() -> None:
    """Two mistakes are two lines with the variables' names and not their values; exit 2, no traceback."""
    done = CliRunner().invoke(
        cli,
        ["usage"],
        env={"TOLLGATE_TOPICS__PARTITIONS": "many", "TOLLGATE_KAFKA__TOPIC_PREFIX": "not allowed"},
    )
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == [
        "TOLLGATE_KAFKA__TOPIC_PREFIX",
        "TOLLGATE_TOPICS__PARTITIONS",
    ]
    assert "many" not in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("url", ["nonsense", "mysql://ada:hidden@db/x", "sqlite://"])
def test_a_url_that_names_no_ledger_is_a_settings_error(url: str) -> None:
    """Exit 2 and the variable's name, never the URL: it may hold a password."""
    done = CliRunner().invoke(cli, ["usage"], env={"TOLLGATE_LEDGER__URL": url})
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: TOLLGATE_LEDGER__URL or DATABASE_URL: ")
    assert "hidden" not in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LedgerUnavailable("refused"), "the ledger cannot be reached: refused"),
        (LedgerRefused("no such table: usage"), "tollgate init"),
        (LedgerNotReady("run `tollgate init`"), "run `tollgate init`"),
        (NoSuchTopic("no topic x"), "no topic x"),
        (BrokerUnreachable("no answer"), "no answer"),
    ],
)
def test_what_an_operator_can_mend_is_explained(error: Exception, words: str) -> None:
    """Each failure of a part has words of its own."""
    explained = explain(error)
    assert explained is not None
    assert words in explained


def test_a_bug_stays_a_traceback() -> None:
    """An error nobody foresaw is not dressed up."""
    assert explain(KeyError("x")) is None


def test_a_command_leaves_logging_as_it_was() -> None:
    """Whoever runs a command inside a process of their own keeps their logs."""
    logger = logging.getLogger("aiokafka")
    before = list(logger.handlers), logger.propagate, logger.level
    CliRunner().invoke(cli, ["usage"], env={"TOLLGATE_LEDGER__URL": "nonsense"})
    assert (list(logger.handlers), logger.propagate, logger.level) == before
