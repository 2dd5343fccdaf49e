"""An Optuna study as a table of attempts; it is quiet, and says what a user can act on where a database fails.

An attempt is entered as a running trial in one transaction: to enqueue and to ask are two, and in SQLite two workers
can be given the same trial.
"""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from edgekit.errors import UsageError

__all__ = ["Row", "Table", "open_table"]

PIP: Final = 'pip install "optuna>=5"'
# The module that SQLAlchemy wants, and the distribution that has it.
DRIVERS: Final = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "psycopg[binary]",
    "MySQLdb": "mysqlclient",
    "pymysql": "PyMySQL",
    "mysql": "mysql-connector-python",
}
OBJECTIVES: Final = ("drop", "latency_ms", "size_mb")
# SQLite lets one process write at a time; others wait so long for it.
LOCK_SECONDS: Final = 60
ATTEMPTS: Final = 5
_MARK: Final = "mark"


@dataclass(frozen=True, slots=True)
class Row:
    """One attempt.

    Attributes:
        number: in the order of arrival.
        finished: it was closed.
        attrs: what was noted about it.
    """

    number: int
    finished: bool
    attrs: Mapping[str, Any]


class Table:
    """The attempts of one study; every method may raise `UsageError`. Made by `open_table`."""

    def __init__(self, study: Any, database: Any, storage: str) -> None:
        self._study, self._database, self._storage = study, database, storage
        with _talking(storage):
            self._id = database.get_study_id_from_name(study.study_name)

    @property
    def name(self) -> str:
        """The database, without its password."""
        return _hidden(self._storage)

    def facts(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is noted about the study; on a new one, what is given is."""
        with _talking(self._storage):
            for key, value in given.items():
                if key not in self._study.user_attrs:
                    self._study.set_user_attr(key, value)
            return dict(self._study.user_attrs)

    def rows(self) -> list[Row]:
        """All attempts by number."""
        with _talking(self._storage):
            found = self._study.get_trials(deepcopy=False)
        rows = [Row(t.number, t.state.is_finished(), dict(t.user_attrs)) for t in found]
        return sorted(rows, key=lambda row: row.number)

    def enter(self, params: Mapping[str, float | int | bool], attrs: Mapping[str, Any]) -> int:
        """Add an attempt that runs, and return its number.

        Args:
            params: for Optuna's own charts: shares, counts and flags.
            attrs: to note.
        """
        import optuna

        mark = secrets.token_hex(8)
        with _talking(self._storage), _quiet():
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING,
                    params=dict(params),
                    distributions={name: _distribution(value) for name, value in params.items()},
                    user_attrs={**attrs, _MARK: mark},
                )
            )
        return next(row.number for row in self.rows() if row.attrs.get(_MARK) == mark)

    def note(self, number: int, key: str, value: Any) -> bool:
        """Note something about an attempt; False where it was closed."""
        import optuna

        with _talking(self._storage):
            try:
                trial = self._database.get_trial_id_from_study_id_trial_number(self._id, number)
                self._database.set_trial_user_attr(trial, key, value)
            except optuna.exceptions.UpdateFinishedTrialError:
                return False
        return True

    def close(self, number: int, values: Sequence[float] | None = None) -> None:
        """End an attempt that may have been ended before.

        Args:
            number: of the attempt.
            values: of `OBJECTIVES`, None when it came to nothing.
        """
        import optuna

        state = optuna.trial.TrialState
        with (
            _talking(self._storage),
            _quiet(),
            suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError),
        ):
            self._study.tell(number, values, state.FAIL if values is None else state.COMPLETE)


def _distribution(value: float | int | bool) -> Any:
    from optuna import distributions

    if isinstance(value, bool):
        return distributions.CategoricalDistribution((False, True))
    if isinstance(value, int):
        return distributions.IntDistribution(0, 1_000_000)
    return distributions.FloatDistribution(0.0, 1.0)


@contextmanager
def open_table(storage: str, name: str) -> Iterator[Table]:
    """Open a study, or make it.

    Args:
        storage: database URL.
        name: of the study.

    Raises:
        UsageError: Optuna or the database's driver is missing, or the database cannot be used.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"the search for a budget cannot import {error.name or 'optuna'}",
            expected="Optuna, which keeps the trials",
            way_out=f"{PIP}, or name a setting instead of a search: --prune 0.5 --qat.",
        ) from error
    with _talking(storage), _quiet():
        waits = {"connect_args": {"timeout": LOCK_SECONDS}} if storage.startswith("sqlite") else {}
        database = _retried(lambda: optuna.storages.RDBStorage(storage, engine_kwargs=waits))
    try:
        with _talking(storage), _quiet():
            study = optuna.create_study(
                storage=database,
                study_name=name,
                directions=["minimize"] * len(OBJECTIVES),
                load_if_exists=True,
            )
            study.set_metric_names(list(OBJECTIVES))
        yield Table(study, database, storage)
    finally:
        database.remove_session()
        database.engine.dispose()


def _retried(make: Callable[[], Any]) -> Any:
    """Of several machines that make the tables of a new database at once, the slower find them a moment later."""
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    for attempt in range(1, ATTEMPTS):
        try:
            return make()
        except SQLAlchemyError as error:
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(0.2 * attempt)
    return make()


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells of every study and trial on stderr, and warns of what is experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _talking(storage: str) -> Iterator[None]:
    """Errors of the database as `UsageError`, without its password."""
    import optuna
    from sqlalchemy import exc

    try:
        yield
    except (exc.ArgumentError, exc.NoSuchModuleError) as error:
        raise _unusable(
            storage, "is no database URL", "sqlite:///trials.db, postgresql://user@host/edgekit or the like"
        ) from error
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or "its driver"
        raise UsageError(
            f"search.storage = {_hidden(storage)}: cannot import {missing}",
            expected="a driver for this database",
            way_out=f"pip install {DRIVERS.get(missing, missing)}",
        ) from error
    except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = str(cause).strip().split("\n", 1)[0]
        raise _unusable(
            storage, f"cannot be used: {said}", "a database that can be reached and written"
        ) from error
    except RuntimeError as error:
        if "schema" not in str(error) and "version" not in str(error):
            raise
        raise _unusable(
            storage, "was written by another version of Optuna", f"that of {optuna.__version__}"
        ) from error


def _hidden(storage: str) -> str:
    """A URL without its password; what cannot be read as a URL is shown up to where one might stand."""
    from sqlalchemy import exc, make_url

    try:
        return str(make_url(storage).render_as_string(hide_password=True))
    except exc.ArgumentError:
        return storage.split("://", 1)[0] + "://…" if "@" in storage else storage


def _unusable(storage: str, what: str, expected: str) -> UsageError:
    return UsageError(
        f"search.storage = {_hidden(storage)} {what}",
        expected=expected,
        way_out="Correct search.storage, or leave it out to keep the trials beside the output.",
    )
