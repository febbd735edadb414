"""One job at a time: checked before it is taken, and made into its files by the engine of all commands."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from arl2.errors import Arl2Error, GeometryError, is_out_of_memory
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.encoded import EncodedPrompts
from arl2.serving.engine import BlockDone, GenerationJob, JobSettings, TakesTurns
from arl2.serving.jobs import JobList
from arl2.serving.live.wire import NoRoomError
from arl2.serving.videos.order import FieldError, VideoOrder
from arl2.serving.videos.pictures import write_pictures
from arl2.serving.videos.room import require_room
from arl2.serving.videos.shelf import VIDEO, VideoRecord, VideoShelf
from arl2.streams.options import SamplingOptions
from arl2.video.formats import VideoFileError

logger = logging.getLogger(__name__)

GoesOn = Callable[[VideoRecord, int], bool]


class VideoMaker:
    """Makes the jobs of a shelf.

    Args:
        pipe: the model, on its device.
        shelf: holds their files.
        most_attempts: after which a job has failed without being begun once more.
        turns: of the model, where other streams run beside.
    """

    def __init__(self, pipe: ARL2Pipeline, shelf: VideoShelf, *, most_attempts: int, turns: TakesTurns | None) -> None:
        self._pipe, self._shelf, self._most_attempts, self._turns = pipe, shelf, most_attempts, turns

    def pipe_of(self, width: int, height: int) -> ARL2Pipeline:
        """The same model for pictures of another size."""
        pipe = self._pipe
        if (width, height) == (pipe.settings.width, pipe.settings.height):
            return pipe
        settings = replace(pipe.settings, width=width, height=height)
        return ARL2Pipeline(pipe.transformer, pipe.codec, pipe.text, settings, pipe.verifier)

    def check(self, order: VideoOrder, *, retry_after: float) -> None:
        """Refuse what the model cannot make, before any work.

        Raises:
            FieldError: a size, a prompt or an option that does not go with the model.
            NoRoomError: there is no memory for it.
        """
        with self.blaming("size"):
            pipe = self.pipe_of(order.width, order.height)
            checked = pipe.check(SamplingOptions(num_frames=order.frames, seed=order.seed, **order.options))
        require_room(pipe, checked, retry_after=retry_after)
        with self.blaming("prompt"), self._turn(), torch.no_grad():
            EncodedPrompts(pipe.text, pipe.settings).of([order.prompt])

    def make(self, record: VideoRecord, goes_on: GoesOn) -> VideoRecord:
        """Make a job's files.

        Args:
            record: as it was begun.
            goes_on: called after every block with the percents done; False ends it.

        Returns:
            What became of it: completed, failed, or, where it was ended, queued.
        """
        if record.attempts > self._most_attempts:
            return _failed(record, "The server ended each time that this video was made.", "server_error")
        try:
            return self._made(record, goes_on)
        except (Arl2Error, OSError) as error:
            causes = (error, error.__cause__)
            refused = any(isinstance(cause, OSError | VideoFileError) for cause in causes)
            code = "storage_error" if refused else "generation_failed"
            logger.warning("The video '%s' has failed: %s", record.id, error)
            return _failed(record, self._without_places(error), code)
        except Exception as error:  # one job is not to end the others
            if is_out_of_memory(error):
                return _failed(record, "There was too little memory; ask for a smaller or shorter video.", "no_memory")
            logger.exception("The video '%s' has failed.", record.id)
            return _failed(record, "A fault of the server, which its log describes.", "server_error")

    def _made(self, record: VideoRecord, goes_on: GoesOn) -> VideoRecord:
        work = self._jobs(record)
        with closing(work.run()) as events:
            for event in events:
                if isinstance(event, BlockDone):
                    share = event.report.share or 0.0
                    if not goes_on(record, min(99, int(100 * share))):
                        return replace(record, status="queued", progress=0, attempts=record.attempts - 1)
        write_pictures(self._shelf.path(record.id, VIDEO), record.frames)
        return replace(record, status="completed", progress=100)

    def _jobs(self, record: VideoRecord) -> JobList:
        """The record as a list of one job."""
        options: dict[str, Any] = {name: value for name, value in record.sampling.items() if name != "seed"}
        given: dict[str, Any] = {
            name: None if upload is None else self._shelf.path(record.id, upload)
            for name, upload in (("image", record.image), ("video", record.video))
        }
        job = GenerationJob(
            number=0,
            prompt=record.prompt,
            seed=record.sampling["seed"],
            frames=record.frames,
            path=self._shelf.path(record.id, VIDEO),
            **given,
        )
        settings = JobSettings(model=record.model, sampling=SamplingOptions(**options), scale=record.scale)
        pipe = self.pipe_of(record.width // record.scale, record.height // record.scale)
        return JobList(pipe, [job], settings, self._turns)

    @contextlib.contextmanager
    def blaming(self, param: str) -> Iterator[None]:
        """Errors are those of a field, and name no places of this machine."""
        try:
            yield
        except (FieldError, NoRoomError):
            raise
        except Arl2Error as error:
            # Options are checked together; what is no size is said by its own name.
            blamed = param if param != "size" or isinstance(error, GeometryError) else None
            raise FieldError(self._without_places(error), blamed) from error

    def _turn(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._turns is None else self._turns.denoise

    def _without_places(self, error: Exception) -> str:
        said = str(error)
        if isinstance(error, OSError) and not isinstance(error, Arl2Error):
            said = error.strerror or said
        for place in (self._shelf.folder, self._shelf.folder.resolve()):
            said = said.replace(f"{place}/", "")
        return said


def _failed(record: VideoRecord, error: str, code: str) -> VideoRecord:
    return replace(record, status="failed", error=error, error_code=code)
