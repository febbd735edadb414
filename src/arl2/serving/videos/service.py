"""Video jobs of one model: taken, made one after the other beside live streams, and kept for a while.

A job that was cut off, by a kill or by the server's end, is made again from its beginning: with the same bytes.
"""

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from arl2.errors import ConfigError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.engine import TakesTurns, shown_scale
from arl2.serving.live.objects import StoreError
from arl2.serving.live.wire import DrainingError, NoRoomError, UnknownStreamError
from arl2.serving.videos.making import VideoMaker
from arl2.serving.videos.order import FieldError, ModelFacts, VideoOrder, checked_prompt, read_order
from arl2.serving.videos.shelf import SPRITESHEET, THUMBNAIL, VIDEO, Status, Upload, VideoRecord, VideoShelf
from arl2.streams.conditioning import prefix_frames, require_block_of_one
from arl2.video.images import read_image

logger = logging.getLogger(__name__)

MOST_LISTED = 100
_FILES: dict[str, tuple[str, str]] = {
    "video": (VIDEO, "video/mp4"),
    "thumbnail": (THUMBNAIL, "image/webp"),
    "spritesheet": (SPRITESHEET, "image/jpeg"),
}
_DRAWN = 2**31  # seeds that are drawn; readable, and exact in JavaScript
_SWEPT_EVERY = 30.0  # seconds between looks for expired videos


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How jobs are taken and kept.

    Attributes:
        model: name that clients know the model by.
        most_queued: jobs that wait; more are refused.
        most_kept: jobs in all; the oldest finished one gives way to a new one.
        keep_seconds: after which a finished job is removed; None: never.
        most_seconds: of a video.
        most_attempts: after which a job that is begun, but never finished, has failed: it ends the server.
        retry_after: seconds that a refused client is told to wait.
    """

    model: str
    most_queued: int = 32
    most_kept: int = 200
    keep_seconds: float | None = 7 * 86400.0
    most_seconds: float = 600.0
    most_attempts: int = 5
    retry_after: float = 10.0

    def __post_init__(self) -> None:
        for name in ("most_queued", "most_kept", "most_attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Got {name} {getattr(self, name)}; give 1 or more.")


@dataclass(frozen=True)
class Page:
    """Some jobs of a list, and whether more follow."""

    records: tuple[VideoRecord, ...]
    has_more: bool


class VideoService:
    """Takes jobs and makes them in a thread of its own. All methods may be called from any thread.

    Args:
        pipe: the model, on its device.
        folder: of the jobs; made if it is not there.
        settings: what is taken and kept.
        turns: of the model, where live streams run beside; None: they have it to themselves.

    Raises:
        StoreError: the folder cannot be used, or another process uses it.
    """

    def __init__(
        self, pipe: ARL2Pipeline, folder: Path, settings: VideoSettings, turns: TakesTurns | None = None
    ) -> None:
        self.settings, self._pipe = settings, pipe
        model = pipe.settings
        self.facts = ModelFacts(
            name=settings.model,
            width=model.width,
            height=model.height,
            enlarged=shown_scale(pipe),
            fps=model.fps,
            frames=model.num_frames,
        )
        self._shelf = VideoShelf(folder)
        self._maker = VideoMaker(pipe, self._shelf, most_attempts=settings.most_attempts, turns=turns)
        self._records = {
            record.id: record if record.is_over else replace(record, status="queued") for record in self._shelf.load()
        }
        self._changed = threading.Condition()  # of a lock that its holder may take again
        self._making: str | None = None
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="arl2-videos", daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Take nothing any more, finish the block that is being made, and let go; unfinished jobs stay for the next."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._worker.join()
        self._shelf.close()

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        with self._changed:
            statuses = [record.status for record in self._records.values()]
        return {status: statuses.count(status) for status in get_args(Status)}

    def get(self, id: str) -> VideoRecord:
        """One job; raises ``UnknownStreamError``."""
        with self._changed:
            self._sweep()
            return self._require(id)

    def list(self, *, limit: int = 20, after: str | None = None, order: str = "desc") -> Page:
        """Jobs by the time when they were taken.

        Args:
            limit: at most so many, 1 to 100.
            after: the last one of the page before.
            order: "asc", oldest first, or "desc".

        Raises:
            UnknownStreamError: no job ``after``.
            FieldError: a limit or an order that is none.
        """
        if not 1 <= limit <= MOST_LISTED:
            raise FieldError(f"Got limit {limit}; give 1 to {MOST_LISTED}.", "limit")
        if order not in ("asc", "desc"):
            raise FieldError(f"Got order '{order:.40}'; give asc or desc.", "order")
        if after is not None:
            self.get(after)
        with self._changed:
            self._sweep()
            records = list(self._records.values())
        if order == "desc":
            records.reverse()
        if after is not None:
            records = records[[record.id for record in records].index(after) + 1 :]
        return Page(tuple(records[:limit]), len(records) > limit)

    def content(self, id: str, variant: str = "video") -> tuple[Path, str]:
        """The file of a finished job, and its media type.

        Raises:
            UnknownStreamError: no such job, or one without content: it is not finished, or failed.
            FieldError: no such variant.
        """
        record = self.get(id)
        if variant not in _FILES:
            raise FieldError(f"Got variant '{variant:.40}'; give {', '.join(_FILES)}.", "variant")
        if record.status != "completed":
            said = record.error or f"it is {record.status.replace('_', ' ')} ({record.progress} %); ask again later."
            raise UnknownStreamError(f"The video '{id}' has no content: {said}")
        name, kind = _FILES[variant]
        return self._shelf.path(id, name), kind

    def create(self, fields: Mapping[str, str], reference: Upload | None = None) -> VideoRecord:
        """Take a job.

        Args:
            fields: as ``read_order`` takes them.
            reference: an image that the video starts from.

        Raises:
            FieldError: a field, or the image, cannot be used.
            NoRoomError: too many jobs wait, or there is no memory for one of this size.
            DrainingError: the server is about to end.
            StoreError, VideoFileError: the disk refuses.
        """
        order = self._read(fields)
        with self._new() as id:
            image = None if reference is None else self._shelf.keep_upload(id, reference)
            if image is not None:
                with self._maker.blaming("input_reference"):
                    require_block_of_one(self._pipe)
                    read_image(self._shelf.path(id, image))
            return self._take(self._record(id, order, order.frames, image=image))

    def extend(self, fields: Mapping[str, str], video: Upload | str) -> VideoRecord:
        """Take a job that continues a video: ``seconds`` or ``num_frames`` are those that are added.

        Args:
            fields: as ``create``.
            video: what was uploaded, or the name of a finished job.

        Raises:
            Arl2Error: as ``create``; the video cannot be read, or is shorter than a block.
        """
        order = self._read(fields)
        source = self.content(video)[0] if isinstance(video, str) else None
        with self._new() as id:
            if isinstance(video, str):
                assert source is not None
                name = self._shelf.copy_upload(source, id)
            else:
                name = self._shelf.keep_upload(id, video)
            pipe = self._maker.pipe_of(order.width, order.height)
            with self._maker.blaming("video"):
                most = int(self.settings.most_seconds * self.facts.fps)
                given, _ = prefix_frames(pipe, self._shelf.path(id, name), most=most)
            return self._take(self._record(id, order, given + order.frames, video=name))

    def remix(self, id: str, prompt: str | None) -> VideoRecord:
        """Take a job that shows another prompt with everything else as it was, the noise too.

        Raises:
            Arl2Error: as ``create``; the job is not finished.
        """
        source = self.get(id)
        if source.status != "completed":
            status = source.status.replace("_", " ")
            raise FieldError(f"The video '{id}' is {status}; remix a completed one.", "video_id")
        prompt = checked_prompt(prompt)
        self._require_queue()
        with self._new() as new:
            for name in (source.image, source.video):
                if name is not None:
                    self._shelf.copy_upload(self._shelf.path(id, name), new)
            record = VideoRecord(
                id=new,
                created=time.time(),
                status="queued",
                model=self.settings.model,
                prompt=prompt,
                sampling=source.sampling,
                frames=source.frames,
                fps=source.fps,
                width=source.width,
                height=source.height,
                scale=source.scale,
                remixed_from=id,
                image=source.image,
                video=source.video,
            )
            return self._take(record)

    def delete(self, id: str) -> None:
        """Remove a job and its files; one that is being made ends after its block. Raises ``UnknownStreamError``."""
        with self._changed:
            self._require(id)
            del self._records[id]
            if self._making == id:
                self._shelf.forget(id)  # its writer removes the rest
            else:
                self._shelf.remove(id)

    def _require(self, id: str) -> VideoRecord:
        if id not in self._records:
            raise UnknownStreamError(f"There is no video '{id:.80}'.")
        return self._records[id]

    # Taking

    def _read(self, fields: Mapping[str, str]) -> VideoOrder:
        """Fields to an order that the model can make, and for which there is room now."""
        self._require_queue()
        order = read_order(fields, self.facts, most_seconds=self.settings.most_seconds)
        self._maker.check(order, retry_after=self.settings.retry_after)
        return order

    def _require_queue(self) -> None:
        if self._closing:
            raise DrainingError("The server is about to end; ask again once it is back.")
        with self._changed:
            waiting = sum(record.status == "queued" for record in self._records.values())
        if waiting >= self.settings.most_queued:
            raise NoRoomError(
                f"{waiting} videos wait, and no more are taken now; ask again later.", self.settings.retry_after
            )

    def _record(
        self, id: str, order: VideoOrder, frames: int, *, image: str | None = None, video: str | None = None
    ) -> VideoRecord:
        seed = secrets.randbelow(_DRAWN) if order.seed is None else order.seed
        return VideoRecord(
            id=id,
            created=time.time(),
            status="queued",
            model=self.settings.model,
            prompt=order.prompt,
            sampling={"seed": seed, **order.options},
            frames=frames,
            fps=self.facts.fps,
            width=order.width * order.scale,
            height=order.height * order.scale,
            scale=order.scale,
            image=image,
            video=video,
        )

    @contextlib.contextmanager
    def _new(self) -> Iterator[str]:
        """A folder for a job, removed if the job is not taken."""
        id = self._shelf.new()
        try:
            yield id
        except BaseException:
            with contextlib.suppress(StoreError):  # what went wrong first is what matters
                self._shelf.remove(id)
            raise

    def _take(self, record: VideoRecord) -> VideoRecord:
        with self._changed:
            self._require_queue()
            finished = [one.id for one in self._records.values() if one.is_over]
            for id in finished[: max(0, len(self._records) + 1 - self.settings.most_kept)]:
                self._remove(id)
            self._shelf.write(record)
            self._records[record.id] = record
            self._changed.notify_all()
        return record

    def _sweep(self) -> None:
        now = time.time()
        for record in list(self._records.values()):
            if record.expires is not None and record.expires <= now:
                self._remove(record.id)

    def _remove(self, id: str) -> None:
        del self._records[id]
        try:
            self._shelf.remove(id)
        except StoreError as error:
            logger.warning("%s The video '%s' could not be removed.", error, id)

    # Making

    def _work(self) -> None:
        while (record := self._next()) is not None:
            try:
                self._finish(self._maker.make(record, self._goes_on))
            finally:
                with self._changed:
                    self._making = None

    def _next(self) -> VideoRecord | None:
        """The oldest job that is not over, noted as begun; None: the service is closing."""
        with self._changed:
            while True:
                self._sweep()
                if self._closing:
                    return None
                for record in self._records.values():
                    if not record.is_over:
                        self._making = record.id
                        begun = replace(record, status="in_progress", progress=0, attempts=record.attempts + 1)
                        return self._put(begun)
                self._changed.wait(_SWEPT_EVERY)

    def _goes_on(self, record: VideoRecord, progress: int) -> bool:
        """After a block: note how far it is; False ends it."""
        with self._changed:
            if record.id in self._records:
                self._records[record.id] = replace(record, progress=progress)
            return not self._closing and record.id in self._records

    def _finish(self, record: VideoRecord) -> None:
        """Keep what became of a job."""
        if record.is_over:
            now, keep = time.time(), self.settings.keep_seconds
            record = replace(record, completed=now, expires=None if keep is None else now + keep)
        with self._changed:
            if record.id in self._records:
                self._put(record)
                return
        with contextlib.suppress(StoreError):  # it was deleted meanwhile; the next start tries again
            self._shelf.remove(record.id)

    def _put(self, record: VideoRecord) -> VideoRecord:
        """Keep a job's record; where the disk refuses, the job has failed as long as this process lives."""
        try:
            self._shelf.write(record)
        except StoreError as error:
            logger.error("%s", error)
            record = replace(record, status="failed", error=str(error), error_code="storage_error")
        self._records[record.id] = record
        return record
