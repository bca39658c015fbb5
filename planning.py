"""From a call to its plan: everything is found right, and can be estimated, before any work is done.

The models' part in it: what lengths, sizes, prompts, pasts and policies they can serve. What no model has a say in,
the arguments check themselves (`search/request.py`).
"""

from dataclasses import replace

import torch

from .models.cost import ModelCosts, weight_bytes
from .models.pictures import read_clip, read_picture
from .models.streaming_decoder import StreamingWanDecoder
from .models.text import check_encoding
from .rewards.arguments import check_kind, check_rewards, chosen_reward, loaded_reward, warn_of_missed
from .search.choice import most_kept
from .search.estimate import RunEstimate, estimate_run
from .search.given_past import GivenPast
from .search.memory_sinking import MemoryPolicy
from .search.plan import SearchPlan, check_plan
from .search.policy_config import check_policy, policy_positions, policy_recache, policy_sink_frames
from .search.request import StreamRequest, VideoRequest
from .search.saved_run import check_new
from .search.script import PromptScript, check_cuts, check_embeds

REWARDS = ("image_reward", "video_reward")


class PlanningMixin:
    """`estimate`, and the plans of all calls, for the pipeline."""

    def estimate(
        self,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = VideoRequest.num_frames,
        **arguments: object,
    ) -> RunEstimate:
        """What a call will do and need, before it: work, operations, bytes by part.

        Nothing is loaded, computed or changed.

        Args:
            height, width, num_frames, arguments: those of `__call__`, with its defaults. A prompt is not needed; of
                several, the estimate is for one.

        Returns:
            `RunEstimate`; printed, it is a table. Weights are counted wherever they are now; of rewards, those that
            are modules, and not what they need while they work. A reward that is only named counts as work, not as
            weights.

        Raises:
            ValueError, TypeError: as `__call__`; or the search says nothing of its work.
        """
        request = VideoRequest(height=height, width=width, num_frames=num_frames, **arguments)
        if self.transformer is not None:
            request = request.with_some_prompt(self.transformer.config.text_dim)
        plan = self._plan(request)
        embeds = [change.embeds for change in plan.scripts[0].changes]
        num_tokens = max(request.max_sequence_length if each is None else each.shape[1] for each in embeds)
        models = {**self.components, **plan.rewards}
        modules = {id(model): name for name, model in reversed(models.items()) if isinstance(model, torch.nn.Module)}
        weights = {name: weight_bytes(models[name]) for name in reversed(modules.values())}
        costs = ModelCosts(self.transformer, self.vae, plan.latent_shape, num_tokens, plan.first_chunk_frames)
        return estimate_run(plan, costs, weights, self.geometry.pixel_frames)

    def check_inputs(self, request: VideoRequest, memory: MemoryPolicy, height: int, width: int) -> None:
        """Checks what depends on this pipeline's models.

        Raises:
            ValueError, TypeError: they cannot make what is asked for; the message says what they can.
        """
        if self.transformer is None:
            raise ValueError("This pipeline has no transformer: it can encode prompts and no more.")
        text_dim, tensor_inputs = self.transformer.config.text_dim, self._callback_tensor_inputs
        request.check(has_vae=self.vae is not None, text_dim=text_dim, tensor_inputs=tensor_inputs)
        if request.has_texts:
            check_encoding(self.tokenizer, self.text_encoder, request.max_sequence_length)
        for name, monitor in (request.monitors or {}).items():
            check_kind(f"monitors[{name!r}]", monitor)
        geometry, num_frames = self.geometry, request.num_frames
        given = {"height": request.height, "width": request.width}
        names = (name if value is not None else f"default_{name}" for name, value in given.items())
        geometry.check_size(height, width, tuple(names))
        geometry.check_window(self._sink_frames(memory), averages=getattr(memory, "averages", False))
        if num_frames is not None or not isinstance(request, StreamRequest):
            geometry.check_num_frames(num_frames)
        if policy_positions(memory) == "absolute":
            geometry.check_absolute_positions(num_frames, type(memory).__name__)

    def _plan(self, request: VideoRequest, of_one: str | None = None) -> SearchPlan:
        """The call, checked in full. Rewards that are only named are not loaded yet.

        Args:
            of_one: name of the method, if it is for one prompt.

        Raises:
            ValueError, TypeError: an invalid argument; the message says what is allowed.
        """
        policy = request.chosen_policy(self.config.memory)
        check_policy(policy)
        past = self._read_past(request)
        height, width = self._video_size(request, past)
        self.check_inputs(request, policy, height, width)
        if of_one is not None and request.num_prompts > 1:
            raise ValueError(f"`{of_one}` is for one video of one prompt; there are {request.num_prompts} prompts.")
        rewards = {name: chosen_reward(name, getattr(request, name), getattr(self, name)) for name in REWARDS}
        num_steps, sigmas = request.num_inference_steps, request.sigmas
        if num_steps is None and sigmas is None:
            steps = self.scheduler.steps_of_config(self.config.denoising_steps)
            sigmas = [step / self.scheduler.config.num_train_timesteps for step in steps]
        levels, device = self.scheduler.schedule(num_steps, sigmas), self._execution_device
        num_chunks, is_endless = getattr(request, "horizon", None), request.num_frames is None
        num_chunks = num_chunks if is_endless else self.geometry.num_chunks(request.num_frames)
        if past is not None and not is_endless:
            past.check_rest(num_chunks, self.geometry)
        plan = SearchPlan(
            request=request,
            search=request.chosen_search(any(reward is not None for reward in rewards.values())),
            policy=policy,
            scripts=tuple(request.scripts(self.geometry, None if is_endless else num_chunks)),
            recache=policy_recache(policy, request.recache),
            **rewards,
            monitors={} if request.monitors is None else dict(request.monitors),
            num_chunks=num_chunks,
            size=(height, width),
            latent_shape=self.geometry.chunk_shape(self.transformer.config.in_channels, height, width),
            first_chunk_frames=self.geometry.first_chunk_frames,
            window_frames=self.config.window_frames,
            sink_frames=self._sink_frames(policy),
            levels=(*levels, 0.0),
            timesteps=self.scheduler.timesteps_of(levels, device),
            fps=float(self.config.fps),
            device=device,
            dtype=self.transformer.dtype,
            past=past,
            num_given_chunks=0 if past is None else past.num_chunks(self.geometry),
        )
        self._check_rewards(plan)
        if plan.has_pixels:
            StreamingWanDecoder(self.vae).check()
        for script in plan.scripts:
            check_cuts(script, policy_positions(policy), self.config.window_frames, type(policy).__name__)
            check_embeds(script, self.transformer.config.text_dim, request.max_sequence_length)
        check_plan(plan)
        return plan

    def _read_past(self, request: VideoRequest) -> GivenPast | None:
        """What the call gives of the video, found right but not encoded yet.

        Raises:
            TypeError, ValueError: it cannot be read, is not as the models need it, or there is no VAE to encode it.
        """
        name = request.given_name
        if name is None or self.transformer is None:
            return None
        given = getattr(request, name)
        if name in ("image", "video"):
            if self.vae is None:
                raise ValueError(f"`{name}` is to be encoded, and this pipeline has no VAE; give `{name}_latents`.")
            StreamingWanDecoder(self.vae).check()
            given = read_picture(name, given) if name == "image" else read_clip(name, given, float(self.config.fps))
        return GivenPast.of(name, given, request.resize, self.geometry, self.transformer.config.in_channels)

    def _video_size(self, request: VideoRequest, past: GivenPast | None) -> tuple[int, int]:
        defaults, asked = (self.config.default_height, self.config.default_width), (request.height, request.width)
        if past is not None:
            return past.size(*asked, defaults, request.resize, self.geometry)
        return tuple(default if own is None else own for own, default in zip(asked, defaults, strict=True))

    def _sink_frames(self, policy: MemoryPolicy) -> int:
        """Latent frames of the first chunks, which the policy keeps for ever."""
        return self.geometry.filled_sink_frames(policy_sink_frames(policy, self.config.sink_frames))

    def _check_script(self, plan: SearchPlan, script: PromptScript) -> None:
        """Checks the prompts of one video against the models and rewards of a run."""
        num_tokens = plan.request.max_sequence_length
        if any(change.words is not None for change in script.changes):
            check_encoding(self.tokenizer, self.text_encoder, num_tokens)
        check_embeds(script, self.transformer.config.text_dim, num_tokens)
        self._check_rewards(replace(plan, scripts=(script,)))

    def _check_rewards(self, plan: SearchPlan) -> None:
        words = [text for each in plan.scripts for text in each.reward_prompts]
        has_pixels = self.vae is not None
        check_rewards(plan.rewards, words=words, num_beams=most_kept(plan.search), has_pixels=has_pixels)

    def _loaded(self, plan: SearchPlan) -> SearchPlan:
        """The plan with the rewards that it names, after everything else was found right."""
        device, request = plan.device, plan.request
        if request.save_to is not None:
            check_new(request.save_to)
        loaded = replace(
            plan,
            image_reward=loaded_reward("image_reward", plan.image_reward, device),
            video_reward=loaded_reward("video_reward", plan.video_reward, device),
            monitors={
                name: loaded_reward(f"monitors[{name!r}]", monitor, device) for name, monitor in plan.monitors.items()
            },
        )
        self._check_rewards(loaded)
        if (request.num_beams, request.num_candidates) != (1, 1):
            missed = [n for n in REWARDS if getattr(request, n) is None and getattr(loaded, n) is None]
            warn_of_missed(missed, self.config.reward_sources or {})
        return loaded
