import inspect

import pytest

from relict_lightning import errors
from relict_lightning.errors import RelictError, RelictWarning

DERIVED = [
    value for value in vars(errors).values() if inspect.isclass(value) and value not in (RelictError, RelictWarning)
]


def test_there_are_errors_to_look_at():
    assert len(DERIVED) >= 10


@pytest.mark.parametrize("error", DERIVED)
def test_every_error_derives_from_the_root_and_from_the_builtin_that_it_refines(error):
    builtins = [base for base in error.__mro__ if base.__module__ == "builtins" and base not in (object, BaseException)]

    assert issubclass(error, RelictError)
    assert builtins[0] is not Exception


@pytest.mark.parametrize("error", DERIVED)
def test_every_error_keeps_its_message(error):
    assert str(error("expected 3, got 4")) == "expected 3, got 4"


@pytest.mark.parametrize("error", [RelictError, RelictWarning, *DERIVED])
def test_every_class_says_when_it_is_raised(error):
    assert error.__doc__


def test_the_warning_is_a_user_warning():
    assert issubclass(RelictWarning, UserWarning)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidImageError, ValueError),
        (errors.EmptyDataError, ValueError),
        (errors.NotFittedError, RuntimeError),
        (errors.IndexCorruptError, OSError),
        (errors.IndexStaleError, ValueError),
        (errors.SamplerError, ValueError),
        (errors.MissingDependencyError, ImportError),
        (errors.ConfigurationError, ValueError),
    ],
)
def test_builtin_except_clauses_keep_working(error, builtin):
    assert issubclass(error, builtin)
