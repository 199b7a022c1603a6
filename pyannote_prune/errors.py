"""The one exception that stands for "your input is wrong", as opposed to a bug of ours."""


class InputError(ValueError):
    """Bad input, told in one sentence: what was given, what is wrong with it, what would be right.

    The command line prints it and exits with code 2; library users may catch it as a `ValueError`.
    """


def describe(error: Exception) -> str:
    """An error on one line, to be part of one of ours: if it is not ours already, its kind and its first words."""
    words = " ".join(str(error).split())
    return words if isinstance(error, InputError) else f"{type(error).__name__}: {words[:200]}"
