"""Runs that are kept: going on with one from its file, and making the best video of a trace again.

Both walk the loop of the pipeline with choices that were made already: `resume` has the latents of what was kept, and
remembers and decodes them; `replay` has seeds and routes, and denoises again.

Axes: B batch, C channels, F latent frames, h and w latent height and width, L text tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from os import PathLike

import torch

from .chunk_steps import ChunkSteps
from .identity import check_same_model, check_same_rewards, made_with
from .models.memory import ChunkMemory
from .models.prompt import Prompt
from .search.beam import RELEASED, Beam, Candidate
from .search.kept_settings import KeptSettings, asked_again
from .search.noise_propagation import base_seed
from .search.outputs import StreamT1PipelineOutput
from .search.plan import PromptPlan, SearchPlan
from .search.prompt_search import PromptSearch
from .search.recorded import as_config
from .search.repeated import Repeated, check_repeatable, policy_of, script_of
from .search.request import VideoRequest
from .search.saved_run import KeptPrompt, RunFile, SavedRun, read_run, wanted_rows
from .search.trace import Json, SearchTrace

OUTPUT = ("output_type", "return_dict", "save_to")
SEARCHED = (  # what may change where a run is searched again from a chunk on
    "num_beams",
    "num_candidates",
    "noise_correlation",
    "short_weight_cap",
    "score_normalization",
    "reward_window",
    "final_selection",
    "num_videos_per_prompt",
    "max_lag",
    "generator",
)


class KeptRunsMixin:
    """`resume` and `replay`, for the pipeline."""

    @torch.no_grad()
    def resume(
        self,
        path: str | PathLike,
        *,
        num_frames: int | None = None,
        from_chunk: int | None = None,
        **given: object,
    ) -> StreamT1PipelineOutput | tuple:
        """Goes on with a run that was kept by `save_to`, and gives, bit for bit, what it would have given.

        What the file does not hold is made again: memories by clean passes, pixels and decoder states by decoding.
        The file is kept up to date, as it was; a finished run's video is given at once.

        Args:
            path: of the file.
            num_frames: of a longer video. What it adds is what a call of that length would add to these beams; the
                whole is not what it would have made, since the rewards' weights depend on the length.
            from_chunk: searches again from this chunk on, with whatever arguments of the search are given. The file
                stays as it is; `save_to` may name another.
            given: what no file holds (rewards, a search or a policy of one's own, callbacks), under the names of the
                call's arguments; `output_type`, `return_dict`.

        Returns:
            As `__call__`.

        Raises:
            ValueError, TypeError: the file is none, cut, or of another version or model; a reward, policy or search is
                another one; something is missing or can't be given. All before any work.
            OSError: there is no such file, or it can't be read or written.
            NoCandidateLeftError: as `__call__`.
        """
        run = read_run(path, self._version)
        check_same_model(run.made_with, self, str(path))
        is_again = from_chunk is not None
        request = asked_again(run, path, num_frames, given, (*OUTPUT, *SEARCHED) if is_again else OUTPUT)
        plan = self._plan(self._with_sources(request, run))
        plan = replace(plan, **self._levels(run.levels, plan.device))
        settings = run.settings.changed(given if num_frames is None else {**given, "num_frames": num_frames})
        if is_again:
            run = run.cut(from_chunk)
        _check_fits(run, plan, path, is_again)
        plan, self._interrupt = self._loaded(plan), False
        if not is_again:
            check_same_rewards(run.made_with, plan, str(path))
        self._begin(plan)
        made = made_with(self, plan) if is_again else None
        searches = [self._restored(plan, row, kept, run.past, made) for row, kept in enumerate(run.prompts)]
        if request.save_to is not None or not is_again:
            is_new = request.save_to is not None
            self._keep(searches, request.save_to if is_new else path, settings, is_new=is_new)
        output = self._videos_of(searches)
        return output if request.return_dict else output.to_tuple()

    @torch.no_grad()
    def replay(self, trace: SearchTrace, **inputs: object) -> StreamT1PipelineOutput | tuple:
        """Makes the best video of a trace again, by its seeds and routes, without rewards and at a plain one's cost.

        Every chunk is denoised and decoded alone. Where the search did so too, it is the same video bit for bit, on
        the same machine; elsewhere, as when several candidates of a beam were one batch, the same up to rounding.

        Args:
            trace: of a call that is finished, of this version or an older one.
            inputs: what a trace does not hold (`prompt_embeds`, `latents`, `callback_on_step_end`, tensors of
                `attention_kwargs`, a memory policy of one's own), under the names of the call's arguments; and
                `output_type`, `return_dict`.

        Returns:
            As `__call__`; the trace is the one that was given.

        Raises:
            ValueError, TypeError: the trace is unfinished, of an endless stream, or of another model; something is
                missing, or the search put in noise or a memory of its own. All before any work.
        """
        path, config = check_repeatable(trace, inputs), trace.config
        check_same_model(trace.made_with, self, "The trace")
        arguments = {
            "prompt": None if "prompt_embeds" in inputs else trace.chunks[0].prompt or config["prompt"],
            **{name: config[name] for name in ("recache", "transition") if name in config},
            **{name: config[name] for name in ("height", "width", "noise_correlation")},
            **{name: config[name] for name in ("max_sequence_length", "attention_kwargs") if name in config},
            "num_frames": self.geometry.num_frames(len(path)),
            "reward_prompt": "",
            "generator": torch.Generator().manual_seed(trace.seed),
            "candidate_seeds": "reference",  # takes the trace's base as it is
            "image_reward": False,
            "video_reward": False,
            "memory": policy_of(config) if "memory" not in inputs else inputs["memory"],
            "search": Repeated(path),
        }
        request = VideoRequest(**{**arguments, **inputs})
        plan, self._interrupt = self._plan(request, of_one="replay"), False
        script = None if {"prompt", "prompt_embeds"} & inputs.keys() else script_of(trace, len(path))
        if script is not None:
            plan = replace(plan, scripts=(script,))
        searches = self._searches(replace(plan, **self._levels(config["levels"], plan.device)))
        output = StreamT1PipelineOutput(self._videos_of(searches).frames, [trace])
        return output if request.return_dict else output.to_tuple()

    def _levels(self, levels: Sequence[float], device: torch.device) -> dict[str, object]:
        """Of a plan: the noise levels of the steps, after the shift."""
        return {"levels": (*levels, 0.0), "timesteps": self.scheduler.timesteps_of(levels, device)}

    def _keep(
        self,
        searches: list[PromptSearch],
        path: str | PathLike | None,
        settings: KeptSettings | None = None,
        *,
        is_new: bool = True,
    ) -> None:
        """Has the searches of a call written to a file after every chunk, if there is to be one.

        Args:
            settings: of the call, where they are not those of its request.
        """
        if path is None:
            return
        settings = KeptSettings.of_request(searches[0].plan.request) if settings is None else settings
        file = RunFile(path, self._version, searches, settings, is_new=is_new)
        for search in searches:
            search.file = file

    def _with_sources(self, request: VideoRequest, run: SavedRun) -> VideoRequest:
        """The request with rewards from where the run had them, if they were components that this pipeline lacks."""
        sources = {}
        for name in ("image_reward", "video_reward"):
            identity = run.made_with["rewards"].get(name)
            if getattr(request, name) is None and getattr(self, name) is None and identity is not None:
                sources[name] = identity["source"]
        return replace(request, **sources)

    def _restored(
        self,
        plan: SearchPlan,
        row: int,
        kept: KeptPrompt,
        past: torch.Tensor | None,
        made: Mapping[str, Json] | None,
    ) -> PromptSearch:
        """One prompt's search, as it stood after its last chunk in the file.

        Args:
            made: what makes it, if it is searched again; None: what the file says.
        """
        request, seeds, call_seed = plan.request, kept.seeds, kept.trace.call_seed
        generator = request.generators()[row]
        if generator is not None:
            call_seed = generator.initial_seed()
            seeds = tuple(base_seed(generator, request.candidate_seeds) for _ in range(plan.num_lineages))
        noise = None if request.latents is None else request.latents[row]
        changes = [
            replace(each, embeds=each.embeds.to(plan.device, plan.dtype).clone()) for each in kept.script.changes
        ]
        script = replace(kept.script, changes=tuple(changes))
        words = request.prompts()[row], request.reward_prompts()[row]
        inputs = PromptPlan(plan, seeds, *words, script, noise, past)
        monitors = {name: list(values) for name, values in kept.trace.monitors.items()}
        records = {"chunks": list(kept.trace.chunks), "given_up": list(kept.trace.given_up), "monitors": monitors}
        if made is None:
            lengths = {"num_frames": request.num_frames, "num_chunks": plan.num_chunks}
            trace = replace(kept.trace, config={**kept.trace.config, **lengths}, **records, final=None)
        else:
            trace = replace(inputs.new_trace(self._version, call_seed, made), **records)
        num_chunks = len(kept.chunks)
        is_over = plan.is_last(num_chunks - 1)
        lists = self._beams_again(inputs, kept, is_over)
        beams, prompt = lists[-1]
        if is_over:
            trace = replace(trace, final=kept.trace.final)
        elif num_chunks == kept.trace.config["num_chunks"]:  # what was the last chunk is remembered only now
            trace.chunks[-1] = trace.chunks[-1].remembered(beams)
        search = PromptSearch(inputs, prompt, trace, beams, older=tuple(lists[:-1]), attempts=dict(kept.attempts))
        search.kept = list(kept.chunks)
        return search

    def _beams_again(self, inputs: PromptPlan, kept: KeptPrompt, is_over: bool) -> list[tuple[list[Beam], Prompt]]:
        """The beams after the last chunk, and those to which the search may go back, with the next chunk's prompts.

        Args:
            is_over: whether no chunk comes after them, so that nothing has to be remembered.
        """
        beams, prompt = [Beam(RELEASED if is_over else ChunkMemory())], Prompt(inputs.script.embeds(0))
        num_older = 0 if is_over else min(kept.num_older, inputs.plan.depth)
        before, lists = [0], [(beams, prompt)]
        for index, (chunk, rows) in enumerate(zip(kept.chunks, wanted_rows(kept.chunks, num_older), strict=True)):
            steps = ChunkSteps(self, inputs, prompt, index)
            steps.change_prompt(inputs.script.embeds(index) if chunk.prompt is None else chunk.prompt)
            prompt = steps.next_prompt
            places = {parent: place for place, parent in enumerate(before)}
            survivors = chunk.again(index, rows, places, inputs.plan.device)
            if inputs.plan.has_pixels:
                survivors = _decoded_again(steps, beams, survivors)
            grown = [each.extend(beams[each.parent]) for each in survivors] if is_over else None
            grown = steps.commit(beams, survivors) if grown is None else grown
            told = [(chunk.lineages[row], chunk.log_weights[row]) for row in rows]
            beams = [replace(b, lineage=own, log_weight=w) for b, (own, w) in zip(grown, told, strict=True)]
            before, lists = rows, [*lists, (beams, prompt)][-1 - num_older :]
        return lists


def _decoded_again(steps: ChunkSteps, beams: Sequence[Beam], survivors: Sequence[Candidate]) -> list[Candidate]:
    """The survivors with their pixels and decoder states, decoded in the batches of the run."""
    decoded: dict[tuple[int, ...], list[Candidate]] = {}
    made: dict[int, Candidate] = {}
    for survivor in survivors:
        if id(survivor) in made:
            continue
        together = survivor.decoded_with or (survivor.prediction,)
        key = (survivor.parent, *map(id, together))
        if key not in decoded:
            decoded[key] = steps.decode(beams, [replace(survivor, prediction=each) for each in together])
        row = next(row for row, each in enumerate(together) if each is survivor.prediction)
        pixels = {name: getattr(decoded[key][row], name) for name in ("frames", "decoder_state")}
        made[id(survivor)] = replace(survivor, **pixels)
    return [made[id(survivor)] for survivor in survivors]


def _check_fits(run: SavedRun, plan: SearchPlan, path: str | PathLike, is_again: bool) -> None:
    """
    Raises:
        ValueError: the policy or the search is another one than the file's, or a finished run can't be made longer.
    """
    config = run.prompts[0].trace.config
    memory = as_config(plan.policy)
    pairs = {"memory": (config["memory"], {"policy": memory.pop("name"), **memory}, plan.policy)}
    if not is_again:
        pairs["search"] = config["search"], as_config(plan.search), plan.search
    for name, (theirs, mine, value) in pairs.items():
        key = "policy" if name == "memory" else "name"
        is_same = theirs == mine if is_dataclass(value) else theirs[key] == mine[key]  # others may count their calls
        if not is_same:
            raise ValueError(f"{path} was made with `{name}` {theirs}, and here it is {mine}. Give the same.")
    is_finished = any(len(kept.chunks) == config["num_chunks"] for kept in run.prompts)
    if is_finished and plan.num_chunks > config["num_chunks"] and hasattr(plan.search, "check"):
        try:
            plan.search.check(plan.num_steps, None)
        except ValueError as error:  # it treats the last chunk in a way of its own
            raise ValueError(f"{path} has a finished video, which can't be made longer: {error}") from error
