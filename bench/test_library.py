"""The library that the tests of these tools are run with."""
import magi

PATH = None
LOADED = None


def library():
    """The library under test, loaded once."""
    global LOADED
    if LOADED is None:
        LOADED = magi.Library(PATH)
    return LOADED
