"""The search that makes the best video of a trace again."""

from collections.abc import Mapping
from dataclasses import replace

from . import beam, choice, given_past, memory_sinking, policy_config, script, trace

INPUTS = (  # what a trace does not hold
    "prompt",
    "prompt_embeds",
    "latents",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "attention_kwargs",
    "memory",
    *given_past.PIXELS,
    *given_past.LATENTS,
    "resize",
)
OUTPUT = ("output_type", "return_dict")


class Repeated:
    """Makes the candidates of a path, one a chunk, and gives each the scores and the route that it had."""

    drops = False
    takes_given = True  # given chunks too have the routes that they had

    def __init__(self, path: "tuple[trace.CandidateTrace, ...]") -> None:
        self.path = path

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        told = self.path[steps.chunk_index]
        if steps.is_given:
            (candidate,) = steps.given(beams)
        else:
            (candidate,) = steps.denoise(beams, [steps.candidate_of(beams[0], 0, told.seed)])
        scores = {name: getattr(told, name) for name in ("short", "long", "score", "route")}
        return choice.Choice([replace(candidate, **scores)], [0] if candidate.lost is None else [])


def check_repeatable(record: "trace.SearchTrace", inputs: Mapping[str, object]) -> "tuple[trace.CandidateTrace, ...]":
    """The best video's path, found to be one that can be made again.

    Args:
        inputs: what is given beside the trace, by the names of the call's arguments.

    Raises:
        TypeError: something is given that the trace has.
        ValueError: the trace is unfinished, of an endless stream, or does not hold what the video was made of.
    """
    config = record.config
    if config.get("num_frames") is None:
        raise ValueError("This trace is of an endless stream, and does not go back to its beginning.")
    path = tuple(record.best_path())
    foreign = [name for name in inputs if name not in (*INPUTS, *OUTPUT)]
    if foreign:
        raise TypeError(
            f"`replay` was given `{foreign[0]}`, which the trace has. It takes {', '.join((*INPUTS, *OUTPUT))}."
        )
    wanted = config.get("given_inputs", ["prompt_embeds"] if config.get("prompt") is None else [])
    past = (*given_past.PIXELS, *given_past.LATENTS)
    has_past = any(name in inputs for name in past)  # in pixels or latents
    missing = [name for name in wanted if name not in inputs and not (name in past and has_past)]
    if missing:
        raise ValueError(
            f"The video was made with {' and '.join(f'`{name}`' for name in missing)}, which a trace does not hold; "
            f"give it again: `pipe.replay(trace, {missing[0]}=...)`."
        )
    for index, candidate in enumerate(path):
        if candidate.own not in ([], ["given"]):
            raise ValueError(
                f"Chunk {index} was made with {' and '.join(candidate.own)} of the search's own, which a trace does "
                "not hold: this video can't be made again from it."
            )
    words = [chunk.prompt for chunk in record.chunks[: len(path)]]
    if None in words and any(words) and "prompt" not in inputs:
        raise ValueError(
            f"Chunk {words.index(None)} was made under embeddings, which a trace does not hold; give all that the "
            "video showed: `pipe.replay(trace, prompt=PromptTimeline(...))`."
        )
    name = config["memory"]["policy"]
    given = inputs.get("memory")
    if given is None and name not in policy_config.SHIPPED_POLICIES:
        raise ValueError(
            f"The video was made with the memory policy {name}, which does not ship; give it as `memory`."
        )
    if given is not None and choice.search_name(given) != name:
        raise ValueError(f"`memory` is {choice.search_name(given)}, and the video was made with {name}.")
    return path


def script_of(record: "trace.SearchTrace", num_chunks: int) -> "script.PromptScript | None":
    """What the first chunks of a trace's video showed, as words; None where some have none.

    It is what was really shown: a stream's prompt may have changed while it ran.
    """
    words = [chunk.prompt for chunk in record.chunks[:num_chunks]]
    if None in words:  # embeddings, or an older trace
        prompt = record.config["prompt"]
        return script.PromptScript((script.PromptChange(0, prompt),)) if isinstance(prompt, str) else None
    changes = [
        script.PromptChange(index, chunk.prompt, None, max(round(1 / chunk.prompt_weight), 1))
        for index, chunk in enumerate(record.chunks[:num_chunks])
        if index == 0 or chunk.prompt != words[index - 1]
    ]
    cuts = tuple(index for index, chunk in enumerate(record.chunks[:num_chunks]) if chunk.is_cut)
    return script.PromptScript(tuple(changes), None, cuts)


def policy_of(config: "Mapping[str, trace.Json]") -> "memory_sinking.MemoryPolicy":
    """The shipped policy of a trace's config."""
    numbers = {name: float(value) if value in ("inf", "-inf") else value for name, value in config["memory"].items()}
    return policy_config.policy_from_config(numbers)
