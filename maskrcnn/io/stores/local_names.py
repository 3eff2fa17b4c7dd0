"""Names of local files as other systems write them, and the file that each of them means."""

import os
import re

from ..url import Url, undecoded_path


def as_found(uri: str) -> str:
    r"""Return the name under which a local file is found, or the uri as it is if that, or no name, leads to a file.

    Where the name with `\` is missing, `/` takes its place, as in the paths that Windows writes; and where the decoded
    path of a file URI is missing, its path is taken literally. URLs of stores and of the web are returned as they are.
    """
    url = Url.parse(uri)
    if not url.is_local or os.path.lexists(url.key):
        return uri
    literal = undecoded_path(uri)
    others = dict.fromkeys((url.key.replace("\\", "/"), literal, literal.replace("\\", "/")))
    found = next((other for other in others if other != url.key and os.path.lexists(other)), None)
    return uri if found is None else re.sub(r"/(?:\./)+", "/", found)
