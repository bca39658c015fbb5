"""A running stream, whose prompt may be changed."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch

from . import geometry, outputs, prompt_search, request_checks, script, timeline


@dataclass(frozen=True, eq=False)
class AskedChange:
    """A change of a stream's prompt that waits for the next chunk."""

    prompt: str | torch.Tensor
    transition: int
    reward_prompt: str | None

    def at(self, chunk_index: int, embeds: torch.Tensor | None = None) -> "script.PromptChange":
        """The change as one of a script, with the embeddings of its words if they are known."""
        is_text = isinstance(self.prompt, str)
        words, embeds = (self.prompt, embeds) if is_text else (None, self.prompt if embeds is None else embeds)
        return script.PromptChange(chunk_index, words, embeds, max(self.transition, 1))


class StreamControl:
    """What a stream's generator and its user share, so that neither holds the other."""

    def __init__(self, first: "script.PromptScript") -> None:
        self.first = first  # the script of a stream that has not begun
        self.search: prompt_search.PromptSearch | None = None  # while it runs
        self.asked: AskedChange | None = None  # the latest that no chunk has taken up
        self.is_over = False  # whether no chunk will be made any more

    def take(self) -> AskedChange | None:
        asked, self.asked = self.asked, None
        return asked

    def close(self) -> None:
        self.search, self.is_over = None, True


class VideoStream(Iterator):
    """The chunks of a video, each as soon as it can change no more: `for chunk in pipe.stream(...)`.

    Args:
        chunks: makes them.
        control: shared with `chunks`.
        check: raises for a script that the models or the rewards of the run cannot serve.
    """

    def __init__(
        self,
        chunks: "Generator[outputs.StreamChunk, None, None]",
        control: StreamControl,
        check: "Callable[[script.PromptScript], None]",
    ) -> None:
        self._chunks, self._control, self._check = chunks, control, check

    def __next__(self) -> "outputs.StreamChunk":
        return next(self._chunks)

    def close(self) -> None:
        """Ends the stream and frees all that its search held."""
        self._chunks.close()
        self._control.close()

    def change_prompt(
        self, prompt: str | torch.Tensor, transition: int = 0, *, reward_prompt: str | None = None
    ) -> None:
        """Changes the prompt from the next chunk that is made on, until a `PromptTimeline` of the call says another.

        Chunks that are made keep their prompt, also those that are not given yet because beams disagree about them.
        The last of several changes before a chunk is the one that counts.

        Args:
            prompt: a text, or embeddings (1, L, text dim).
            transition: chunks over which it is mixed in; 0 is 1, a hard change.
            reward_prompt: what rewards read from there on. Default: the prompt, or the call's `reward_prompt`.

        Raises:
            TypeError, ValueError: the prompt is none that this run can read, it cannot be mixed in, or the stream has
                ended.
        """
        control = self._control
        if control.is_over:
            raise ValueError("The stream has ended: no chunk will be made under another prompt.")
        timeline.check_one_prompt("prompt", prompt)
        if reward_prompt is not None:
            request_checks.check_texts(reward_prompt)
        asked = AskedChange(prompt, geometry.whole_number("transition", transition, least=0), reward_prompt)
        search = control.search
        now, index = (control.first, 0) if search is None else (search.inputs.script, search.chunk_index)
        self._check(now.changed(asked.at(index), reward_prompt))
        control.asked = asked
