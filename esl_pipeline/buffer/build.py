"""Numbers the functions' build: `python -m esl_pipeline.buffer.build`, after every change of functions/*.sql.

functions/BUILD holds the number and the digest that it stands for. Of two builds with one version of the tables the
higher number is the newer one: code of the lower neither works with its functions nor replaces them. Where two branches
have met in that file, the command settles it: the next number after both.
"""

import re
from pathlib import Path

from esl_pipeline.buffer.migrate import functions_digest

FILE = Path(__file__).parent / "functions" / "BUILD"


def next_build(text: str, digest: str) -> str:
    """What the file must say for functions of this digest, by what it says now."""
    numbered = {
        int(number): of for number, of in re.findall(r"^([0-9]+) ([0-9a-f]{64})$", text, re.MULTILINE)
    }
    last = max(numbered, default=0)
    return f"{last if numbered.get(last) == digest else last + 1} {digest}\n"


if __name__ == "__main__":
    text = next_build(FILE.read_text(encoding="utf-8") if FILE.exists() else "", functions_digest())
    FILE.write_text(text, encoding="utf-8")
    print(f"the functions are of build {text.split()[0]}")
