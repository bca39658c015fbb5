"""A method with the arguments of a request, which are named in the request and nowhere else."""

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
Request = TypeVar("Request")
Pipeline = TypeVar("Pipeline")
Result = TypeVar("Result")


def takes_request(
    request: Callable[P, Request],
) -> Callable[[Callable[[Pipeline, Request], Result]], Callable[Concatenate[Pipeline, P], Result]]:
    """Gives a method that takes a request the request's own arguments, in its signature and its documentation."""
    arguments = inspect.signature(request).parameters.values()

    def decorate(method: Callable[[Pipeline, Request], Result]) -> Callable[Concatenate[Pipeline, P], Result]:
        @functools.wraps(method)
        def called(self: Pipeline, *args: P.args, **kwargs: P.kwargs) -> Result:
            try:
                called.__signature__.bind(self, *args, **kwargs)
            except TypeError as error:  # in the method's name, not in the request's
                raise TypeError(f"{method.__name__}() {error}") from None
            return method(self, request(*args, **kwargs))

        own = inspect.signature(method)
        first = next(iter(own.parameters.values()))
        called.__signature__ = own.replace(parameters=[first, *arguments])
        before, returns, after = inspect.cleandoc(method.__doc__).partition("Returns:\n")
        called.__doc__ = f"{before}{_arguments_section(request)}\n\n{returns}{after}"
        return called

    return decorate


def _arguments_section(request: type) -> str:
    sections = [inspect.cleandoc(kind.__doc__).partition("\n\n")[2] for kind in reversed(request.__mro__[:-1])]
    return "\n".join((sections[0], *(section.removeprefix("Args:\n") for section in sections[1:])))
