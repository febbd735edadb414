"""Passes at the sizes of 14B with offloaded layers, on fake CUDA tensors: what is copied, and what lies where."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from arl2.evaluation.account import accounted
from arl2.kernels.backends import use_backends
from arl2.model.cost import offloaded_size, transformer_size
from arl2.model.offload import Mark
from arl2.model.precision import parameter_dtype
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel
from gpu.fake_cuda import fake_cuda, needs_fake_cuda, needs_triton

PLAN = "HSH"  # of 40 layers, which all go the same way


class Counted:
    """Copies at once; what they are, is noted."""

    def __init__(self) -> None:
        self.copied: list[int] = []
        self.locked = self.kept = 0

    def lock_pages(self, host: Tensor) -> Callable[[], None] | None:
        assert host.device.type == "cpu"
        self.locked += host.nbytes
        return None

    def keep(self, slot: Tensor) -> None:
        assert slot.device.type == "cuda"
        self.kept += slot.nbytes

    def start(self, target: Tensor, source: Tensor, *, after: Mark) -> Mark:
        assert (target.device.type, source.device.type) == ("cuda", "cpu")
        self.copied.append(target.nbytes)
        target.copy_(source)
        return None

    def mark(self) -> Mark:
        return None

    def wait(self, mark: Mark) -> None:
        pass


@contextmanager
def offloaded() -> Iterator[tuple[CausalWanTransformer3DModel, Counted]]:
    """In bfloat16, with LoRA adapters as published."""
    with fake_cuda(), torch.no_grad(), use_backends(elementwise="triton", delta_rule="triton"):
        config = preset_config("wan2.1-t2v-14b", window=12, state_rank=16, ffn_rank=16, layer_plan=PLAN)
        model = CausalWanTransformer3DModel(**config).eval()
        for name, parameter in list(model.named_parameters()):
            owner, _, last = name.rpartition(".")
            # Module.to cannot move fake parameters.
            place = "cpu" if name.startswith("layers.") and not name.endswith(".modulation") else "cuda"
            cast = parameter.detach().to(place, parameter_dtype(name, torch.bfloat16))
            setattr(model.get_submodule(owner), last, nn.Parameter(cast, requires_grad=False))
        queue = Counted()
        model.layers.offload("cuda", queue)
        yield model, queue


@needs_fake_cuda
@needs_triton
def test_the_weights_of_layers_are_all_that_is_copied():
    with offloaded() as (model, queue):
        size = offloaded_size(transformer_size(model.config), torch.bfloat16)
        assert queue.locked == size.host
        staying = [tensor for tensor in model.state_dict().values() if tensor.device.type == "cuda"]
        assert queue.kept + sum(tensor.nbytes for tensor in staying) == size.device
        small = {name.partition(".")[0] for name, x in model.state_dict().items() if x.device.type == "cuda"}
        assert small == {"patch_embedding", "time_embedder", "text_embedder", "layers", "head"}

        memory = model.allocate_memory(batch=1, height=60, width=104)
        latents = torch.randn(1, 16, 3, 60, 104, device="cuda")
        timestep = torch.full((1, 3), 500.0, device="cuda", dtype=torch.float64)
        prompt = model.prompt_context(torch.empty(1, 512, 4096, device="cuda", dtype=torch.bfloat16))
        assert len(queue.copied) == len(PLAN) + 1  # and the first one of the pass to come
        for run in (model.commit, model.predict):
            before = len(queue.copied)
            with accounted() as account:
                run(latents, timestep, prompt, memory)
            own = queue.copied[before:]
            assert len(own) == len(PLAN)
            assert sum(own) == size.host
            assert account.transfers == ["copy_ in test_offload_account.start"] * len(PLAN)
            assert account.waits == account.mixed == []
