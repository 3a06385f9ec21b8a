"""The two kinds of error that the command line turns into an exit code and one sentence."""


class InputError(ValueError):
    """The caller's mistake (exit 2). The message names the argument, the rule and the value."""


class StageError(RuntimeError):
    """A failure of the work itself (exit 1). The message is one sentence."""
