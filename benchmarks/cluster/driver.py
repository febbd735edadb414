"""A process with Ray and Serve in it, steered by lines of JSON on its standard input; answers are lines, too.

The tests' own process never imports Ray. The application is deployed as ``serve deploy`` and KubeRay do it: by its
import path, so that another number of workers changes nothing else.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

APP = "arl2"


def deploy(arguments: dict[str, Any], workers: int, fronts: int) -> None:
    """Deploy, or change the numbers of what is deployed; returns when all run."""
    application = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "arl2.serving.cluster:build",
        "args": arguments,
        "deployments": [{"name": "worker", "num_replicas": workers}, {"name": "front", "num_replicas": fronts}],
    }
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]))


def wait(workers: int, fronts: int, seconds: float = 120) -> None:
    wanted = {"worker": {"RUNNING": workers}, "front": {"RUNNING": fronts}}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = serve.status().applications[APP]
        states = {name: dict(one.replica_states) for name, one in status.deployments.items()}
        if states == wanted:
            return
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RuntimeError(f"{status.status}: {status.message} {status.deployments}")
        time.sleep(0.1)
    raise TimeoutError(f"{states} instead of {wanted}")


async def do(ask: dict[str, Any]) -> Any:
    handle = serve.get_deployment_handle(ask.get("of", "worker"), APP)
    if ask["do"] == "owner":  # the workers that the router names, asked a few times; none while one dies
        asked = await asyncio.gather(
            *(handle.options(session_id=ask["stream"]).process.remote() for _ in range(ask.get("times", 1))),
            return_exceptions=True,
        )
        return sorted({tuple(one) for one in asked if not isinstance(one, BaseException)})
    if ask["do"] == "processes":
        return sorted(await everywhere(handle, "process"))
    if ask["do"] == "running":  # whether the worker that the router names runs it, and how many do in all
        (named,) = await asyncio.gather(
            handle.options(session_id=ask["stream"]).running.remote(), return_exceptions=True
        )
        each = [[] if isinstance(one, BaseException) else one for one in (named, *await everywhere(handle, "running"))]
        here, *others = [ask["stream"] in [info.id for info in one] for one in each]
        return [here, sum(others)]
    raise ValueError(ask)


async def everywhere(handle: Any, method: str) -> list[Any]:
    """Answers of all that live."""
    answers = await handle.broadcast(method).results_async(return_exceptions=True)
    return [one for one in answers if not isinstance(one, BaseException)]


def main() -> None:
    # What Ray prints goes where errors go: this process's output is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    arguments = json.loads(sys.argv[1])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=sys.argv[3],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    deploy(arguments, 2, 1)
    wait(2, 1)
    print(json.dumps({"up": os.getpid()}), file=answers, flush=True)
    loop = asyncio.new_event_loop()
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            if ask["do"] == "scale":
                deploy(arguments, ask["workers"], ask["fronts"])
                wait(ask["workers"], ask["fronts"])
                answer: Any = "done"
            else:
                answer = loop.run_until_complete(do(ask))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
