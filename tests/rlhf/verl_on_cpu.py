"""What verl needs to know to train without a GPU, by its own registries: a device, FSDP2 on it, and transformers instead of vLLM.

    VERL_USE_EXTERNAL_MODULES=maxmin_rlhf.integrations.verl,tests.rlhf.verl_on_cpu VERL_PLATFORM=cpu ...

with ``actor.strategy=fsdp2``, ``rollout.name=transformers``, ``trainer.device=cpu``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import types
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry
from verl.utils import distributed, import_utils

SERVER = "stories"


@PlatformRegistry.register("cpu")
class Cpu(PlatformBase):
    """A device of which there is one, whose memory nobody counts."""

    device_name = vendor_name = "cpu"

    @functools.cached_property
    def device_module(self) -> Any:
        module = types.ModuleType("torch.cpu")
        module.__dict__.update(torch.cpu.__dict__)
        names = (
            "max_memory_allocated",
            "max_memory_reserved",
            "memory_allocated",
            "memory_reserved",
        )
        module.__dict__.update(dict.fromkeys(names, lambda *_: 0))
        module.__dict__.update(
            mem_get_info=lambda *_: (0, 0),
            empty_cache=lambda: None,
            get_device_name=lambda *_: "CPU",
            manual_seed=torch.manual_seed,
            get_rng_state=torch.get_rng_state,
            set_rng_state=torch.set_rng_state,
        )
        return module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: Any = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return contextlib.nullcontext()

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None


def _process_group(timeout_second: Any = None, backend: Any = None) -> None:
    """verl's names CPU and device side by side, which torch refuses where they are one."""
    if not torch.distributed.is_initialized():
        rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=size)


distributed.initialize_global_process_group_ray = _process_group
# It patches a class that TRL 1.13 has no more.
import_utils.is_trl_available = lambda: False


def register() -> None:
    import ray
    from transformers import AutoModelForCausalLM
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.rollout import base, replica

    EngineRegistry.register("language_model", "fsdp2", "cpu")(FSDPEngineWithLMHead)

    @ray.remote(num_cpus=0)
    class Server:
        def __init__(self, path: str, tokens: int) -> None:
            self.model = AutoModelForCausalLM.from_pretrained(path).eval()
            self.tokens, self.step = tokens, 0
            torch.manual_seed(0)

        async def generate(
            self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
        ) -> Any:
            ids = torch.tensor([prompt_ids])
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.tokens,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=sampling_params["temperature"],
                return_dict_in_generate=True,
                output_logits=True,
            )
            said = out.sequences[0, len(prompt_ids) :]
            logs = torch.cat(out.logits).log_softmax(-1).gather(1, said[:, None])[:, 0]
            return replica.TokenOutput(
                token_ids=said.tolist(),
                log_probs=logs.tolist(),
                stop_reason="completed",
                extra_fields={"global_steps": self.step},
            )

        async def load(self, state: dict[str, Any], step: int) -> None:
            self.model.load_state_dict(state, strict=False)
            self.step = step

        async def sleep(self) -> None: ...

        async def wake_up(self) -> None: ...

    class Replica(replica.RolloutReplica):
        async def launch_servers(self) -> None:
            options = {"name": SERVER, "max_concurrency": 1}
            self._server_handle = Server.options(**options).remote(
                self.model_config.path, self.config.response_length
            )
            self._server_address, self.servers = SERVER, [self._server_handle]

    class Adapter(base.BaseRollout):
        async def resume(self, tags: Any) -> None: ...

        async def release(self) -> None: ...

        async def update_weights(self, weights: Any, global_steps: int = 0, **_: Any) -> None:
            state = {name: tensor.detach().clone() for name, tensor in weights}
            await ray.get_actor(SERVER).load.remote(state, global_steps)

    globals()["Adapter"] = Adapter
    base._ROLLOUT_REGISTRY["transformers", "async"] = f"{__name__}.Adapter"
    replica.RolloutReplicaRegistry.register("transformers", lambda: Replica)


register()
