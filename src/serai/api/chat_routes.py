"""The routes by which models answer: the native ones, OpenAI's and Ollama's."""

from serai.api.access import Routes
from serai.api.native import chat, sessions
from serai.api.ollama import chat as ollama_chat
from serai.api.ollama import models as ollama_models
from serai.api.ollama import pull as ollama_pull
from serai.api.openai import chat as openai_chat
from serai.api.openai import embeddings as openai_embeddings
from serai.api.openai import images as openai_images
from serai.api.openai import images_urls as openai_images_urls
from serai.api.openai import models as openai_models
from serai.api.openai import responses as openai_responses

ROUTES: tuple[Routes, ...] = (
    chat.routes,
    sessions.routes,
    openai_chat.routes,
    openai_embeddings.routes,
    openai_images.routes,
    openai_images_urls.routes,
    openai_models.routes,
    openai_responses.routes,
    ollama_chat.routes,
    ollama_models.routes,
    ollama_pull.routes,
)
