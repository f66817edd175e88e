"""The server as its clients meet it: on a loopback port, with what they may send wrongly, and at its end."""

from __future__ import annotations

import http.client
import inspect
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from artifacts import make
from tiny import rows

from distillkit import cli
from distillkit.cli import main
from distillkit.runtime import Artifact
from distillkit.runtime.answers import Said
from distillkit.runtime.rows import Row
from distillkit.serving import Limits
from distillkit.serving.server import Server, configured
from distillkit.serving.service import Service
from distillkit.serving.start import listen

ROOT = Path(__file__).parents[2]
LIMITS = Limits(seconds=60, queue=8)
SHORT = Limits(seconds=0.5, queue=8)
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "whole", max_length=64).folder


class Gated(Artifact):
    """An artifact that answers while its gate is open."""

    gate: threading.Event

    def run(self, rows: Sequence[Row]) -> list[Said]:
        self.gate.wait(60)
        return super().run(rows)


@contextmanager
def serving(folder: Path, limits: Limits = LIMITS) -> Iterator[tuple[int, Service]]:
    """A server in a thread: its port, and the service in it. Its gate is open."""
    model = Gated.load(folder, threads=1)
    assert isinstance(model, Gated)
    model.gate = threading.Event()
    model.gate.set()
    service = Service(model, limits)
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    begun = threading.Event()
    server = Server(configured(service), service, begun.set)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        assert begun.wait(60)
        yield port, service
    finally:
        model.gate.set()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[tuple[int, Service]]:
    with serving(folder) as running:
        yield running


def ask(
    port: int, body: Any, *, path: str = "/predict", method: str = "POST", headers: Any = JSON
) -> tuple[int, Any, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        text = answer.read()
        told = json.loads(text) if answer.headers.get_content_type() == "application/json" else text.decode()
        return answer.status, told, answer.headers
    finally:
        connection.close()


def metric(port: int, name: str) -> float:
    page = ask(port, None, path="/metrics", method="GET")[1]
    return float(next((line for line in page.splitlines() if line.startswith(name + " ")), "0").split()[-1])


def until(condition: Callable[[], bool]) -> None:
    """Asks until it is so; a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end


def deep(depth: int) -> bytes:
    return b'{"texts": ' + b"[" * depth + b"]" * depth + b"}"


BAD: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"{texts}", 400, "not JSON"),
    "nothing": (b"", 400, "not JSON"),
    "deep": (deep(200_000), 400, "nested too deeply"),
    "NaN": (b'{"texts": [NaN]}', 400, "NaN"),
    "infinity": (b'{"texts": [-Infinity]}', 400, "Infinity"),
    "bad UTF-8": (b'{"texts": ["\xff"]}', 400, "UTF-8"),
    "a name twice": (b'{"texts": ["a"], "texts": ["b"]}', 400, "twice"),
    "a list": (["a"], 422, "not an object"),
    "a number": (b"7", 422, "not an object"),
    "no texts": ({}, 422, "texts is missing"),
    "one text": ({"texts": "a text"}, 422, "not a list"),
    "a number as text": ({"texts": ["a", 7]}, 422, "row 1: 7"),
    "a pair": ({"texts": [["a", "b"]]}, 422, "row 0"),
    "half a character": (b'{"texts": ["\\ud800"]}', 422, "lone surrogate"),
    "a path": ({"texts": ["a"], "path": "/etc/passwd"}, 422, "unknown field 'path'"),
    "a URL": ({"texts": ["a"], "url": "http://localhost/"}, 422, "unknown field 'url'"),
    "another task": ({"texts": ["a"], "task": "trec"}, 422, "'trec'"),
    "a task that is no text": ({"texts": ["a"], "task": 1}, 422, "task"),
    "too many texts": ({"texts": ["a"] * 65}, 413, "65 texts; at most 64"),
    "a million texts": (b'{"texts": [' + b",".join([b'""'] * 340_000) + b"]}", 413, "340000 texts"),
    "a long text": ({"texts": ["a" * 32_769]}, 413, "32769 characters"),
    "a huge body": (b'{"texts": ["' + b"a" * 3_000_000 + b'"]}', 413, "1048576 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_s19_what_cannot_be_answered_is_refused_in_words(running: tuple[int, Service], name: str) -> None:
    body, status, words = BAD[name]
    port, service = running
    got, told, headers = ask(port, body)
    assert got == status and words in told["error"], told
    assert "Traceback" not in told["error"] and service.batcher.inside == 0
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/nope", JSON, 404),
        ("GET", "/predict", {}, 405),
        ("POST", "/predict?texts=a", JSON, 400),
        ("POST", "/predict", {}, 415),
        ("POST", "/predict", {"content-type": "text/plain"}, 415),
        ("GET", "/docs", {}, 404),
        ("GET", "/openapi.json", {}, 404),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/health", {}, 200),
        ("GET", "/ready", {}, 200),
    ],
)
def test_s19_only_four_places_are_there(
    running: tuple[int, Service], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """A body of plain text is refused so that no page in a browser can ask without leave."""
    assert (
        ask(
            running[0],
            {"texts": ["a"]} if method == "POST" else None,
            path=path,
            method=method,
            headers=headers,
        )[0]
        == status
    )


def raw(port: int, content: bytes) -> bytes:
    """Everything that the server says to these bytes until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(content)
        said = b""
        while part := connection.recv(65536):
            said += part
    return said


def test_s19_a_client_that_dawdles_is_not_waited_for(folder: Path) -> None:
    """Neither over the head of a request, nor over its body, nor before either."""
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += b"content-length: 50\r\n\r\n"
    with serving(folder, SHORT) as (port, service):
        assert raw(port, head + b'{"texts"').startswith(b"HTTP/1.1 408")
        assert raw(port, b"POST /pre") == b""
        assert raw(port, b"") == b""
        assert raw(port, b"\x16\x03\x01 what\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert service.batcher.inside == 0


def test_l5_answers_under_load_are_those_given_alone(running: tuple[int, Service], folder: Path) -> None:
    """Every text by its own request, among others of other lengths; nothing is mixed up."""
    texts = [f"{text} {'fan ' * (place % 9)}" for place, (text,) in enumerate(rows(200, seed=5).texts)]
    alone = Artifact.load(folder, threads=1)
    expected = [alone.predict([text])[0].as_json() for text in texts]
    with ThreadPoolExecutor(8) as clients:
        told = list(clients.map(lambda text: ask(running[0], {"texts": [text]}), texts))
    for (status, body, _), one in zip(told, expected, strict=True):
        assert status == 200
        (answer,) = body["answers"]
        assert answer["label"] == one["label"]
        assert answer["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


def test_answers_may_be_short(running: tuple[int, Service]) -> None:
    told = ask(running[0], {"texts": ["a", "b"], "probabilities": False})[1]["answers"]
    assert len(told) == 2 and all(set(one) == {"label", "probability", "truncated"} for one in told)
    assert ask(running[0], {"texts": []})[1] == {"answers": []}


def test_l9_bad_requests_do_not_disturb_the_good_ones(running: tuple[int, Service]) -> None:
    good = {"texts": ["good fan", "bad"]}
    expected = ask(running[0], good)[1]
    bodies = [({"texts": [7]} if place % 5 == 0 else good) for place in range(100)]
    with ThreadPoolExecutor(4) as clients:
        told = list(clients.map(lambda body: ask(running[0], body), bodies))
    assert [status for status, _, _ in told] == [422 if place % 5 == 0 else 200 for place in range(100)]
    for _, body, _ in told:
        if "answers" in body:
            for got, one in zip(body["answers"], expected["answers"], strict=True):
                assert got["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


def test_a_full_queue_says_so_and_when_to_come_again(folder: Path) -> None:
    with serving(folder) as (port, service), ThreadPoolExecutor(2) as clients:
        service.model.gate.clear()  # type: ignore[attr-defined]
        waiting = [clients.submit(ask, port, {"texts": ["a"] * 4}) for _ in range(2)]
        until(lambda: metric(port, "distillkit_rows_inside") == 8)
        status, told, headers = ask(port, {"texts": ["b"]})
        assert status == 429 and "full" in told["error"] and int(headers["retry-after"]) >= 1
        service.model.gate.set()  # type: ignore[attr-defined]
        assert {one.result()[0] for one in waiting} == {200}
        assert ask(port, {"texts": ["b"]})[0] == 200


def test_an_answer_that_takes_too_long_is_given_up(folder: Path) -> None:
    with serving(folder, SHORT) as (port, service):
        service.model.gate.clear()  # type: ignore[attr-defined]
        status, told, _ = ask(port, {"texts": ["a"]})
        assert status == 503 and "0.5 s" in told["error"]
        assert (service.batcher.inside, service.batcher.waiting) == (0, 0)


def test_l8_clients_that_go_away_leave_no_place_taken(folder: Path) -> None:
    limits = Limits(seconds=60, queue=256)
    body = json.dumps({"texts": ["good fan"]}).encode()
    length = f"content-length: {len(body)}"
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
    with serving(folder, limits) as (port, service):
        service.model.gate.clear()  # type: ignore[attr-defined]
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for client in clients:
            client.sendall(head.encode() + body)
        until(lambda: service.batcher.inside == 200)
        for client in clients:
            client.close()
        until(lambda: service.batcher.inside == 0)
        assert service.batcher.waiting == 0
        service.model.gate.set()  # type: ignore[attr-defined]
        assert ask(port, {"texts": ["a"]})[0] == 200


def test_what_is_counted_is_what_happened(folder: Path) -> None:
    with serving(folder) as (port, _):
        ask(port, {"texts": ["good fan", "a"]})
        ask(port, {"texts": 3})
        ask(port, None, path="/wp-admin", method="GET")
        page = ask(port, None, path="/metrics", method="GET")[1]
        lines = page.splitlines()
        assert 'distillkit_requests_total{path="/predict",status="200"} 1' in lines
        assert 'distillkit_requests_total{path="/predict",status="422"} 1' in lines
        assert 'distillkit_requests_total{path="other",status="404"} 1' in lines
        assert "distillkit_batch_rows_sum 2" in lines and "distillkit_request_seconds_count 1" in lines
        assert metric(port, "process_resident_memory_bytes") > 1e7
        for line in lines:  # the text format, version 0.0.4
            assert (
                line.startswith("# TYPE distillkit_")
                or line.startswith("# TYPE process_")
                or float(line.split()[-1]) >= 0
            )


_HEAVY = ("torch", "transformers", "sklearn", "onnx", "matplotlib", "datasets")
_CHILD = f"""
import sys
from distillkit.cli import main
code = main(["serve", sys.argv[1], "--port", "0", "--threads", "1"])
print("end", code, [name for name in {_HEAVY!r} if name in sys.modules])
"""


def test_l6_a_server_that_is_told_to_stop_answers_what_is_inside(folder: Path) -> None:
    """In a process of its own: SIGTERM under load, no request without an answer, exit 0, and no torch."""
    server = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder)],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("ready: http://127.0.0.1:") and "2 classes" in line
    port = int(line.split(":")[3].split()[0])
    told: list[int] = []

    def client(_: int) -> None:
        while 503 not in told and len(told) < 3000:
            try:
                told.append(ask(port, {"texts": ["good fan"] * 8})[0])
            except ConnectionRefusedError:  # it has ended, and nothing was asked
                return

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(client, number) for number in range(4)]
        until(lambda: len(told) > 20)
        server.send_signal(signal.SIGTERM)
        for one in asking:
            one.result()
    out, err = server.communicate(timeout=60)
    assert set(told) <= {200, 503} and 200 in told
    assert out.splitlines()[-1] == "end 0 []" and server.returncode == 0 and err == "", err


def test_a_server_that_stops_is_not_ready_and_closes_connections(folder: Path) -> None:
    with serving(folder, Limits(seconds=60)) as (port, service), ThreadPoolExecutor(1) as clients:
        service.model.gate.clear()  # type: ignore[attr-defined]
        inside = clients.submit(ask, port, {"texts": ["a"]})
        until(lambda: service.batcher.inside == 1)
        service.drain()
        status, told, headers = ask(port, None, path="/ready", method="GET")
        assert (status, told, headers["connection"]) == (503, {"ready": False}, "close")
        assert ask(port, {"texts": ["b"]})[0] == 503
        service.model.gate.set()  # type: ignore[attr-defined]
        assert inside.result()[0] == 200


def test_a_client_that_goes_away_within_its_request_is_no_error(
    running: tuple[int, Service], caplog: pytest.LogCaptureFixture
) -> None:
    port = running[0]
    before = metric(port, 'distillkit_requests_total{path="/predict",status="499"}')
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        client.sendall(b"content-length: 50\r\n\r\n{")
    until(lambda: metric(port, 'distillkit_requests_total{path="/predict",status="499"}') > before)
    assert caplog.records == []


def test_only_this_machine_is_served_unless_its_owner_says_so() -> None:
    assert inspect.signature(cli.serve).parameters["host"].default == "127.0.0.1"


def test_without_the_extra_the_command_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "distillkit.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(folder)]) == 5
    assert "pip install 'distillkit[serve]'" in capsys.readouterr().err


def test_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY only where a socket names its protocol; without it, an answer on a connection
    that is used again waits 40 ms."""
    with (
        listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as taken,
    ):
        assert taken.proto == socket.IPPROTO_TCP


def test_an_address_that_is_taken_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        assert main(["serve", str(folder), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capsys.readouterr().err
    assert main(["serve", str(folder), "--host", "no.such.host.invalid"]) == 2
