"""A server of video jobs of the stand-in model, as a program: ``python -m serving.web.video_server FOLDER``.

Also for one process, as a context. It prints its address when it answers.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arl2.serving.videos.service import VideoService, VideoSettings
from arl2.serving.web.app import create_app
from arl2.serving.web.server import Server, address_of, bind
from arl2.serving.web.settings import ModelFacts, WebSettings
from arl2.serving.web.videos import videos_router
from pipeline.stand_in import stand_in_pipeline
from serving.web.fake_host import FakeHost

FACTS = ModelFacts(name="stand-in", width=64, height=64, fps=16)


@contextmanager
def serving(service: VideoService) -> Iterator[str]:
    """The address of a server over a service."""
    host, listening = FakeHost(), bind("127.0.0.1", 0)
    settings = WebSettings(model=FACTS)
    app = create_app(host, settings, routers=(videos_router(service),), jobs=service.counts)
    server = Server(app, drain=host.drain)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve([listening]),))
    thread.start()
    try:
        yield address_of(listening)
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join()
        loop.close()
        listening.close()
        service.close()


def main() -> None:
    """Serve until this process is killed."""
    service = VideoService(stand_in_pipeline(), Path(sys.argv[1]), VideoSettings(model="stand-in"))
    with serving(service) as address:
        print(address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
