"""The server as a process sees it: its socket, its signals, its verb."""

import signal
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import httpx2
import pytest
from support.commands import run

from hf_clip.serving.server import DrainingServer, open_socket, serve_until_stopped
from hf_clip.serving.service import ServerSettings

LONG = 600  # seconds: a failure would take them, a busy machine some of them
get, post = (partial(function, timeout=LONG) for function in (httpx2.get, httpx2.post))


class Served:
    """A server in a thread."""

    def __init__(self, load, monkeypatch) -> None:
        self.ready, self.error = threading.Event(), None
        made = []
        monkeypatch.setattr(DrainingServer, "__init__", _keeping(made, DrainingServer.__init__))
        self.listener = open_socket("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._run, args=(load,))
        self.thread.start()
        while not made:
            time.sleep(0.01)
        [self.server] = made

    def _run(self, load) -> None:
        try:
            serve_until_stopped(load, ServerSettings(name="tiny"), self.listener, self.ready.set)
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)
        self.thread.join(LONG)
        assert not self.thread.is_alive()
        self.listener.close()


def _keeping(made: list, init):
    def keep(self, *arguments, **options):
        init(self, *arguments, **options)
        made.append(self)

    return keep


def test_a_server_starts_answers_and_drains(clip, monkeypatch):
    may_load, may_compute = threading.Event(), threading.Event()

    def load():
        may_load.wait(LONG)
        return clip.model, clip.processor

    served = Served(load, monkeypatch)
    assert get(f"{served.address}/healthz").status_code == 200
    refused = get(f"{served.address}/readyz")
    assert (refused.status_code, refused.json()["error"]["message"]) == (503, "the server is starting: try again later")
    assert post(f"{served.address}/v1/embeddings", json={"input": "a"}).status_code == 503
    may_load.set()
    assert served.ready.wait(LONG)
    assert get(f"{served.address}/readyz").status_code == 200

    kind = served.server.service.batcher.kinds["text"]
    compute = kind.compute
    kind.compute = lambda items: may_compute.wait(LONG) and compute(items)
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(post(f"{served.address}/v1/embeddings", json={"input": "a"}))
    )
    asking.start()
    while not served.server.service.batcher._running:
        time.sleep(0.01)
    threading.Timer(0.3, may_compute.set).start()
    served.stop()
    asking.join()
    assert answers[0].status_code == 200
    assert served.error is None
    with pytest.raises(httpx2.ConnectError):
        get(f"{served.address}/healthz")


def test_a_model_that_cannot_be_loaded_ends_the_server(monkeypatch):
    def load():
        raise ValueError("this is no CLIP")

    served = Served(load, monkeypatch)
    served.thread.join(LONG)
    served.listener.close()
    assert str(served.error) == "this is no CLIP"


def test_a_second_signal_stops_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    server = SimpleNamespace(should_exit=False, service=SimpleNamespace(state="ready"))
    DrainingServer.handle_exit(server, signal.SIGTERM, None)
    assert (server.should_exit, server.service.state, codes) == (True, "draining", [])
    DrainingServer.handle_exit(server, signal.SIGINT, None)
    assert codes == [130]


def test_a_port_in_use_is_named(repositories, capsys):
    with open_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert run("serve", repositories["tiny ViT"], "--port", port) == 1
    assert f"cannot listen at 127.0.0.1:{port} (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere.pt"], "there is no file or folder nowhere.pt"),
        (["--index", "nowhere"], "nowhere"),
        (["--labels", "labels.txt"], "there is no file labels.txt"),
        (["--templates", "no braces"], "there is no file no braces"),
    ],
)
def test_the_verb_refuses_in_one_sentence(arguments, problem, repositories, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = [] if arguments[0].endswith(".pt") else [repositories["tiny ViT"]]
    assert run("serve", *source, *arguments, "--port", "0") == 1
    told = capsys.readouterr().err
    assert problem in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_the_verb_names_what_to_install(repositories, capsys, monkeypatch):
    monkeypatch.setattr("hf_clip.utils.packages.find_spec", lambda name: None if name == "fastapi" else name)
    assert run("serve", repositories["tiny ViT"]) == 1
    assert 'the server needs fastapi: pip install "hf_clip[serve] @' in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(repositories):
    command = [sys.executable, "-c", "import hf_clip_command; hf_clip_command.main()", "serve"]
    options = [repositories["tiny ViT"], "--port", "0", "--labels", "a cat,a dog"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        address = line.split(" answers at ")[1].strip()
        answer = post(f"{address}/v1/embeddings", json={"input": "a"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 0
    assert answer.status_code == 200
