"""Which ranks generate a stream together, in diffusers' terms, and whether a model can be split over them."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from arl2.attention.kind import SelfAttention
from arl2.attention.sequence_parallel import ALONE, SequenceParallel, all_answer
from arl2.errors import ConfigError

_DIMENSION = "ulysses"  # of a mesh, as in diffusers


def chosen_ranks(config: object, ulysses_degree: int | None, device: torch.device) -> SequenceParallel:
    """This process among those that share a stream; all processes call it together.

    Args:
        config: diffusers' ``ContextParallelConfig``, or its ``ParallelConfig`` around one; None for all processes.
        ulysses_degree: in place of a config; 1 for a process alone.
        device: of the model.

    Raises:
        ConfigError: a config of something else, both arguments, or ranks that the processes do not make up.
        ProcessLostError: a process that has ended.
    """
    mesh: DeviceMesh | None = None
    if config is not None:
        if ulysses_degree is not None:
            raise ConfigError("Got both config and ulysses_degree; give one of them.")
        ulysses_degree, mesh = _degree_and_mesh(config)
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    ranks = processes if ulysses_degree is None else ulysses_degree
    if type(ranks) is not int or ranks < 1:
        raise ConfigError(f"Got ulysses_degree {ranks!r:.40}; give a whole number from 1.")
    if ranks == 1:
        return ALONE
    if processes % ranks:
        begin = "; call torch.distributed.init_process_group() first" if processes == 1 else ""
        raise ConfigError(
            f"Got ulysses_degree {ranks}, but {processes} {'processes run' if processes > 1 else 'process runs'} "
            f"here: start a multiple of {ranks} with torchrun --nproc-per-node {ranks}{begin}."
        )
    if mesh is None:
        # Consecutive processes share a stream; further ones have streams of their own.
        sizes, names = (processes // ranks, ranks), ("streams", _DIMENSION)
        first = 1 if processes == ranks else 0
        with all_answer():
            mesh = init_device_mesh(device.type, sizes[first:], mesh_dim_names=names[first:])
    if mesh.ndim > 1 and _DIMENSION not in (mesh.mesh_dim_names or ()):
        raise ConfigError(f"The mesh has dimensions {mesh.mesh_dim_names}; name one of them '{_DIMENSION}'.")
    group = mesh.get_group(_DIMENSION if mesh.ndim > 1 else None)
    if dist.get_world_size(group) != ranks:
        raise ConfigError(
            f"The mesh has {dist.get_world_size(group)} ranks that share a stream, but ulysses_degree is {ranks}; "
            "give the same number."
        )
    return SequenceParallel(dist.get_rank(group), ranks, group, device)


def require_splits(layers: Sequence[SelfAttention], heads: int, ranks: int) -> None:
    """Refuse a model that cannot be split.

    Raises:
        ConfigError: heads that the ranks do not divide, or a kind of attention that does not say how it splits.
    """
    if heads % ranks:
        possible = ", ".join(str(count) for count in range(1, heads + 1) if heads % count == 0)
        raise ConfigError(f"{heads} heads cannot be shared evenly by {ranks} ranks; start one of {possible} processes.")
    unsplit = [layer.spec for layer in layers if not layer.splits_heads]
    if ranks > 1 and unsplit:
        raise ConfigError(
            f"Layers of the kind {unsplit[0].letter} ({unsplit[0].name}) do not say how they split over ranks; run "
            "them on one, or give their SelfAttention splits_heads."
        )


def _degree_and_mesh(config: object) -> tuple[int | None, DeviceMesh | None]:
    from diffusers import ContextParallelConfig, ParallelConfig

    ours = config.context_parallel_config if isinstance(config, ParallelConfig) else config
    if not isinstance(ours, ContextParallelConfig):
        raise ConfigError(f"Got config {config!r:.80}; give diffusers' ContextParallelConfig(ulysses_degree=N).")
    if (ours.ring_degree or 1) > 1:
        raise ConfigError(
            f"Got ring_degree {ours.ring_degree}, but recurrent states are split by heads, not passed around; use "
            "ulysses_degree alone."
        )
    return ours.ulysses_degree, ours.mesh
