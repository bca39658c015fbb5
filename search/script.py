"""What each chunk of a video shows, and what rewards read there: timelines, changes of a running stream, transitions.

Axes: L tokens.
"""

from dataclasses import dataclass, replace

import torch

from . import geometry, request_checks, timeline


@dataclass(frozen=True, eq=False)
class PromptChange:
    """A prompt that holds from a chunk on."""

    chunk_index: int
    words: str | None  # None: there are only embeddings
    embeds: torch.Tensor | None = None  # (1, L, text dim); None while the words are not encoded
    transition: int = 1  # chunks over which it is mixed in

    @property
    def prompt(self) -> str | torch.Tensor | None:
        """As the caller gave it."""
        return self.embeds if self.words is None else self.words

    def weight(self, chunk_index: int) -> float:
        """What it weighs at a chunk of its own, 1 after the transition; what was before it has the rest."""
        return 1.0 if self.chunk_index == 0 else min((chunk_index - self.chunk_index + 1) / self.transition, 1.0)


@dataclass(frozen=True, eq=False)
class PromptScript:
    """The prompts of one video, by chunk. A change is one that differs from what was before it."""

    changes: tuple[PromptChange, ...]  # in their order, the first at chunk 0
    reward_changes: tuple[PromptChange, ...] | None = None  # words that rewards read; None: those of the prompts
    cuts: tuple[int, ...] = ()  # chunks that begin with a scene cut

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", _without_repeats(self.changes))
        if self.reward_changes is not None:
            object.__setattr__(self, "reward_changes", _without_repeats(self.reward_changes))

    def words(self, chunk_index: int) -> str | None:
        """The prompt of a chunk; None where there are only embeddings."""
        return _last(self.changes, chunk_index).words

    def reward_prompt(self, chunk_index: int) -> str | None:
        """What rewards read at a chunk; None where there is nothing to read."""
        return _last(self.changes if self.reward_changes is None else self.reward_changes, chunk_index).words

    @property
    def reward_prompts(self) -> list[str | None]:
        """All that rewards read, in its order."""
        return [change.words for change in (self.changes if self.reward_changes is None else self.reward_changes)]

    def weight(self, chunk_index: int) -> float:
        """Of the chunk's prompt; below 1 in a transition."""
        return _last(self.changes, chunk_index).weight(chunk_index)

    def is_cut(self, chunk_index: int) -> bool:
        return chunk_index in self.cuts

    def as_recorded(self, chunk_index: int) -> dict[str, str | float | bool | None]:
        """What a trace keeps of a chunk's prompt."""
        return {
            "prompt": self.words(chunk_index),
            "reward_prompt": self.reward_prompt(chunk_index),
            "prompt_weight": self.weight(chunk_index),
            "is_cut": self.is_cut(chunk_index),
        }

    def stretch_begin(self, chunk_index: int) -> int:
        """The chunk of the last change before or at a chunk, of its prompt or of what rewards read."""
        changes = (*self.changes, *(self.reward_changes or ()))
        return max(change.chunk_index for change in changes if change.chunk_index <= chunk_index)

    def stretches(self, num_chunks: int) -> list[range]:
        """The chunks of a video, cut at the changes."""
        begins = sorted({self.stretch_begin(index) for index in range(num_chunks)})
        return [range(*ends) for ends in zip(begins, (*begins[1:], num_chunks), strict=True)]

    def embeds(self, chunk_index: int) -> torch.Tensor:
        """(1, L, text dim): the chunk's prompt as the transformer reads it, mixed in a transition."""
        change = _last(self.changes, chunk_index)
        if change.weight(chunk_index) == 1.0:
            return change.embeds
        return blend_prompts(self.embeds(change.chunk_index - 1), change.embeds, change.weight(chunk_index))

    def new_embeds(self, chunk_index: int) -> torch.Tensor | None:
        """`embeds` where they differ from those of the chunk before; None where they do not."""
        if not self._is_changing(chunk_index):
            return None
        before, embeds = self.embeds(chunk_index - 1), self.embeds(chunk_index)
        return None if timeline.same_prompt(before, embeds) else embeds

    def changing_chunks(self, num_chunks: int) -> list[int]:
        """Those of the first chunks at which a change begins or goes on."""
        return [index for index in range(1, num_chunks) if self._is_changing(index)]

    def _is_changing(self, chunk_index: int) -> bool:
        change = _last(self.changes, chunk_index)
        return 0 < change.chunk_index and chunk_index < change.chunk_index + change.transition

    def changed(self, change: PromptChange, reward_words: str | None = None) -> "PromptScript":
        """The script with a change; what it had at that chunk is replaced, what it has for later ones stays.

        Args:
            reward_words: what rewards read from there on, if that is not the prompt.
        """
        script = replace(self, changes=_with(self.changes, change))
        if reward_words is None:
            return script
        read = self.reward_changes
        if read is None:
            read = tuple(PromptChange(each.chunk_index, each.words) for each in self.changes)
        return replace(script, reward_changes=_with(read, PromptChange(change.chunk_index, reward_words)))

    def forget(self, chunk_index: int) -> "PromptScript":
        """The script without what neither this chunk nor a later one needs."""
        before = max(chunk_index - 1, 0)
        changes, rewards = _from(self.changes, before), self.reward_changes
        if changes[0].weight(before) < 1.0:  # it is being mixed in: of what came before it, the mix is kept
            begin = changes[0].chunk_index - 1
            given = replace(_last(self.changes, begin), chunk_index=begin, embeds=self.embeds(begin), transition=1)
            changes = (given, *changes)
        cuts = tuple(index for index in self.cuts if index >= chunk_index)
        return PromptScript(changes, None if rewards is None else _from(rewards, before), cuts)


def blend_prompts(source: torch.Tensor, target: torch.Tensor, weight: float) -> torch.Tensor:
    """Mixes two embedded prompts (1, L, text dim): a linear mix, of which every token has the mix of both norms.

    Args:
        weight: of `target`, in [0, 1].
    """
    if timeline.same_prompt(source, target):
        return source
    pair = (source.float(), target.float())
    mixed = torch.lerp(*pair, weight)
    norms = torch.lerp(*(each.norm(dim=-1, keepdim=True) for each in pair), weight)
    length = mixed.norm(dim=-1, keepdim=True)
    scale = torch.where(length > 0, norms / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
    return (mixed * scale).to(target.dtype)


def script_of(
    prompt: "str | torch.Tensor | timeline.PromptTimeline",
    reward_prompt: "str | timeline.PromptTimeline | None",
    *,
    transition: int,
    lengths: "geometry.VideoGeometry",
    num_chunks: int | None,
) -> PromptScript:
    """The script of a video's prompts as they are given, the words not encoded yet.

    Args:
        prompt: embeddings (1, L, text dim) or words.
        reward_prompt: what rewards read; None: the prompt.
        transition: chunks over which each change is mixed in.
        num_chunks: of the video; None: it has no end.

    Raises:
        ValueError: a prompt lies beyond the video, or holds for no chunk of it.
    """
    given, rewards = timeline.as_timeline(prompt), None
    chunks = _chunks("prompt", given.prompts, lengths, num_chunks)
    changes = []
    for chunk_index, each in chunks.items():
        words, embeds = (None, each) if torch.is_tensor(each) else (each, None)
        changes.append(PromptChange(chunk_index, words, embeds, max(transition, 1)))
    if reward_prompt is not None:
        read = _chunks("reward_prompt", timeline.as_timeline(reward_prompt).prompts, lengths, num_chunks)
        rewards = tuple(PromptChange(chunk_index, words) for chunk_index, words in read.items())
    cuts = tuple(_chunks("cuts", dict.fromkeys(given.cuts), lengths, num_chunks))
    return PromptScript(tuple(changes), rewards, cuts)


def check_embeds(script: PromptScript, text_dim: int, num_tokens: int) -> None:
    """Checks the embeddings of a script against the model's.

    Args:
        num_tokens: L of words that are encoded.

    Raises:
        ValueError: embeddings are of another model, not finite, or of another length than those with which they are
            to be mixed.
    """
    lengths = []
    for change in script.changes:
        if change.embeds is not None:
            of = f" of `prompt`, from chunk {change.chunk_index} on,"
            request_checks.check_prompt_embeds(change.embeds, text_dim, num_prompts=1, of=of)
        lengths.append(num_tokens if change.embeds is None else change.embeds.shape[1])
        if change.transition > 1 and change.chunk_index > 0 and lengths[-1] != lengths[-2]:
            raise ValueError(
                f"`transition` is {change.transition}, and the prompts before and after chunk {change.chunk_index} "
                f"have {lengths[-2]} and {lengths[-1]} tokens, which can't be mixed. Give embeddings of one length, "
                "or no `transition`."
            )


def check_cuts(script: PromptScript, positions: str, window_frames: int, policy_name: str) -> None:
    """
    Raises:
        ValueError: a memory policy has no place for scene cuts.
    """
    if script.cuts and positions != "relative":
        raise ValueError(
            "`cuts` of `prompt` set a chunk apart from its past by its position, and with absolute positions every "
            f'frame has its own. Use a memory policy with relative ones, such as {policy_name}(positions="relative").'
        )
    if script.cuts and window_frames > timeline.CUT_POSITION:
        raise ValueError(
            f"`cuts` of `prompt` put a chunk at position {timeline.CUT_POSITION}, and `window_frames` is "
            f"{window_frames}: the past would reach there. Leave the cuts out."
        )


def _chunks(
    name: str, by_frame: dict[int, object], lengths: "geometry.VideoGeometry", num_chunks: int | None
) -> dict[int, object]:
    """The values by the chunk from which each holds."""
    chunks: dict[int, object] = {}
    for frame, value in by_frame.items():
        chunk_index = lengths.chunk_at(frame)
        first_frame = lengths.first_frame(chunk_index)
        if num_chunks is not None and chunk_index >= num_chunks:
            last = lengths.first_frame(num_chunks - 1)
            raise ValueError(
                f"`{name}` has frame {frame}, and the last chunk of this video begins at frame {last}. Use {last} or "
                "less, or a longer video."
            )
        if chunk_index in chunks:
            raise ValueError(
                f"`{name}` has two frames, {frame} and one before, that hold from the same chunk on, which begins at "
                f"frame {first_frame}. Use {lengths.first_frame(chunk_index + 1)} or more for the later one."
            )
        chunks[chunk_index] = value
    return chunks


def _last(changes: tuple[PromptChange, ...], chunk_index: int) -> PromptChange:
    return next(change for change in reversed(changes) if change.chunk_index <= chunk_index)


def _without_repeats(changes: tuple[PromptChange, ...]) -> tuple[PromptChange, ...]:
    kept: list[PromptChange] = []
    for change in changes:
        if not kept or not timeline.same_prompt(kept[-1].prompt, change.prompt):
            kept.append(change)
    return tuple(kept)


def _with(changes: tuple[PromptChange, ...], change: PromptChange) -> tuple[PromptChange, ...]:
    others = [each for each in changes if each.chunk_index != change.chunk_index]
    return tuple(sorted((*others, change), key=lambda each: each.chunk_index))


def _from(changes: tuple[PromptChange, ...], chunk_index: int) -> tuple[PromptChange, ...]:
    """The change that is in force at a chunk, and those after it."""
    return changes[changes.index(_last(changes, chunk_index)) :]
