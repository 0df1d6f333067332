"""OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat), as far as a LLaVA model has them.

What would change an answer and is not built is refused, never passed over: fields that are not named here, and values
of those that are here with a single value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Asked(BaseModel):
    """What a client sends; a field that is not here may be null, as clients name what they leave out."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"additionalProperties": {"type": "null"}},
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name in cls.model_fields}


class TextPart(_Asked):
    """A stretch of text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Asked):
    """Where an image is; `detail` changes nothing, as a model sees images at one size."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(_Asked):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Asked):
    """What one side says."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None


class StreamOptions(_Asked):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class ResponseFormat(_Asked):
    """The form of an answer: text."""

    type: Literal["text"]


class ChatRequest(_Asked):
    """A conversation whose next turn is asked for."""

    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    n: int | None = Field(None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None


class Usage(BaseModel):
    """Tokens; an image counts as many as it has positions."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Said(BaseModel):
    """An answer, or a piece of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class TopLogprob(BaseModel):
    """A token as text and as UTF-8 (absent: it is a part of a character), and its natural log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token of an answer, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The tokens of an answer, or of a piece of it."""

    content: list[TokenLogprob]


FinishReason = Literal["stop", "length"]


class Choice(BaseModel):
    """The answer of a completion."""

    index: int = 0
    message: Said
    logprobs: Logprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ChunkChoice(BaseModel):
    """A piece of the answer of a completion."""

    index: int = 0
    delta: Said
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """A piece of an answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A model that answers."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "neva"


class ModelList(BaseModel):
    """The models that answer: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """How the server is: requests whose answers grow or wait, and the longest answer in tokens."""

    status: Literal["ok", "failing"]
    requests: int
    max_tokens: int


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every answer that is an error."""

    error: ErrorDetail
