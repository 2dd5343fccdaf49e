"""The agent as a program: by real HTTP, from the command line, under a supervisor."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer, ThreadingTCPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edgekit_runtime.agent import transport as transport_module
from edgekit_runtime.agent.notify import ALIVE, READY, tell_systemd, watchdog_s
from edgekit_runtime.agent.start import device_id
from edgekit_runtime.agent.transport import HttpTransport
from edgekit_runtime.cli import main
from edgekit_runtime.errors import InputError, NetworkError
from edgekit_runtime.logs import JsonLines
from edgekit_runtime.policies import BUCKETS, Rule
from edgekit_runtime.state import PROBATION
from edgekit_runtime.store import Store
from support.adders import adder
from support.fleet import Fleet
from support.fleet_server import served

PATIENCE_S = 120
CONFORMANCE = Path(__file__).with_name("tuf_conformance_client")


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def address(fleet: Fleet) -> Iterator[str]:
    with served(fleet) as found:
        yield found


@pytest.fixture
def root(tmp_path: Path, fleet: Fleet) -> Path:
    path = tmp_path / "root.json"
    path.write_bytes(fleet.repository.first_root())
    return path


def agent(tmp_path: Path, address: str, root: Path, *more: str) -> list[str]:
    return [
        "--store", str(tmp_path / "store"), "--json", "agent", "--server", address, "--root", str(root),
        "--device", "device-17", *more,
    ]  # fmt: skip


# HTTP


def test_a_file_comes_from_any_byte_on_and_what_is_known_does_not_come_at_all(
    fleet: Fleet, address: str
) -> None:
    fleet.blobs["ab"] = bytes(range(256)) * 1000
    transport = HttpTransport(address)
    whole = transport.get("blobs/ab")
    assert (whole.status, whole.at, b"".join(whole.parts)) == (200, 0, fleet.blobs["ab"])
    rest = transport.get("blobs/ab", at=1000)
    assert (rest.status, rest.at, b"".join(rest.parts)) == (206, 1000, fleet.blobs["ab"][1000:])
    assert transport.get("blobs/ab", tag=whole.tag).status == 304
    assert transport.get("blobs/nothing").status == 404


def test_a_line_that_breaks_is_a_network_error_in_the_middle(fleet: Fleet, address: str) -> None:
    fleet.blobs["ab"], fleet.break_after = bytes(100_000), 50_000
    came: list[bytes] = []
    with pytest.raises(NetworkError):
        came.extend(HttpTransport(address).get("blobs/ab").parts)
    assert 0 < sum(map(len, came)) <= 50_000


@contextmanager
def serving(server: TCPServer) -> Iterator[int]:
    """The port of a server, while it answers."""
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def dripping(content: bytes, every_s: float) -> Iterator[str]:
    """The address of a server that sends a byte now and then."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(OSError):
                for at in range(len(content)):
                    self.wfile.write(content[at : at + 1])
                    time.sleep(every_s)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_server_that_sends_a_byte_now_and_then_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "PACE_S", 0.2)
    with dripping(bytes(200), 0.02) as address:
        came: list[bytes] = []
        with pytest.raises(NetworkError, match=r"bytes in 0\.2 s"):
            came.extend(HttpTransport(address).get("blobs/ab").parts)
        assert 0 < len(came) < 200, "what came in is kept"
        with pytest.raises(NetworkError, match=r"bytes in 0\.2 s"):
            HttpTransport(address).post("devices/x", b"{}")


def test_a_line_that_is_only_slow_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "PACE_S", 0.2)
    monkeypatch.setattr(transport_module, "PACE_BYTES", 2)
    with dripping(bytes(range(50)), 0.02) as address:
        assert b"".join(HttpTransport(address).get("blobs/ab").parts) == bytes(range(50))


def test_an_answer_without_end_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_ANSWER_BYTES", 10)
    with dripping(bytes(20), 0.0) as address, pytest.raises(NetworkError, match="more than 10 bytes"):
        HttpTransport(address).post("devices/x", b"{}")


@contextmanager
def raw(answer: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of a server that says what it likes, to one question after the other."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), ExitStack() as stack:
                line = self.request
                if context is not None:
                    line = stack.enter_context(context.wrap_socket(line, server_side=True))
                # What is asked for does not matter, but to be heard out.
                question, size = line.makefile("rb"), 0
                while (said := question.readline()) not in {b"", b"\r\n"}:
                    if said.lower().startswith(b"content-length:"):
                        size = int(said.partition(b":")[2])
                question.read(size)
                answer(line)

    class Server(ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with serving(Server(("127.0.0.1", 0), Handler)) as port:
        yield f"{'https' if context else 'http'}://localhost:{port}"


def drips(first: bytes, drop: bytes, every_s: float = 0.02) -> Callable[[socket.socket], None]:
    """Says something, and then the same for ever."""

    def answer(line: socket.socket) -> None:
        line.sendall(first)
        while True:
            line.sendall(drop)
            time.sleep(every_s)

    return answer


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DRIPPING = {
    "a line of a head": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "heads before the head": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the size of a chunk": (CHUNKED + b"1;", b"x"),
    "what follows the last chunk": (CHUNKED + b"0\r\n", b"X: x\r\n"),
}


@pytest.mark.parametrize(("limit", "every_s"), [("PACE_S", 0.02), ("ANSWER_S", 0.02), ("ANSWER_S", 0.0)])
@pytest.mark.parametrize("what", DRIPPING)
def test_no_part_of_an_answer_holds_a_device_for_ever(
    monkeypatch: pytest.MonkeyPatch, what: str, every_s: float, limit: str
) -> None:
    monkeypatch.setattr(transport_module, limit, 0.2)
    first, drop = DRIPPING[what]
    # A flood may also be more than what http.client takes for one line.
    said = r"in 0\.2 s" if every_s else "."
    with raw(drips(first, drop, every_s)) as address:
        for path in ("metadata/timestamp.json", "blobs/ab"):
            began_s = time.monotonic()
            with pytest.raises(NetworkError, match=said):
                list(HttpTransport(address).get(path).parts)
            with pytest.raises(NetworkError, match=said):
                HttpTransport(address).post("devices/x", b"{}")
            assert time.monotonic() - began_s < 20


def test_a_small_answer_has_to_end_and_a_large_one_only_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "ANSWER_S", 0.2)
    with dripping(bytes(30), 0.02) as address:
        assert b"".join(HttpTransport(address).get("blobs/ab").parts) == bytes(30)
        with pytest.raises(NetworkError, match=r"no end of an answer in 0\.2 s"):
            list(HttpTransport(address).get("metadata/1.root.json").parts)


def test_a_device_that_is_slow_itself_does_not_blame_the_line(
    fleet: Fleet, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "PACE_S", 0.2)
    fleet.blobs["ab"] = bytes(1 << 20)
    came = 0
    for number, part in enumerate(HttpTransport(address).get("blobs/ab").parts):
        if number < 2:
            time.sleep(0.3)
        came += len(part)
    assert came == 1 << 20


def test_a_refusal_that_never_ends_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    def answer(line: socket.socket) -> None:
        try:
            drips(CHUNKED.replace(b"200", b"404"), b"1\r\na\r\n", 0.001)(line)
        finally:
            closed.set()

    with raw(answer) as address:
        transport = HttpTransport(address)
        assert transport.get("blobs/ab").status == 404
        assert closed.wait(PATIENCE_S), "nobody waits for the rest"
        with pytest.raises(NetworkError, match="404"):
            transport.post("devices/x", b"{}")


def test_content_that_is_packed_is_refused_by_its_name() -> None:
    packed = gzip.compress(b"a document")
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    with raw(lambda line: line.sendall(head.encode() + packed)) as address:
        with pytest.raises(NetworkError, match="comes as gzip"):
            HttpTransport(address).get("metadata/timestamp.json")
        with pytest.raises(NetworkError, match="comes as gzip"):
            HttpTransport(address).post("devices/x", b"{}")


@pytest.mark.parametrize("header", ["Content-Length", "Content-Range", "Retry-After"])
def test_a_number_that_is_none_is_no_crash(header: str) -> None:
    said = f"HTTP/1.1 {503 if header == 'Retry-After' else 206} X\r\n{header}: {'9' * 5000}\r\n\r\n"
    with raw(lambda line: line.sendall(said.encode())) as address, suppress(NetworkError):
        list(HttpTransport(address).get("blobs/ab", at=1).parts)


def test_a_server_that_asks_to_be_left_alone_is_for_as_long_as_it_says() -> None:
    asked: list[bytes] = []

    def answer(line: socket.socket) -> None:
        asked.append(b"")
        line.sendall(b"HTTP/1.1 503 X\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n")

    with raw(answer) as address:
        transport = HttpTransport(address)
        for _ in range(5):
            with pytest.raises(NetworkError):
                transport.post("devices/x", b"{}")
        assert len(asked) == 1
        assert transport.get("metadata/timestamp.json").status == 503, "it may have time for that"
        assert len(asked) == 2
        time.sleep(2.1)
        with pytest.raises(NetworkError, match="status 503"):
            transport.post("devices/x", b"{}")
        assert len(asked) == 3


def test_a_line_is_used_again_for_the_next_question() -> None:
    asked: list[str] = []
    lines = set[int]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            lines.add(self.client_address[1])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        transport = HttpTransport(f"http://127.0.0.1:{port}/below/")
        for _ in range(3):
            assert b"".join(transport.get("blobs/ab").parts) == b"ok"
            assert transport.post("devices/x", b"{}") == b"ok"
    assert asked == ["/below/blobs/ab", "/below/devices/x"] * 3
    assert len(lines) == 1


def test_by_https_a_server_is_told_from_others_and_held_to_the_same_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = certified(tmp_path)
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with raw(lambda line: line.sendall(body), context) as address:
        with pytest.raises(NetworkError, match="certificate verify failed"):
            HttpTransport(address).get("blobs/ab")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
        assert b"".join(HttpTransport(address).get("blobs/ab").parts) == b"ok"
    monkeypatch.setattr(transport_module, "PACE_S", 0.2)
    dripping_head = raw(drips(*DRIPPING["a line of a head"]), context)
    with dripping_head as address, pytest.raises(NetworkError, match=r"in 0\.2 s"):
        HttpTransport(address).get("blobs/ab")


def certified(folder: Path) -> ssl.SSLContext:
    """Of a server named localhost that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    own = folder / "own.pem"
    own.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    return context


def test_a_server_that_is_not_there_is_a_network_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        transport = HttpTransport(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(NetworkError) as caught:
            transport.get("metadata/timestamp.json")
        assert caught.value.code == "network"
        with pytest.raises(NetworkError):
            transport.post("devices/x", b"")


def test_a_device_without_its_token_is_told_nothing(fleet: Fleet) -> None:
    fleet.blobs["ab"] = b"model"
    with served(fleet, token="secret") as address:
        assert HttpTransport(address).get("blobs/ab").status == 401
        assert HttpTransport(address, token="secret").get("blobs/ab").status == 200
        with pytest.raises(NetworkError, match="401"):
            HttpTransport(address, token="wrong").post("devices/x", b"{}")


@pytest.mark.parametrize(
    "url", ["", "fleet.example.com", "ftp://fleet.example.com", "https://", "http://fleet.example.com"]
)
def test_an_address_that_is_none_or_that_anybody_can_read_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        HttpTransport(url)
    assert caught.value.code == "server"
    HttpTransport("http://fleet.example.com", insecure=True)


# The command


def test_one_poll_installs_what_the_fleet_selects(
    tmp_path: Path, fleet: Fleet, address: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = fleet.publish(adder(1.0))
    fleet.select(release)
    assert main(agent(tmp_path, address, root, "--once")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["decided"], answer["phase"]) == ("install", PROBATION)
    assert Store(tmp_path / "store").state().live == release
    # The real trial ran: it would have refused a model with other answers.
    assert main(agent(tmp_path, address, root, "--once")) == 0
    assert json.loads(capsys.readouterr().out)["decided"] == "on_probation"


def test_labels_of_the_command_choose_a_rule_and_are_told(
    tmp_path: Path,
    fleet: Fleet,
    address: str,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet.rule(Rule(fleet.publish(adder(1.0)), "salt", BUCKETS, cohort='region == "eu" and site == "b"'))
    monkeypatch.setenv("EDGEKIT_LABELS", "region=eu,site=a")
    assert main(agent(tmp_path, address, root, "--once")) == 0
    assert json.loads(capsys.readouterr().out)["decided"] == "not_meant"
    assert main(agent(tmp_path, address, root, "--once", "--label", "site=b")) == 0
    assert json.loads(capsys.readouterr().out)["decided"] == "install"
    assert fleet.posts[-1]["status"]["labels"] == {"region": "eu", "site": "b"}


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--device", "no/name"], "option"),
        (["--channel", ""], "option"),
        (["--server", "nowhere"], "server"),
        (["--root", "/nowhere/root.json"], "input"),
        (["--token-file", "/nowhere/token"], "input"),
        ([each for n in range(33) for each in ("--label", f"l{n}=x")], "option"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    tmp_path: Path, address: str, root: Path, more: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(agent(tmp_path, address, root, "--once", *more)) == 2
    assert json.loads(capsys.readouterr().out)["error"] == code


def test_without_a_root_nothing_is_trusted(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    assert main(["--store", store, "--json", "agent", "--server", address, "--device", "d", "--once"]) == 3
    assert json.loads(capsys.readouterr().out)["error"] == "tuf_root"


def test_under_a_supervisor_it_says_that_it_is_ready_alive_and_about_to_stop(
    tmp_path: Path, fleet: Fleet, address: str, root: Path
) -> None:
    fleet.select(fleet.publish(adder(1.0)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(PATIENCE_S)
        environment = {
            **os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000",
        }  # fmt: skip
        options = agent(tmp_path, address, root, "--interval", "1")
        command = [sys.executable, "-m", "edgekit_runtime.cli", *options]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert supervisor.recv(99) == READY.encode()
            assert supervisor.recv(99) == ALIVE.encode()
            end = time.monotonic() + PATIENCE_S
            while Store(tmp_path / "store").state().phase != PROBATION and time.monotonic() < end:
                # As a supervisor does: a socket holds a few messages only.
                assert supervisor.recv(99) == ALIVE.encode()
            process.send_signal(signal.SIGTERM)
            said = ALIVE.encode()
            while said == ALIVE.encode():
                said = supervisor.recv(99)
            assert said == b"STOPPING=1"
            lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert process.returncode == 0
    assert {line["message"] for line in lines} >= {"the agent begins", "decided", "polled"}
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)


def test_two_agents_of_one_store_the_second_is_refused(
    tmp_path: Path, address: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    store.make()
    with store.tended():
        assert main(agent(tmp_path, address, root, "--once")) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "store_busy"


# What a system tells


def test_nobody_is_told_where_nobody_supervises(tmp_path: Path) -> None:
    assert not tell_systemd(READY, environment={})
    assert not tell_systemd(READY, environment={"NOTIFY_SOCKET": "relative"})
    assert not tell_systemd(READY, environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")})


def test_an_address_outside_of_the_file_system_is_reached() -> None:
    name = f"edgekit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"\0{name}")
        assert tell_systemd(READY, ALIVE, environment={"NOTIFY_SOCKET": f"@{name}"})
        assert supervisor.recv(99) == b"READY=1\nWATCHDOG=1"


def test_a_line_of_the_log_is_json_whatever_it_speaks_of() -> None:
    record = logging.makeLogRecord(
        {"msg": "größe \ud800", "levelname": "INFO", "name": "x", "way": Path("é")}
    )
    line = JsonLines().format(record)
    assert line.isascii()
    assert json.loads(line)["message"] == "größe \ud800"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_for_the_process_that_it_names(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_s(environment) == seconds


def test_the_id_of_a_device_stays_and_does_not_give_its_machine_id_away(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    found = device_id(file)
    assert found == device_id(file)
    assert len(found) == 32
    assert "0123456789" not in found
    for missing in (tmp_path / "none", file):
        file.write_text("")
        with pytest.raises(InputError):
            device_id(missing)


# The program that the conformance suite of The Update Framework drives


def test_the_conformance_client_takes_a_root_refreshes_and_downloads(
    tmp_path: Path, fleet: Fleet, address: str, root: Path
) -> None:
    fleet.repository.add("releases/größe.json", b"{}")
    fleet.repository.publish("targets")
    own, targets = tmp_path / "metadata", tmp_path / "targets"
    for folder in (own, targets):
        folder.mkdir()

    def client(*arguments: str) -> int:
        command = [sys.executable, str(CONFORMANCE), "--metadata-dir", str(own), *arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S).returncode

    where = ["--metadata-url", f"{address}/metadata/"]
    assert client(*where, "refresh") == 1, "nothing is trusted yet"
    assert client("init", str(root)) == 0
    assert client(*where, "refresh") == 0
    what = ["--target-base-url", f"{address}/targets/", "--target-dir", str(targets)]
    assert client(*where, "--target-name", "releases/größe.json", *what, "download") == 0
    (found,) = (path for path in targets.rglob("*") if path.is_file())
    assert found.read_bytes() == b"{}"
    assert client(*where, "--target-name", "nothing.json", *what, "download") == 1
    fleet.repository.signers["timestamp"] = fleet.repository.signers["rollout"]
    fleet.repository.publish("timestamp")
    assert client(*where, "refresh") == 1, "signed by another key"
