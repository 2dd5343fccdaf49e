"""Opens an Optuna study quietly, and turns what databases say into what a user can act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from edgekit.errors import UsageError

__all__ = ["open_study", "quiet", "talking"]

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


@contextmanager
def open_study(storage: str, name: str) -> Iterator[Any]:
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
    with talking(storage), quiet():
        waits = {"connect_args": {"timeout": LOCK_SECONDS}} if storage.startswith("sqlite") else {}
        database = _retried(lambda: optuna.storages.RDBStorage(storage, engine_kwargs=waits))
    try:
        with talking(storage), quiet():
            study = optuna.create_study(
                storage=database,
                study_name=name,
                directions=["minimize"] * len(OBJECTIVES),
                # Never asked for a value: every parameter is fixed before.
                sampler=optuna.samplers.RandomSampler(seed=0),
                load_if_exists=True,
            )
            study.set_metric_names(list(OBJECTIVES))
        yield study
    finally:
        database.remove_session()
        database.engine.dispose()


def _retried(make: Any) -> Any:
    """Two machines that make the tables of a new database at once: the second finds them a moment later."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    try:
        return make()
    except (IntegrityError, OperationalError, ProgrammingError):
        return make()


@contextmanager
def quiet() -> Iterator[None]:
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
def talking(storage: str) -> Iterator[None]:
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
            f"search.storage = {hidden(storage)}: cannot import {missing}",
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


def hidden(storage: str) -> str:
    """A URL without its password; what cannot be read as a URL is shown up to where one might stand."""
    from sqlalchemy import exc, make_url

    try:
        return make_url(storage).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return storage.split("://", 1)[0] + "://…" if "@" in storage else storage


def _unusable(storage: str, what: str, expected: str) -> UsageError:
    return UsageError(
        f"search.storage = {hidden(storage)} {what}",
        expected=expected,
        way_out="Correct search.storage, or leave it out to keep the trials beside the output.",
    )
