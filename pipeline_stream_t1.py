"""Stream-T1: test-time search over a streaming text-to-video model (arXiv 2605.04461), as a diffusers pipeline.

A causal Wan transformer makes the video chunk by chunk. At every chunk each kept beam tries several candidates;
rewards score the decoded frames; the best candidates become the next beams, and their rewards decide what is
remembered.

    for every chunk:
        candidates = propose(beams)     unit 1, noise correlated with the beam's own: search/noise_propagation.py
        candidates = score(candidates)  unit 2, image and video reward, fused: search/reward_pruning.py
        kept = the best of them
        beams = commit(kept)            unit 3, a clean pass, then the oldest chunk is routed: search/memory_sinking.py

Axes: B batch, C channels, F latent frames (or pixel frames), H and W height and width, h and w those of latents,
L text tokens.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, SchedulerMixin, WanTransformer3DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from .loaders.folder import FolderMixin
from .loaders.hooks import HooksMixin
from .models.alignment import align_weights
from .models.cost import ModelCosts, weight_bytes
from .models.memory import CachedChunk, ChunkContext, ChunkMemory, ChunkRecord, PromptMemory
from .models.pixels import OUTPUT_TYPES, stack, thumbnail, to_output, to_uint8
from .models.streaming_decoder import StreamingWanDecoder
from .models.transformer_causal_wan import CausalWanTransformer3DModel
from .rewards.base import RewardFormatError, as_component
from .rewards.scoring import (
    RewardFunction,
    RewardScore,
    check_readable,
    check_request,
    resolve_reward,
    score_clips,
)
from .rewards.shipped import SHIPPED_REWARDS  # noqa: F401 - registers every kind of reward, for folders and Hub ids
from .schedulers.few_step_flow_match import FewStepFlowMatchScheduler
from .search.beam import Beam, Candidate, alive_indices, lose, newest, set_aside
from .search.estimate import RunEstimate, estimate_run
from .search.geometry import VideoGeometry, check_chunk_multiple, check_whole_number
from .search.memory_sinking import MemoryPolicy, decided_route, make_room
from .search.noise_propagation import (
    SEED_MODES,
    base_seed,
    candidate_generator,
    draw_noise,
    propagate_noise,
    split_evenly,
)
from .search.outputs import NoCandidateLeftError, StreamChunk, StreamT1PipelineOutput
from .search.plan import PromptSearch, SearchPlan, check_kept, check_noise
from .search.request import VideoRequest
from .search.reward_pruning import fuse_scores, keep_best, normalize_scores, order_by
from .search.settings import (
    check_policy,
    policy_config,
    policy_from_config,
    policy_positions,
    policy_sink_frames,
)
from .search.trace import CandidateTrace, ChunkTrace, ChunkWork, EvictionTrace, FinalTrace, SearchTrace

__version__ = "0.1.0"

logger = logging.get_logger(__name__)

# How `model_index.json` names these components: a saved folder loads wherever diffusers does, and holds no rewards.
SAVED_AS = {
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "image_reward": (None, None),
    "video_reward": (None, None),
}


class StreamT1Pipeline(FolderMixin, HooksMixin, DiffusionPipeline, WanLoraLoaderMixin):
    """Text to video, chunk by chunk, with a search over candidates at every chunk.

    Every component may be None where a call does not need it: `text_encoder` and `tokenizer` with `prompt_embeds`,
    `vae` with `output_type="latent"` and no rewards. A stock `WanTransformer3DModel` is made causal in place and keeps
    serving `WanPipeline`; a stock flow-match scheduler lends its `shift`.

    Args:
        tokenizer: of the text encoder.
        text_encoder: UMT5.
        transformer: Wan 2.1 text-to-video, distilled for few steps and causal chunks.
        vae: of Wan 2.1, or of its layout.
        scheduler: few-step flow matching, or a stock flow-match scheduler.
        image_reward, video_reward: what a call uses when it names none: `reward(frames, prompt, fps)`, or the folder
            or Hub id of a converted reward.
        chunk_frames: latent frames that are denoised together.
        window_frames: latent frames of context, the first sink and the current chunk included.
        sink_frames: latent frames at the beginning of the video that never leave.
        denoising_steps: 1000 times the noise levels before the scheduler's shift.
        fps: of the videos, for rewards that need it.
        default_height, default_width: pixels, when a call names none.
        memory: the policy when a call names none, one of those in `search/memory_sinking.py` or its config; default
            `RewardRoutedSink()`.
        reward_sources: Hub ids of the rewards with which the pipeline was saved. None is loaded by itself.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds"]
    _exclude_from_cpu_offload = ["image_reward", "video_reward"]  # where the models run is not for a reward to say
    _optional_components = ["tokenizer", "text_encoder", "transformer", "vae", "image_reward", "video_reward"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: UMT5EncoderModel | None,
        transformer: WanTransformer3DModel | CausalWanTransformer3DModel | None,
        vae: AutoencoderKLWan | None,
        scheduler: SchedulerMixin,
        image_reward: Callable | str | None = None,  # no narrower: diffusers checks what it loads against these types
        video_reward: Callable | str | None = None,
        chunk_frames: int = 3,
        window_frames: int = 12,
        sink_frames: int = 3,
        denoising_steps: list[int] | tuple[int, ...] = (1000, 750, 500, 250),
        fps: int = 16,
        default_height: int = 480,
        default_width: int = 832,
        memory: MemoryPolicy | dict | None = None,
        reward_sources: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_to_config(reward_sources=reward_sources)
        check_whole_number("chunk_frames", chunk_frames, least=1)
        check_chunk_multiple("window_frames", window_frames, chunk_frames)
        check_chunk_multiple("sink_frames", sink_frames, chunk_frames)
        if not fps > 0:
            raise ValueError(f"`fps` is {fps}; it must be above 0.")
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            image_reward=as_component(image_reward),
            video_reward=as_component(video_reward),
        )
        self.register_to_config(
            chunk_frames=chunk_frames,
            window_frames=window_frames,
            sink_frames=sink_frames,
            denoising_steps=tuple(denoising_steps),
            fps=fps,
            default_height=default_height,
            default_width=default_width,
            memory=policy_config(memory),
        )
        self.geometry.check_window(sink_frames)
        if None not in (transformer, vae) and transformer.config.in_channels != vae.config.z_dim:
            raise ValueError(
                f"`transformer` reads {transformer.config.in_channels} channels and `vae` makes {vae.config.z_dim}: "
                "they are of different models, or the transformer is of an image-to-video one."
            )
        self._interrupt, self._aligned_models = False, None

    def __setattr__(self, name: str, value: object) -> None:
        """A component is made fit for the search whoever sets it: the constructor, diffusers or the user."""
        if name == "transformer" and value is not None:
            value = CausalWanTransformer3DModel.adopt(value)
        elif name == "scheduler":
            value = FewStepFlowMatchScheduler.adopt(value)
        elif name in ("image_reward", "video_reward"):
            value = as_component(value)
        super().__setattr__(name, value)
        if name in SAVED_AS:
            self.register_to_config(**{name: (None, None) if value is None else SAVED_AS[name]})
        if getattr(value, "source", None) is not None and name in ("image_reward", "video_reward"):
            self.register_to_config(reward_sources={**(self.config.reward_sources or {}), name: value.source})

    @property
    def geometry(self) -> VideoGeometry:
        """Which lengths and sizes this pipeline's models make."""
        vae = None if self.vae is None else self.vae.config
        transformer = None if self.transformer is None else self.transformer.config
        spatial_factor = 8 if vae is None else vae.scale_factor_spatial
        _, patch_height, patch_width = (1, 2, 2) if transformer is None else transformer.patch_size
        return VideoGeometry(
            chunk_frames=self.config.chunk_frames,
            window_frames=self.config.window_frames,
            temporal_factor=4 if vae is None else vae.scale_factor_temporal,
            row_factor=spatial_factor * patch_height,
            column_factor=spatial_factor * patch_width,
            longest_frames=1024 if transformer is None else transformer.rope_max_seq_len,
        )

    @property
    def device(self) -> torch.device:
        """That of the transformer, else of the VAE, else of the text encoder; rewards have no say."""
        models = (self.transformer, self.vae, self.text_encoder)
        return next((model.device for model in models if model is not None), torch.device("cpu"))

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback, and the call returns the chunks that are finished."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of one chunk."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        return self._current_timestep

    @property
    def attention_kwargs(self) -> dict[str, float] | None:
        return self._attention_kwargs

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 81,
        num_inference_steps: int | None = None,
        sigmas: list[float] | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, float] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: int = 512,
        *,
        num_beams: int = 2,
        num_candidates: int = 2,
        noise_correlation: float = -0.1,
        image_reward: RewardFunction | str | bool | None = None,
        video_reward: RewardFunction | str | bool | None = None,
        reward_prompt: str | list[str] | None = None,
        monitors: dict[str, RewardFunction | str] | None = None,
        short_weight_cap: float = 0.4,
        score_normalization: str | None = None,
        reward_window: int = 10,
        memory: MemoryPolicy | None = None,
        candidate_seeds: str = "independent",
        final_selection: str = "video_reward",
        max_lag: int | None = None,
        callback_on_chunk_end: Callable | None = None,
        trace_thumbnails: bool = False,
    ) -> StreamT1PipelineOutput | tuple:
        """Makes videos.

        Args:
            prompt: what to show; a list makes a video of each, one after the other.
            height, width: pixels; multiples of the VAE's factor times the transformer's patch.
            num_frames: pixels' frames, `4 * (latent frames - 1) + 1` with latent frames a multiple of `chunk_frames`.
            num_inference_steps: steps per chunk, evenly spaced before the shift. Default: the model's own steps.
            sigmas: noise levels before the shift, in the place of a number of steps.
            num_videos_per_prompt: how many of the last beams to return, at most `num_beams`.
            generator: gives the base of all seeds; one per prompt when a list.
            latents: (B, C, F, h, w), the initial noise of the whole videos. For one beam and one candidate.
            prompt_embeds: (B, L, text dim), in the place of `prompt`; used as given, never padded.
            output_type: "np", "pt", "pil" or "latent". Pixels are kept as 8 bits.
            return_dict: False gives `(frames, traces)`.
            attention_kwargs: for the transformer; `scale` of a LoRA.
            callback_on_step_end: `f(pipe, step, timestep, tensors) -> tensors`. `step` counts within a chunk;
                `latents` are those of the candidates of one beam.
            callback_on_step_end_tensor_inputs: of "latents" (the default) and "prompt_embeds".
            max_sequence_length: tokens to which prompts are padded with zeros.
            num_beams: K, beams kept after each chunk. 1 with one candidate is plain streaming.
            num_candidates: M, candidates tried per beam.
            noise_correlation: beta, between a candidate's noise and its beam's last noise (paper 3.1).
            image_reward, video_reward: `reward(frames, prompt, fps)` with frames (B, F, 3, H, W) in [0, 1], B texts
                and frames per second, gives a float tensor (B,) or a `RewardOutput`. The image reward sees the new
                chunk, the video reward the last `reward_window` chunks. None: the component; False: none, it scores
                0; a converted reward's folder or Hub id is loaded for this call.
            reward_prompt: what rewards read, when it is not the prompt.
            monitors: rewards under names, recorded for the kept candidates (`trace.monitors`) and never searched by.
                They see the last `reward_window` chunks.
            short_weight_cap: tau, the most that the image reward weighs (paper 3.2).
            score_normalization: "zscore" or "rank" over the candidates of a chunk, each reward by itself.
            reward_window: chunks.
            memory: the policy that routes chunks which leave the window (paper 3.3). Default: the model's own.
            candidate_seeds: "independent", or "reference": the authors' seeds, which re-use some.
            final_selection: order of the last beams: by "video_reward" on the whole video, or by "score", the last
                chunk's. Without a video reward it is the score.
            max_lag: chunks after which all beams must agree with the best: those that do not are dropped, so that a
                stream is never further behind. None: they need not.
            callback_on_chunk_end: `f(pipe, chunk_index, {"candidates": [...], "kept": [...]}) -> dict or None`.
                `kept` are indices into `candidates`, best first; a returned `kept` replaces the choice.
            trace_thumbnails: keep a small picture of every candidate in the trace.

        Returns:
            `StreamT1PipelineOutput`. After Ctrl-C or an interrupt: the finished chunks, of the prompts that have some.

        Raises:
            ValueError, TypeError: an argument that can't be, before any work.
            NoCandidateLeftError: all candidates of a chunk were lost.
        """
        arguments = {name: value for name, value in locals().items() if name != "self"}
        request = VideoRequest(**arguments)
        plan, self._interrupt = self._plan(request), False
        searches = self._searches(request, plan)
        try:
            self._run(searches)
        except NoCandidateLeftError as error:
            error.frames = _videos(searches, output_type)
            raise
        finally:
            self._end(searches)
        traces = [search.trace for search in searches if search.trace.chunks]
        frames = _videos(searches, output_type)
        return StreamT1PipelineOutput(frames=frames, traces=traces) if return_dict else (frames, traces)

    def stream(self, *args: object, horizon: int | None = None, **arguments: object) -> Iterator[StreamChunk]:
        """Makes one video and gives its chunks as soon as they can change no more.

        With one beam a chunk is given as soon as it is made; with several, when all kept beams share it, which
        `max_lag` forces. What is given, one after the other, is what `__call__` returns for the same arguments.
        Closing the generator, or leaving the loop over it, frees all that the search held.

        Args:
            args, arguments: those of `__call__`, for one prompt and one video. `num_frames=None` is an endless
                stream: it needs a memory policy with relative positions, and keeps neither the chunks that it has
                given away nor their records, but for the last `horizon`.
            horizon: chunks that the search of an endless stream counts on, the N of unit 2.

        Returns:
            A generator of `StreamChunk`. Set `pipe._interrupt = True` in a callback, and it gives what is finished
            and ends.

        Raises:
            ValueError, TypeError: as `__call__`, at once and not with the first chunk.
            NoCandidateLeftError: all candidates of a chunk were lost; its `frames` are those not yet given.
        """
        call = inspect.signature(self.__call__).bind(*args, **arguments)
        call.apply_defaults()
        request = VideoRequest(**call.arguments, horizon=horizon)
        request.check_end()
        plan = self._plan(request)
        request.check_single()
        self._interrupt = False
        return self._stream(request, plan)

    @torch.no_grad()
    def _stream(self, request: VideoRequest, plan: SearchPlan) -> Iterator[StreamChunk]:
        (search,) = searches = self._searches(request, plan)
        num_given = 0
        try:
            with self._progress_bar(None if plan.is_endless else plan.num_chunks, desc="chunks") as progress:
                while self._advance(search):
                    progress.update()
                    if plan.is_last(search.chunk_index - 1):
                        self._finish(search)
                        break
                    for index in range(num_given, search.num_settled(num_given)):
                        num_given = index + 1
                        yield _stream_chunk(search, search.beams[0], index, request.output_type)
                    search.forget(num_given)
            search.settle_by_score()
            for index in range(num_given, search.chunk_index):
                yield _stream_chunk(search, search.best_beams()[0], index, request.output_type)
        except NoCandidateLeftError as error:
            error.frames = _videos(searches, request.output_type, num_given)
            raise
        finally:
            self._end(searches)

    def estimate(
        self,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_beams: int | None = None,
        num_candidates: int | None = None,
        **arguments: object,
    ) -> RunEstimate:
        """What a call will do and need, at most, before it: work, operations, bytes by part. Nothing is computed.

        Args:
            height, width, num_frames, num_beams, num_candidates, arguments: those of `__call__`, with its defaults. A
                prompt is not needed; the estimate is for one.

        Returns:
            `RunEstimate`; printed, it is a table. Weights are counted wherever they are now; of rewards, those that
            are modules, and not what they need while they work.

        Raises:
            ValueError, TypeError: as `__call__`.
        """
        sizes = {"height": height, "width": width, "num_frames": num_frames}
        sizes |= {"num_beams": num_beams, "num_candidates": num_candidates}
        given = {name: value for name, value in sizes.items() if value is not None}
        call = inspect.signature(self.__call__).bind(**given, **arguments)
        call.apply_defaults()
        given = call.arguments["prompt_embeds"]
        num_tokens = call.arguments["max_sequence_length"] if given is None else given.shape[1]
        text_dim = 1 if self.transformer is None else self.transformer.config.text_dim
        prompt_embeds = torch.empty(1, num_tokens, text_dim, device="meta")
        request = VideoRequest(
            **call.arguments | {"prompt": None, "prompt_embeds": prompt_embeds, "reward_prompt": ""}
        )
        plan = self._plan(request)
        models = {**self.components, "image_reward": plan.image_reward, "video_reward": plan.video_reward}
        models |= {f"monitors[{name!r}]": monitor for name, monitor in plan.monitors.items()}
        modules = {id(model): name for name, model in reversed(models.items()) if isinstance(model, torch.nn.Module)}
        weights = {name: weight_bytes(models[name]) for name in reversed(modules.values())}
        costs = ModelCosts(self.transformer, self.vae, plan.latent_shape, num_tokens)
        first_frames = self.geometry.num_frames(1)
        return estimate_run(plan, costs, weights, (first_frames, self.geometry.num_frames(2) - first_frames))

    def _plan(self, request: VideoRequest) -> SearchPlan:
        """What the searches have in common, after all checks that come before any work.

        Raises:
            ValueError, TypeError: an argument that can't be; the message says what can.
        """
        settings, device = request.settings(), self._execution_device
        memory = policy_from_config(self.config.memory) if request.memory is None else request.memory
        height = self.config.default_height if request.height is None else request.height
        width = self.config.default_width if request.width is None else request.width
        self.check_inputs(request, memory, height, width)
        image_reward = resolve_reward("image_reward", request.image_reward, self.image_reward, device)
        video_reward = resolve_reward("video_reward", request.video_reward, self.video_reward, device)
        rewards = {"image_reward": image_reward, "video_reward": video_reward}
        watched = {f"monitors[{name!r}]": reward for name, reward in (request.monitors or {}).items()}
        watched = {name: resolve_reward(name, reward, None, device) for name, reward in watched.items()}
        for name, reward in (rewards | watched).items():
            check_readable(name, reward, None not in request.reward_prompts(), self.vae is not None)
            check_request(reward, [text or "" for text in request.reward_prompts()], settings.num_beams)
            if reward is None and settings.num_beams * settings.num_candidates > 1:
                source = (self.config.reward_sources or {}).get(name)
                hint = f" The pipeline was saved with the one of `{name}={source!r}`." if source else ""
                logger.warning(f"There is no `{name}`: it scores 0.{hint}")
        self._num_timesteps = self._set_timesteps(request.num_inference_steps, request.sigmas, device)
        num_chunks = request.horizon
        if num_chunks is None:
            num_chunks = self.geometry.num_chunks(request.num_frames)
        is_seen = image_reward is not None or video_reward is not None or bool(watched) or request.trace_thumbnails
        has_pixels = request.output_type != "latent" or is_seen
        if has_pixels:
            StreamingWanDecoder(self.vae).check()
        plan = SearchPlan(
            settings=settings,
            policy=memory,
            image_reward=image_reward,
            video_reward=video_reward,
            monitors=dict(zip(request.monitors or {}, watched.values(), strict=True)),
            num_frames=request.num_frames,
            num_chunks=num_chunks,
            size=(height, width),
            latent_shape=self._chunk_shape(height, width),
            window_frames=self.config.window_frames,
            sink_frames=policy_sink_frames(memory, self.config.sink_frames),
            levels=(*self.scheduler.levels, 0.0),
            timesteps=self.scheduler.timesteps,
            device=device,
            dtype=self.transformer.dtype,
            has_pixels=has_pixels,
            has_thumbnails=request.trace_thumbnails,
            attention_kwargs=request.attention_kwargs,
            callback_on_step_end=request.callback_on_step_end,
            callback_tensor_inputs=request.callback_tensor_inputs,
            callback_on_chunk_end=request.callback_on_chunk_end,
        )
        check_noise(request.latents, plan, request.num_prompts)
        return plan

    def _searches(self, request: VideoRequest, plan: SearchPlan) -> list[PromptSearch]:
        """One search for each prompt, with an empty beam. The work begins: prompts are encoded."""
        self._attention_kwargs, self._current_timestep = plan.attention_kwargs, None
        models = (self.text_encoder, self.transformer, self.vae)
        if plan.device.type == "cpu" and models != self._aligned_models:
            for model in models:
                if model is not None:  # a compiled one has no truth value
                    align_weights(model)
            self._aligned_models = models  # looked at once: there are many weights, and a chunk may take milliseconds
        prompt_embeds = request.prompt_embeds
        if prompt_embeds is None:
            prompt_embeds, _ = self.encode_prompt(request.prompt, request.max_sequence_length, plan.device)
        prompt_embeds = prompt_embeds.to(plan.device, plan.dtype)
        prompts, reward_prompts, generators = request.prompts(), request.reward_prompts(), request.generators()
        return [
            PromptSearch(
                plan=plan,
                prompt_embeds=prompt_embeds[row : row + 1],
                prompt_memory=PromptMemory(),
                reward_prompt=reward_prompts[row] or "",
                noise=None if request.latents is None else request.latents[row],
                trace=SearchTrace(
                    config={"prompt": prompts[row], "reward_prompt": reward_prompts[row], **plan.as_config()},
                    seed=base_seed(generators[row], plan.settings.candidate_seeds),
                    fps=float(self.config.fps),
                    version=__version__,
                    chunks=[],
                ),
                beams=[Beam(ChunkMemory())],
            )
            for row in range(request.num_prompts)
        ]

    def _run(self, searches: list[PromptSearch]) -> None:
        """The searches one after the other. Ctrl-C and interrupts end them with the chunks that are finished."""
        with self._progress_bar(sum(search.plan.num_chunks for search in searches), desc="chunks") as progress:
            try:
                for search in searches:
                    for _ in range(search.plan.num_chunks):
                        if not self._advance(search):
                            return
                        progress.update()
                    self._finish(search)
            except KeyboardInterrupt:
                num_chunks = sum(search.chunk_index for search in searches)
                if num_chunks == 0:
                    raise
                logger.warning(f"Interrupted: the {num_chunks} finished chunks are returned.")
            finally:
                for search in searches:
                    search.settle_by_score()

    def _finish(self, search: PromptSearch) -> None:
        """Orders the beams of a whole video."""
        search.release()
        search.trace = replace(search.trace, final=self._order_beams(search))

    def _end(self, searches: list[PromptSearch]) -> None:
        """Lets go of what a call held, however it ended."""
        for search in searches:
            search.release()
        self._current_timestep = None
        self.maybe_free_model_hooks()

    def _advance(self, search: PromptSearch) -> bool:
        """One chunk: beams to candidates to beams. False when interrupted before it was finished."""
        plan, work = search.plan, ChunkWork()
        candidates = None if self._interrupt else self._propose(search, work)
        if candidates is None:
            return False
        if plan.decodes_all:
            candidates = self._decode(search, candidates, alive_indices(candidates), work)
        shown = [thumbnail(c.frames) if plan.has_thumbnails and c.frames is not None else None for c in candidates]
        candidates = self._score(search, candidates, work)
        ranked = keep_best([candidate.score for candidate in candidates], len(candidates))
        kept = search.agreeing(candidates, ranked)[: plan.settings.num_beams]
        if kept and plan.callback_on_chunk_end is not None:
            state = {"candidates": candidates, "kept": kept}
            answer = (plan.callback_on_chunk_end(self, search.chunk_index, state) or {}).get("kept")
            kept = kept if answer is None else check_kept(answer, candidates, plan.settings.num_beams)
            kept = search.agreeing(candidates, kept)
        if plan.has_pixels and not plan.decodes_all:
            candidates = self._decode(search, candidates, kept, work)
            kept = [index for index in kept if candidates[index].lost is None]
        if not kept:
            lost = next(candidate.lost for candidate in candidates if candidate.lost is not None)
            search.settle_by_score()
            raise NoCandidateLeftError(
                f"No candidate of chunk {search.chunk_index} is left; the first of {len(candidates)} to be lost: "
                f"{lost}. The chunks before are in this error's `frames` and `trace`.",
                search.trace,
            )
        records = [CandidateTrace.of(c, i in kept, shown[i]) for i, c in enumerate(candidates)]
        survivors = [candidates[index] for index in kept]
        state = candidates = None  # the losers' decoder states go before the clean pass needs the room
        monitored = self._watch(search, survivors, work)
        search.beams, evicted = self._commit(search, survivors, work)
        record = ChunkTrace(
            fusion_weight=plan.fusion_weight(search.chunk_index),
            candidates=records,
            evicted=evicted,
            sinks=[[sink.start_frame for sink in beam.memory.sinks] for beam in search.beams],
            work=work,
        )
        search.finish_chunk(record, monitored)
        return True

    def _propose(self, search: PromptSearch, work: ChunkWork) -> list[Candidate] | None:
        """Unit 1 and the denoising: K * M candidates in order of their parents. None when interrupted.

        Fewer beams than K, as at chunk 0 or after losses, have more candidates each.
        """
        plan, settings, chunk_index = search.plan, search.plan.settings, search.chunk_index
        num_channels, num_frames, *size = plan.latent_shape
        shares = split_evenly(settings.num_beams * settings.num_candidates, len(search.beams))
        candidates: list[Candidate] = []
        with self._progress_bar(plan.num_steps * len(search.beams), desc="steps", leave=False) as progress:
            for parent_index, (parent, share) in enumerate(zip(search.beams, shares, strict=True)):
                seed = SEED_MODES[settings.candidate_seeds]
                last_seed = parent.seeds[-1] if parent.seeds else search.trace.seed
                seeds = [seed(search.trace.seed, chunk_index, parent_index, i, last_seed) for i in range(share)]
                generators = [candidate_generator(seed) for seed in seeds]
                fresh = draw_noise(generators, (num_frames, num_channels, *size))  # (M, F, C, h, w)
                noise = propagate_noise(parent.noise, fresh, settings.noise_correlation)
                if search.noise is not None:
                    frames = slice(chunk_index * num_frames, (chunk_index + 1) * num_frames)
                    noise = search.noise[None, :, frames].transpose(1, 2).to(fresh)
                with work.timed("denoise", plan.device):
                    renoise = [draw_noise(generators, fresh.shape[1:]) for _ in range(plan.num_steps - 1)]
                    latents = self._denoise(search, parent, torch.stack((noise, *renoise)), progress)
                if latents is None:
                    return None
                work.forwards += share * plan.num_steps
                finite = torch.isfinite(latents).flatten(1).all(dim=1).tolist()
                for row, is_finite in enumerate(finite):
                    # Copies: a view would keep the whole batch alive for as long as one candidate of it is.
                    candidate = Candidate(parent_index, seeds[row], noise[row].clone(), latents[row].clone())
                    if not is_finite:
                        candidate = lose(candidate, "its latents are not finite", chunk_index, len(candidates))
                    candidates.append(candidate)
        return candidates

    def _denoise(
        self, search: PromptSearch, parent: Beam, noise: torch.Tensor, progress: object
    ) -> torch.Tensor | None:
        """The candidates of one beam as one batch: clean latents (M, C, F, h, w), float32. None when interrupted.

        noise: (steps, M, F, C, h, w), the initial noise, then what is added again after each step but the last
        """
        plan = search.plan
        context = self._context(search, parent)
        latents, *renoise = noise.to(plan.device).transpose(2, 3)
        for step, timestep in enumerate(plan.timesteps):
            if self._interrupt:
                return None
            self._current_timestep = timestep
            velocity = self._velocity(search, latents, timestep, context)
            sigma, next_sigma = plan.levels[step : step + 2]
            fresh = renoise[step] if next_sigma > 0.0 else None
            latents = self.scheduler.step_between(velocity, latents, sigma, next_sigma, fresh)
            if plan.callback_on_step_end is not None:
                tensors = {"latents": latents, "prompt_embeds": search.prompt_embeds}
                tensors = {name: tensors[name].clone() for name in plan.callback_tensor_inputs}
                changed = plan.callback_on_step_end(self, step, timestep, tensors) or {}
                replaced = changed.get("latents", latents).to(latents)
                if replaced.shape != latents.shape:
                    raise ValueError(
                        f"`callback_on_step_end` gave `latents` of shape {tuple(replaced.shape)}; they must keep "
                        f"{tuple(latents.shape)}."
                    )
                latents = replaced
                if "prompt_embeds" in changed and search.change_prompt(changed["prompt_embeds"], PromptMemory()):
                    context = context.with_prompt(search.prompt_memory)
            progress.update()
        search.context = context if len(search.beams) == 1 else None
        return latents

    def _decode(
        self, search: PromptSearch, candidates: list[Candidate], wanted: list[int], work: ChunkWork
    ) -> list[Candidate]:
        """The candidates, the wanted ones with pixels: each is decoded once, from its parent's decoder state.

        States are the dearest part of a beam: a parent's is let go as soon as its last candidate has gone on from it.
        """
        decoder = StreamingWanDecoder(self.vae)
        decoded = list(candidates)
        with work.timed("decode", search.plan.device):
            for parent_index in range(len(search.beams)):
                state = search.beams[parent_index].decoder_state
                search.beams[parent_index] = replace(search.beams[parent_index], decoder_state=None)
                rows = sorted(index for index in wanted if candidates[index].parent == parent_index)
                if not rows:
                    continue
                latents, finite = torch.stack([candidates[row].latents for row in rows]), []
                for row, (video, new_state) in zip(rows, decoder.continuations(latents, state), strict=True):
                    decoded[row] = replace(candidates[row], frames=to_uint8(video), decoder_state=new_state)
                    finite.append(torch.isfinite(video).all())
                for row, is_finite in zip(rows, torch.stack(finite).tolist(), strict=True):
                    if not is_finite:
                        decoded[row] = lose(decoded[row], "its frames are not finite", search.chunk_index, row)
                work.latents_decoded += latents.shape[0] * latents.shape[2]
        return decoded

    def _score(self, search: PromptSearch, candidates: list[Candidate], work: ChunkWork) -> list[Candidate]:
        """Unit 2, and the route for unit 3: the candidates with rewards, fused score and route, or lost."""
        plan, settings = search.plan, search.plan.settings
        scored = list(candidates)
        for kind, reward, num_past in (
            ("image", plan.image_reward, 0),
            ("video", plan.video_reward, settings.reward_window - 1),
        ):
            alive = alive_indices(scored)
            results = [RewardScore(0.0)] * len(alive)
            if reward is not None and alive:
                clips = _clips(search, [scored[index] for index in alive], num_past)
                work.frames_scored += clips.shape[0] * clips.shape[1]
                with work.timed("reward", plan.device):
                    results = score_clips(reward, clips, search.reward_prompt, search.trace.fps, name=f"{kind}_reward")
            for index, result in zip(alive, results, strict=True):
                if result.gated is not None:
                    scored[index] = set_aside(scored[index], result.gated)
                elif result.score is None:
                    scored[index] = lose(scored[index], result.problem, search.chunk_index, index)
                else:
                    scored[index] = scored[index].with_reward(kind, result.score, result.parts)
        alive = alive_indices(scored)
        short = normalize_scores([scored[index].short for index in alive], settings.score_normalization)
        long = normalize_scores([scored[index].long for index in alive], settings.score_normalization)
        for index, *pair in zip(alive, short, long, strict=True):
            candidate, parent = scored[index], search.beams[scored[index].parent]
            history = (*parent.short, candidate.short), (*parent.long, candidate.long)
            route = decided_route(plan.policy, *history)
            score = fuse_scores(*pair, search.chunk_index, plan.num_chunks, settings.short_weight_cap)
            scored[index] = replace(candidate, score=score, route=route)
        return scored

    def _watch(
        self, search: PromptSearch, survivors: list[Candidate], work: ChunkWork
    ) -> dict[str, list[float | None]]:
        """What the monitors, and their parts, say of the kept candidates' windows. Nothing is decided by it."""
        plan, monitored = search.plan, {}
        for name, monitor in plan.monitors.items():
            with work.timed("monitor", plan.device):
                clips = _clips(search, survivors, plan.settings.reward_window - 1)
                try:
                    results = score_clips(
                        monitor, clips, search.reward_prompt, search.trace.fps, name=f"monitors[{name!r}]"
                    )
                except RewardFormatError as error:  # a mistake of its author, but nothing depends on it
                    results = [RewardScore(None, problem=str(error))] * len(clips)
            monitored[name] = [result.score for result in results]
            for part in {part: None for result in results for part in result.parts}:
                monitored[f"{name}.{part}"] = [result.parts.get(part) for result in results]
            for index, result in enumerate(results):
                if result.problem is not None:
                    logger.warning(f"Chunk {search.chunk_index}: beam {index} is not monitored, {result.problem}.")
        return monitored

    def _commit(
        self, search: PromptSearch, survivors: list[Candidate], work: ChunkWork
    ) -> tuple[list[Beam], list[EvictionTrace]]:
        """The new beams, best first. But for the last chunk, a clean pass remembers it and unit 3 makes room."""
        plan = search.plan
        beams = [candidate.extend(search.beams[candidate.parent]) for candidate in survivors]
        evicted: list[EvictionTrace] = []
        if plan.is_last(search.chunk_index):
            return [replace(beam, decoder_state=None) for beam in beams], evicted
        for parent_index, parent in enumerate(search.beams):
            rows = [row for row, candidate in enumerate(survivors) if candidate.parent == parent_index]
            if not rows:
                continue
            with work.timed("clean_pass", plan.device):
                chunks = self._clean_passes(search, parent, [survivors[row] for row in rows])
                for row, chunk in zip(rows, chunks, strict=True):
                    memory = parent.memory.append(chunk, plan.sink_frames)
                    room = (plan.rolling_frames, plan.latent_shape[1])
                    memory, left = make_room(memory, plan.policy, beams[row].routes, *room)
                    beams[row] = replace(beams[row], memory=memory)
                    evicted += [EvictionTrace(row, index, route.value, done.value) for index, route, done in left]
            work.clean_passes += len(rows)
        return beams, sorted(evicted, key=lambda eviction: eviction.beam)

    def _clean_passes(self, search: PromptSearch, parent: Beam, survivors: list[Candidate]) -> list[CachedChunk]:
        """The chunks that go on from one beam, as they are remembered: keys and values at timestep 0.

        One after the other, so that a pass needs no more room, and a compiled model no more graphs, for several.
        """
        context = self._context(search, parent) if search.context is None else search.context
        search.context, chunks, timestep = None, [], search.plan.timesteps.new_zeros(())
        for survivor in survivors:
            record = ChunkRecord()
            self._velocity(search, survivor.latents[None], timestep, context.recording(record))
            chunks.append(record.chunk(search.chunk_index, parent.memory.num_frames, search.plan.latent_shape[1]))
        return chunks

    def _context(self, search: PromptSearch, parent: Beam) -> ChunkContext:
        """What the forwards of one beam's next chunk read."""
        return parent.memory.context(
            search.plan.latent_shape[1:],
            patch_size=self.transformer.config.patch_size,
            head_dim=self.transformer.config.attention_head_dim,
            positions=policy_positions(search.plan.policy),
            prompt=search.prompt_memory,
            device=search.plan.device,
        )

    def _velocity(
        self, search: PromptSearch, latents: torch.Tensor, timestep: torch.Tensor, context: ChunkContext
    ) -> torch.Tensor:
        return self.transformer(
            hidden_states=latents.to(search.plan.dtype),
            timestep=timestep.expand(latents.shape[0]),
            encoder_hidden_states=search.prompt_embeds,
            attention_kwargs=search.plan.attention_kwargs,
            memory=context,
            return_dict=False,
        )[0]

    def _order_beams(self, search: PromptSearch) -> FinalTrace:
        """The last beams, best first."""
        plan, beams = search.plan, search.beams
        if plan.settings.final_selection == "score" or plan.video_reward is None:
            return order_by("score", [beam.score for beam in beams])
        videos = torch.stack([torch.cat(beam.frames) for beam in beams])
        results = score_clips(plan.video_reward, videos, search.reward_prompt, search.trace.fps, name="video_reward")
        for index, result in enumerate(results):
            if result.problem is not None:
                logger.warning(f"Final selection: beam {index} comes last, {result.problem}.")
        return order_by("video_reward", [result.score for result in results])

    def encode_prompt(
        self, prompt: str | list[str], max_sequence_length: int = 512, device: torch.device | None = None
    ) -> tuple[torch.Tensor, None]:
        """Text as the transformer reads it, in the pair that diffusers' pipelines give.

        Returns:
            `prompt_embeds` (B, max_sequence_length, text dim), zeros after the last token; and in the place of
            negative ones None: distilled models are sampled without guidance.
        """
        device, negative_prompt_embeds = device or self._execution_device, None
        tokens = self.tokenizer(
            [prompt_clean(text) for text in ([prompt] if isinstance(prompt, str) else prompt)],
            padding="max_length",
            max_length=max_sequence_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(device)
        hidden_states = self.text_encoder(tokens.input_ids.to(device), mask).last_hidden_state
        prompt_embeds = hidden_states.masked_fill(mask[..., None] == 0, 0.0).to(device)
        return prompt_embeds, negative_prompt_embeds

    def check_inputs(self, request: VideoRequest, memory: MemoryPolicy, height: int, width: int) -> None:
        """
        Raises:
            ValueError, TypeError: what is asked for can't be made; the message says what can.
        """
        if self.transformer is None:
            raise ValueError("This pipeline has no transformer: it can encode prompts and no more.")
        request.check_prompt(None not in (self.text_encoder, self.tokenizer), self.transformer.config.text_dim)
        request.check_monitors()
        for per_prompt in (request.reward_prompts, request.generators):
            per_prompt()  # raises when there are not as many as prompts
        if request.output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {request.output_type!r}; it must be one of {', '.join(OUTPUT_TYPES)}.")
        if request.output_type != "latent" and self.vae is None:
            raise ValueError(f'`output_type` is {request.output_type!r}, and this pipeline has no VAE; use "latent".')
        if not set(request.callback_tensor_inputs) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` is {list(request.callback_tensor_inputs)}; it may name "
                f"{self._callback_tensor_inputs}."
            )
        check_policy(memory)
        geometry = self.geometry
        geometry.check_size(height, width)
        geometry.check_window(policy_sink_frames(memory, self.config.sink_frames))
        if request.horizon is None:
            geometry.check_num_frames(request.num_frames)
        if policy_positions(memory) == "absolute":
            geometry.check_absolute_positions(request.num_frames, type(memory).__name__)

    def _chunk_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """C, F, h and w of one chunk's latents."""
        factor = self.vae.config.scale_factor_spatial if self.vae is not None else 8
        return self.transformer.config.in_channels, self.config.chunk_frames, height // factor, width // factor

    def _set_timesteps(self, num_inference_steps: int | None, sigmas: list[float] | None, device: torch.device) -> int:
        """Sets the scheduler's steps, the model's own when the call names none, and counts them."""
        if num_inference_steps is None and sigmas is None:
            sigmas = [step / self.scheduler.config.num_train_timesteps for step in self.config.denoising_steps]
        self.scheduler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas)
        return len(self.scheduler.timesteps)

    def _progress_bar(self, total: int | None, **defaults: str | bool) -> object:
        """diffusers' progress bar, endless if `total` is None; what the user configured goes before `defaults`."""
        configured = getattr(self, "_progress_bar_config", {})
        self._progress_bar_config = {**defaults, **configured}
        try:
            return self.progress_bar(itertools.count()) if total is None else self.progress_bar(total=total)
        finally:
            self._progress_bar_config = configured


def _clips(search: PromptSearch, candidates: list[Candidate], num_past: int) -> torch.Tensor:
    """The candidates' chunks after so many of their beams': (B, F, 3, H, W) uint8."""
    past = [newest(search.beams[candidate.parent].frames, num_past) for candidate in candidates]
    return torch.stack([torch.cat((*frames, c.frames)) for frames, c in zip(past, candidates, strict=True)])


def _videos(searches: list[PromptSearch], output_type: str, first_chunk: int = 0) -> np.ndarray | torch.Tensor | list:
    """The best beams' videos in the form that was asked for; prompts without a finished chunk have none."""
    searches = [search for search in searches if search.chunk_index > first_chunk]
    beams = [beam for search in searches for beam in search.best_beams()]
    if output_type == "latent":
        return stack([torch.cat(beam.latents[first_chunk:], dim=1) for beam in beams])
    return to_output([torch.cat(beam.frames[first_chunk:]) for beam in beams], output_type)


def _stream_chunk(search: PromptSearch, beam: Beam, index: int, output_type: str) -> StreamChunk:
    if output_type == "latent":
        return StreamChunk(index, beam.latents[index], search.trace)
    return StreamChunk(index, to_output([beam.frames[index]], output_type)[0], search.trace)
