"""What a search may do with one chunk: propose, denoise, decode, score, commit. The pipeline's loop is made of it.

    candidates = steps.propose(beams, [4])             unit 1: noise correlated with the beam's own
    candidates = steps.denoise(beams, candidates)
    candidates = steps.score(beams, candidates)        unit 2, and the route of unit 3
    beams = steps.commit(beams, [candidates[best]])    unit 3: a clean pass, then the oldest chunk is routed
    steps = steps.ahead()                              the same for the next chunk

Values go in and new values come out: no step writes into a beam or a candidate. What the steps of a chunk keep
themselves is its work, what each of its forwards reads of a memory, and its prompt. They are one file, longer than
others, because together they are all that a search may do.

Axes: B batch, C channels, F latent frames (or pixel frames), H and W height and width, h and w those of latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

import torch

from .models.memory import ChunkContext, ChunkMemory, ChunkRecord
from .models.pixels import thumbnail, to_uint8
from .models.prompt import ChunkPrompts, Prompt
from .models.recaching import flushed, recache_pass
from .models.streaming_decoder import StreamingWanDecoder
from .rewards.arguments import chosen_reward
from .rewards.scoring import RewardScore, score_clips
from .schedulers.few_step_flow_match import MAX_STEPS
from .search.answers import answer_of
from .search.beam import RELEASED, Beam, Candidate, check_place, lose, newest, parted, set_aside
from .search.geometry import whole_number
from .search.memory_sinking import Route, decided_route, make_room
from .search.noise_propagation import SEED_MODES, candidate_generator, draw_noise, propagate_noise, search_seed
from .search.plan import PromptPlan
from .search.policy_config import policy_positions, policy_recache
from .search.prompt_search import Attempts
from .search.request_checks import check_float_tensor, check_prompt_embeds
from .search.reward_pruning import fused_score, normalize_scores
from .search.running import SearchInterrupted
from .search.timeline import CUT_POSITION
from .search.trace import ChunkWork


class ChunkSteps:
    """The steps of one chunk of one prompt's video. `pipe.steps(...)` gives those of chunk 0, `ahead` the next ones.

    Args:
        pipe: whose models are used.
        inputs: what the chunks of this video have in common.
        prompt: as the chunk before read it; here, `inputs.script` may say another.
        chunk_index: of the video, from 0.
        levels: noise levels of the steps, after the shift, then 0. Default: those of the plan.
        work: to which this chunk's is added. Default: none so far.
        attempts: at this chunk, which were given up before. Default: none.
        most_back: chunks that a search may go back from this one, by `Choice(..., back=n)`.
    """

    def __init__(
        self,
        pipe: "StreamT1Pipeline",  # noqa: F821 - it imports this file
        inputs: PromptPlan,
        prompt: Prompt,
        chunk_index: int = 0,
        *,
        levels: tuple[float, ...] | None = None,
        work: ChunkWork | None = None,
        attempts: Attempts | None = None,
        most_back: int = 0,
    ) -> None:
        self.pipe, self.inputs, self.plan, self.chunk_index = pipe, inputs, inputs.plan, chunk_index
        self.levels, self.timesteps = self.plan.levels, self.plan.timesteps
        if levels is not None:
            self.levels, self.timesteps = levels, pipe.scheduler.timesteps_of(levels[:-1], self.plan.device)
        self.work = ChunkWork() if work is None else work
        embeds = inputs.script.new_embeds(chunk_index)
        self._prompt = prompt if embeds is None else prompt.changed(embeds)
        self._is_changed = self._prompt is not prompt
        self._prompts = ChunkPrompts(self._prompt, self.num_steps)
        self._recached: dict[tuple[int, str], tuple[ChunkMemory, ChunkMemory]] = {}
        self._contexts: dict[int, tuple[ChunkMemory, ChunkContext]] = {}
        self._num_proposed = 0
        self._attempts, self.most_back = Attempts() if attempts is None else attempts, most_back
        self.next_number = self._attempts.num_proposed  # of a beam's candidate that no attempt has proposed
        self._generator: torch.Generator | None = None

    @property
    def num_steps(self) -> int:
        """Denoising steps of this chunk."""
        return len(self.levels) - 1

    @property
    def num_chunks(self) -> int:
        """Chunks of the video; of an endless stream, its horizon."""
        return self.plan.num_chunks

    @property
    def is_last(self) -> bool:
        return self.plan.is_last(self.chunk_index)

    @property
    def prompt(self) -> str | None:
        """The chunk's prompt in words; None where there are only embeddings."""
        return self.inputs.script.words(self.chunk_index)

    @property
    def reward_words(self) -> str:
        """What rewards read at this chunk."""
        return self.inputs.reward_words(self.chunk_index)

    @property
    def clip_chunks(self) -> int:
        """Chunks of the video reward's window: none of before the last change of the prompt."""
        since = self.inputs.script.stretch_begin(self.chunk_index)
        return min(self.plan.request.reward_window, self.chunk_index + 1 - since)

    @property
    def prompt_embeds(self) -> torch.Tensor:
        """(1, L, D): the prompt as the transformer reads it."""
        return self._prompts.last.embeds

    @property
    def next_prompt(self) -> Prompt:
        """What the next chunk's transformer reads, after what a callback changed."""
        return self._prompts.last

    def change_prompt(self, embeds: torch.Tensor) -> None:
        """Changes what is read from the first step on that no candidate has begun, as a callback does."""
        self._prompts.change(0, embeds)

    @property
    def is_given(self) -> bool:
        """Whether the chunk is given, so that there is nothing to search: `given` is its one candidate."""
        return self.chunk_index < self.plan.num_given_chunks

    @property
    def num_turns(self) -> int:
        """How often the search has turned back from this chunk, to this one again or to an older one."""
        return self._attempts.num_turns

    @property
    def generator(self) -> torch.Generator:
        """For a search's own draws: a stream that no candidate has, seeded from the run's base, chunk and attempt."""
        if self._generator is None:
            seed = search_seed(self.inputs.seeds[0], self.chunk_index, self._attempts.num_made)
            self._generator = candidate_generator(seed)
        return self._generator

    def propose(self, beams: Sequence[Beam], counts: Sequence[int] | int, first: int = 0) -> list[Candidate]:
        """Unit 1: draws the noise of new candidates, in order of their parents.

        Args:
            counts: candidates of each beam; one number serves all.
            first: number of a beam's first one, which decides its seed: a second round begins where the last ended.
                Attempts at this chunk that were given up have the numbers before.

        Raises:
            TypeError, ValueError: `counts` lacks a whole number for some beam, or `first` is below 0.
        """
        counts = [counts] * len(beams) if isinstance(counts, Real) else list(counts)
        if len(counts) != len(beams):
            raise ValueError(f"`counts` has {len(counts)} numbers for {len(beams)} beams; give one each.")
        first, candidates = self._attempts.num_proposed + whole_number("first", first, least=0), []
        check_place(beams, (), self.chunk_index)
        for parent, (beam, count) in enumerate(zip(beams, counts, strict=True)):
            end = first + whole_number("counts", count, least=0)
            for index in range(first, end):
                candidates.append(self.candidate_of(beam, parent, *self._seed(beam, parent, index)))
            self.next_number = max(self.next_number, end)
        return candidates

    def candidate_of(self, beam: Beam, parent: int, seed: int, lineage: tuple[int, int] | None = None) -> Candidate:
        """Unit 1 for one candidate, with the noise of a seed."""
        num_channels, num_frames, *size = self.plan.chunk_shape(self.chunk_index)
        generator = candidate_generator(seed)
        fresh, *renoise = (draw_noise([generator], (num_frames, num_channels, *size))[0] for _ in self.levels[:-1])
        # None to propagate: a given chunk has no noise, and that of a chunk of another length is of another shape.
        parent_noise = None if beam.noise is None or beam.noise.shape != fresh.shape else beam.noise
        noise = propagate_noise(parent_noise, fresh, self.plan.request.noise_correlation)
        if self.inputs.noise is not None:
            frames = self.plan.chunk_frames(self.chunk_index)
            noise = self.inputs.noise[:, frames].transpose(0, 1).to(fresh).contiguous()
        self._num_proposed += 1
        drawn = (noise, *renoise)
        number = self._num_proposed - 1
        return Candidate(parent, seed, noise, drawn[1:], self.chunk_index, number, drawn, lineage)

    def _seed(self, beam: Beam, parent: int, index: int) -> tuple[int, tuple[int, int] | None]:
        """The seed of a beam's candidate, and its lineage where the run has several."""
        seeds, mode = self.inputs.seeds, SEED_MODES[self.plan.request.candidate_seeds]
        if len(seeds) == 1:
            return mode(seeds[0], self.chunk_index, parent, index, beam.seeds[-1] if beam.seeds else seeds[0]), None
        lineage = beam.lineage
        if lineage is None:  # candidate i of the first chunk that is made begins lineage i
            index, own = divmod(index, len(seeds))
            lineage = (own, 0)
        base = seeds[lineage[0]]
        return mode(base, self.chunk_index, lineage[1], index, base), lineage

    def given(self, beams: Sequence[Beam]) -> list[Candidate]:
        """The chunk that the caller gave, as the one candidate of the one beam: finished, and not scored yet.

        Raises:
            ValueError: this chunk is not given, or there is another number of beams.
        """
        check_place(beams, (), self.chunk_index)
        if not self.is_given or len(beams) != 1:
            raise ValueError(f"Chunk {self.chunk_index} of {len(beams)} beams is not given; `propose` candidates.")
        latents = self.inputs.given[:, self.plan.chunk_frames(self.chunk_index)].to(self.plan.device)
        # A copy: a view would keep the whole past alive.
        return [Candidate(0, self.inputs.seeds[0], None, (), self.chunk_index, prediction=latents.clone())]

    @torch.no_grad()
    def denoise(
        self, beams: Sequence[Beam], candidates: Sequence[Candidate], until: int | None = None
    ) -> list[Candidate]:
        """Denoises candidates up to step `until`; those that are there already stay as they are.

        Those of one parent that have done as many steps are one batch.

        Args:
            until: steps done in the end, 1 to `num_steps`. None: all.

        Returns:
            The candidates in their order, each with its clean prediction so far, or lost where that is not finite.

        Raises:
            TypeError, ValueError: there is no such step, or a beam's memory was let go.
            SearchInterrupted: `pipe._interrupt` was set, between two steps.
        """
        until = self.num_steps if until is None else whole_number("until", until, least=1, most=self.num_steps)
        check_place(beams, candidates, self.chunk_index)
        done, batches = list(candidates), {}
        for row, candidate in enumerate(candidates):
            if candidate.lost is None and candidate.step < until:
                memory = self._memory(beams, candidate)
                batches.setdefault((candidate.parent, id(memory), candidate.step), []).append(row)
        for rows in batches.values():
            batch = [done[row] for row in rows]
            memory = self._memory(beams, batch[0])
            with self.work.timed("denoise", self.plan.device):
                batch = self._denoise_batch(memory, batch, until)
            for row, candidate in zip(rows, batch, strict=True):
                done[row] = candidate
        return done

    def _denoise_batch(self, memory: ChunkMemory, batch: list[Candidate], until: int) -> list[Candidate]:
        first, scheduler, latents = batch[0].step, self.pipe.scheduler, self._held(self._inputs(batch))
        for step in range(first, until):
            if self.pipe.interrupt:
                raise SearchInterrupted
            timestep, noisy = self.timesteps[step], latents
            self.pipe.begin_step(self.num_steps, timestep, self.plan.request.attention_kwargs)
            velocity = self._velocity(noisy, self._timesteps(noisy, timestep), memory, self._prompts.begin(step))
            sigma, next_sigma = self.levels[step : step + 2]
            fresh = self._noise([c.renoise[step] for c in batch]) if next_sigma > 0.0 else None
            stepped = scheduler.step_between(velocity, noisy, sigma, next_sigma, fresh)
            called_back = self._call_back(step, stepped)
            latents = self._held(called_back)
        self.work.forwards += len(batch) * (until - first)
        prediction, is_replaced = latents, False
        if until < self.num_steps:
            prediction, is_replaced = scheduler.clean_sample(velocity, noisy, sigma), called_back is not stepped
            prediction = self._held(prediction)
        finite = torch.isfinite(prediction).flatten(1).all(dim=1).tolist()
        denoised = []
        for row, candidate in enumerate(batch):
            # Copies: a view would keep the whole batch alive for as long as one candidate of it is.
            changes = {"step": until, "prediction": prediction[row].clone()}
            changes["noisy"] = latents[row].clone() if is_replaced else None
            candidate = replace(candidate.going_on(), **changes)
            if not finite[row]:
                candidate = lose(candidate, "its latents are not finite", self.chunk_index)
            denoised.append(candidate)
        return denoised

    def _inputs(self, batch: list[Candidate]) -> torch.Tensor:
        """(B, C, F, h, w): the noisy latents that the batch's next step denoises."""
        step = batch[0].step
        if step == 0:
            return self._noise([candidate.noise for candidate in batch])
        prediction = torch.stack([candidate.prediction for candidate in batch])
        noise = self._noise([candidate.renoise[step - 1] for candidate in batch])
        latents = self.pipe.scheduler.add_noise(prediction, noise, self.levels[step])
        for row, candidate in enumerate(batch):
            if candidate.noisy is not None:
                latents[row] = candidate.noisy
        return latents

    def _held(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents (B, C, F, h, w) with the first latent frame that the caller gave, where this chunk has it."""
        if not self._is_held:
            return latents
        first = self.inputs.given.to(latents)[None].expand(len(latents), -1, -1, -1, -1)
        return torch.cat((first, latents[:, :, 1:]), dim=2)

    def _timesteps(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """(B,), or (B, L) where the first latent frame is held: that is clean, its tokens are at 0."""
        if not self._is_held:
            return timestep.expand(len(latents))
        patch_size = self.pipe.transformer.config.patch_size
        num_frames, *sides = (side // patch for side, patch in zip(latents.shape[2:], patch_size, strict=True))
        of_frames = torch.cat((timestep.new_zeros(1), timestep.expand(num_frames - 1)))
        return of_frames.repeat_interleave(sides[0] * sides[1]).expand(len(latents), -1)

    @property
    def _is_held(self) -> bool:
        return self.plan.is_clamped and self.chunk_index == 0

    def _noise(self, draws: list[torch.Tensor]) -> torch.Tensor:
        """(F, C, h, w) each to (B, C, F, h, w) on the models' device."""
        return torch.stack(draws).to(self.plan.device).transpose(1, 2)

    def _call_back(self, step: int, latents: torch.Tensor) -> torch.Tensor:
        """The latents, or what `callback_on_step_end` put instead of them."""
        callback = self.plan.request.callback_on_step_end
        if callback is None:
            return latents
        tensors = {"latents": latents, "prompt_embeds": self._prompts.begin(step).embeds}
        tensors = {name: tensors[name].clone() for name in self.plan.request.callback_tensor_inputs}
        answer = callback(self.pipe, step, self.timesteps[step], tensors)
        changed = answer_of("callback_on_step_end", answer, ("latents", "prompt_embeds"))
        of = ", which `callback_on_step_end` gave,"
        if "prompt_embeds" in changed:
            embeds, text_dim = changed["prompt_embeds"], self.pipe.transformer.config.text_dim
            check_prompt_embeds(embeds, text_dim, num_prompts=1, of=of)
            self._prompts.change(step, embeds.detach())
        if "latents" not in changed:
            return latents
        replaced = changed["latents"]
        check_float_tensor("latents", replaced, of)
        if replaced.shape != latents.shape:
            raise ValueError(
                f"`latents`{of} have the shape {tuple(replaced.shape)}; they must keep {tuple(latents.shape)}."
            )
        return replaced.detach().to(latents)

    @torch.no_grad()
    def decode(self, beams: Sequence[Beam], candidates: Sequence[Candidate]) -> list[Candidate]:
        """Decodes candidates, also their unfinished predictions, from their parents' states; each is decoded once.

        Raises:
            ValueError: there is no VAE, or a parent's decoder state was let go.
        """
        check_place(beams, candidates, self.chunk_index)
        decoded = list(candidates)
        rows = [row for row, c in enumerate(decoded) if _is_open(c) and c.frames is None]
        if rows and self.pipe.vae is None:
            raise ValueError("There is no VAE to decode with.")
        with self.work.timed("decode", self.plan.device):
            for parent in dict.fromkeys(decoded[row].parent for row in rows):
                state = beams[parent].decoder_state
                if state is RELEASED:
                    raise ValueError(
                        f"The decoder state of beam {parent} was let go, or its last chunk was never decoded: nothing "
                        "can be decoded from it."
                    )
                self._decode_batch(decoded, [row for row in rows if decoded[row].parent == parent], state)
        return decoded

    def _decode_batch(self, candidates: list[Candidate], rows: list[int], state: object | None) -> None:
        """Puts the rows' decoded candidates into the list; `state` is their parent's."""
        together, finite = tuple(candidates[row].prediction for row in rows), []
        latents = torch.stack(together)
        videos = StreamingWanDecoder(self.pipe.vae).continuations(latents, state)
        for row, (video, new_state) in zip(rows, videos, strict=True):
            frames = to_uint8(video)
            picture = thumbnail(frames) if self.plan.request.trace_thumbnails else None
            batch = together if not self.pipe.vae.use_slicing else (candidates[row].prediction,)
            decoded = {"frames": frames, "decoder_state": new_state, "decoded_with": batch}
            candidates[row] = replace(candidates[row], **decoded, thumbnail=picture)
            finite.append(torch.isfinite(video).all())
        for row, is_finite in zip(rows, torch.stack(finite).tolist(), strict=True):
            if not is_finite:
                candidates[row] = lose(candidates[row], "its frames are not finite", self.chunk_index)
        self.work.latents_decoded += latents.shape[0] * latents.shape[2]

    @torch.no_grad()
    def score(
        self,
        beams: Sequence[Beam],
        candidates: Sequence[Candidate],
        *,
        image_reward: Callable | bool | None = None,
        video_reward: Callable | bool | None = None,
        prompt: str | None = None,
    ) -> list[Candidate]:
        """Unit 2: gives candidates their rewards and fused score, and the route for unit 3; or finds them lost.

        What has no pixels is decoded, if a reward reads them. Candidates that have a score keep it, unless this call
        brings rewards or words of its own.

        Args:
            image_reward, video_reward: instead of the run's; False: none.
            prompt: words for the rewards, instead of the chunk's own.
        """
        plan, is_own = self.plan, any(argument is not None for argument in (image_reward, video_reward, prompt))
        rewards = {
            "image": (chosen_reward("image_reward", image_reward, plan.image_reward), 0),
            "video": (chosen_reward("video_reward", video_reward, plan.video_reward), self.clip_chunks - 1),
        }
        for kind, (reward, _) in rewards.items():
            if isinstance(reward, str | Path):
                raise TypeError(f"`{kind}_reward` of a step is {str(reward)!r}; load it first, and give the reward.")
        if any(reward is not None for reward, _ in rewards.values()):
            candidates = self.decode(beams, candidates)
        else:
            check_place(beams, candidates, self.chunk_index)
        scored, words = list(candidates), self.reward_words if prompt is None else prompt
        rows = [row for row, c in enumerate(scored) if _is_open(c) and (is_own or c.score is None)]
        for row in rows:
            scored[row] = replace(scored[row], short=None, long=None, score=None, route=None, parts={})
        for kind, (reward, num_past) in rewards.items():
            alive = [row for row in rows if scored[row].lost is None]
            if reward is not None and alive:
                results = self._ask(kind, reward, self.clips(beams, [scored[row] for row in alive], num_past), words)
                for row, result in zip(alive, results, strict=True):
                    scored[row] = self._rewarded(scored[row], kind, result)
        weight = plan.fusion_weight(self.chunk_index, *(reward is not None for reward, _ in rewards.values()))
        self._fuse(beams, scored, [row for row in rows if scored[row].lost is None], weight)
        return scored

    def _ask(self, kind: str, reward: Callable, clips: torch.Tensor, words: str) -> list[RewardScore]:
        self.work.frames_scored += clips.shape[0] * clips.shape[1]
        with self.work.timed("reward", self.plan.device):
            return score_clips(reward, clips, words, self.plan.fps, name=f"{kind}_reward")

    def _rewarded(self, candidate: Candidate, kind: str, result: RewardScore) -> Candidate:
        if result.gated is not None:
            return set_aside(candidate, result.gated)
        if result.score is None:
            return lose(candidate, result.problem, self.chunk_index, result.error)
        return candidate.with_reward(kind, result.score, result.parts)

    def _fuse(self, beams: Sequence[Beam], candidates: list[Candidate], rows: list[int], weight: float) -> None:
        """Puts fused scores, with a weight of the short one, and routes into the list, for its rows."""
        normalized = []
        for name in ("short", "long"):
            values = [getattr(candidates[row], name) for row in rows]
            method = None if None in values else self.plan.request.score_normalization
            normalized.append(normalize_scores(values, method))
        for row, short, long in zip(rows, *normalized, strict=True):
            candidate, parent = candidates[row], beams[candidates[row].parent]
            # An absent reward has no say: a constant neither rises above its mean nor falls.
            histories = ((*parent.short, candidate.short), (*parent.long, candidate.long))
            histories = (tuple(score or 0.0 for score in history) for history in histories)
            since = self.inputs.script.stretch_begin(self.chunk_index)
            route = decided_route(self.plan.policy, *histories, since)
            candidates[row] = replace(candidate, score=fused_score(short, long, weight), route=route)

    def clips(self, beams: Sequence[Beam], candidates: Sequence[Candidate], num_past: int) -> torch.Tensor:
        """The candidates' chunks after so many of their beams': (B, F, 3, H, W) uint8."""
        past = [newest(beams[candidate.parent].frames, num_past) for candidate in candidates]
        return torch.stack([torch.cat((*frames, c.frames)) for frames, c in zip(past, candidates, strict=True)])

    @torch.no_grad()
    def commit(self, beams: Sequence[Beam], candidates: Sequence[Candidate]) -> list[Beam]:
        """Grows beams from finished candidates, in their order.

        But for the last chunk, a clean pass remembers each, and unit 3 makes room for the next. A candidate that is
        there twice gives two beams with one memory, which part with their next noise.

        Raises:
            ValueError: a candidate is lost or not denoised to the end, or its beam's memory was let go.
        """
        check_place(beams, candidates, self.chunk_index)
        for candidate in candidates:
            if candidate.lost is not None or not candidate.is_finished:
                raise ValueError(f"Candidate {candidate.number} is lost or unfinished, and no beam can grow from it.")
        grown = parted([candidate.extend(beams[candidate.parent]) for candidate in candidates])
        if self.is_last:
            return [replace(beam, decoder_state=RELEASED, evicted=()) for beam in grown]
        rows_by_memory: dict[int, list[int]] = {}
        for row, candidate in enumerate(candidates):
            grown[row] = self._with_memory(grown[row], self._memory(beams, candidate))
            rows_by_memory.setdefault(id(grown[row].memory), []).append(row)
        self._contexts = {key: entry for key, entry in self._contexts.items() if key in rows_by_memory}
        remembered: dict[int, Beam] = {}
        for key, rows in rows_by_memory.items():  # one after the other, so that each context goes as soon as it can
            for row in rows:
                if id(candidates[row]) not in remembered:
                    remembered[id(candidates[row])] = self._remember(candidates[row], grown[row])
            self._contexts.pop(key, None)
        made = [remembered[id(candidate)] for candidate in candidates]
        return [replace(beam, lineage=own.lineage) for beam, own in zip(made, grown, strict=True)]

    def _with_memory(self, beam: Beam, memory: ChunkMemory) -> Beam:
        """The beam with the memory that its newest chunk read; what a flush took out of it is recorded as gone."""
        read = {chunk.index for chunk in memory.window}
        gone = [chunk.index for chunk in beam.memory.window if chunk.index not in read]
        evicted = tuple((index, beam.routes[index] or Route.DISCARD.value, Route.DISCARD.value) for index in gone)
        return replace(beam, memory=memory, evicted=evicted)

    def _remember(self, candidate: Candidate, beam: Beam) -> Beam:
        """The beam with its newest chunk in memory: keys and values at timestep 0.

        One chunk after the other, so that a pass needs no more room, and a compiled model no more graphs, for several.
        """
        plan, record = self.plan, ChunkRecord()
        num_frames, incoming_frames = (plan.num_latents(self.chunk_index + ahead) for ahead in (0, 1))
        with self.work.timed("clean_pass", plan.device):
            self._velocity(candidate.latents[None], self.timesteps.new_zeros(1), beam.memory, self.next_prompt, record)
            chunk = record.chunk(self.chunk_index, beam.memory.num_frames, num_frames)
            memory = beam.memory.append(chunk, plan.sink_frames)
            memory, left = make_room(memory, plan.policy, beam.routes, plan.rolling_frames, incoming_frames)
        self.work.clean_passes += 1
        evicted = tuple((index, route.value, done.value) for index, route, done in left)
        return replace(beam, memory=memory, evicted=(*beam.evicted, *evicted))

    def ahead(self, num_steps: int | None = None) -> "ChunkSteps":
        """The next chunk's steps, for a loop of one's own or a roll-out. What they do is counted as this chunk's work.

        Args:
            num_steps: denoising steps, for a cheaper roll-out. Default: those of the run.

        Raises:
            TypeError, ValueError: this is the last chunk, or there is no such number of steps.
        """
        if self.is_last:
            raise ValueError(f"Chunk {self.chunk_index} is the video's last; there is none ahead.")
        levels = None
        if num_steps is not None:
            num_steps = whole_number("num_steps", num_steps, least=1, most=MAX_STEPS)
            levels = (*self.pipe.scheduler.schedule(num_steps), 0.0)
        arguments = {"levels": levels, "work": self.work}
        return ChunkSteps(self.pipe, self.inputs, self.next_prompt, self.chunk_index + 1, **arguments)

    @torch.no_grad()
    def recached(self, beam: Beam, mode: str | None = None) -> ChunkMemory:
        """What a beam remembers under this chunk's prompt, made once: what its candidates read.

        A candidate reads that of another mode after `replace(candidate, memory=steps.recached(beam, mode))`.

        Args:
            mode: of `recache`. Default: the run's own where the prompt has changed, else the memory as it is.

        Raises:
            ValueError: the memory policy does not serve the mode, or the memory was let go.
        """
        check_place([beam], (), self.chunk_index)
        if beam.memory is RELEASED:
            raise ValueError("The beam's memory was let go: nothing can be remembered again.")
        own = self.plan.recache if self._is_changed else "none"
        mode = own if mode is None else policy_recache(self.plan.policy, mode, "mode")
        key = id(beam.memory), mode
        if key not in self._recached:
            self._recached[key] = beam.memory, self._recache(beam, mode)
        return self._recached[key][1]

    def _recache(self, beam: Beam, mode: str) -> ChunkMemory:
        plan = self.plan
        if mode == "none" or beam.depth == 0:
            return beam.memory
        if mode == "flush":
            return flushed(beam.memory, plan.window_frames, plan.num_latents(self.chunk_index))
        sizes = {"window_frames": plan.window_frames, "sink_frames": plan.sink_frames}
        planned = recache_pass(beam.memory, beam.latents, makes_sinks=mode == "all", **sizes)
        if planned is None:
            return beam.memory
        latents, record = torch.cat(planned.latents, dim=1)[None], ChunkRecord()
        with self.work.timed("recache", plan.device):
            context = self._new_context(planned.past, latents.shape[2], self._prompt).recording(record)
            self._forward(latents, self.timesteps.new_zeros(1), self._prompt, context)
            memory = planned.remembered(beam.memory, record)
        self.work.recached_chunks += len(planned.latents)
        return memory

    def _memory(self, beams: Sequence[Beam], candidate: Candidate) -> ChunkMemory:
        """What a candidate reads and grows: its own memory, else its beam's under the chunk's prompt."""
        given = beams[candidate.parent].memory if candidate.memory is None else candidate.memory
        if given is RELEASED:
            raise ValueError(f"The memory of beam {candidate.parent} was let go: nothing can grow from it.")
        return self.recached(beams[candidate.parent]) if candidate.memory is None else given

    def _new_context(
        self, memory: ChunkMemory, num_frames: int, prompt: Prompt, first_position: int | None = None
    ) -> ChunkContext:
        """What forwards of so many latent frames on a memory read."""
        config = self.pipe.transformer.config
        return memory.context(
            (num_frames, *self.plan.latent_shape[2:]),
            patch_size=config.patch_size,
            head_dim=config.attention_head_dim,
            positions=policy_positions(self.plan.policy),
            prompt=prompt.memory,
            device=self.plan.device,
            first_position=first_position,
        )

    def _context(self, memory: ChunkMemory, prompt: Prompt) -> ChunkContext:
        """What the chunk's forwards on a memory read, made once per chunk."""
        if id(memory) not in self._contexts:
            position = CUT_POSITION if self.inputs.script.is_cut(self.chunk_index) else None
            num_frames = self.plan.num_latents(self.chunk_index)
            self._contexts[id(memory)] = (
                memory,
                self._new_context(memory, num_frames, prompt, position),
            )
        _, context = self._contexts[id(memory)]
        return context if context.prompt is prompt.memory else context.with_prompt(prompt.memory)

    def _velocity(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        memory: ChunkMemory,
        prompt: Prompt,
        record: ChunkRecord | None = None,
    ) -> torch.Tensor:
        """The transformer's velocity, (B, C, F, h, w). A `record` takes the keys and values of a clean pass."""
        context = self._context(memory, prompt)
        return self._forward(latents, timesteps, prompt, context if record is None else context.recording(record))

    def _forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: Prompt, context: ChunkContext
    ) -> torch.Tensor:
        return self.pipe.transformer(
            hidden_states=latents.to(self.plan.dtype),
            timestep=timesteps,
            encoder_hidden_states=prompt.embeds,
            attention_kwargs=self.plan.request.attention_kwargs,
            context=context,
            return_dict=False,
        )[0]


def _is_open(candidate: Candidate) -> bool:
    """Whether there is something of it to decode and score."""
    return candidate.lost is None and candidate.prediction is not None
