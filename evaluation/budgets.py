"""What a budget pays for, in chunk forwards: passes of the transformer over a chunk, whatever they are for.

A budget of B forwards per chunk stands for B / n plain samples, n being the denoising steps: for all of their
denoising and all of their clean passes. The best of so many videos spends that exactly; any other search may spend as
much on a whole video, its clean passes and roll-outs included, in any way.
"""

from ..search.choice import search_work
from ..search.search_names import SearchText


def allowed_forwards(budget: int, num_steps: int, num_chunks: int) -> int:
    """Chunk forwards of a video that a budget pays for; the last chunk of a sample has no clean pass."""
    return budget // num_steps * (num_chunks * num_steps + num_chunks - 1)


def search_forwards(search: object, num_steps: int, num_chunks: int) -> tuple[int, int]:
    """The fewest and the most chunk forwards that a search takes for a video.

    Raises:
        ValueError: it can't make such a video, or does not say what it does.
    """
    if hasattr(search, "check"):
        search.check(num_steps, num_chunks)
    totals = []
    for side in (0, 1):
        total, num_parents = 0, 1
        for chunk_index in range(num_chunks):
            work = search_work(search, chunk_index, num_parents, num_chunks)[side]
            total += work.chunk_forwards(num_steps, is_last=chunk_index == num_chunks - 1)
            num_parents = work.kept
        totals.append(total)
    least, most = totals
    return least, most


def search_within(written: SearchText, budget: int, num_steps: int, num_chunks: int) -> object:
    """The search of a text at a budget.

    Where the text leaves its scaling number open, that is the largest with which the search can't exceed the budget.
    Otherwise the search is taken if it may stay within the budget: what it spends on average is for the report to say.

    Raises:
        TypeError, ValueError: there is no such search or number; the message has the nearest that would do.
    """
    allowed, place = allowed_forwards(budget, num_steps, num_chunks), written.scale
    is_open = bool(place) and written.at(place) is None
    if not is_open:
        search = written.build()
        least, _ = search_forwards(search, num_steps, num_chunks)
        if least <= allowed:
            return search
    found, cheapest = _largest(written, place, allowed, num_steps, num_chunks, side=1 if is_open else 0)
    if is_open and found is not None:
        return found.build()
    cost = cheapest if is_open else least
    told = f"{str(written)!r} takes {cost} chunk forwards or more for {num_chunks} chunks of {num_steps} steps"
    if is_open:
        told = f"{str(written)!r} may take {cost} chunk forwards, with the smallest `{place[-1]}` that it has"
    needed = num_steps * -(-cost // allowed_forwards(num_steps, num_steps, num_chunks))
    advice = "" if found is None else f"{place[-1]}={found.at(place)} or less, or "
    raise ValueError(
        f"{told}; a budget of {budget} per chunk allows {allowed}. Use {advice}a budget of {needed} or more."
    )


def _largest(
    written: SearchText, place: tuple[str, ...], allowed: int, num_steps: int, num_chunks: int, side: int
) -> tuple[SearchText | None, int | None]:
    """The text with the largest scaling number whose fewest (side 0) or most (side 1) forwards are allowed, and the
    forwards with the smallest number that the search takes.

    Raises:
        ValueError: it takes none.
    """
    found, cheapest, problem = None, None, None
    for number in range(1, allowed // num_chunks + 1 if place else 1):  # each costs a forward of every chunk, or more
        scaled = written.having(place, number)
        try:
            cost = search_forwards(scaled.build(), num_steps, num_chunks)[side]
        except ValueError as error:  # too few for its other numbers
            problem = error
            continue
        cheapest = cost if cheapest is None else cheapest
        if cost > allowed:
            break
        found = scaled
    if cheapest is None and problem is not None:
        raise problem
    return found, cheapest
