"""A benchmark of twelve questions about four images, a small random LLaVA to answer them, and an endpoint to grade."""

import http.server
import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for `native`
SUFFIX = "Answer the question using a single word or phrase."


@pytest.fixture(scope="session")
def checkpoint(golden) -> str:
    return str(golden / "models/llava-v1.5-tiny")


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """(tokenizer, model, image processor); tests must leave the model as it is."""
    from llava.model.builder import load_pretrained_model

    return load_pretrained_model(checkpoint, device="cpu")[:3]


@pytest.fixture
def benchmark(tmp_path, golden):
    """The files of a TextVQA-like benchmark; several questions share an image, and so an id."""
    folder = tmp_path / "bench"
    images = folder / "train_images"
    images.mkdir(parents=True)
    questions, annotations = [], []
    for number, source in enumerate(sorted((golden / "images").glob("*.png"))):
        Image.open(source).convert("RGB").resize((160, 120)).save(images / f"image{number}.jpg")
        for asked in ("what is it?", "what word is written on the left side?", "how many of them are there?"):
            text = f"{asked}\nReference OCR token: {'A1, ' * number}B\n{SUFFIX}"
            questions.append({"question_id": f"image{number}", "image": f"image{number}.jpg", "text": text})
            annotations.append({"image_id": f"image{number}", "question": asked, "answers": ["b"] * 10})
    question_file, annotation_file = folder / "questions.jsonl", folder / "answers.json"
    question_file.write_text("".join(json.dumps(question) + "\n" for question in questions))
    annotation_file.write_text(json.dumps({"data": annotations}))
    assert len(questions) == 12
    return SimpleNamespace(
        folder=folder,
        images=images,
        questions=questions,
        question_file=question_file,
        annotation_file=annotation_file,
        flags=[
            "--question-file",
            str(question_file),
            "--image-folder",
            str(images),
            "--annotation-file",
            str(annotation_file),
            "--max-new-tokens",
            "4",
            "--device",
            "cpu",
        ],
    )


@pytest.fixture
def read_rows():
    def read(path: str | Path) -> list[dict]:
        return [json.loads(line) for line in Path(path).read_text().splitlines()]

    return read


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
