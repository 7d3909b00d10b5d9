"""An endpoint that grades answers, on this machine."""

import http.server
import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `benchmark_files`


class Endpoint:
    """Answers each post with what `reply` makes of its prompt: a text, a status and a body, or None: silence."""

    def __init__(self, reply):
        self.reply, self.requests, self.is_over = reply, [], threading.Event()
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, self.headers.get("Authorization"), content))
                reply = endpoint.reply(content["messages"][-1]["content"])
                if reply is None:
                    endpoint.is_over.wait()
                    return
                if isinstance(reply, str):
                    message = {"role": "assistant", "content": reply}
                    name = f"{content['model']}-0613"
                    reply = (200, json.dumps({"model": name, "choices": [{"message": message}]}))
                self.send_response(reply[0])
                self.end_headers()
                self.wfile.write(reply[1].encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [content["messages"][-1]["content"] for _, _, content in self.requests]

    @property
    def keys(self) -> list[str | None]:
        return [key for _, key, _ in self.requests]

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def serve(monkeypatch):
    """`serve(reply)` -> an `Endpoint` on this machine, until the test ends."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ExitStack() as stack:
        yield lambda reply: stack.enter_context(Endpoint(reply))
