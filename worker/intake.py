"""From a chat request to what the engine takes: token ids and prepared images.

Limits are held in the order of their cost: counts and sizes first, then the images' headers, then the token count, and
only then is anything decoded. Decoding, resizing and tokenizing run in a small thread pool, never on the event loop. It
knows nothing of HTTP responses or of how tokens are drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from model.cpu.kernels import team
from model.errors import ImageError, PromptError
from model.geometry import ImageLayout
from model.image_file import MAX_PIXELS, decode_rgb, image_digest, read_header
from model.images import ImagePreprocessor, PreparedImage
from model.prompts import ChatMessage, ImagePart, Prompter, TextPart, ToolCard
from model.prompts.tools import ToolFormat
from server.media.data_url import decode_data_url, is_data_url
from server.protocol.errors import ApiError, bad_request
from server.protocol.openai import ChatCompletionRequest, ImageContent, Message
from worker.calling import Calling, tool_uses, with_functions_told
from worker.prepared import PreparedImages

Result = TypeVar("Result")


class ImageSource(Protocol):
    """Fetches an http(s) image under limits of its own (`server.media.fetch.ImageFetcher`); raises ApiError."""

    async def fetch(self, url: str) -> bytes: ...


@dataclass(frozen=True)
class IntakeLimits:
    max_images: int = 16  # per request
    max_image_bytes: int = 20 * 2**20  # of one image file
    max_pixels: int = MAX_PIXELS  # of one image
    max_total_pixels: int = 2 * MAX_PIXELS  # of all images of a request
    cache_bytes: int = 128 * 2**20  # of prepared images that are kept for the next request
    threads: int = 2


@dataclass(frozen=True)
class Prompt:
    """A request's input, ready for the engine."""

    token_ids: tuple[int, ...]
    images: tuple[PreparedImage, ...] = ()

    @property
    def image_tokens(self) -> int:
        return sum(image.layout.tokens for image in self.images)


@dataclass(frozen=True)
class TokenBudget:
    """How the context is shared out between prompt and answer."""

    context_length: int
    default_max_tokens: int  # of an answer whose request names no limit

    def answer_tokens(self, prompt_tokens: int, image_tokens: int, wanted: int | None, param: str) -> int:
        """The most tokens that the answer may have. Raises ApiError 400 with the numbers when it does not fit."""
        room = self.context_length - prompt_tokens
        if room >= (wanted or 1):
            return wanted or min(room, self.default_max_tokens)
        of_images = f", of which {image_tokens} are the images'" if image_tokens else ""
        asked = f" and {wanted} were asked for the answer (max_tokens)" if wanted else " and the answer needs room too"
        raise bad_request(
            f"The context of this model is {self.context_length} tokens, but the prompt has {prompt_tokens}{of_images},"
            f"{asked}. Shorten the prompt, send fewer or smaller images, or lower max_tokens.",
            param=param,
            code="context_length_exceeded",
        )


class Intake:
    """Prepares requests for one checkpoint."""

    def __init__(
        self, prompter: Prompter, preprocessor: ImagePreprocessor, source: ImageSource, limits: IntakeLimits
    ) -> None:
        self._prompter = prompter
        self._preprocessor = preprocessor
        self._source = source
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="intake", initializer=team.work_alone)
        self.prepared = PreparedImages(limits.cache_bytes)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the chat template lets the model call tools; None where it has no place for them."""
        return self._prompter.tool_format

    def count_images(self, request: ChatCompletionRequest) -> int:
        """Raises ApiError 400 beyond the limit."""
        count = sum(isinstance(part, ImageContent) for message in request.messages for part in message.parts)
        if count > self._limits.max_images:
            raise bad_request(
                f"The request has {count} images; at most {self._limits.max_images} are accepted.",
                param="messages",
                code="too_many_images",
            )
        return count

    async def chat(
        self, request: ChatCompletionRequest, budget: TokenBudget, calling: Calling | None = None
    ) -> tuple[Prompt, int]:
        """The prompt and the most tokens that the answer may have. Raises ApiError."""
        files, layouts, token_ids = await self._laid_out(request, calling)
        image_tokens = sum(layout.tokens for layout in layouts)
        max_tokens = budget.answer_tokens(len(token_ids), image_tokens, request.token_limit, "messages")
        salt = request.cache_salt or ""
        images = await asyncio.gather(*(self._prepare(file, len(files), salt) for file in files))
        return Prompt(token_ids, tuple(images)), max_tokens

    async def chat_tokens(
        self, request: ChatCompletionRequest, calling: Calling | None = None
    ) -> tuple[tuple[int, ...], int]:
        """The prompt's token ids, and how many of them are images'. Nothing is decoded. Raises ApiError."""
        _, layouts, token_ids = await self._laid_out(request, calling)
        return token_ids, sum(layout.tokens for layout in layouts)

    async def text_tokens(self, text: str, *, special_first: bool) -> tuple[int, ...]:
        """A raw prompt's token ids; `special_first`: with what the tokenizer puts before them."""
        return await self._off_loop(lambda: self._prompter.build_text(text, special_first=special_first))

    async def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it; empty for ids that no token has."""
        tokens = await self._off_loop(lambda: self._prompter.tokenizer.convert_ids_to_tokens(list(token_ids)))
        return [token or "" for token in tokens]

    async def text_of(self, token_ids: Sequence[int]) -> str:
        """The text that the tokens stand for, special tokens by name."""
        return await self._off_loop(lambda: str(self._prompter.tokenizer.decode(token_ids, skip_special_tokens=False)))

    async def _laid_out(
        self, request: ChatCompletionRequest, calling: Calling | None
    ) -> tuple[list[_ImageFile], list[ImageLayout], tuple[int, ...]]:
        """Images by their headers, and the prompt as tokens."""
        self.count_images(request)
        files = [await self._file(url, param) for url, param in _image_urls(request)]
        layouts = await self._off_loop(lambda: self._layouts(files))
        messages = [_message(message, place) for place, message in enumerate(request.messages)]
        cards = calling.cards if calling is not None else ()
        if cards and self.tool_format is None:
            messages, cards = with_functions_told(messages, cards), ()
        return files, layouts, await self._off_loop(lambda: self._build(messages, layouts, cards))

    async def text(self, text: str, wanted: int | None, budget: TokenBudget) -> tuple[Prompt, int]:
        """A raw completion's prompt, likewise."""
        token_ids = await self._off_loop(lambda: self._prompter.build_text(text))
        if not token_ids:
            raise bad_request("prompt: must not be empty, this tokenizer puts nothing before it.", param="prompt")
        return Prompt(token_ids), budget.answer_tokens(len(token_ids), 0, wanted, "prompt")

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _file(self, url: str, param: str) -> _ImageFile:
        try:
            if is_data_url(url):
                data = await self._off_loop(lambda: decode_data_url(url, self._limits.max_image_bytes))
                return _ImageFile(data, param)
            if url[:8].lower().startswith(("http://", "https://")):
                return _ImageFile(await self._source.fetch(url), param)
        except ApiError as error:
            error.param = error.param or param
            raise
        raise bad_request(
            "An image must be a data URL (data:image/png;base64,...) or an http(s) URL; local files are never read.",
            param=param,
            code="invalid_image_url",
        )

    def _layouts(self, files: list[_ImageFile]) -> list[ImageLayout]:
        """Reads every header, holds the pixel budget, names the images, counts tokens; nothing is decoded."""
        layouts, pixels = [], 0
        for file in files:
            try:
                header = read_header(file.data, max_pixels=self._limits.max_pixels)
            except ImageError as error:
                raise bad_request(str(error), param=file.param, code="invalid_image") from None
            pixels += header.width * header.height
            file.digest = image_digest(file.data, header)
            layouts.append(self._preprocessor.geometry.layout(header.width, header.height, len(files)))
        if pixels > self._limits.max_total_pixels:
            raise bad_request(
                f"The images have {pixels} pixels together; at most {self._limits.max_total_pixels} are accepted.",
                param="messages",
                code="too_many_pixels",
            )
        return layouts

    def _build(
        self, messages: list[ChatMessage], layouts: list[ImageLayout], cards: tuple[ToolCard, ...]
    ) -> tuple[int, ...]:
        try:
            return self._prompter.build(messages, layouts, cards)
        except PromptError as error:
            raise bad_request(str(error), param="messages", code="invalid_prompt") from None

    async def _prepare(self, file: _ImageFile, images: int, salt: str) -> PreparedImage:
        def decode() -> PreparedImage:
            return self._preprocessor.prepare_rgb(
                decode_rgb(file.data, max_pixels=self._limits.max_pixels), file.digest, images=images
            )

        try:
            return await self.prepared.get((salt, file.digest, images > 1), lambda: self._off_loop(decode))
        except ImageError as error:
            raise bad_request(str(error), param=file.param, code="invalid_image") from None


@dataclass
class _ImageFile:
    data: bytes
    param: str  # where in the request it stands
    digest: str = ""  # once its header has been read


def _image_urls(request: ChatCompletionRequest) -> list[tuple[str, str]]:
    return [
        (part.url, f"messages[{turn}].content[{place}].image_url")
        for turn, message in enumerate(request.messages)
        for place, part in enumerate(message.parts)
        if isinstance(part, ImageContent)
    ]


def _message(message: Message, place: int) -> ChatMessage:
    """`developer` is OpenAI's newer word for `system`; templates know only the older one."""
    return ChatMessage(
        role="system" if message.role == "developer" else message.role,
        parts=tuple(ImagePart() if isinstance(part, ImageContent) else TextPart(part.text) for part in message.parts),
        tool_calls=tool_uses(message, place),
        tool_call_id=message.tool_call_id or "",
    )
