"""One prompt's search as it stands: its beams after the last finished chunk, and the record so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from diffusers.utils import logging

from . import beam, choice, plan, reward_pruning, saved_run, script, trace

logger = logging.get_logger(__name__)

MOST_TURNS = 256  # from one chunk; a search that goes on is thought to be endless


@dataclass(frozen=True)
class Attempts:
    """The attempts at one chunk that were given up."""

    num_made: int = 0
    num_proposed: int = 0  # candidates of a beam, so that the next attempt draws other seeds
    num_turns: int = 0  # those at which the search turned back; the others were given up by attempts at later chunks


@dataclass(eq=False)
class PromptSearch:
    """The loop's state for one prompt; the values in it are replaced, never written."""

    inputs: "plan.PromptPlan"
    prompt: object  # as the transformer reads it; a callback may replace it
    trace: "trace.SearchTrace"
    beams: "list[beam.Beam]"  # best first
    older: tuple[tuple["list[beam.Beam]", object], ...] = ()  # beams and prompt of the chunks to which it may go back
    attempts: dict[int, Attempts] = field(default_factory=dict)  # by chunk, of those that were given up
    work: "trace.ChunkWork | None" = None  # done for its next chunk before the chunk was begun
    kept: "list[saved_run.KeptChunk]" = field(default_factory=list)  # every chunk's, if the run is kept in a file
    file: "saved_run.RunFile | None" = None  # of all searches of the call

    @property
    def plan(self) -> "plan.SearchPlan":
        return self.inputs.plan

    @property
    def chunk_index(self) -> int:
        """Of the chunk that is to be made next."""
        return self.beams[0].depth

    @property
    def is_finished(self) -> bool:
        return self.plan.is_last(self.chunk_index - 1)

    def agreeing(self, made: "choice.Choice") -> "choice.Choice":
        """The choice without those whose video is not the best one's up to `max_lag` chunks ago.

        Candidates of its reserve take their places, if they agree.
        """
        lag = self.plan.request.max_lag
        if lag is None or lag > self.chunk_index or not made.kept:
            return made
        ranked = [*made.kept, *made.reserve]
        past = [self._past(made.candidates[index], lag) for index in ranked] if lag > 0 else [None]
        rows = [row for row, latents in enumerate(past) if latents is past[0]][: len(made.kept)]
        weights = made.log_weights and [made.log_weights[row] if row < len(made.kept) else 0.0 for row in rows]
        return replace(made, kept=[ranked[row] for row in rows], log_weights=weights, reserve=())

    def _past(self, candidate: "beam.Candidate", lag: int) -> torch.Tensor | None:
        return self.beams[candidate.parent].latents[self.chunk_index - lag]

    def finish_chunk(
        self,
        beams: "list[beam.Beam]",
        record: "trace.ChunkTrace",
        monitored: dict[str, list[float | None]],
        survivors: "Sequence[beam.Candidate]" = (),
    ) -> None:
        """Goes on to the next chunk. An endless stream keeps the records of the last chunks alone.

        Args:
            survivors: the candidates from which the beams grew, for the file of a run that has one.

        Raises:
            ValueError, OSError: the file can't keep one of them, or can't be written.
        """
        self.beams = beams
        self.trace.add(record, monitored)
        if self.plan.is_endless:
            self.trace.keep_last(self.plan.num_chunks)
        if self.file is not None:
            self.kept.append(saved_run.KeptChunk.of(survivors, beams, self._changed_prompt()))
            self.file.write()

    def _changed_prompt(self) -> torch.Tensor | None:
        """The last chunk's embeddings on the CPU, if a callback made them others than the script's."""
        embeds = self.prompt.embeds
        if torch.equal(embeds, self.inputs.script.embeds(self.chunk_index - 1)):
            return None
        last = self.kept[-1].prompt if self.kept else None
        embeds = embeds.cpu()
        return last if last is not None and torch.equal(embeds, last) else embeds

    def finish(self, final: "trace.FinalTrace") -> None:
        """Enters the order of a whole video's beams."""
        self.trace = replace(self.trace, final=final)
        if self.file is not None:
            self.file.write()

    def num_settled(self, num_before: int) -> int:
        """How many of the video's first chunks can change no more: all beams share them, and it cannot go back there.

        Args:
            num_before: so many are known to be settled.
        """
        num_given = min(self.plan.num_given_chunks, self.chunk_index)
        num_shared, last = num_before, max(self.chunk_index - self.plan.depth, num_given)
        while num_shared < last and len({id(beam.latents[num_shared]) for beam in self.beams}) == 1:
            num_shared += 1
        return num_shared

    def forget(self, num_yielded: int) -> None:
        """Lets go of what an endless stream has given away and nothing reads again."""
        most_read = max(self.plan.request.reward_window, -(-self.plan.window_frames // self.plan.latent_shape[1]))
        before = min(num_yielded, self.chunk_index - most_read)  # a changed prompt makes the window again
        if self.plan.is_endless and before > 0:
            self.beams = [beam.forget(before) for beam in self.beams]
            self.inputs = replace(self.inputs, script=self.inputs.script.forget(before))

    def change_prompt(self, change: "script.PromptChange", reward_words: str | None = None) -> None:
        """Changes the prompt of the next chunk and of those after it. Chunks that are made keep their own."""
        self.inputs = replace(self.inputs, script=self.inputs.script.changed(change, reward_words))
        if self.chunk_index == 0:
            self.prompt = self.prompt.changed(change.embeds)

    @property
    def attempts_before(self) -> Attempts:
        """Those at the chunk that is to be made next."""
        return self.attempts.get(self.chunk_index, Attempts())

    @property
    def most_back(self) -> int:
        """Chunks that the search may go back now."""
        return min(self.plan.depth, len(self.older))

    def note_attempt(self, num_proposed: int) -> None:
        """Counts an attempt at the chunk that is to be made next; so many candidates of a beam are numbered by now."""
        before = self.attempts_before
        counted = replace(before, num_made=before.num_made + 1, num_proposed=num_proposed)
        recent = {index: each for index, each in self.attempts.items() if index >= self.chunk_index - self.plan.depth}
        self.attempts = {**recent, self.chunk_index: counted}

    def go_back(self, made: "choice.Choice", work: "trace.ChunkWork") -> None:
        """Gives up an attempt at the next chunk, and the chunks before it back to the one that is made again.

        Raises:
            ValueError: the search has turned back from this chunk so often that it may do so for ever.
        """
        turned = replace(self.attempts_before, num_turns=self.attempts_before.num_turns + 1)
        if turned.num_turns > MOST_TURNS:
            raise ValueError(
                f"{choice.search_name(self.plan.search)} has turned back from chunk {self.chunk_index} {MOST_TURNS} "
                "times; a search must end it: `steps.num_turns` counts."
            )
        self.attempts = {**self.attempts, self.chunk_index: turned}
        weight = self.plan.fusion_weight(self.chunk_index)
        words = self.inputs.script.as_recorded(self.chunk_index)
        record = trace.ChunkTrace.of(made.traces(), [], weight, work, made.notes, words)
        self.trace.give_up(made.back, record)
        if made.back > 0:
            self.beams, self.prompt = self.older[-made.back]
            self.older = self.older[: -made.back]
        if self.file is not None:
            del self.kept[self.chunk_index :]
            self.file.write()

    def keep_for_going_back(self) -> None:
        """Keeps the beams of the chunk that is being made, with their decoder states, as long as it may come again.

        A given chunk never does.
        """
        if self.plan.depth > 0 and self.chunk_index >= self.plan.num_given_chunks:
            self.older = (*self.older, (self.beams, self.prompt))[-self.plan.depth :]

    def release_decoder_states(self) -> None:
        """Lets go of what only candidates are decoded from."""
        self.beams = [replace(each, decoder_state=beam.RELEASED) for each in self.beams]

    def release(self) -> None:
        """Lets go of all that only a next chunk would need: a finished search is its videos and its trace."""
        self.beams = [replace(each, memory=beam.RELEASED, decoder_state=beam.RELEASED) for each in self.beams]
        self.prompt, self.older = None, ()

    def settle_by_score(self) -> None:
        """Orders the beams by their last score, unless they are ordered: no more work for what was interrupted."""
        if self.trace.final is None:
            scores = [each.score for each in self.beams]
            self.trace = replace(self.trace, final=reward_pruning.order_by("score", scores))

    def best_beams(self) -> "Sequence[beam.Beam]":
        """As many beams as the call asks for, in their final order; fewer, with a warning, when fewer are left."""
        wanted = self.plan.request.num_videos_per_prompt
        if len(self.beams) < wanted:
            reasons = "candidates were lost, or `max_lag` or a callback kept fewer"
            logger.warning(f"{len(self.beams)} of {wanted} videos are left for a prompt: {reasons}.")
        return [self.beams[index] for index in self.trace.final.order][:wanted]
