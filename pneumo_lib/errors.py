"""The errors of this library: each says what was found, where, what was expected and what to do.

Every child carries the exit status that the command line ends with.
"""


class PneumoError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a bug."""

    exit_code = 1


class UsageError(PneumoError):
    """A parameter, name or option that does not exist or lies outside its range."""

    exit_code = 2


class DataError(PneumoError):
    """A data set that cannot be used as it is: missing class, unreadable files, no such folder."""

    exit_code = 3


class ImageError(DataError):
    """One file that cannot be read as a film.

    Attributes:
        code: short machine-readable name of the fault, for example ``incomplete`` or ``not_an_image``.
    """

    def __init__(self, message: str, *, code: str):
        super().__init__(message)
        self.code = code


class TrainingError(PneumoError):
    """Training that cannot go on: a loss that is not a number, a checkpoint of another configuration."""

    exit_code = 4


class ReportError(PneumoError):
    """A report that could not be made whole: a failed notebook, an unresolved image."""

    exit_code = 5


class ServiceError(PneumoError):
    """A request that the diagnosis service cannot answer, or a service that cannot start.

    Attributes:
        code: short machine-readable name of the fault; `service.faults` gives it an HTTP status and a hint.
    """

    exit_code = 6

    def __init__(self, message: str, *, code: str):
        super().__init__(message)
        self.code = code
