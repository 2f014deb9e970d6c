"""What a job itself wrote, without the lines Ray copies to it from other processes.

Ray's threads copy them at any moment: a line of a process that outlived an earlier test may come
before or between the lines of this one.
"""

import re

COPIED = re.compile(r"\x1b\[\d+m\(.*?\b(pid|ip)=[^)]*\)")


def own_lines(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not COPIED.match(line))
