"""What chat refuses, beyond what is wrong in one field."""

from serai.errors import Conflict, InvalidInput, NotFound, Unavailable


class TemplateFailed(InvalidInput):
    """The model's chat template is broken, over its bounds, or refuses these messages."""

    code = "TEMPLATE_FAILED"
    default_hint = "The template comes with the model: check the roles and their order, or use another version."


class RendererUnavailable(Unavailable):
    """The process that renders chat templates is gone or could not start."""

    code = "RENDERER_UNAVAILABLE"


class CannotDo(InvalidInput):
    """The request asks for something that no engine or version that may answer can do; `details` names the field."""

    code = "CAPABILITY_MISSING"


class SessionNotFound(NotFound):
    """There is no such session, it is another user's, or its time is over."""

    code = "SESSION_NOT_FOUND"
    default_hint = "POST /sessions makes one; it ends when it was not used for its ttl_s."


class SessionBusy(Conflict):
    """A message of this session is being answered; the next one would not know the answer."""

    code = "SESSION_BUSY"
    default_hint = "Wait for the answer that is under way, or close its stream, then send the message again."


class ResponseNotFound(NotFound):
    """There is no such stored response, it is another user's, or its time is over."""

    code = "RESPONSE_NOT_FOUND"


class NoEnricher(Unavailable):
    """No language model can write a prompt out: there is no chat service, none that can answer, or it said nothing."""

    code = "NO_PROMPT_WRITER"
    default_hint = (
        "Bind a chat service with POST /services, load a chat model with POST /models/{ref}/load, or name one."
    )
