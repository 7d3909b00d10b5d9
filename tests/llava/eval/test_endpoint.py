"""The client of a judge's endpoint, with one on this machine."""

import json
import socket

import pytest

from llava.eval.judging.endpoint import Judge


def test_a_prompt_is_posted_as_a_chat(serve):
    replies = iter(["8 7.5", "0.5"])
    server = serve(lambda _: next(replies))
    judge = Judge(server.url + "/", "gpt-4", "secret")
    assert judge.ask("Rate.", system="Be fair.", temperature=0.2) == ("8 7.5", "gpt-4-0613")
    assert judge.ask("Grade.", max_tokens=3).text == "0.5"
    first, second = server.requests
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


def test_without_a_key_none_is_sent(serve):
    server = serve(lambda _: "1.0")
    Judge(server.url, "local").ask("Grade.")
    assert server.keys == [None]


@pytest.mark.parametrize("trouble", [(429, "slow down"), (500, "oops"), (503, ""), None])
def test_an_endpoint_that_is_busy_broken_or_silent_is_asked_again(serve, trouble, caplog, monkeypatch):
    server = serve(lambda _: trouble)
    judge, waits = Judge(server.url, "gpt-4", timeout=600 if trouble else 0.05), []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            server.reply, judge.timeout = lambda _: "1.0", 600

    monkeypatch.setattr(judge.stopped, "wait", wait)
    assert judge.ask("Grade.").text == "1.0"
    assert len(waits) == 2
    assert "try 2 of 6" in caplog.text


def test_waits_are_twice_as_long_each_time(serve, monkeypatch):
    waits = []
    judge = Judge(serve(lambda _: (503, "down")).url, "gpt-4", tries=4, wait=1.5)
    monkeypatch.setattr(judge.stopped, "wait", waits.append)
    with pytest.raises(ValueError, match="did not answer in 4 tries, the last one with HTTP 503: 'down'"):
        judge.ask("Grade.")
    assert waits == [1.5, 3, 6]


def test_a_stopped_judge_does_not_ask_again(serve):
    judge = Judge(serve(lambda _: (503, "down")).url, "gpt-4", wait=60)
    judge.stopped.set()
    with pytest.raises(ValueError, match=r"Stopped: .* had not answered after 1 tries"):
        judge.ask("Grade.")


@pytest.mark.parametrize(
    ("status", "key", "message"),
    [
        (400, "secret", "refused the judge's prompt"),
        (401, "secret", "does not accept the key"),
        (403, "", "wants a key, and none was sent"),
        (404, "secret", "is no such address, or knows no model 'gpt-4'"),
    ],
)
def test_a_refusal_ends_it_at_once(serve, status, key, message):
    server = serve(lambda _: (status, "no"))
    with pytest.raises(ValueError, match=f"{server.url}/chat/completions {message}: HTTP {status}: 'no'."):
        Judge(server.url, "gpt-4", key).ask("Grade.")
    assert len(server.requests) == 1


@pytest.mark.parametrize("end", ["", "/", "/chat/completions", "/chat/completions/"])
def test_the_address_may_be_whole(serve, end):
    server = serve(lambda _: "1.0")
    Judge(server.url + end, "gpt-4").ask("Grade.")
    assert server.requests[0][0] == "/v1/chat/completions"


@pytest.fixture
def nobody():
    """The address of a port of this machine on which no one listens, held so that no one will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/v1"


def test_where_nobody_has_ever_answered_it_ends_at_once(nobody, monkeypatch, caplog):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ValueError, match=r"/chat/completions: nobody is there .*refused.*Start the server"):
        Judge(nobody, "gpt-4", wait=60).ask("Grade.")
    assert not caplog.records


def test_a_judge_that_has_answered_before_is_waited_for(serve, nobody, caplog):
    judge = Judge(serve(lambda _: "1.0").url, "gpt-4", wait=0.001)
    judge.ask("Grade.")
    judge.base_url = nobody
    with pytest.raises(ValueError, match="did not answer in 6 tries"):
        judge.ask("Grade.")
    assert "try 2 of 6" in caplog.text


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}'])
def test_an_answer_that_is_no_completion_is_an_error(serve, body):
    judge = Judge(serve(lambda _: (200, body)).url, "gpt-4")
    with pytest.raises(ValueError, match="answered no chat completion"):
        judge.ask("Grade.")


def test_an_empty_completion_of_an_unnamed_model(serve):
    server = serve(lambda _: (200, json.dumps({"choices": [{"message": {"content": None}}]})))
    assert Judge(server.url, "gpt-4").ask("Grade.") == ("", "unnamed")


def test_base_url_must_be_an_address():
    with pytest.raises(ValueError, match="must begin with http:// or https://; got 'file:///etc'"):
        Judge("file:///etc", "gpt-4")
