"""Jobs on another machine, without one: addresses, the wheel, what is said, and the supervisor behind a shell."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.remote import supervisor
from edgekit.remote.hosts import Host, read_host
from edgekit.remote.refusals import ssh_failure
from edgekit.remote.session import Ended, Job, Source, run, shell_line
from edgekit.remote.wheels import runtime_wheel

HERE = ["/bin/sh", "-c"]


# Addresses


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("ssh://pi@kitchen.local", Host("kitchen.local", "pi")),
        ("pi@kitchen", Host("kitchen", "pi")),
        ("ssh://Kitchen_Pi", Host("Kitchen_Pi")),
        ("ssh://pi@10.0.0.7:2222", Host("10.0.0.7", "pi", 2222)),
        ("ssh://pi@[fe80::1%eth0]:22", Host("fe80::1%eth0", "pi", 22)),
        ("ssh://jetson/usr/bin/python3.11", Host("jetson", python="/usr/bin/python3.11")),
        ("ssh://pi@kitchen:22/home/pi/my%20env/bin/python", Host("kitchen", "pi", 22, "/home/pi/my env/bin/python")),
        ("ssh://pi@kitchen/", Host("kitchen", "pi")),
    ],
)  # fmt: skip
def test_an_address_is_read(text: str, host: Host) -> None:
    assert read_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "", "ssh://", "ssh://@", "ssh://pi@", "-oProxyCommand=x", "ssh://-oProxyCommand=x", "ssh://pi@-x", "ssh://-l@x",
        "ssh://pi:secret@kitchen", "ssh://kitchen:0", "ssh://kitchen:70000", "ssh://kitchen:ssh", "ssh://a b",
        "ssh://kitchen;reboot", "ssh://$(reboot)", "ssh://`x`", "ssh://kitchen/python/../x\n", "http://kitchen:80",
        "ssh://::1", "ssh://größe",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_no_password_is_shown(text: str) -> None:
    with pytest.raises(UsageError, match="ssh://user@host") as caught:
        read_host(text)
    assert "secret" not in str(caught.value)


@given(
    st.text(max_size=40) | st.from_regex(r"(ssh://)?([a-z-]{1,5}@)?[a-zA-Z0-9.:\[\]-]{1,12}(:[0-9]{1,6})?")
)
def test_whatever_is_read_comes_back_and_is_no_option_of_ssh(text: str) -> None:
    try:
        host = read_host(text)
    except UsageError:
        return
    assert read_host(f"ssh://{host}") == replace(host, python="")
    assert host.argv()[-2:] == ["--", host.name]
    assert not host.name.startswith("-")
    assert not host.user.startswith("-")


def test_host_keys_are_checked_as_the_user_says() -> None:
    words = " ".join(Host("kitchen").argv())
    assert "BatchMode=yes" in words
    assert "HostKey" not in words
    assert "KnownHosts" not in words


# The wheel


def test_the_wheel_is_the_runtime_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    wheel = runtime_wheel()
    assert wheel == runtime_wheel()
    assert wheel.name == f"edgekit_runtime-{wheel.version}-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        names = archive.namelist()
        assert "edgekit_runtime/agent/loop.py" in names
        assert not [name for name in names if name.endswith(".pyc")]
        record = archive.read(f"edgekit_runtime-{wheel.version}.dist-info/RECORD").decode()
    assert sorted(line.split(",")[0] for line in record.splitlines()) == sorted(names)
    (tmp_path / wheel.name).write_bytes(wheel.content)
    code = "import edgekit_runtime as e, importlib.metadata as m; print(m.version('edgekit-runtime'), e.__file__)"
    # Without a site, the checkout that is installed here is not in the way.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path / wheel.name}:{numpy_folder()}"}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [
        wheel.version,
        str(tmp_path / wheel.name / "edgekit_runtime" / "__init__.py"),
    ]


def numpy_folder() -> str:
    import numpy as np

    return str(Path(np.__file__).parents[1])


# What OpenSSH says


@pytest.mark.parametrize(
    ("said", "found", "way_out"),
    [
        ("ssh: Could not resolve hostname kitchn: Name or service not known", "Could not resolve", "slip"),
        ("ssh: connect to host kitchen port 22: Connection refused", "refused", "raspi-config"),
        ("ssh: connect to host kitchen port 22: Connection timed out", "no answer", "Is it on"),
        ("Connection timed out during banner exchange", "no answer", "Is it on"),
        ("ssh: connect to host kitchen port 22: No route to host", "No route to host", "this network"),
        ("pi@kitchen: Permission denied (publickey,password).", "Permission denied", "ssh-copy-id pi@kitchen"),
        ("Host key verification failed.", "not known", "ssh pi@kitchen"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n"
            "Offending ED25519 key in /home/a/.ssh/known_hosts:7\nHost key verification failed.",
            "/home/a/.ssh/known_hosts, line 7",
            "ssh-keygen -R 'kitchen' -f /home/a/.ssh/known_hosts",
        ),
        ("Bad owner or permissions on /home/a/.ssh/config", "Bad owner", "~/.ssh/config"),
        ("kex_exchange_identification: Connection closed by remote host", "no connection: kex", "ssh pi@kitchen"),
        ("", "no connection", "ssh pi@kitchen"),
    ],
)  # fmt: skip
def test_what_ssh_says_becomes_an_error_with_a_way_out(said: str, found: str, way_out: str) -> None:
    error = ssh_failure(Host("kitchen", "pi"), 255, said.splitlines(), "connecting")
    assert error.what.startswith("pi@kitchen: ")
    assert found in error.what
    assert way_out in error.way_out
    assert error.exit_code == 2


def test_a_line_that_is_cut_is_told_with_what_was_going_on() -> None:
    error = ssh_failure(Host("kitchen"), 255, ["Connection reset by peer"], "copying")
    assert error.what == "kitchen: the line was cut while copying: Connection reset by peer"


# The other end, here


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR of the other end."""
    folder = tmp_path / "there"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def job(script: str, *files: Source, **options: object) -> Job:
    return Job(files, ("/bin/sh", "-c", script), pythons=(sys.executable,), **options)  # type: ignore[arg-type]


def explain(status: int, lines: object, doing: str) -> UsageError:
    return UsageError(f"cut while {doing}: {status} {lines}", expected="", way_out="")


def do(wanted: Job, **options: object) -> Ended:
    options = {"told": lambda _: None, **options}
    return run(HERE, wanted, where="kitchen", explain=explain, **options)  # type: ignore[arg-type]


def test_a_command_runs_in_a_folder_of_its_own_which_is_gone_afterwards(there: Path) -> None:
    said: list[str] = []
    big = os.urandom(700_000)
    files = (
        Source("a b/größe", b"content"),
        Source("empty", b""),
        Source("big", big),
        Source("in", b"given"),
    )
    script = (
        "stat -c %a . 'a b/größe'; cat 'a b/größe'; cat; wc -c <big; pwd; echo one >&2; echo two >&2; exit 3"
    )
    ended = do(job(script, *files, stdin="in"), told=said.append)
    lines = ended.out.splitlines()
    assert lines[:3] == ["700", "600", "contentgiven700000"]
    assert Path(lines[3]).parent == there
    assert (ended.status, ended.lines, said) == (3, ("one", "two"), ["one", "two"])
    assert list(there.iterdir()) == []


def test_what_is_copied_is_told(there: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(600_000))
    told: list[tuple[int, int]] = []
    do(job("true", Source("a", file)), copied=lambda done, size: told.append((done, size)))
    assert told[-1] == (600_000, 600_000)
    assert len(told) > 1
    assert list(there.iterdir()) == []


def test_a_command_that_is_killed_is_told_by_its_signal(there: Path) -> None:
    assert do(job("kill -9 $$")).status == -9
    assert list(there.iterdir()) == []


def test_what_a_command_leaves_running_ends_with_it(there: Path) -> None:
    ended = do(job("sleep 1000 & echo $!"))
    assert not psutil.pid_exists(int(ended.out)) or psutil.Process(int(ended.out)).status() == "zombie"
    assert list(there.iterdir()) == []


def test_what_a_profile_of_the_shell_prints_is_no_part_of_it(there: Path) -> None:
    ended = run(
        ["/bin/sh", "-c", 'printf welcome; eval "$0"'],
        job("echo out"),
        where="kitchen",
        explain=explain,
        told=print,
    )
    assert ended.out == "out\n"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"pythons": ("/nowhere/python",)}, "there is no python3"),
        ({"needs": (("numpy",), ("no_such_module", "nor_this"))}, "has no no_such_module or nor_this"),
    ],
    ids=["python", "module"],
)
def test_what_is_missing_there_is_named_before_anything_is_copied(
    there: Path, change: dict[str, object], found: str
) -> None:
    with pytest.raises(UsageError, match=found) as caught:
        do(replace(job("true"), **change))  # type: ignore[arg-type]
    assert caught.value.what.startswith("kitchen: ")
    assert list(there.iterdir()) == []


def test_an_interpreter_that_has_what_is_needed_goes_before_one_that_has_not(
    there: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    wanted = replace(job("echo {python}"), needs=(("numpy",),), pythons=(str(bare), sys.executable))
    assert do(wanted).status == 0
    with pytest.raises(UsageError, match="no numpy"):
        do(replace(wanted, pythons=(str(bare),)))
    assert list(there.iterdir()) == []


def test_an_old_python_is_named_with_its_version(there: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    code = "import sys; sys.version_info = (3, 6, 9, 'final', 0); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    old.chmod(0o755)
    with pytest.raises(UsageError, match=r"is Python 3\.6\.9"):
        do(replace(job("true"), pythons=(str(old),)))
    assert list(there.iterdir()) == []


def test_a_disk_without_room_takes_nothing(there: Path, tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as stream:
        stream.truncate(1 << 43)
    with pytest.raises(UsageError, match=r"no room .* MB free") as caught:
        do(job("true", Source("a", file)))
    assert "TMPDIR" in caught.value.way_out
    assert list(there.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    with pytest.raises(UsageError, match="/nowhere/at/all: No such file"):
        do(job("true"))


def test_a_file_that_shrinks_while_it_is_copied_leaves_nothing(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))
    monkeypatch.setattr(Source, "size_bytes", property(lambda self: 2000))
    with pytest.raises(UsageError, match="became shorter"):
        do(job("true", Source("a", file)))
    gone(there)


def gone(there: Path, seconds: float = 20) -> None:
    """Wait until nothing is left."""
    end_s = time.monotonic() + seconds
    while list(there.iterdir()) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert list(there.iterdir()) == []


def other_end(there: Path, *, silence_s: int = 60, size: int = 4) -> subprocess.Popen[bytes]:
    """A supervisor that was told of one file, has its folder, and waits for the content."""
    program = resources.files("edgekit.remote").joinpath("supervisor.py").read_bytes()
    wanted = job("sleep 1000")
    head = {
        "files": [["file", size]], "size_bytes": size, "command": wanted.command, "stdin": "", "path": [], "needs": [],
        "root": False, "silence_s": silence_s,
    }  # fmt: skip
    process = subprocess.Popen(
        [*HERE, shell_line(wanted, len(program))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(program + json.dumps(head).encode() + b"\n")
    process.stdin.flush()
    wait_for(process, "ready")
    assert list(there.iterdir())
    return process


def wait_for(process: subprocess.Popen[bytes], event: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if event.encode() in line:
            return
    raise AssertionError(f"no {event}")


def begin(process: subprocess.Popen[bytes]) -> None:
    """Let the command run."""
    assert process.stdin is not None
    process.stdin.write(b"full")
    process.stdin.flush()
    wait_for(process, "started")


def close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    process.wait(20)


@pytest.mark.parametrize("running", [False, True], ids=["copying", "running"])
def test_the_end_of_the_line_removes_everything(there: Path, running: bool) -> None:
    process = other_end(there)
    if running:
        begin(process)
    inner = psutil.Process(process.pid).children(recursive=True)
    assert bool(inner) == running
    close(process)
    gone(there)
    assert not [each for each in inner if each.is_running() and each.status() != "zombie"]


@pytest.mark.parametrize("running", [False, True], ids=["copying", "running"])
def test_a_silence_removes_everything(there: Path, running: bool) -> None:
    process = other_end(there, silence_s=1)
    if running:
        begin(process)
    process.wait(20)
    assert list(there.iterdir()) == []
    close(process)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_a_signal_removes_everything(there: Path, number: signal.Signals) -> None:
    process = other_end(there)
    begin(process)
    process.send_signal(number)
    process.send_signal(number)
    process.wait(20)
    assert list(there.iterdir()) == []
    close(process)


def test_what_a_run_without_a_chance_left_goes_with_a_later_one_and_what_is_at_work_stays(
    there: Path,
) -> None:
    dead, alive = other_end(there), other_end(there)
    dead.kill()
    close(dead)
    old_s = time.time() - supervisor.ABANDONED_S - 60
    for folder in there.iterdir():
        os.utime(folder, (old_s, old_s))
    assert len(list(there.iterdir())) == 2
    do(job("true"))
    assert len(list(there.iterdir())) == 1
    begin(alive)
    close(alive)
    gone(there)


def test_ctrl_c_here_ends_it_there(there: Path) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(1.0, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        do(job("sleep 1000"))
    timer.join()
    gone(there)
