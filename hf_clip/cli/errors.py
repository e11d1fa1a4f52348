"""The error of a command line that cannot be carried out."""


class CommandError(ValueError):
    """Raised where the command line asks for something that cannot be done."""
