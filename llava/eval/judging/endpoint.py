"""A language model to grade with, behind an endpoint that takes OpenAI's /chat/completions."""

import http.client
import json
import logging
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import NamedTuple

from llava.utils.files import shorten
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)


class Reply(NamedTuple):
    """What a judge answers."""

    text: str
    model: str  # the name that the endpoint gives the model, often more exact than the one asked for


@dataclass
class Judge:
    """A language model behind any endpoint that takes OpenAI's /chat/completions.

    Args:
        base_url: such as "http://localhost:8000/v1", with or without /chat/completions.
        model: the name that the endpoint knows it by.
        key: sent as bearer token; none where empty.
        timeout: seconds to wait for an answer.
        tries: how often to ask before giving up.
        wait: seconds before the second try; twice as many before each further one.

    Raises:
        ValueError: `base_url` is no address.
    """

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    tries: int = 6
    wait: float = 1.0
    stopped: threading.Event = field(default_factory=threading.Event, init=False, repr=False)  # set: no further tries
    is_there: bool = field(default=False, init=False, repr=False)  # it has answered once, be it with an error

    def __post_init__(self):
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"The judge's base_url must begin with http:// or https://; got {self.base_url!r}.")

    @property
    def url(self) -> str:
        """Return the address that prompts are posted to."""
        return f"{self.base_url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"

    def ask(self, prompt: str, *, system: str = "", temperature: float = 0.0, max_tokens: int = 1024) -> Reply:
        """Post one prompt, again where the endpoint is busy, broken or silent (429, 5xx, no answer in time).

        Raises:
            ValueError: the endpoint refuses, answers something else than a completion, has never been there, or all
                tries failed.
        """
        messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": prompt}]
        content = {"model": self.model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        for attempt in range(self.tries):
            if attempt and self.stopped.wait(self.wait * 2 ** (attempt - 1)):
                raise ValueError(f"Stopped: {self.url} had not answered after {attempt} tries.")
            try:
                status, body = self.post(json.dumps(content).encode())
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
                cause = getattr(error, "reason", error)
                if not self.is_there and isinstance(cause, (ConnectionRefusedError, socket.gaierror)):
                    raise ValueError(
                        f"{self.url}: nobody is there ({cause}). Start the server, or fix the address."
                    ) from None
            else:
                self.is_there = True
                if status < 300:
                    return self.read(body)
                reason = f"HTTP {status}: {shorten(body, 300)}"
                if status != 429 and status < 500:
                    raise ValueError(f"{self.url} {self.complaint(status)}: {reason}.")
            warn_once(logger, "%s, try %d of %d: %s", self.url, attempt + 1, self.tries, reason)
        raise ValueError(f"{self.url} did not answer in {self.tries} tries, the last one with {reason}.")

    def complaint(self, status: int) -> str:
        """Say what a refusal of this status is about."""
        if status in (401, 403):
            return "does not accept the key" if self.key else "wants a key, and none was sent"
        if status in (404, 405):
            return f"is no such address, or knows no model {self.model!r}"
        return "refused the judge's prompt"

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Post a request; returns status and body of the answer.

        Raises:
            OSError, HTTPException: there is none.
        """
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        if self.key:  # a redirect may lead to another host, which shall not see the key
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as answer:  # of another status
            with answer:
                return answer.code, answer.read()

    def read(self, body: bytes) -> Reply:
        """Read a completion. Raises ValueError where the endpoint has answered something else."""
        try:
            content = json.loads(body)
            return Reply(content["choices"][0]["message"]["content"] or "", content.get("model") or "unnamed")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{self.url} answered no chat completion but {shorten(body, 300)}.") from None
