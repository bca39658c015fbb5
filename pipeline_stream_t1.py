"""Stream-T1: test-time search over a streaming text-to-video model (arXiv 2605.04461), as a diffusers pipeline.

A causal Wan transformer makes the video chunk by chunk. At every chunk a search tries several continuations of each
kept beam; rewards score the decoded frames; the best become the next beams, and their rewards decide what is
remembered.

    for every chunk:
        choice = search(steps, beams)   the paper's: search/beam_search.py; what it may do: chunk_steps.py
            steps.propose(beams)        unit 1, noise correlated with the beam's own: search/noise_propagation.py
            steps.score(candidates)     unit 2, image and video reward, fused: search/reward_pruning.py
        beams = steps.commit(kept)      unit 3, a clean pass, then the oldest chunk is routed: search/memory_sinking.py

Axes: B batch, C channels, F latent frames (or pixel frames), H and W height and width, h and w those of latents,
L text tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, SchedulerMixin, WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from .chunk_steps import ChunkSteps
from .identity import made_with
from .kept_runs import KeptRunsMixin
from .loaders.folder import FolderMixin
from .loaders.hooks import HooksMixin
from .models.alignment import align_weights_for
from .models.components import check_model, check_models_fit
from .models.memory import ChunkMemory
from .models.prompt import Prompt
from .models.streaming_encoder import StreamingWanEncoder
from .models.text import check_encoding, embed_texts
from .models.transformer_causal_wan import CausalWanTransformer3DModel
from .planning import REWARDS, PlanningMixin
from .rewards.arguments import check_kind, check_sources
from .rewards.base import as_component
from .rewards.monitoring import watched_scores
from .rewards.scoring import mean_over_parts, score_clips
from .rewards.shipped import SHIPPED_REWARDS  # noqa: F401 - registers every kind of reward, for folders and Hub ids
from .schedulers.few_step_flow_match import FewStepFlowMatchScheduler
from .search.answers import check_choice, kept_by_callback
from .search.arguments import takes_request
from .search.beam import Beam, Candidate
from .search.choice import Choice, most_kept, search_name
from .search.geometry import VideoGeometry, check_chunk_multiple, real_number, whole_number
from .search.memory_sinking import MemoryPolicy
from .search.noise_propagation import base_seed
from .search.outputs import StreamChunk, StreamT1PipelineOutput, nothing_left
from .search.plan import PromptPlan, SearchPlan
from .search.policy_config import policy_config
from .search.prompt_search import PromptSearch
from .search.request import StreamRequest, VideoRequest
from .search.request_checks import check_texts
from .search.reward_pruning import mean_score, order_by
from .search.running import RunningMixin, SearchInterrupted
from .search.script import PromptScript
from .search.search_names import parse_search, search_text  # noqa: F401 - brings their texts
from .search.shipped import SHIPPED_SEARCHES  # noqa: F401 - brings every search to where only the code is loaded
from .search.timeline import PromptTimeline  # noqa: F401 - for callers where only the code is loaded
from .search.trace import ChunkTrace, ChunkWork, FinalTrace
from .search.video_stream import StreamControl, VideoStream
from .videos import best_videos, chunk_bar, let_go, stream_chunk

__version__ = "0.2.0"

logger = logging.get_logger(__name__)

# How `model_index.json` names these components: a saved folder loads wherever diffusers does, and holds no rewards.
SAVED_AS = {
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "image_reward": (None, None),
    "video_reward": (None, None),
}


class StreamT1Pipeline(
    PlanningMixin, KeptRunsMixin, FolderMixin, HooksMixin, RunningMixin, DiffusionPipeline, WanLoraLoaderMixin
):
    """Text to video, chunk by chunk, with a search over candidates at every chunk.

    Every component may be None where a call does not need it: `text_encoder` and `tokenizer` with `prompt_embeds`,
    `vae` with `output_type="latent"` and no rewards. Of a stock `WanTransformer3DModel` the pipeline makes a causal
    one over the same weights, and the stock one keeps serving `WanPipeline`; a stock flow-match scheduler lends its
    `shift`.

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
        sink_frames: latent frames at the beginning of the video that never leave; the chunks that hold them stay.
        denoising_steps: 1000 u of every step, before the scheduler's shift.
        fps: of the videos, for rewards that need it.
        default_height, default_width: pixels, when a call names none.
        memory: the policy when a call names none, one of those in `search/memory_sinking.py` or its config; default
            `RewardRoutedSink()`.
        reward_sources: Hub ids of the rewards with which the pipeline was saved. None is loaded by itself.
        first_chunk_frames: latent frames of a video's first chunk, for models that begin with another one than they
            go on with: 1, Self-Forcing's independent first frame. Default: `chunk_frames`.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds"]
    _exclude_from_cpu_offload = ["image_reward", "video_reward"]  # where the models run is not for a reward to say
    _version = __version__
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
        first_chunk_frames: int | None = None,
    ) -> None:
        super().__init__()
        chunk_frames = whole_number("chunk_frames", chunk_frames, least=1)
        if first_chunk_frames is not None:
            first_chunk_frames = whole_number("first_chunk_frames", first_chunk_frames, least=1)
        chunk_lengths = chunk_frames, first_chunk_frames
        if real_number("fps", fps) <= 0:
            raise ValueError(f"`fps` is {fps}; it must be above 0.")
        check_sources(reward_sources, REWARDS)
        scheduler = FewStepFlowMatchScheduler.adopt(scheduler)
        config = {
            "chunk_frames": chunk_frames,
            "window_frames": check_chunk_multiple("window_frames", window_frames, *chunk_lengths),
            "sink_frames": check_chunk_multiple("sink_frames", sink_frames, *chunk_lengths),
            "denoising_steps": scheduler.steps_of_config(denoising_steps),
            "fps": real_number("fps", fps),
            "default_height": whole_number("default_height", default_height, least=1),
            "default_width": whole_number("default_width", default_width, least=1),
            "memory": policy_config(memory),
            "first_chunk_frames": first_chunk_frames,
        }
        components = {
            "tokenizer": tokenizer,
            "text_encoder": text_encoder,
            "transformer": transformer,
            "vae": vae,
            "scheduler": scheduler,
            "image_reward": image_reward,
            "video_reward": video_reward,
        }
        for name, component in components.items():
            self._check_component(name, component)
        components |= {name: as_component(components[name]) for name in REWARDS}
        self.register_to_config(reward_sources=reward_sources)
        self.register_modules(**components)
        self.register_to_config(**config)
        self.geometry.check_window(self.geometry.filled_sink_frames(sink_frames))
        check_models_fit(transformer, vae)

    def __setattr__(self, name: str, value: object) -> None:
        """Adapts a component on assignment, by the constructor, diffusers or the user.

        Raises:
            TypeError, ValueError: it is none of its kind.
        """
        self._check_component(name, value)
        if name == "transformer" and value is not None:
            value = CausalWanTransformer3DModel.adopt(value)
        elif name == "scheduler":
            value = FewStepFlowMatchScheduler.adopt(value)
        elif name in REWARDS:
            value = as_component(value)
        super().__setattr__(name, value)
        if name in SAVED_AS:
            self.register_to_config(**{name: (None, None) if value is None else SAVED_AS[name]})
        if name in REWARDS and getattr(value, "source", None) is not None:
            self.register_to_config(reward_sources={**(self.config.reward_sources or {}), name: value.source})

    @staticmethod
    def _check_component(name: str, value: object) -> None:
        if value is not None and name in REWARDS:
            check_kind(name, value, "None for none")
        elif value is not None:
            check_model(name, value)

    @property
    def geometry(self) -> VideoGeometry:
        """Which lengths and sizes this pipeline's models make."""
        configs = (None if model is None else model.config for model in (self.transformer, self.vae))
        lengths = (self.config[f"{name}_frames"] for name in ("chunk", "first_chunk", "window"))
        return VideoGeometry.of(*lengths, *configs)

    @property
    def device(self) -> torch.device:
        """That of the transformer, else of the VAE, else of the text encoder; rewards have no say."""
        models = (self.transformer, self.vae, self.text_encoder)
        return next((model.device for model in models if model is not None), torch.device("cpu"))

    @takes_request(VideoRequest)
    @torch.no_grad()
    def __call__(self, request: VideoRequest) -> StreamT1PipelineOutput | tuple:
        """Makes videos.

        Returns:
            `StreamT1PipelineOutput`. After Ctrl-C or an interrupt: the finished chunks, of the prompts that have some.

        Raises:
            ValueError, TypeError: an invalid argument, before any work.
            NoCandidateLeftError: all candidates of a chunk were lost.
        """
        plan, self._interrupt = self._loaded(self._plan(request)), False
        output = self._videos_of(self._searches(plan))
        return output if request.return_dict else output.to_tuple()

    def _videos_of(self, searches: list[PromptSearch]) -> StreamT1PipelineOutput:
        """Brings the searches of a call to their end."""
        try:
            self._run(searches)
        except BaseException as error:
            let_go(error, searches)
            raise
        finally:
            self._end(searches)
        traces = [search.trace for search in searches if search.trace.chunks]
        frames = best_videos(searches)
        return StreamT1PipelineOutput(frames=frames, traces=traces)

    @takes_request(StreamRequest)
    def stream(self, request: StreamRequest) -> VideoStream:
        """Makes one video and gives its chunks as soon as they can change no more.

        With one beam a chunk is given as soon as it is made; with several, when all kept beams share it, which
        `max_lag` forces. What is given, one after the other, is what `__call__` returns for the same arguments.
        Closing the stream, or leaving the loop over it, frees all that the search held. `num_frames=None` is an
        endless stream: it needs a memory policy with relative positions, and keeps neither the chunks that it has
        given away nor their records, but for the last `horizon`.

        Returns:
            An iterator of `StreamChunk`, with `change_prompt(prompt, transition=0)`. Set `pipe._interrupt = True` in a
            callback, and it gives what is finished and ends.

        Raises:
            ValueError, TypeError: as `__call__`, at once and not with the first chunk.
            NoCandidateLeftError: all candidates of a chunk were lost; its `frames` are those not yet given.
        """
        plan, self._interrupt = self._loaded(self._plan(request, of_one="stream")), False
        control = StreamControl(plan.scripts[0])
        return VideoStream(self._stream(plan, control), control, partial(self._check_script, plan))

    @takes_request(VideoRequest)
    @torch.no_grad()
    def steps(self, request: VideoRequest) -> tuple[ChunkSteps, list[Beam]]:
        """The steps of a video's first chunk and the one empty beam to begin with, for a loop of one's own.

        Given chunks are remembered first: then the steps are those of the first chunk after them.

        Returns:
            `ChunkSteps` and beams. `steps.ahead()` gives the next chunk's; a beam's `frames` and `latents` are the
            video so far. The search of the arguments is not called.

        Raises:
            ValueError, TypeError: as `__call__`; there is more than one prompt.
        """
        if request.save_to is not None:
            raise ValueError("`save_to` keeps the run of a call or a stream; `steps` is for a loop of one's own.")
        plan, self._interrupt = self._loaded(self._plan(request, of_one="steps")), False
        (search,) = self._searches(plan)
        while search.chunk_index < plan.num_given_chunks and self._advance(search, is_first=search.chunk_index == 0):
            pass
        return self._chunk_steps(search), search.beams

    def _begin(self, plan: SearchPlan) -> None:
        self.begin_step(plan.num_steps, None, plan.request.attention_kwargs)
        if plan.device.type == "cpu":
            align_weights_for(plan, (self.text_encoder, self.transformer, self.vae), own=self._own_models)

    def _searches(self, plan: SearchPlan) -> list[PromptSearch]:
        """One search for each prompt, with an empty beam. The work begins: prompts are encoded."""
        self._begin(plan)
        request, made = plan.request, made_with(self, plan)
        scripts = self._encoded(plan)
        past, work = self._given_latents(plan)
        of_prompts = zip(request.prompts(), request.reward_prompts(), scripts, request.generators(), strict=True)
        searches = []
        for row, (prompt, reward_prompt, script, generator) in enumerate(of_prompts):
            seeds = tuple(base_seed(generator, request.candidate_seeds) for _ in range(plan.num_lineages))
            noise = None if request.latents is None else request.latents[row]
            inputs = PromptPlan(plan, seeds, prompt, reward_prompt, script, noise, past)
            trace = inputs.new_trace(__version__, None if generator is None else generator.initial_seed(), made)
            searches.append(PromptSearch(inputs, Prompt(script.embeds(0)), trace, [Beam(ChunkMemory())]))
        searches[0].work = work
        self._keep(searches, request.save_to)
        return searches

    def _given_latents(self, plan: SearchPlan) -> tuple[torch.Tensor | None, ChunkWork]:
        """The latents (C, F, h, w) with which the videos begin, if any are given, and the work of encoding them."""
        past, work = plan.past, ChunkWork()
        if past is None or past.latents is not None:
            return None if past is None else past.latents[0].detach().to("cpu", torch.float32), work
        with work.timed("encode", plan.device):
            latents = StreamingWanEncoder(self.vae).encode(past.frames, plan.size)
        if not bool(torch.isfinite(latents).all()):
            raise ValueError(f"The VAE makes latents of `{past.name}` that are not finite; it may need another dtype.")
        work.latents_encoded = past.num_latents
        return latents, work

    def _encoded(self, plan: SearchPlan) -> list[PromptScript]:
        """The plan's scripts with their embeddings, on the models' device.

        First prompts are one batch; those that come later are encoded one by one, as those of a running stream are.
        """
        texts = [script.changes[0].words for script in plan.scripts if script.changes[0].embeds is None]
        first = iter(self._embeds(plan, texts).split(1)) if texts else iter(())
        scripts = []
        for script in plan.scripts:
            changes = []
            for change in script.changes:
                embeds = change.embeds
                if embeds is None:
                    embeds = next(first) if not changes else self._embeds(plan, [change.words])
                changes.append(replace(change, embeds=embeds.to(plan.device, plan.dtype)))
            scripts.append(replace(script, changes=tuple(changes)))
        return scripts

    def _embeds(self, plan: SearchPlan, texts: list[str]) -> torch.Tensor:
        return self.encode_prompt(texts, plan.request.max_sequence_length, plan.device)[0]

    def _run(self, searches: list[PromptSearch]) -> None:
        """The searches one after the other. Ctrl-C and interrupts end them with the chunks that are finished."""
        with chunk_bar(self, searches) as progress:
            try:
                for search in searches:
                    while not search.is_finished:
                        before = search.chunk_index
                        if not self._advance(search, is_first=not any(each.chunk_index for each in searches)):
                            return
                        progress.update(search.chunk_index - before)
                    if search.trace.final is None:
                        self._finish(search)
            except KeyboardInterrupt:
                num_chunks = sum(search.chunk_index for search in searches)
                if num_chunks == 0:
                    raise
                logger.warning(f"Interrupted: the {num_chunks} finished chunks are returned.")
            finally:
                for search in searches:
                    search.settle_by_score()

    @torch.no_grad()
    def _stream(self, plan: SearchPlan, control: StreamControl) -> Iterator[StreamChunk]:
        (search,) = searches = self._searches(plan)
        output_type, num_given, control.search = plan.request.output_type, 0, search
        try:
            with chunk_bar(self, searches) as progress:
                while self._advance(self._changed(search, control), is_first=search.chunk_index == 0):
                    progress.update(search.chunk_index - progress.n)
                    if search.is_finished:
                        self._finish(search)
                        break
                    for index in range(num_given, search.num_settled(num_given)):
                        num_given = index + 1
                        yield stream_chunk(search, search.beams[0], index, output_type)
                    search.forget(num_given)
            control.close()
            search.settle_by_score()
            for index in range(num_given, search.chunk_index):
                yield stream_chunk(search, search.best_beams()[0], index, output_type)
        except GeneratorExit:  # the caller leaves the stream
            raise
        except BaseException as error:
            let_go(error, searches, num_given)
            raise
        finally:
            control.close()
            self._end(searches)

    def _changed(self, search: PromptSearch, control: StreamControl) -> PromptSearch:
        """The search under the prompt that the stream was last asked for."""
        asked = control.take()
        if asked is not None:
            embeds = self._embeds(search.plan, [asked.prompt]) if isinstance(asked.prompt, str) else asked.prompt
            change = asked.at(search.chunk_index, embeds.to(search.plan.device, search.plan.dtype))
            search.change_prompt(change, asked.reward_prompt)
        return search

    def _chunk_steps(self, search: PromptSearch) -> ChunkSteps:
        work, search.work = search.work, None
        again = {"attempts": search.attempts_before, "most_back": search.most_back}
        return ChunkSteps(self, search.inputs, search.prompt, search.chunk_index, work=work, **again)

    def _advance(self, search: PromptSearch, *, is_first: bool) -> bool:
        """Makes a chunk, the call's first or a later one, or goes back. False when interrupted before it was done."""
        steps = self._chunk_steps(search)
        try:
            made = None if self._interrupt else self._choose(search, steps)
        except SearchInterrupted:
            made = None
        if made is None:
            return False
        search.note_attempt(steps.next_number)
        if made.back is not None:
            search.go_back(made, steps.work)
            return True
        if not made.kept:
            search.settle_by_score()
            raise nothing_left(made.candidates, search.chunk_index, search.trace, is_first=is_first)
        records, survivors, log_weights, notes = made.traces(), made.survivors, made.log_weights, made.notes
        made = None  # the losers' decoder states, and the parents', go before the clean pass needs the room
        search.keep_for_going_back()
        search.release_decoder_states()
        monitored = self._watched(search, steps, survivors)
        beams = steps.commit(search.beams, survivors)
        if log_weights is not None:
            beams = [replace(beam, log_weight=weight) for beam, weight in zip(beams, log_weights, strict=True)]
        words = search.inputs.script.as_recorded(search.chunk_index)
        weight = search.plan.fusion_weight(search.chunk_index)
        record = ChunkTrace.of(records, beams, weight, steps.work, notes, words)
        search.prompt = steps.next_prompt
        search.finish_chunk(beams, record, monitored, survivors)
        return True

    def _choose(self, search: PromptSearch, steps: ChunkSteps) -> Choice:
        """What the search keeps, or the given chunk. Kept candidates have pixels if anybody looks.

        Raises:
            ValueError, TypeError: the search or the callback gives no possible choice.
        """
        beams = search.beams
        if steps.is_given and not getattr(search.plan.search, "takes_given", False):
            made = Choice(steps.score(beams, steps.given(beams)), [0]).without_lost()
        else:
            made = self._searched(search, steps)
        if search.plan.has_pixels:
            kept = [made.candidates[index] for index in dict.fromkeys(made.kept)]
            decoded = dict(zip(dict.fromkeys(made.kept), steps.decode(beams, kept), strict=True))
            made = replace(made, candidates=[decoded.get(row, c) for row, c in enumerate(made.candidates)])
        return made.without_lost()

    def _searched(self, search: PromptSearch, steps: ChunkSteps) -> Choice:
        """What the search keeps, then `max_lag` and the callback."""
        plan, beams, request = search.plan, search.beams, search.plan.request
        at_most = most_kept(plan.search)  # before foreign code has run
        made = check_choice(
            plan.search(steps, list(beams)),
            search_name(plan.search),
            chunk_index=search.chunk_index,
            num_parents=len(beams),
            at_most=at_most,
            most_back=search.most_back,
            has_reward=plan.has_reward,
            may_repeat=request.candidate_seeds == "independent",
        )
        made = search.agreeing(made)
        if request.trace_thumbnails:
            made = replace(made, candidates=steps.decode(beams, made.candidates))
        if made.kept and request.callback_on_chunk_end is not None:
            state = {"candidates": list(made.candidates), "kept": list(made.kept)}
            answer = request.callback_on_chunk_end(self, search.chunk_index, state)
            made = search.agreeing(kept_by_callback(answer, made, at_most))
        return made

    def _watched(
        self, search: PromptSearch, steps: ChunkSteps, survivors: list[Candidate]
    ) -> dict[str, list[float | None]]:
        """Scores of the kept candidates' windows by the monitors."""
        plan = search.plan
        if not plan.monitors:
            return {}
        clips = steps.clips(search.beams, survivors, steps.clip_chunks - 1)
        with steps.work.timed("monitor", plan.device):
            index = search.chunk_index
            return watched_scores(plan.monitors, clips, steps.reward_words, plan.fps, chunk_index=index)

    def _finish(self, search: PromptSearch) -> None:
        """Orders the beams of a whole video."""
        search.release()
        search.finish(self._order_beams(search))

    def _order_beams(self, search: PromptSearch) -> FinalTrace:
        """The last beams, best first. The parts of a video that have words of their own are scored by themselves."""
        plan, beams = search.plan, search.beams
        if plan.request.final_selection == "score" or not plan.has_reward:
            return order_by("score", [beam.score for beam in beams])
        if plan.video_reward is None:
            return order_by("image_reward", [mean_score(beam.short) for beam in beams])
        scored, num_frames = [], []
        for chunks in search.inputs.script.stretches(plan.num_chunks):
            clips = torch.stack([torch.cat(beam.frames[chunks.start : chunks.stop]) for beam in beams])
            words = search.inputs.reward_words(chunks.start)
            scored.append(score_clips(plan.video_reward, clips, words, plan.fps, name="video_reward"))
            num_frames.append(clips.shape[1])
        results = [mean_over_parts(parts, num_frames) for parts in zip(*scored, strict=True)]
        for index, result in enumerate(results):
            if result.problem is not None:
                logger.warning(f"Final selection: beam {index} comes last, {result.problem}.")
        return order_by("video_reward", [result.score for result in results])

    def _end(self, searches: list[PromptSearch]) -> None:
        """Lets go of what a call held, however it ended."""
        for search in searches:
            search.release()
        plan = searches[0].plan
        self.begin_step(plan.num_steps, None, plan.request.attention_kwargs)
        self.maybe_free_model_hooks()
        if searches[0].file is not None:
            searches[0].file.wait()

    def encode_prompt(
        self, prompt: str | list[str], max_sequence_length: int = 512, device: torch.device | None = None
    ) -> tuple[torch.Tensor, None]:
        """Text as the transformer reads it, in the pair that diffusers' pipelines give.

        What of a prompt is cut off is logged, in one warning.

        Returns:
            `prompt_embeds` (B, max_sequence_length, text dim), zeros after the last token; and instead of
            negative ones None: distilled models are sampled without guidance.

        Raises:
            TypeError, ValueError: an invalid argument, or there is no text encoder or tokenizer.
            ImportError: ftfy is not installed.
        """
        check_texts(prompt)
        whole_number("max_sequence_length", max_sequence_length, least=1)
        texts, models = [prompt] if isinstance(prompt, str) else prompt, (self.tokenizer, self.text_encoder)
        check_encoding(*models, max_sequence_length)
        return embed_texts(texts, *models, max_sequence_length, device or self._execution_device), None
