"""What OpenAI's clients send. What we cannot do is refused by name; what changes no answer is taken and left."""

from typing import Annotated, Any, Literal

from pydantic import Field

from serai.api.wire import Wire
from serai.chat.chats import Ask, timeout_of
from serai.chat.keep_alive import KeepAlive, keep_alive_of
from serai.chat.messages import from_openai, tools_of
from serai.chat.prompts import template_options
from serai.chat.sampling import checked, stops
from serai.errors import InvalidInput

MAX_STOPS = 4
"""As the API that this one speaks has it."""

Model = Annotated[str, Field(min_length=1, max_length=300)]
Number = int | float | None


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingFields(Wire):
    """What chats and completions share."""

    model: Model
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Number = None
    top_p: Number = None
    top_k: int | None = None
    min_p: Number = None
    repetition_penalty: Number = None
    presence_penalty: Number = None
    frequency_penalty: Number = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logit_bias: dict[str, int | float] | None = None
    max_tokens: int | None = None
    user: str | None = None
    timeout: Number = Field(None, description="Seconds for the whole answer, 1 to 600.")
    keep_alive: KeepAlive = Field(
        None, description="How long the model stays loaded afterwards: seconds, or as 10m or 1h30m; -1: for ever."
    )
    priority: Annotated[int, Field(ge=-100, le=100)] = 0

    def sampling(self) -> dict[str, Any]:
        """Return the checked fields of `Sampling`. Raises InvalidInput."""
        given = {name: getattr(self, name) for name in _SAMPLED}
        if self.top_k == -1:  # how some clients say: all
            given["top_k"] = 0
        found = checked({name: value for name, value in given.items() if value is not None})
        if self.stop is not None:
            found["stop"] = stops(self.stop, most=MAX_STOPS)
        return found

    @property
    def tells_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


_SAMPLED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "n", "logit_bias", "max_tokens"),
)


class ChatCompletionIn(SamplingFields):
    messages: Annotated[list[Any], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[str] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None
    functions: Any = None
    function_call: Any = None

    def ask(self) -> Ask:
        """Return what is asked. Raises InvalidInput."""
        self._refuse_the_rest()
        given = self.sampling()
        names = {"think": "reasoning_effort", "grammar": "response_format"}
        if self.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
            given |= checked({"max_tokens": self.max_completion_tokens}, names)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidInput.at("top_logprobs", "needs logprobs to be true")
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        return Ask(
            model=self.model,
            messages=from_openai(self.messages),
            given=given,
            response_format=self.response_format,
            tools=tools_of(self.tools, self.tool_choice),
            think=self._think(),
            options=template_options(self.chat_template_kwargs, "chat_template_kwargs"),
            timeout_s=timeout_of(self.timeout),
            keep_alive=keep_alive_of(self.keep_alive),
            priority=self.priority,
            names=names,
        )

    def _think(self) -> bool | None:
        if self.reasoning_effort is None:
            return None
        return self.reasoning_effort not in ("none", "minimal")

    def _refuse_the_rest(self) -> None:
        for name in ("audio", "prediction", "web_search_options", "functions", "function_call", "moderation"):
            if getattr(self, name) is not None:
                raise InvalidInput.at(name, "is not supported here")
        if self.modalities not in (None, ["text"]):
            raise InvalidInput.at("modalities", "must be text alone")
        if self.store:
            raise InvalidInput.at("store", "is not supported for chat completions: sessions and responses are kept")
        if self.verbosity not in (None, "medium"):
            raise InvalidInput.at("verbosity", "cannot be chosen here")
        if self.parallel_tool_calls is False and self.tools:
            raise InvalidInput.at("parallel_tool_calls", "cannot be switched off here")
        if self.service_tier not in (None, "auto", "default"):
            raise InvalidInput.at("service_tier", "must be auto or default")


class CompletionIn(SamplingFields):
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def ask(self) -> Ask:
        """Return what is asked. Raises InvalidInput."""
        if self.suffix is not None:
            raise InvalidInput.at("suffix", "is not supported here")
        if self.best_of not in (None, self.n or 1):
            raise InvalidInput.at("best_of", "must be n, or left out")
        given = {"max_tokens": 16, **self.sampling()}
        if self.logprobs is not None:
            given["logprobs"] = self.logprobs
        return Ask(
            model=self.model,
            prompt=self.text(),
            given=given,
            timeout_s=timeout_of(self.timeout),
            keep_alive=keep_alive_of(self.keep_alive),
            priority=self.priority,
        )

    def text(self) -> str:
        """Return the prompt, of which there is one. Raises InvalidInput."""
        prompt = self.prompt
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if len(texts) != 1 or not isinstance(texts[0], str):
            raise InvalidInput.at("prompt", "must be one text: send several prompts as several requests")
        if not texts[0]:
            raise InvalidInput.at("prompt", "is empty")
        return texts[0]
