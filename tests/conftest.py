"""Type and shape checks for the whole package, switched on before it is imported; and no test is a race."""

import functools
import inspect
from typing import Any

import jaxtyping
from beartype import beartype
from hypothesis import settings

_thoroughly = jaxtyping.jaxtyped
# Within it, axes of one name have one size; contexts nest as calls do.
_axes = jaxtyping.jaxtyped("context")


def _checked(decorated: Any = None, *, typechecker: Any) -> Any:
    """Check arguments and what is returned, as `jaxtyped` does, in a fraction of its time.

    `jaxtyped` binds arguments and checks them twice a call, for the sake of its messages: that took half of the time
    of the tests. Here one wrapper of beartype checks all, in a context of its own for the names of axes.
    """
    if decorated is None:
        return functools.partial(_checked, typechecker=typechecker)
    if inspect.isclass(decorated):
        # A data class checks its fields in `__init__`; what it inherits is checked there already.
        if "__dataclass_fields__" in vars(decorated) and "__init__" in vars(decorated):
            decorated.__init__ = _checked(decorated.__init__, typechecker=typechecker)
        return decorated
    if not inspect.isfunction(decorated) or inspect.isgeneratorfunction(decorated):
        return _thoroughly(decorated, typechecker=typechecker)
    if any(isinstance(annotation, str) for annotation in decorated.__annotations__.values()):
        # Names that are imported for type checkers only are nothing that beartype finds.
        return _thoroughly(decorated, typechecker=typechecker)
    checking = beartype(decorated)
    if checking is decorated:
        return decorated

    @functools.wraps(decorated)
    def call(*arguments: Any, **options: Any) -> Any:
        with _axes:
            return checking(*arguments, **options)

    return call


# The import hook decorates every function and class of the package with what it finds by this name.
jaxtyping.jaxtyped = _checked
jaxtyping.install_import_hook("relict_lightning", "beartype.beartype")

# Machines are shared, and what is fast enough on one is not on another.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
