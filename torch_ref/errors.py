"""The one exception for what a user got wrong; commands print its text and exit with code 2."""


class UserError(ValueError):
    """A flag, file, shape or data set that cannot be used.

    The message is one or two lines: what is wrong, what was expected, what to do.
    """
