"""Names that come from data and become a part of a path: experiments, keys, files of a manifest.

Rows, plans, notes and manifests of a shared store are data like any other: what a name in them says
is checked here, by one function, where it becomes a path. It is no check of whole paths that a user
gives: those are the user's own.
"""

from recipe_ray.base.errors import StoreError

MAX_BYTES = 200  # of 255 that file systems take, so that a suffix still fits
RESERVED = '/\\<>:"|?*'  # separators here or elsewhere, and what other systems refuse


def path_part(name: object, what: str) -> str:
    """Return `name`, which can be one part of a path; `what` names it in errors.

    Raises StoreError for what is no text, empty, absolute, `..` or hidden, holds a separator, a
    reserved or an unprintable character (NUL among them), or is longer than 200 bytes.
    """
    wrong = _wrong(name)
    if wrong is not None:
        shown = ascii(name)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        raise StoreError(
            f"{what} {shown} cannot be a part of a path: {wrong}. Use letters, digits and . _ -, "
            "the first one a letter, a digit or _"
        )
    return str(name)


def _wrong(name: object) -> str | None:
    if not isinstance(name, str):
        return f"it is {type(name).__name__}, not text"
    if not name:
        return "it is empty"
    if name.startswith("."):
        return "it begins with a dot, as .. and hidden files do"
    if not name.isprintable():
        return "it holds an unprintable character"
    if found := sorted(set(name) & set(RESERVED)):
        return f"it holds {' '.join(found)}"
    if name.endswith((" ", ".")) or name.startswith(" "):
        return "it begins with a space, or ends with a space or a dot"
    if len(name.encode()) > MAX_BYTES:
        return f"it has {len(name.encode())} bytes, at most {MAX_BYTES} are allowed"
    return None
