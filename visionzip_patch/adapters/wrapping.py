"""Methods of one instance, wrapped and put back; its class stays untouched. Knows no family of models."""

from collections.abc import Callable
from functools import partial
from inspect import Parameter, signature
from types import MethodType
from typing import Any


def wrap(owner, *methods: Callable) -> None:
    """Put functions `method(owner, original, *args, **kwargs)` on this instance in place of its methods of their names.

    A replica that `nn.DataParallel` makes of the instance gets its own.
    """
    for method in (*methods, _replicate_for_data_parallel):
        bind(owner, method, getattr(owner, method.__name__))


def bind(owner, method: Callable, original: Callable) -> None:
    """Put `method(owner, original, *args, **kwargs)` on an instance, under its own name."""
    wrapped: Any = partial(method, owner, original)
    wrapped.__wrapped__ = original  # its signature: transformers looks
    setattr(owner, method.__name__, wrapped)


def unwrap(owner, *methods: Callable) -> None:
    """Undo `wrap`, back to the class's methods or to those that were on the instance before.

    Where something else has wrapped one in turn, it stays inside, and without a reducer it changes nothing.
    """
    for method in (*methods, _replicate_for_data_parallel):
        wrapped = vars(owner)[method.__name__]
        if getattr(wrapped, "func", None) is not method:
            continue
        delattr(owner, method.__name__)
        if getattr(owner, method.__name__) != wrapped.__wrapped__:
            setattr(owner, method.__name__, wrapped.__wrapped__)


def _replicate_for_data_parallel(owner, original: Callable):
    """Do as the method it replaces; wrapped methods call the replica, where copies of attributes would call `owner`."""
    replica = original()
    for wrapped in list(vars(owner).values()):
        if isinstance(wrapped, partial) and wrapped.args and wrapped.args[0] is owner:
            inside = vars(wrapped)["__wrapped__"]
            is_own = isinstance(inside, MethodType) and inside.__self__ is owner
            bind(replica, wrapped.func, MethodType(inside.__func__, replica) if is_own else inside)
    return replica


def named(original: Callable, args: tuple, kwargs: dict) -> dict:
    """Return all arguments by name. Raises TypeError for a call that `original` would not take."""
    call = signature(original)
    given = dict(call.bind(*args, **kwargs).arguments)
    for name, parameter in call.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
        elif parameter.kind is Parameter.VAR_POSITIONAL and given.pop(name, ()):
            raise TypeError("This method was replaced by one that has no names for its arguments: pass them by name.")
    return given
