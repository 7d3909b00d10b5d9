"""A language model to grade with, behind an endpoint that takes OpenAI's /chat/completions."""

import http.client
import json
import logging
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import NamedTuple

from llava.files import shorten

logger = logging.getLogger(__name__)


class Reply(NamedTuple):
    """What a judge answers."""

    text: str
    model: str  # the name that the endpoint gives the model, often more exact than the one asked for


@dataclass
class Judge:
    """A language model behind any endpoint that takes OpenAI's /chat/completions.

    Args:
        base_url: up to and without /chat/completions, such as "http://localhost:8000/v1".
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

    def __post_init__(self):
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"The judge's base_url must begin with http:// or https://; got {self.base_url!r}.")

    def ask(self, prompt: str, *, system: str = "", temperature: float = 0.0, max_tokens: int = 1024) -> Reply:
        """Post one prompt. Asks again where the endpoint is busy, broken or silent (429, 5xx, no answer in time).

        Raises:
            ValueError: the endpoint refuses, answers something else than a completion, or all tries failed.
        """
        messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": prompt}]
        content = {"model": self.model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        for attempt in range(self.tries):
            if attempt and self.stopped.wait(self.wait * 2 ** (attempt - 1)):
                raise ValueError(f"Stopped: {self.base_url} had not answered after {attempt} tries.")
            try:
                status, body = self.post(json.dumps(content).encode())
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if status < 300:
                    return self.read(body)
                reason = f"HTTP {status}: {shorten(body, 300)}"
                if status != 429 and status < 500:
                    raise ValueError(f"{self.base_url} refused the judge's prompt with {reason}.")
            logger.warning("%s, try %d of %d: %s", self.base_url, attempt + 1, self.tries, reason)
        raise ValueError(f"{self.base_url} did not answer in {self.tries} tries, the last one with {reason}.")

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the endpoint's answer. Raises OSError or HTTPException where there is none."""
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        if self.key:  # a redirect may lead to another host, which shall not see the key
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            response = urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            response = error  # an answer too, of another status
        with response:
            return response.status, response.read()

    def read(self, body: bytes) -> Reply:
        try:
            content = json.loads(body)
            return Reply(content["choices"][0]["message"]["content"] or "", content.get("model") or "unnamed")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{self.base_url} answered no chat completion but {shorten(body, 300)}.") from None
