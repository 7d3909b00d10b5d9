import http.server
import json
import math
import threading
import time

import pytest

from llava.eval.metrics import judged

RULES = {f"llava_bench_{kind}": {"role": "Assistant", "prompt": f"Rate ({kind})."} for kind in ("conv", "detail")}
QUESTIONS = [
    {"question_id": 0, "image": "001.jpg", "text": "Where?", "category": "conv"},
    {"question_id": 1, "image": "001.jpg", "text": "Describe.", "category": "detail"},
]
CONTEXTS = [{"id": "001", "image": "001.jpg", "caption": ["A hill.", "The sea."]}]
REFERENCES = [{"question_id": i, "text": f"reference {i}", "answer_id": f"r{i}"} for i in (0, 1)]
PREDICTIONS = [{"question_id": i, "text": f"model {i}"} for i in (1, 0)]


class Endpoint:
    """A server that answers each post with the next of `replies`: a status and a body; a status of None is silence."""

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, self.headers.get("Authorization"), body))
                status, content = endpoint.replies.pop(0)
                if status is None:
                    time.sleep(0.3)  # longer than the client waits
                    return
                payload = content.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def completion(text, model="gpt-4-0613"):
    return 200, json.dumps({"model": model, "choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_judge_posts_a_chat_and_keeps_the_names_that_answered():
    with Endpoint(completion("8 7.5"), completion("0.5", model="gpt-4-1106")) as endpoint:
        judge = judged.Judge(endpoint.url + "/", "gpt-4", "secret")
        assert judge.ask("Rate.", system="Be fair.", temperature=0.2) == ("8 7.5", "gpt-4-0613")
        assert judge.ask("Grade.", max_tokens=3) == ("0.5", "gpt-4-1106")
    assert judge.names == {"gpt-4-0613", "gpt-4-1106"}
    first, second = endpoint.requests
    assert first[:2] == ("/v1/chat/completions", "Bearer secret")
    assert first[2] == {
        "model": "gpt-4",
        "messages": [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Rate."}],
        "temperature": 0.2,
        "max_tokens": 1024,
    }
    assert second[2]["messages"] == [{"role": "user", "content": "Grade."}]
    assert (second[2]["temperature"], second[2]["max_tokens"]) == (0, 3)
    assert "secret" not in repr(judge)


def test_judge_without_a_key_sends_none():
    with Endpoint(completion("1.0")) as endpoint:
        judged.Judge(endpoint.url, "local").ask("Grade.")
    assert endpoint.requests[0][1] is None


@pytest.mark.parametrize("trouble", [(429, "slow down"), (500, "oops"), (503, ""), (None, "")])
def test_judge_asks_again_where_the_endpoint_is_busy_broken_or_silent(trouble, caplog):
    with Endpoint(trouble, trouble, completion("1.0")) as endpoint:
        judge = judged.Judge(endpoint.url, "gpt-4", timeout=0.1, wait=0.001)
        assert judge.ask("Grade.").text == "1.0"
    assert len(endpoint.requests) == 3
    assert "try 2 of 6" in caplog.text


def test_judge_waits_twice_as_long_each_time(monkeypatch):
    waits = []
    monkeypatch.setattr(judged.time, "sleep", waits.append)
    with Endpoint(*[(503, "down")] * 4) as endpoint:
        judge = judged.Judge(endpoint.url, "gpt-4", tries=4, wait=1.5)
        with pytest.raises(ValueError, match="did not answer in 4 tries, the last one with HTTP 503: 'down'"):
            judge.ask("Grade.")
    assert waits == [1.5, 3, 6]
    assert not judge.names


def test_judge_gives_up_at_once_where_it_is_refused():
    with Endpoint((401, "wrong key")) as endpoint, pytest.raises(ValueError, match=r"refused .* HTTP 401: 'wrong key'"):
        judged.Judge(endpoint.url, "gpt-4", "secret").ask("Grade.")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}'])
def test_an_answer_that_is_no_completion_is_an_error(body):
    with Endpoint((200, body)) as endpoint, pytest.raises(ValueError, match="answered no chat completion"):
        judged.Judge(endpoint.url, "gpt-4").ask("Grade.")


def test_an_empty_completion_of_an_unnamed_model():
    with Endpoint((200, '{"choices": [{"message": {"content": null}}]}')) as endpoint:
        assert judged.Judge(endpoint.url, "gpt-4").ask("Grade.") == ("", "unnamed")


def test_base_url_must_be_an_address():
    with pytest.raises(ValueError, match="must begin with http:// or https://; got 'file:///etc'"):
        judged.Judge("file:///etc", "gpt-4")


def test_mmvet_answers():
    rows = [{"question_id": 0, "text": "x"}, {"question_id": "v1_1", "text": "y"}, {"question_id": 0, "text": "z"}]
    assert judged.mmvet_answers(rows) == {"v1_0": "z", "v1_1": "y"}


def test_mmvet_prompt_ends_with_a_row_to_complete():
    prompt = judged.mmvet_prompt("Table\n--- | ---\n", "What is x?", "-1<AND>-5", "x = 3")
    assert prompt == "Table\n--- | ---\n\nWhat is x? | -1 <AND> -5 | x = 3 | "


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("0.7", 0.7),
        ("1.0 |", 1.0),
        ("0", 0.0),
        ("1.5", None),
        ("-0.1", None),
        ("good", None),
        ("", None),
        ("nan", None),
    ],
)
def test_parse_grade(text, grade):
    assert judged.parse_grade(text) == grade


def test_mmvet_score_by_hand():
    questions = {
        "v1_0": {"capability": ["ocr", "math"]},
        "v1_1": {"capability": ["rec"]},
        "v1_2": {"capability": ["rec", "know"]},
    }
    grades = {"v1_0": {"model": ["m", "m"], "score": [1.0, 0.5]}, "v1_1": {"score": [0.1, 0.2]}}
    result = judged.mmvet_score(questions, grades)
    assert result.runs == [36.7, 23.3]  # 1.1 / 3 and 0.7 / 3
    assert (result.total, result.std) == (30.0, 6.7)
    assert result.capabilities == {"rec": 7.5, "ocr": 75.0, "know": 0.0, "math": 75.0}  # rec: (0.05 + 0.1) / 2
    assert list(result.capabilities) == ["rec", "ocr", "know", "math"]
    assert result.missing == ["v1_2"]


def test_mmvet_errors_give_the_numbers():
    questions = {"v1_0": {"capability": ["rec"]}, "v1_1": {"capability": ["rec"]}}
    with pytest.raises(ValueError, match=r"1 of 1 answers are to none of the 2 questions.*v1_9"):
        judged.mmvet_score(questions, {"v1_9": {"score": [1.0]}})
    with pytest.raises(ValueError, match=r"graded once per run; found \[1, 2\] grades"):
        judged.mmvet_score(questions, {"v1_0": {"score": [1.0]}, "v1_1": {"score": [1.0, 0.0]}})
    for nothing in ({}, {"v1_0": {"score": []}}):
        with pytest.raises(ValueError, match="graded once per run"):
            judged.mmvet_score(questions, nothing)


def test_llava_bench_reviews():
    first, second = judged.llava_bench_reviews(QUESTIONS, CONTEXTS, REFERENCES, PREDICTIONS, RULES)
    assert first.prompt == (
        "[Context]\nA hill.\nThe sea.\n\n[Question]\nWhere?\n\n"
        "[Assistant 1]\nreference 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nmodel 0\n\n[End of Assistant 2]\n\n"
        "[System]\nRate (conv).\n\n"
    )
    assert second.reviewed("9 6\nBecause.") == {
        "id": 2,
        "question_id": 1,
        "answer1_id": "r1",
        "answer2_id": 1,
        "category": "llava_bench_detail",
        "content": "9 6\nBecause.",
        "tuple": [9.0, 6.0],
    }


def test_a_caption_may_be_one_text():
    contexts = [{"image": "001.jpg", "caption": "A hill."}]
    reviews = judged.llava_bench_reviews(QUESTIONS, contexts, REFERENCES, PREDICTIONS, RULES)
    assert reviews[0].prompt.startswith("[Context]\nA hill.\n\n[Question]")


def test_what_a_review_lacks_is_named():
    with pytest.raises(ValueError, match=r"question 0 \(1 of 2\) has no context and no prediction"):
        judged.llava_bench_reviews(QUESTIONS, [], REFERENCES, PREDICTIONS[:1], RULES)
    rules = {"llava_bench_conv": RULES["llava_bench_conv"]}
    with pytest.raises(ValueError, match=r"question 1 \(2 of 2\) has no rule"):
        judged.llava_bench_reviews(QUESTIONS, CONTEXTS, REFERENCES, PREDICTIONS, rules)
    predictions = [*PREDICTIONS, {"question_id": 7, "text": "x"}]
    with pytest.raises(ValueError, match="1 of 3 answers are to none of the 2 questions"):
        judged.llava_bench_reviews(QUESTIONS, CONTEXTS, REFERENCES, predictions, RULES)


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 7.5\nThe first ...", [8, 7.5]),
        ("8,7.5", [8, 7.5]),
        ("8, 7.5", [-1, -1]),
        ("8 7.5 ", [-1, -1]),
        ("Scores: 8", [-1, -1]),
        ("\n8 7.5", [-1, -1]),
        ("", [-1, -1]),
    ],
)
def test_parse_scores(review, scores):
    assert judged.parse_scores(review) == scores


def test_llava_bench_score_by_hand():
    rows = [
        {"question_id": 0, "category": "llava_bench_conv", "tuple": [9, 1]},
        {"question_id": 0, "category": "llava_bench_conv", "tuple": [9, 6]},  # the last counts
        {"question_id": 1, "category": "llava_bench_conv", "tuple": [8.0, 8.0]},
        {"question_id": 2, "category": "llava_bench_detail", "tuple": [-1, -1]},
        {"question_id": 3, "category": "llava_bench_detail", "tuple": [9, 7]},
    ]
    result = judged.llava_bench_score(rows)
    assert result.categories["llava_bench_conv"] == (8.5, 7.0, 2)
    assert result.categories["llava_bench_detail"] == (4, 3, 2)
    assert result.report().splitlines() == ["all 80.0", "llava_bench_conv 82.4", "llava_bench_detail 75.0"]
    assert (result.ratio, result.failed) == (80.0, 1)


def test_means_are_rounded_before_they_are_divided():
    pairs = [(0.004, 0.005)] * 2 + [(0.004, 0.004)]  # means 0.004 and 0.004667, rounded to 0.005
    rows = [{"question_id": i, "category": "c", "tuple": pair} for i, pair in enumerate(pairs)]
    assert judged.llava_bench_score(rows).ratio == 125.0  # 116.7 without


def test_llava_bench_without_reviews_or_reference():
    with pytest.raises(ValueError, match="no reviews"):
        judged.llava_bench_score([])
    row = {"question_id": 0, "category": "c", "tuple": [0, 5]}
    assert math.isnan(judged.llava_bench_score([row]).ratio)  # ZeroDivisionError in the published script
