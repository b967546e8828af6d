"""Pictures that a caller gave: from an uploaded file to the array that a model starts from."""

from dataclasses import dataclass

from anyio.to_thread import run_sync

from serai.decode.decoder import DecodedImage, Decoder
from serai.engines.tasks import Array
from serai.files import store as files_store
from serai.images.model import MAX_SIDE, ImageRequest
from serai.storage.blobs import Blobs
from serai.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a request starts from, decoded; None where it names nothing. The digests are those of the files."""

    image: DecodedImage | None = None
    mask: DecodedImage | None = None
    image_digest: str | None = None
    mask_digest: str | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        return None if self.image is None else (self.image.width, self.image.height)

    def document(self) -> dict[str, str]:
        """Return what is told of them where a picture's making is told."""
        told = {"image_sha256": self.image_digest, "mask_sha256": self.mask_digest}
        return {name: digest for name, digest in told.items() if digest is not None}

    async def arrays(self, width: int, height: int) -> tuple[Array | None, Array | None]:
        """Return picture (height × width × 3) and mask (height × width) in this size, uint8."""
        if self.image is None and self.mask is None:
            return None, None
        return await run_sync(self._arrays, (width, height))

    def _arrays(self, size: tuple[int, int]) -> tuple[Array | None, Array | None]:
        from serai.images.pixels import array_of  # the server starts without Pillow

        image = None if self.image is None else array_of(self.image, size, "RGB")
        return image, None if self.mask is None else array_of(self.mask, size, "L")


async def read_inputs(
    asked: ImageRequest, owner_id: str, *, database: Database, blobs: Blobs, decoder: Decoder
) -> Inputs:
    """Return what a request starts from.

    Raises FileNotFound for what is not the owner's, BlobNotFound, and what the decoder finds wrong.
    """

    async def opened(file_id: str | None) -> tuple[DecodedImage | None, str | None]:
        if file_id is None:
            return None, None
        file = await database.read(files_store.get, file_id, owner_id)
        content = await blobs.open(file.digest)
        try:
            return await decoder.image(content, max_side=MAX_SIDE), file.digest
        finally:
            content.close()

    image, image_digest = await opened(asked.image)
    mask, mask_digest = await opened(asked.mask)
    return Inputs(image=image, mask=mask, image_digest=image_digest, mask_digest=mask_digest)
